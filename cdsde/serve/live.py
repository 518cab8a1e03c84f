"""Live translations: one image at a time, with every intermediate state, without recompiling.

A translation is two compiled functions, the start of a round and one step. Levels, weights and seed
are their arguments; any number of steps is a loop over the same step. Translations share only these
functions, so that a visitor who leaves does not block others.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde import metrics
from cdsde.config import checks
from cdsde.data import image_id, inputs, to_uint8
from cdsde.diffusion import methods
from cdsde.runtime import compiler
from cdsde.translation import compiled
from cdsde.weights import resolve, sampling

SHOWN = 40  # characters of a visitor's value in a message


class State(NamedTuple):
    """One state of a translation.

    Attributes:
      step, steps: number of finished steps, and of all steps.
      picture: uint8 `[S, S, 3]`, the state after `step`.
      metrics: `{name: value}` to the source; empty before the last step.
    """

    step: int
    steps: int
    picture: np.ndarray
    metrics: dict[str, float]


class Slider(NamedTuple):
    """A setting that a visitor may change.

    Attributes:
      title: its label.
      value: the task's value.
      least, most: its range.
      whole: whether it is an integer.
    """

    title: str
    value: float
    least: float
    most: float
    whole: bool


class Translator:
    """Translates images by the methods of a task; a method is loaded and compiled at first use.

    Args:
      config: the task.
      workdir: the folder whose checkpoints have precedence over `config.weights`.
      left_open: keys of `sample` that the task leaves to its published network.
    """

    def __init__(self, config: ConfigDict, workdir, left_open: Sequence[str] = ()):
        self.config, self._workdir, self._left_open = config, workdir, left_open
        self._programs: dict = {}
        self._lock = threading.Lock()  # held while networks are loaded, not during a translation

    def methods(self) -> list[str]:
        """The methods whose networks are available, that of the task first."""
        names = (*config_lib.SDES, *config_lib.GANS)
        return sorted(filter(self._has, names), key=lambda name: name != self.config.method)

    def source(self, picture: np.ndarray) -> np.ndarray:
        """A picture uint8 `[H, W, 3]` as the networks' input, uint8 `[S, S, 3]`."""
        return inputs.reading(self.config)(picture)

    def inside(self, picture: np.ndarray) -> tuple[slice, slice]:
        """Rows and columns of the networks' input that show the picture, without its borders."""
        return inputs.reading(self.config).inside(*picture.shape[:2])

    def sliders(self, method: str) -> dict[str, Slider]:
        """`{name: slider}` of the method's settings that the page shows and this task can use."""
        if method not in config_lib.SDES:
            return {}
        config = self.settings(method)
        sliders = {}
        for name, setting in methods.METHODS[method].settings.items():
            if name == "start":
                start = config_lib.start_index(config)
                sliders[name] = Slider(setting.slider, start, 1, config.sde.num_steps, True)
            elif setting.slider:
                value = config[method][name]
                most = 5 * value or 100
                if _fits(config, name, most):
                    sliders[name] = Slider(setting.slider, value, 0, most, False)
        return sliders

    def steps(self, method: str) -> int:
        """Network evaluations per round in the task's config; 1 for a GAN."""
        config = self.settings(method)
        if method not in config_lib.SDES:
            return 1
        return config.sample.steps or config_lib.start_index(config)

    def settings(
        self, method: str, values: Mapping[str, float] | None = None, steps=None, seed: int = 0
    ) -> ConfigDict:
        """The task's config with a visitor's choices.

        Args:
          method: one of `methods()`.
          values: `{name: value}` of `sliders(method)`; others keep the task's value.
          steps: network evaluations, at most the start level; None: the task's.
          seed: seed of the noise.

        Raises:
          ValueError: the method has no such slider, or a number is out of range.
        """
        config = self.config.copy_and_resolve_references()
        config.method = method
        config.sample.seed = _whole("seed", seed)
        config.sample.update(dict.fromkeys(self._left_open))
        config_lib.adopt_sampling(config, {"method"}, self.config.method)
        if not isinstance(values, Mapping | None):
            raise ValueError('settings is not an object, such as {"start": 300}')
        values = {name: _number(name, value) for name, value in (values or {}).items()}
        if method not in config_lib.SDES:
            config.sample.match_colours = 0  # a GAN has no start to match colours for
            values, steps = {}, None
        if (start := values.pop("start", None)) is not None:
            config.sample.start = _whole("start", start)
        known = methods.METHODS[method].settings if values else {}
        for name, value in values.items():
            if name not in known or not known[name].slider:
                names = ", ".join(name for name, setting in known.items() if setting.slider)
                raise ValueError(f"{method} has no setting '{name}'; it has {names}")
            changed = _with(config, name, value)
            if _more_networks(config, changed):
                raise ValueError(
                    f"{method}'s setting '{name}' is 0 here, and any other value needs a network "
                    "that this page has not loaded; set it in the task's config"
                )
            config = changed
        if steps is not None:
            config.sample.steps = min(_whole("steps", steps), config_lib.start_index(config))
        sampling.adopt(config, config.weights.score)
        checks.validate(config)
        return config

    def __call__(self, source: np.ndarray, config: ConfigDict) -> Iterator[State]:
        """Yield the states of the translation of `source`, uint8 `[S, S, 3]`, the result last."""
        params, program = self._program(config.method)
        images, ids = source[None], np.array([image_id("picture")], np.uint32)
        if config.method in config_lib.GANS:
            result = to_uint8(np.asarray(program(params, images, ids)[0]))[0]
            yield State(1, 1, result, _metrics(result, source))
            return
        begin, step = program
        numbers, key = compiled.levels(config), jax.random.key(config.sample.seed)
        rows = numbers.rows()
        count = len(numbers.grid.index)
        steps = count * config.sample.rounds
        x = compiled.source(config, params, images)
        for r in range(config.sample.rounds):
            carry, drawn = begin(params, images, ids, key, x, r, rows)
            for k in range(count):
                row = jax.tree.map(lambda column, k=k: column[k], rows)
                carry = step(params, images, ids, key, carry, row, r, drawn)
                x = carry[0]
                picture = to_uint8(np.asarray(x))[0]
                done = r * count + k + 1
                yield State(
                    done, steps, picture, _metrics(picture, source) if done == steps else {}
                )

    def _program(self, method: str):
        with self._lock:
            if method not in self._programs:
                config = self.settings(method)
                params, _ = compiled.load_params(config, self._workdir)
                if method in config_lib.GANS:
                    program = compiler.jit(compiled.program(config))
                else:
                    program = compiled.step_by_step(config)
                self._programs[method] = jax.tree.map(jnp.asarray, params), program
            return self._programs[method]

    def _has(self, method: str) -> bool:
        try:
            for stage in config_lib.needed_stages(self.settings(method)):
                resolve.check(self.config, self._workdir, stage)
        except ValueError:
            return False
        return True


def _fits(config: ConfigDict, name: str, value: float) -> bool:
    """Whether the method's setting may have this value beside the task's others."""
    changed = _with(config, name, value)
    try:
        methods.METHODS[config.method].check(changed[config.method], changed)
    except ValueError:
        return False
    return not _more_networks(config, changed)


def _more_networks(config: ConfigDict, changed: ConfigDict) -> bool:
    """Whether the method needs networks with the changed config that it does not need so far."""
    return not set(config_lib.needed_stages(changed)) <= set(config_lib.needed_stages(config))


def _with(config: ConfigDict, name: str, value: float) -> ConfigDict:
    """The config with another value of the method's setting."""
    changed = config.copy_and_resolve_references()
    changed[changed.method][name] = value
    return changed


def _number(name: str, value) -> float:
    """A visitor's number, which may be anything."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # 10**400
            if math.isfinite(number := float(value)):
                return number
    raise ValueError(f"{name} is '{f'{value}'[:SHOWN]}'; it must be a number")


def _whole(name: str, value) -> int:
    """A visitor's whole number."""
    if not (number := _number(name, value)).is_integer():
        raise ValueError(f"{name} is {value}; it must be a whole number")
    return int(number)


def _metrics(result: np.ndarray, source: np.ndarray) -> dict[str, float]:
    pair = result[None] / 255, source[None] / 255
    return {name: float(metric(*pair)[0]) for name, metric in metrics.METRICS.items()}
