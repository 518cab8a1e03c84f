"""One picture at a time, shown on its way; sliders move without a program being compiled again.

Grids of different lengths are filled up to one length, of which the solver takes as many rows as
are steps; levels, weights, seed and the number of steps are arguments of the compiled program.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde import metrics
from cdsde.config import checks
from cdsde.data import decode, image_id, resize, to_uint8
from cdsde.diffusion import solvers
from cdsde.translation import compiled
from cdsde.weights import resolve

# What the weight of a method's own energy is called in its group of the config.
OWN_WEIGHT = {"contrastive_sde": "weight", "egsde": "domain_weight"}


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


class Translator:
    """Translates pictures by the methods of a task; each method is compiled when first asked for.

    Args:
      config: the task.
      workdir: where checkpoints are looked for before `config.weights`.
    """

    def __init__(self, config: ConfigDict, workdir):
        self.config, self._workdir = config, workdir
        self._programs: dict = {}
        self._lock = threading.Lock()
        self._seen: queue.Queue = queue.Queue()

    def methods(self) -> list[str]:
        """The methods whose networks are there."""
        return [m for m in (*config_lib.SDES, *config_lib.GANS) if self._has(m)]

    def source(self, picture: bytes | np.ndarray, name: str = "picture") -> np.ndarray:
        """What the networks see of a picture, uint8 `[S, S, 3]`.

        Raises:
          ValueError: it is none that can be read.
        """
        d = self.config.data
        pixels = picture if isinstance(picture, np.ndarray) else decode(picture, name)
        return resize(pixels, d.image_size, filter=d.filter, fit=d.fit)

    def settings(self, method: str, start=None, weight=None, content=None, steps=None, seed=0):
        """The task's config with what a page asks for; None leaves it as it is.

        Raises:
          ValueError: a number out of range.
        """
        config = self.config.copy_and_resolve_references()
        config.method = method
        sliders = method in config_lib.SDES
        if not sliders:
            config.sample.match_colours = 0  # a generator has no start to give colours to
        if sliders and start is not None:
            config.sample.start = int(start)
        if sliders and steps is not None:
            config.sample.steps = min(int(steps), config_lib.start_index(config))
        name = OWN_WEIGHT.get(method)
        if name and weight is not None:
            config[method][name] = float(weight)
        if name and content is not None:
            config[method].content_weight = float(content)
        config.sample.seed = int(seed)
        checks.validate(config)
        return config

    def __call__(self, source: np.ndarray, config: ConfigDict) -> Iterator[State]:
        """States of the translation of `source`, uint8 `[S, S, 3]`, the result last."""
        with self._lock:
            yield from self._translate(source, config)

    def _translate(self, source, config):
        method = config.method
        params, run = self._program(method)
        images, ids = source[None], np.array([image_id("picture")], np.uint32)
        if method in config_lib.GANS:
            result = to_uint8(np.asarray(run(params, images, ids)[0]))[0]
            yield State(1, 1, result, _metrics(result, source))
            return
        grid, lambdas = compiled.levels(config)
        steps, most = len(grid.index), config.serve.max_steps
        if steps > most:
            raise ValueError(
                f"{steps} steps are more than config.serve.max_steps={most}; lower the steps, or "
                "start the page with a larger --config.serve.max_steps"
            )
        grid = solvers.Grid(*(_filled(np.asarray(x), most) for x in grid))
        eta, key = jnp.float32(config.sample.eta), jax.random.key(config.sample.seed)
        rest = (grid, _filled(lambdas, most), eta, key, jnp.int32(steps))
        done: list = []

        def work():
            try:
                done.append(np.asarray(run(params, images, ids, *rest)[0]))
                jax.effects_barrier()
            except Exception as error:  # is raised again where it is waited for
                done.append(error)
            self._seen.put(None)

        self._seen = queue.Queue()
        thread = threading.Thread(target=work)
        thread.start()
        try:
            latest = -1
            while (state := self._seen.get()) is not None:
                position, y = state
                if latest < position < steps - 1:
                    latest = position
                    yield State(position + 1, steps, to_uint8(y)[0], {})
        finally:
            thread.join()
        if isinstance(done[0], Exception):
            raise done[0]
        result = to_uint8(done[0])[0]
        yield State(steps, steps, result, _metrics(result, source))

    def _program(self, method: str):
        if method not in self._programs:
            config = self.settings(method)
            params = jax.tree.map(jnp.asarray, compiled.load_params(config, self._workdir)[0])
            watch = None if method in config_lib.GANS else self._see
            run = jax.jit(compiled.program(config, watch), static_argnames=("rounds", "trace"))
            self._programs[method] = params, run
        return self._programs[method]

    def _see(self, position, y) -> None:
        self._seen.put((int(position), np.asarray(y)))

    def _has(self, method: str) -> bool:
        try:
            for stage in config_lib.needed_stages(method):
                resolve.origin(self.config, self._workdir, stage)
        except ValueError:
            return False
        return True


def _filled(rows: np.ndarray, length: int) -> np.ndarray:
    """`[S, ...]` → `[length, ...]`: the last row again and again."""
    return rows[np.minimum(np.arange(length), len(rows) - 1)]


def _metrics(result: np.ndarray, source: np.ndarray) -> dict[str, float]:
    pair = result[None] / 255, source[None] / 255
    return {name: float(metric(*pair)[0]) for name, metric in metrics.METRICS.items()}
