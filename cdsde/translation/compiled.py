"""A compiled translation: the method's networks, levels and weights behind one call."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.data import to_float, to_uint8
from cdsde.diffusion import histograms, methods, noise, solvers
from cdsde.diffusion.levels import make_grid
from cdsde.diffusion.methods import composition
from cdsde.networks import build
from cdsde.runtime import mesh
from cdsde.translation import domain_statistics
from cdsde.weights import resolve

# Keys of `config.sample` that a compiled program takes as they come: they become levels, weights
# and a seed, or say which images are translated and where results go.
CHANGEABLE = ("start", "steps", "spacing", "variance", "eta", "follow", "rounds", "seed")
CHANGEABLE += ("input", "output", "split", "batch_size", "limit", "sheet", "trajectory")
# Groups that have no part in a translation.
UNUSED = ("task", "mesh", "weights", "train", "edit", "model", "eval", "export", "serve")


class Sampler:
    """A compiled translation: `sampler(images uint8 [B, H, W, 3], ids uint32 [B]) -> uint8`.

    Args:
      config: the task; its method, SDE and sampling keys.
      params: what `load_params` gives: `{name: parameter tree}` of the networks that the method
        runs, and "domain_direction" and "colours" where the config asks for them.
      devices: the mesh over which batches are split (default: this process's devices).

    Weights, levels and seed are arguments of the compiled program: `update` changes them without
    compiling again.
    """

    def __init__(self, config: ConfigDict, params: dict, devices=None):
        self.devices = devices or mesh.make_mesh(jax.local_devices())
        self.params = mesh.put_replicated(params, self.devices)
        self._program = jax.jit(program(config), static_argnames=("rounds", "keep"))
        self._compiled_for = _fixed(config)
        self.update(config)

    def update(self, config: ConfigDict) -> None:
        """Take over new weights λ, levels, seed, η or rounds.

        Raises:
          ValueError: another key has changed that is part of the compiled program.
        """
        changed = {
            key: (before, now)
            for key, now in _fixed(config).items()
            if (before := self._compiled_for.get(key)) != now
        }
        for key, (before, now) in changed.items():
            raise ValueError(
                f"config.{key} was {before} when this sampler was compiled and is {now} now; make "
                "a new one with cdsde.load_sampler"
            )
        if config.method in config_lib.GANS:  # its weights alone decide what it makes
            self._rounds, self._arguments, self.evaluations = 1, (), 1
            return
        self._rounds = config.sample.rounds
        numbers = levels(config)
        arguments = (numbers, jax.random.key(config.sample.seed))
        self._arguments = mesh.put_replicated(arguments, self.devices)
        self.evaluations = len(numbers.grid.index) * self._rounds

    def __call__(self, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """uint8 `[B, H, W, 3]` and uint32 `[B]` → uint8 `[B, H, W, 3]`; any B."""
        return to_uint8(self.states(images, ids)[0])

    def states(self, images: np.ndarray, ids: np.ndarray, keep: int = 0):
        """Unclamped float32 `[B, H, W, 3]` and, with `keep`, states `[K, keep, B, H, W, 3]`.

        `keep` is how many states of each round are kept, evenly spaced.
        """
        count = len(images)
        rows = mesh.put_batch(mesh.pad_rows((images, ids), self.devices), self.devices)
        y, states = self._program(
            self.params, *rows, *self._arguments, rounds=self._rounds, keep=keep
        )
        y = mesh.local_rows(y)[:count]
        return y, None if states is None else np.asarray(states)[:, :, :count]


def _fixed(config: ConfigDict) -> dict[str, Any]:
    """The keys that are part of a compiled program, with their values."""
    changeable = {f"sample.{name}" for name in CHANGEABLE}
    if config.method in config_lib.SDES:
        changeable |= {f"{config.method}.{n}" for n in methods.METHODS[config.method].changeable()}
    own = {*config_lib.METHODS} - {config.method}
    if config.method in config_lib.GANS:
        own -= {"cut"}
    skipped = own | set(UNUSED)
    return {
        key: config_lib.get(config, key)
        for key in config_lib.key_paths(config)
        if key.split(".")[0] not in skipped and key not in changeable
    }


def solver(config: ConfigDict) -> solvers.Solver:
    """The solver that a config names, with its options."""
    s = config.sample
    return solvers.make(s.solver, eta=s.eta, variance=s.variance)


def levels(config: ConfigDict) -> composition.Levels:
    """The noise levels that a config describes, and the weights of its energies at each."""
    s, start = config.sample, config_lib.start_index(config)
    grid = make_grid(build.schedule_of(config), start, s.steps, s.spacing)
    method = methods.METHODS[config.method]
    return composition.make_levels(method, config[config.method], grid, solver(config), s.follow)


def source(config: ConfigDict, params: dict, images) -> jax.Array:
    """What a translation starts from, float32 in [-1, 1]: the images, in the target's colours
    where the config says so."""
    if domain_statistics.needs_colours(config):
        return histograms.apply(params["colours"], images)
    return to_float(images)


def networks(config: ConfigDict, params: dict) -> dict[str, Any]:
    """The method's networks by name, with their parameters bound."""

    def bind(name):
        apply = build.MODELS[name](config).apply
        return lambda *args, **kwargs: apply(params[name], *args, **kwargs)

    bound: dict[str, Any] = {n: bind(n) for n in config_lib.needed_stages(config.method)}
    if domain_statistics.needs_direction(config):
        bound["domain_direction"] = params["domain_direction"]
    return bound


def program(config: ConfigDict):
    """The pure function that `Sampler` compiles; static choices come from the config.

    `(params, images, ids, levels, key, rounds, keep) -> (y, states)`, of a GAN
    `(params, images, ids) -> (y, None)`.
    """
    if config.method in config_lib.GANS:
        return _generator(config)
    method, settings = methods.METHODS[config.method], config[config.method]

    def run(params, images, ids, numbers, key, rounds=1, keep=0):
        x0 = source(config, params, images)
        return composition.translate(
            x0,
            method,
            settings,
            networks(config, params),
            numbers,
            noise=noise.of_images(key, ids, x0.shape[1:]),
            solver=solver(config),
            rounds=rounds,
            clip=config.sample.clip,
            keep=keep,
        )

    return run


def step_by_step(config: ConfigDict):
    """A translation as two compiled functions, for a program that shows each state.

    Returns:
      `(begin, step)`: `begin(params, images, ids, key, x, r, alpha_bar) -> carry`, x the source or
      the result of the round before, and `step(params, images, ids, key, carry, row, r) -> carry`;
      `composition.Round` says what they are. Both serve any number of steps.
    """
    method, settings = methods.METHODS[config.method], config[config.method]

    def parts(params, images, ids, key):
        x0 = source(config, params, images)
        return composition.make_round(
            x0,
            method,
            settings,
            networks(config, params),
            noise=noise.of_images(key, ids, x0.shape[1:]),
            solver=solver(config),
            clip=config.sample.clip,
        )

    @jax.jit
    def begin(params, images, ids, key, x, r, alpha_bar):
        return parts(params, images, ids, key).begin(x, r, alpha_bar)

    @jax.jit
    def step(params, images, ids, key, carry, row, r):
        return parts(params, images, ids, key).step(carry, row, r)

    return begin, step


def _generator(config: ConfigDict):
    """One pass of a GAN's generator; it has no states to keep."""
    (stage,) = config_lib.needed_stages(config.method)
    apply = build.MODELS[stage](config).apply

    def run(params, images, ids, rounds=1, keep=0):
        return apply(params[stage], to_float(images)), None

    return run


def load_sampler(config: ConfigDict, workdir) -> tuple[Sampler, dict[str, str]]:
    """A sampler with the method's networks, and where each network came from."""
    if config.method in config_lib.EDITORS:
        raise ValueError(
            f"config.method is '{config.method}', and pictures are edited with --mode=edit"
        )
    params, origins = load_params(config, workdir)
    return Sampler(config, params), origins


def load_params(config: ConfigDict, workdir) -> tuple[dict, dict[str, str]]:
    """What `Sampler` takes, `{name: parameters}`, and where each part of it came from."""
    loaded = {s: resolve.load(config, workdir, s) for s in config_lib.needed_stages(config.method)}
    if domain_statistics.needs_direction(config):
        loaded["domain_direction"] = domain_statistics.domain_direction(
            config, loaded["encoder"][0]
        )
    if domain_statistics.needs_colours(config):
        loaded["colours"] = domain_statistics.colour_table(config)
    params = {name: value for name, (value, _) in loaded.items()}
    return params, {name: origin for name, (_, origin) in loaded.items()}
