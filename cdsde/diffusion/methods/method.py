"""What a method is: one object that says all that the programs need to know of it.

Nothing here, and nothing at the top of a method's file, imports JAX: the command line reads the
settings of every method and must answer a mistyped key at once. So a method imports its energies
inside the functions that use them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """One key of a config.

    Attributes:
      default: its value; a type where it may also be None, which then is the default.
      meaning: what it does, for a user; "None: ..." says what None stands for.
      choices: the values allowed; empty where every value of the type is.
      minimum: the least number allowed.
      changeable: whether a compiled translation takes another value without compiling again.
        Only numbers that become a weight or a level can be; all else is part of the program.
      slider: what the page calls it; "" where the page does not show it.
    """

    default: Any
    meaning: str
    choices: tuple = ()
    minimum: float | None = None
    changeable: bool = False
    slider: str = ""


class Term(NamedTuple):
    """One energy of a method, how much it weighs, and the view of the source it refers to.

    Attributes:
      energy: `networks -> Energy` (energies.py); `networks` maps a network's name to a function
        with its parameters bound, and "domain_direction" to an `energies.DomainDirection`.
      weight: λ, a number, or `index [S] -> λ [S]` where it depends on the noise level.
      view: `x0 -> x0`; the energy's reference x_t is this view of the source, perturbed to level t.
      quadratic: whether the energy is ‖Ay - b‖². With `sample.follow` its weight is then that of
        composition.py, equation (2).
    """

    energy: Callable
    weight: float | Callable
    view: Callable = lambda x0: x0
    quadratic: bool = False


class Projection(NamedTuple):
    """What is done to the state after each step.

    Attributes:
      apply: `(y, x_t) -> y`; x_t is the source, freshly perturbed.
      level: the level of x_t: "previous" (where the step arrived) or "same" (where it began).
    """

    apply: Callable
    level: str = "previous"


class Method(NamedTuple):
    """A method of translation by a guided reverse SDE.

    Functions take the method's settings, its group of the config. They are called on the host when
    levels and weights are computed, and again when the program is traced.

    Attributes:
      name: of the method in `config.method`, and of its group of settings.
      title: how it is called in print.
      settings: its keys. "start" is M, the number of noise levels below the start.
      networks: names of the networks that it runs, in the order in which they are trained.
      start: `settings -> ((x, e, alpha_bar) -> y)`, the state before the first step; x is the
        source, or the result of the round before, e ~ N(0, I), alpha_bar that of level M-1.
        None: the perturbed source √ᾱ x + √(1-ᾱ) e.
      terms: `settings -> (Term, ...)`.
      projection: `settings -> Projection`, or None.
      combine: `(gradients, y, i) -> g` of the terms' weighted gradients `[B, H, W, C]`. None: their
        sum, in one backward pass.
      domain_images: `settings ->` of how many training images of each domain "domain_direction" is
        computed; 0: the method has none.
    """

    name: str
    title: str
    settings: Mapping[str, Setting]
    networks: tuple[str, ...] = ("score",)
    start: Callable | None = None
    terms: Callable = lambda settings: ()
    projection: Callable = lambda settings: None
    combine: Callable | None = None
    domain_images: Callable = lambda settings: 0

    def changeable(self) -> tuple[str, ...]:
        """Names of the settings that change without compiling again."""
        return tuple(name for name, setting in self.settings.items() if setting.changeable)


def start_setting(default: int) -> Setting:
    """M, which every method has."""
    return Setting(
        default,
        "M, index + 1 of the noise level at which the reverse SDE starts.",
        minimum=1,
        changeable=True,
        slider="M, start level",
    )
