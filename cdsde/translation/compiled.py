"""Compiled translations: a method's networks, noise levels and energy weights behind one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.config import checks
from cdsde.data import to_float, to_uint8
from cdsde.diffusion import histograms, methods, noise, solvers
from cdsde.diffusion.levels import make_grid
from cdsde.diffusion.methods import composition
from cdsde.networks import build
from cdsde.runtime import compiler, mesh, trees
from cdsde.translation import domain_statistics, latents
from cdsde.weights import adoption, diffusers, resolve, sampling

# Keys of `config.sample` that may change without compiling again: they become arguments (levels,
# weights, seed), or select the images and the output folder.
NUMBERS = ("start", "steps", "spacing", "eta", "follow", "guide_every", "guide_levels")
NUMBERS += ("rounds", "seed")
SELECTION = ("input", "output", "split", "batch_size", "limit", "sheet", "trajectory")
CHANGEABLE = (*NUMBERS, *SELECTION)
# Groups of the config that do not affect a translation.
UNUSED = ("task", "cache", "mesh", "weights", "train", "edit", "model", "eval")
UNUSED += ("export", "serve")


class Sampler:
    """A compiled translation: `sampler(images uint8 [B, H, W, 3], ids uint32 [B]) -> uint8`.

    Args:
      config: the task.
      params: `{name: parameter tree}` of the method's networks, and "domain_direction" and
        "colours" if the config needs them; `load_params` returns it.
      devices: the mesh over which batches are split (default: this process's devices).

    Weights, levels and seed are arguments of the compiled program: `update` changes them without
    recompiling.

    Attributes:
      config: the task, with the description of a published network.
    """

    def __init__(self, config: ConfigDict, params: dict, devices=None):
        self.devices = devices or mesh.make_mesh(jax.local_devices())
        self.params = mesh.put_replicated(params, self.devices)
        run = program(config)

        def prepared(params, images, ids, *arguments, rounds, keep):
            ids = compiler.as_exported(ids)
            return run(params, images, ids, *arguments, rounds=rounds, keep=keep)

        self._program = compiler.jit(prepared, static_argnames=("rounds", "keep"))
        self._compiled_for = _fixed(config)
        self._networks = set(config_lib.needed_stages(config))  # whatever `params` hold
        self._adopt(config)

    def update(self, config: ConfigDict) -> None:
        """Adopt the weights λ, levels, seed, η and rounds of a config.

        Raises:
          ValueError: a key that is part of the compiled program has changed, or a value is not
            allowed.
        """
        checks.validate(config)
        config, mine = config.copy_and_resolve_references(), self.config.score
        if mine.arch == "published" and config.score.published is None:
            config.score.update({key: mine[key] for key in ("arch", "published", "learn_sigma")})
        sampling.adopt(config, config.weights.score)
        self._adopt(config)

    def _adopt(self, config: ConfigDict) -> None:
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
        if more := set(config_lib.needed_stages(config)) - self._networks:
            raise ValueError(
                f"{config.method} needs {', '.join(sorted(more))} with these settings, which this "
                "sampler was compiled without; make a new one with cdsde.load_sampler"
            )
        self.config = config
        if config.method in config_lib.GANS:  # deterministic: it has no levels and no noise
            self._rounds, self._arguments, self.evaluations = 1, (), 1
            return
        self._rounds = config.sample.rounds
        numbers = levels(config)
        arguments = (numbers, jax.random.key(config.sample.seed))
        self._arguments = mesh.put_replicated(arguments, self.devices)
        self.evaluations = len(numbers.grid.index) * self._rounds

    def __call__(self, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Translate images: uint8 `[B, H, W, 3]` and uint32 `[B]` → uint8 `[B, H, W, 3]`; any B."""
        return to_uint8(self.states(images, ids)[0])

    def states(self, images: np.ndarray, ids: np.ndarray, keep: int = 0):
        """Results, and states along the way.

        Args:
          images: uint8 `[B, H, W, 3]`.
          ids: uint32 `[B]`.
          keep: number of evenly spaced states to keep in each of the K rounds.

        Returns:
          `(y, states)`: unclamped float32 `[B, H, W, 3]` and `[K, keep, B, H, W, 3]`, about
          [-1, 1]; states is None if `keep` is 0.
        """
        return self.begin(images, ids, keep)()

    def begin(self, images: np.ndarray, ids: np.ndarray, keep: int = 0) -> Callable:
        """Starts what `states` does, on the devices; calling the result waits for it."""
        count = len(images)
        rows = mesh.put_batch(mesh.pad_rows((images, ids), self.devices), self.devices)
        y, states = self._program(
            self.params, *rows, *self._arguments, rounds=self._rounds, keep=keep
        )

        def fetch():
            result = mesh.local_rows(y)[:count]
            return result, None if states is None else np.asarray(states)[:, :, :count]

        return fetch


def _fixed(config: ConfigDict) -> dict[str, Any]:
    """The keys that a compiled program depends on, with their values."""
    changeable = {f"sample.{name}" for name in CHANGEABLE}
    if config.method in config_lib.SDES:
        changeable |= {f"{config.method}.{n}" for n in methods.METHODS[config.method].changeable()}
    other_methods = {*config_lib.METHODS} - {config.method}
    if config.method in config_lib.GANS:
        other_methods -= {"cut"}
    skipped = other_methods | set(UNUSED)
    usual = {f"sample.{key}": value for key, value in config_lib.usual(config).items()}
    return {
        key: usual.get(key, config_lib.get(config, key))
        for key in config_lib.key_paths(config)
        if key.split(".")[0] not in skipped and key not in changeable
    }


def solver(config: ConfigDict) -> solvers.Solver:
    """The solver of a config, with its options."""
    usual = config_lib.usual(config)
    return solvers.make(config.sample.solver, eta=usual["eta"], variance=usual["variance"])


def levels(config: ConfigDict) -> composition.Levels:
    """The noise levels of a config, and the energy weights at each level."""
    s, start = config.sample, config_lib.start_index(config)
    grid = make_grid(build.schedule_of(config), start, s.steps, config_lib.usual(config)["spacing"])
    method = methods.METHODS[config.method]
    return composition.make_levels(
        method,
        config[config.method],
        grid,
        solver(config),
        s.follow,
        s.guide_every,
        s.guide_levels,
    )


def source(config: ConfigDict, params: dict, images) -> jax.Array:
    """The image x0 that a translation starts from, float32 `[B, H, W, 3]` in [-1, 1].

    Args:
      config: `sample.match_colours` > 0 maps the images to the target's colours.
      params: `load_params`'s.
      images: uint8 `[B, H, W, 3]`.
    """
    if domain_statistics.needs_colours(config):
        return histograms.apply(params["colours"], images)
    return to_float(images)


def networks(config: ConfigDict, params: dict) -> dict[str, Any]:
    """The method's networks by name, with their parameters bound, and its domain direction."""

    def bind(name):
        apply = build.MODELS[name](config).apply
        learned = {"variance": True} if name == "score" and s.variance == "learned" else {}
        return lambda *args, **kwargs: apply(params[name], *args, **learned, **kwargs)

    s = config.sample

    bound: dict[str, Any] = {n: bind(n) for n in config_lib.needed_stages(config)}
    if domain_statistics.needs_direction(config):
        bound["domain_direction"] = params["domain_direction"]
    return bound


def program(config: ConfigDict):
    """The pure function that `Sampler` compiles.

    Returns:
      `(params, images, ids, levels, key, rounds, keep) -> (y, states)`; for a GAN
      `(params, images, ids) -> (y, None)`. Shapes are those of `Sampler.states`.
    """
    if config.method in config_lib.GANS:
        return _generator(config)
    method, settings = methods.METHODS[config.method], config[config.method]

    def run(params, images, ids, numbers, key, rounds=1, keep=0):
        x0 = latents.encode(config, params, source(config, params, images))
        y, states = composition.translate(
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
        return latents.decode(config, params, y), states

    return run


def step_by_step(config: ConfigDict):
    """A translation as two compiled functions, for a program that shows every state.

    Returns:
      `(begin, step)`: `begin(params, images, ids, key, x, r, rows, corners) -> (carry, drawn)`,
      where x is the source or the result of the previous round, and
      `step(params, images, ids, key, carry, row, r, drawn, corners) -> carry`; `composition.Round`
      describes both, and `noise.of_images` the corners (None for whole images). `step` serves any
      number of steps.
    """
    method, settings = methods.METHODS[config.method], config[config.method]
    if latents.autoencoder(config):
        raise ValueError(
            "the score network works on latents, whose states are no pictures; translate with "
            "--mode=sample"
        )

    def prepare(params, images, ids, key, corners):
        x0 = source(config, params, images)
        return composition.make_round(
            x0,
            method,
            settings,
            networks(config, params),
            noise=noise.of_images(key, ids, x0.shape[1:], corners),
            solver=solver(config),
            clip=config.sample.clip,
        )

    @compiler.jit
    def first(params, images, ids, key, x, r, rows, corners):
        return prepare(params, images, ids, key, corners).begin(x, r, rows)

    def begin(params, images, ids, key, x, r, rows, corners=None):
        if method.invert(settings) is None:  # it reads the first level: any number of steps will do
            rows = jax.tree.map(lambda column: column[:1], rows)
        return first(params, images, ids, key, x, r, rows, corners)

    @compiler.jit
    def step(params, images, ids, key, carry, row, r, drawn, corners=None):
        return prepare(params, images, ids, key, corners).step(carry, row, r, drawn)

    return begin, step


def _generator(config: ConfigDict):
    """The program of a GAN: one pass of its generator, without states."""
    (stage,) = config_lib.needed_stages(config)
    apply = build.MODELS[stage](config).apply

    def run(params, images, ids, rounds=1, keep=0):
        return apply(params[stage], to_float(images)), None

    return run


def load_sampler(config: ConfigDict, workdir) -> tuple[Sampler, dict[str, str]]:
    """A sampler with the method's networks, and the origin of each network.

    Raises:
      ValueError: the method is an editor, a network has no weights, or a value of the config is not
        allowed.
    """
    if config.method in config_lib.EDITORS:
        raise ValueError(
            f"config.method is '{config.method}', and pictures are edited with --mode=edit"
        )
    checks.validate(config)
    config = adoption.adopted(config, workdir)
    params, origins = load_params(config, workdir)
    return Sampler(config, params), origins


def load_params(config: ConfigDict, workdir) -> tuple[dict, dict[str, str]]:
    """`Sampler`'s parameters `{name: parameter tree}`, and the origin of each as a line of text.

    Raises:
      ValueError: a network has no weights, or training images are missing.
    """
    loaded = {s: resolve.load(config, workdir, s) for s in config_lib.needed_stages(config)}
    if domain_statistics.needs_direction(config):
        loaded["domain_direction"] = domain_statistics.domain_direction(
            config, loaded["encoder"][0]
        )
    if domain_statistics.needs_colours(config):
        loaded["colours"] = domain_statistics.colour_table(config)
    if latents.autoencoder(config):
        folder = adoption.autoencoder_folder(config)
        vae = diffusers.load_vae(folder)[1]
        loaded[latents.PARAMS] = vae, f"{folder} (sha256 {trees.digest(vae)[:12]})"
    params = {name: value for name, (value, _) in loaded.items()}
    return params, {name: origin for name, (_, origin) in loaded.items()}
