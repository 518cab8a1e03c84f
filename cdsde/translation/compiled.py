"""A compiled translation: the method's networks, levels and weights behind one call."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.data import to_uint8
from cdsde.diffusion import histograms, methods, solvers
from cdsde.networks import build
from cdsde.runtime import mesh
from cdsde.translation import domain_statistics
from cdsde.weights import resolve


class Sampler:
    """A compiled translation: `sampler(images uint8 [B, H, W, 3], ids uint32 [B]) -> uint8`.

    Args:
      config: the task; its method, SDE and sampling keys.
      params: what `load_params` gives: `{stage: parameter tree}` for the stages that the method
        needs, and "discriminant" and "colours" where the config asks for them.
      devices: the mesh over which batches are split (default: this process's devices).

    Weights, levels and seed are arguments of the compiled program; `update` changes them without
    compiling again, as long as the number of steps stays.
    """

    def __init__(self, config: ConfigDict, params: dict, devices=None):
        self.devices = devices or mesh.make_mesh(jax.local_devices())
        self.params = mesh.put_replicated(params, self.devices)
        self._run = jax.jit(program(config), static_argnames=("rounds", "trace"))
        self.update(config)

    def update(self, config: ConfigDict) -> None:
        """Take over new weights λ, start M, seed, η or rounds."""
        s = config.sample
        if config.method in config_lib.GANS:  # nothing but its weights decides what it makes
            self._rounds, self._arguments, self.evaluations = 1, (), 1
            return
        self._rounds = s.rounds
        grid, lambdas = levels(config)
        arguments = (grid, lambdas, np.float32(s.eta), jax.random.key(s.seed))
        self._arguments = mesh.put_replicated(arguments, self.devices)
        self.evaluations = len(grid.index) * s.rounds

    def __call__(self, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """uint8 `[B, H, W, 3]` and uint32 `[B]` → uint8 `[B, H, W, 3]`; any B."""
        return to_uint8(self.states(images, ids)[0])

    def states(self, images: np.ndarray, ids: np.ndarray, trace: bool | int = False):
        """Unclamped float32 `[B, H, W, 3]` and, with `trace`, `[K, S, B, H, W, 3]` states.

        `trace` is True for all steps, or how many states are kept, evenly spaced.
        """
        count = len(images)
        missing = mesh.round_up(count, self.devices) - count
        rows = [np.concatenate([a, np.repeat(a[-1:], missing, 0)]) for a in (images, ids)]
        images, ids = mesh.put_batch(tuple(rows), self.devices)
        y, states = self._run(
            self.params, images, ids, *self._arguments, rounds=self._rounds, trace=trace
        )
        y = mesh.local_rows(y)[:count]
        return y, None if states is None else np.asarray(states)[:, :, :count]


def levels(config: ConfigDict) -> tuple[solvers.Grid, np.ndarray]:
    """The grid that a config describes, and the weights of its energies at each level."""
    s, schedule = config.sample, build.schedule_of(config)
    start = config_lib.start_index(config)
    grid = solvers.make_grid(schedule, start, s.steps, s.variance, s.spacing)
    gain = solvers.gain(solvers.SOLVERS[s.solver](s.eta), grid) if s.follow else None
    return grid, methods.weights(config.method, config[config.method], grid.index, gain)


def program(config: ConfigDict, watch: Callable | None = None):
    """The pure function that `Sampler` compiles; static choices come from the config.

    `watch(position, y)` is called on the host with every state, see `solvers.reverse`.
    """
    if config.method in config_lib.GANS:
        return _generator(config)
    settings = config[config.method]
    stages = config_lib.needed_stages(config.method)
    networks = {stage: build.MODELS[stage](config).apply for stage in stages}
    make = methods.METHODS[config.method]
    solver = solvers.SOLVERS[config.sample.solver]
    clip = config.sample.clip

    def bind(apply, params):
        return lambda *args, **kwargs: apply(params, *args, **kwargs)

    def run(params, images, ids, grid, lambdas, eta, key, count=None, rounds=1, trace=False):
        bound = {stage: bind(apply, params[stage]) for stage, apply in networks.items()}
        if domain_statistics.needs_direction(config):
            bound["discriminant"] = params["discriminant"]
        if domain_statistics.needs_colours(config):
            x0 = histograms.apply(params["colours"], images)
        else:
            x0 = _decoded(images)
        return methods.translate(
            x0,
            make(settings, bound),
            eps_fn=bound["score"],
            grid=grid,
            noise=methods.noise_of_images(key, ids, x0.shape[1:]),
            weights=lambdas,
            solver=solver(eta),
            rounds=rounds,
            clip=clip,
            trace=trace,
            count=count,
            watch=watch,
        )

    return run


def _generator(config: ConfigDict):
    """One pass of a GAN's generator; it has no states to trace."""
    (stage,) = config_lib.needed_stages(config.method)
    apply = build.MODELS[stage](config).apply

    def run(params, images, ids, rounds=1, trace=False):
        return apply(params[stage], _decoded(images)), None

    return run


def _decoded(images):
    return images.astype(np.float32) / 127.5 - 1


def load_sampler(config: ConfigDict, workdir) -> tuple[Sampler, dict[str, str]]:
    """A sampler with the method's networks, and where each network came from."""
    if config.method == "edit":
        raise ValueError("config.method is 'edit', and pictures are edited with --mode=edit")
    params, origins = load_params(config, workdir)
    return Sampler(config, params), origins


def load_params(config: ConfigDict, workdir) -> tuple[dict, dict[str, str]]:
    """What `Sampler` takes, `{name: parameters}`, and where each part of it came from."""
    loaded = {s: resolve.load(config, workdir, s) for s in config_lib.needed_stages(config.method)}
    if domain_statistics.needs_direction(config):
        loaded["discriminant"] = domain_statistics.domain_direction(config, loaded["encoder"][0])
    if domain_statistics.needs_colours(config):
        loaded["colours"] = domain_statistics.colour_table(config)
    params = {name: value for name, (value, _) in loaded.items()}
    return params, {name: origin for name, (_, origin) in loaded.items()}
