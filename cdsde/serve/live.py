"""One picture at a time, shown on its way; sliders move without a program being compiled again.

A translation is two compiled functions, the start of a round and one step. Levels, weights and seed
are their arguments, and any number of steps is a loop over the same step. Nothing is shared between
two translations but these functions, so that a visitor who leaves disturbs nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde import metrics
from cdsde.config import checks
from cdsde.data import decode, image_id, inputs, to_uint8
from cdsde.diffusion import methods, solvers
from cdsde.translation import compiled
from cdsde.weights import resolve


class State(NamedTuple):
    """What there is to see.

    Attributes:
      step, steps: how far it is.
      picture: uint8 `[S, S, 3]`, the state after that step.
      metrics: to the source, by name; empty before the last step.
    """

    step: int
    steps: int
    picture: np.ndarray
    metrics: dict[str, float]


class Slider(NamedTuple):
    """A number that a visitor may change.

    Attributes:
      title: what it is called.
      value: the task's own.
      least, most: its range.
      whole: whether it is a whole number.
    """

    title: str
    value: float
    least: float
    most: float
    whole: bool


class Translator:
    """Translates pictures by the methods of a task; each method is compiled when first asked for.

    Args:
      config: the task.
      workdir: where checkpoints are looked for before `config.weights`.
    """

    def __init__(self, config: ConfigDict, workdir):
        self.config, self._workdir = config, workdir
        self._programs: dict = {}
        self._lock = threading.Lock()  # held while networks are loaded, never while it translates

    def methods(self) -> list[str]:
        """The methods whose networks are there."""
        return [m for m in (*config_lib.SDES, *config_lib.GANS) if self._has(m)]

    def source(self, picture: bytes | np.ndarray, name: str = "picture") -> np.ndarray:
        """What the networks see of a picture, uint8 `[S, S, 3]`.

        Raises:
          ValueError: it is none that can be read.
        """
        pixels = picture if isinstance(picture, np.ndarray) else decode(picture, name)
        return inputs.reading(self.config)(pixels)

    def sliders(self, method: str) -> dict[str, Slider]:
        """The method's settings that a page shows, by name."""
        if method not in config_lib.SDES:
            return {}
        own = self.settings(method)
        shown = {}
        for name, setting in methods.METHODS[method].settings.items():
            if name == "start":
                start = config_lib.start_index(own)
                shown[name] = Slider(setting.slider, start, 1, own.sde.num_steps, True)
            elif setting.slider:
                value = own[method][name]
                shown[name] = Slider(setting.slider, value, 0, 5 * value or 100, False)
        return shown

    def steps(self, method: str) -> int:
        """Network evaluations a round as the task has them; 1 for a generator."""
        own = self.settings(method)
        if method not in config_lib.SDES:
            return 1
        return own.sample.steps or config_lib.start_index(own)

    def settings(
        self, method: str, values: Mapping[str, float] | None = None, steps=None, seed: int = 0
    ) -> ConfigDict:
        """The task's config with what a visitor asks for.

        Args:
          method: of `methods()`.
          values: of `sliders(method)`, by name; those left out stay as they are.
          steps: network evaluations, at most the start level; None: the task's own.
          seed: of the noise.

        Raises:
          ValueError: a number out of range.
        """
        config = self.config.copy_and_resolve_references()
        config.method = method
        config.sample.seed = int(seed)
        values = dict(values or {})
        if method not in config_lib.SDES:
            config.sample.match_colours = 0  # a generator has no start to give colours to
            values, steps = {}, None
        if (start := values.pop("start", None)) is not None:
            config.sample.start = int(start)
        for name, value in values.items():
            config[method][name] = float(value)
        if steps is not None:
            config.sample.steps = min(int(steps), config_lib.start_index(config))
        checks.validate(config)
        return config

    def __call__(self, source: np.ndarray, config: ConfigDict) -> Iterator[State]:
        """States of the translation of `source`, uint8 `[S, S, 3]`, the result last."""
        params, program = self._program(config.method)
        images, ids = source[None], np.array([image_id("picture")], np.uint32)
        if config.method in config_lib.GANS:
            result = to_uint8(np.asarray(program(params, images, ids)[0]))[0]
            yield State(1, 1, result, _metrics(result, source))
            return
        begin, step = program
        numbers, key = compiled.levels(config), jax.random.key(config.sample.seed)
        rows = solvers.rows(*numbers)
        count = len(numbers.grid.index)
        steps = count * config.sample.rounds
        x = compiled.source(config, params, images)
        for r in range(config.sample.rounds):
            carry = begin(params, images, ids, key, x, r, numbers.grid.alpha_bar[0])
            for k in range(count):
                row = jax.tree.map(lambda column, k=k: column[k], rows)
                carry = step(params, images, ids, key, carry, row, r)
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
                    program = jax.jit(compiled.program(config))
                else:
                    program = compiled.step_by_step(config)
                self._programs[method] = jax.tree.map(jnp.asarray, params), program
            return self._programs[method]

    def _has(self, method: str) -> bool:
        try:
            for stage in config_lib.needed_stages(method):
                resolve.origin(self.config, self._workdir, stage)
        except ValueError:
            return False
        return True


def _metrics(result: np.ndarray, source: np.ndarray) -> dict[str, float]:
    pair = result[None] / 255, source[None] / 255
    return {name: float(metric(*pair)[0]) for name, metric in metrics.METRICS.items()}
