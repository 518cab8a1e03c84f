"""The definition of a method: one object with everything that the programs need.

Neither this module nor the top of a method's file imports JAX: the command line reads the settings
of every method and must report a mistyped key at once. A method therefore imports its energies
inside the functions that use them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """One key of a config.

    Attributes:
      default: the default value. A type means that the key may be None, and is None by default.
      meaning: its effect, written for users; "None: ..." explains the value None.
      choices: the allowed values; empty where every value of the type is allowed.
      minimum, maximum: the smallest and the largest allowed number; of a tuple, of each number.
      above, below: limits that are themselves not allowed.
      changeable: whether a compiled translation accepts another value without a new compilation.
        Only numbers that become a weight or a level qualify; other settings are part of the
        compiled program.
      slider: its label on the demo page; "" where the page does not show it.
    """

    default: Any
    meaning: str
    choices: tuple = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    changeable: bool = False
    slider: str = ""

    @property
    def limits(self) -> str:
        """The allowed numbers in words, such as "at least 0 and below 1"; "" without limits."""
        words = {
            "at least": self.minimum,
            "above": self.above,
            "at most": self.maximum,
            "below": self.below,
        }
        return " and ".join(f"{word} {x}" for word, x in words.items() if x is not None)

    def allows(self, number: float) -> bool:
        """Whether a number lies within the limits; NaN does not."""
        return (
            (self.minimum is None or number >= self.minimum)
            and (self.above is None or number > self.above)
            and (self.maximum is None or number <= self.maximum)
            and (self.below is None or number < self.below)
            and number == number
        )


class Term(NamedTuple):
    """One energy of a method, its weight, and the view of the source that is its reference.

    Attributes:
      energy: `networks -> Energy` (energies.py); `networks` maps each network's name to a function
        with bound parameters, and "domain_direction" to an `energies.DomainDirection`.
      weight: λ, a number, or `index [S] -> λ [S]` where it depends on the noise level.
      view: `(networks, x0) -> view`, what the energy compares with, computed once from the source;
        the source itself by default.
      reference: `(view, e, alpha_bar) -> reference` at a level; None: the perturbed view.
      quadratic: whether the energy has the form ‖Ay - b‖². With `sample.follow`, such an energy
        gets the weight of composition.py, equation (2).
    """

    energy: Callable
    weight: float | Callable
    view: Callable = lambda networks, x0: x0
    reference: Callable | None = None
    quadratic: bool = False


class Projection(NamedTuple):
    """A projection of the state after each step.

    Attributes:
      apply: `(y, x0, z, level) -> y`, with the source x0 and fresh noise z; images are
        `[B, H, W, C]`; `level` is the row of the grid of the step.
    """

    apply: Callable


class Steering(NamedTuple):
    """A map S of a step's mean, in place of guidance by the energies' gradients (steered.py).

    Attributes:
      mean: `(y, mean, gradients, x0, level, weights) -> y`, with the gradient `[B, H, W, C]` and
        the weight of each term; it is not asked at levels where all weights are 0.
      moves: `index [S] -> number of moves before the step [S]`, on the host.
    """

    mean: Callable
    moves: Callable


class Method(NamedTuple):
    """A method of translation by a guided reverse SDE.

    The functions take `settings`, the method's group of the config. They run on the host, which
    computes levels and weights, and again when the program is traced.

    Attributes:
      name: its name in `config.method`, and the name of its group of the config.
      title: its name in tables and on the demo page.
      settings: its keys. "start" is M, the number of noise levels below the start.
      networks: names of the networks that it runs, in the order in which they are trained, or
        `settings -> names`.
      start: `settings -> ((x, e, alpha_bar) -> y)`, the state before the first step, with the
        source or previous result x, e ~ N(0, I) and ᾱ of level M-1. None: the perturbed source
        √ᾱ x + √(1-ᾱ) e.
      invert: `settings -> ((x0, networks, rows, noise, solver) -> (y, noises))`, in place of
        `start`: the state before the first step, and the noises `[S, B, H, W, C]` of all steps or
        None where they are drawn, both found from the source x0; `rows` are those of solvers.rows.
      refine: `settings -> (M, rounds)`; the result is perturbed to level M-1 and denoised by the
        SDE, `rounds` times; `(0, 0)`: not.
      contrast: `settings -> λ_c`, the weight of the contrast of the networks "score" and
        "source_score" (score_contrast.py) in the predicted noise; 0: that of "score" alone.
      terms: `settings -> (Term, ...)`.
      steer: `settings -> Steering`, or None.
      projection: `settings -> Projection`, or None for no projection.
      combine: `(gradients, y, i) -> g` combines the terms' weighted gradients `[B, H, W, C]`. None:
        their sum, in one backward pass.
      domain_images: `settings -> N`, the number of training images per domain from which
        "domain_direction" is computed, in the features of the network "encoder"; 0: the method
        does not use it.
      sampling: the keys of `sample` and their values with which it is published, or
        `config -> keys and values`, if it does not go with every solver. A method chosen by an
        override brings them along.
      check: `(settings, config) -> None`, raises ValueError where settings do not fit each other
        or the rest of the config.
    """

    name: str
    title: str
    settings: Mapping[str, Setting]
    networks: tuple[str, ...] | Callable = ("score",)
    start: Callable | None = None
    invert: Callable = lambda settings: None
    refine: Callable = lambda settings: (0, 0)
    contrast: Callable = lambda settings: 0.0
    terms: Callable = lambda settings: ()
    steer: Callable = lambda settings: None
    projection: Callable = lambda settings: None
    combine: Callable | None = None
    domain_images: Callable = lambda settings: 0
    sampling: Mapping[str, Any] | Callable = {}
    check: Callable = lambda settings, config: None

    def needed(self, settings) -> tuple[str, ...]:
        """Names of the networks that it runs with these settings."""
        return self.networks(settings) if callable(self.networks) else self.networks

    def brings(self, config) -> Mapping[str, Any]:
        """The keys of `sample` and their values that it brings along."""
        return self.sampling(config) if callable(self.sampling) else self.sampling

    def eta(self, config) -> float:
        """η of the run's solver: where the config has None, as the method is published, else 0 with
        `ddim` and 1 with `dpmpp_2m`, which then solves the reverse SDE."""
        s = config.sample
        usual = self.brings(config).get("eta", float(s.solver == "dpmpp_2m"))
        return usual if s.eta is None else s.eta

    def require(self, fits: bool, config, reason: str) -> None:
        """Raises a ValueError that advises `sampling` unless the solver fits.

        Args:
          fits: whether it does.
          config: the whole config.
          reason: what the method does that the solver must allow.
        """
        if not fits:
            brings, s = self.brings(config), config.sample
            advice = " ".join(f"--config.sample.{k}={v}" for k, v in brings.items())
            raise ValueError(
                f"config.sample.solver is {s.solver} with eta {self.eta(config)}, and {self.name} "
                f"{reason}; set {advice}, for example"
            )

    def one_round(self, config) -> None:
        """Raises a ValueError if `sample.rounds` asks for more rounds than one."""
        if (rounds := config.sample.rounds) > 1:
            raise ValueError(
                f"config.sample.rounds is {rounds}, and {self.name} has one round: it reads the "
                "source itself, not the result of a round before; set --config.sample.rounds=1"
            )

    def down_to_zero(self, config) -> None:
        """Raises a ValueError if the levels of a run do not end at level 0."""
        if config.sample.spacing == "trailing":
            raise ValueError(
                f"config.sample.spacing is 'trailing', and {self.name} needs levels that end at "
                "0; set --config.sample.spacing=index"
            )

    def changeable(self) -> tuple[str, ...]:
        """Names of the settings that may change without a new compilation."""
        return tuple(name for name, setting in self.settings.items() if setting.changeable)


def seed_setting(meaning: str) -> Setting:
    """A seed: JAX's keys take 32 bits, and numbers beyond them would repeat those within."""
    return Setting(0, meaning, minimum=0, maximum=2**32 - 1)


def from_noise(x, e, alpha_bar):
    """A `start`: pure noise e, `[B, H, W, C]`."""
    return e


def itself(view, e, alpha_bar):
    """A `reference`: the view without noise."""
    return view


def refine_setting(default: int) -> Setting:
    """The setting of methods that denoise their result again."""
    return Setting(
        default,
        "Number of noise levels from which the result is denoised again; 0: it is not.",
        minimum=0,
    )


def start_setting(default: int) -> Setting:
    """The setting M, the start level, which every method has."""
    return Setting(
        default,
        "Start level M: the reverse SDE starts at the noise level of index M - 1.",
        minimum=1,
        changeable=True,
        slider="M, start level",
    )
