"""The programs whose cost is measured, as jitted functions and the shapes of their arguments.

No array is allocated: a `Program` can be compiled for devices that this machine does not have.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.diffusion import energies, histograms, methods, schedules
from cdsde.diffusion.methods import composition
from cdsde.edit import pipeline
from cdsde.editing import ddim, editors, prompt_to_prompt
from cdsde.evaluate import extractors
from cdsde.networks import build, features
from cdsde.networks.stable_diffusion.unet import UNet
from cdsde.networks.stable_diffusion.vae import AutoencoderKL
from cdsde.runtime import compiler, mesh
from cdsde.train import loop, stages
from cdsde.translation import compiled, domain_statistics
from cdsde.weights import diffusers


class Program(NamedTuple):
    """A jitted function with the shapes of its arguments.

    Attributes:
      name: its name in tables.
      function: the jitted function.
      arguments: ShapeDtypeStructs with shardings.
      images: images per call, over all devices.
      trips: iterations of its loop per call; the compiler counts the cost of one.
      carries: whether its first argument is donated and replaced by its first result.
    """

    name: str
    function: Any
    arguments: tuple
    images: int
    trips: int = 1
    carries: bool = False

    def lower(self):
        """Lower the function to an uncompiled XLA program."""
        return self.function.lower(*self.arguments)


def _abstract(tree, shardings):
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def _everywhere(tree, devices):
    sharding = mesh.replicated(devices)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _rows(shape, dtype, devices):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=mesh.batch_sharded(devices))


def train_step(config: ConfigDict, stage: str, devices, batch: int) -> Program:
    """One optimiser step of a stage on `batch` images."""
    config = config.copy_and_resolve_references()
    config.train.batch_size = batch
    step, init = loop.compiled(config, stage, stages.make(config, stage), devices)
    shapes = jax.eval_shape(init)
    # The same shardings as in `loop.compiled`.
    state = _abstract(shapes, mesh.network_sharded(shapes, devices))
    size = config.data.image_size
    images = {
        "image": _rows((batch, size, size, 3), jnp.uint8, devices),
        "domain": _rows((batch,), jnp.int32, devices),
    }
    return Program(f"train {stage}", step, (state, images), batch, carries=True)


def _params(config: ConfigDict, stage: str, devices):
    init = build.MODELS[stage](config).init
    key = jax.eval_shape(lambda: jax.random.key(0))
    return _everywhere(jax.eval_shape(init, key), devices)


def score_forward(config: ConfigDict, devices, batch: int) -> Program:
    """One evaluation of the score network."""
    size = config.data.image_size
    function = compiler.jit(build.score_model(config).apply)
    y = _rows((batch, size, size, 3), jnp.float32, devices)
    t = _everywhere(jax.ShapeDtypeStruct((), jnp.float32), devices)
    return Program("score forward", function, (_params(config, "score", devices), y, t), batch)


def _params_of(config: ConfigDict, stages, devices) -> dict:
    """The parameters of stages by name, and the domain direction if the method has one."""
    params = {s: _params(config, s, devices) for s in stages}
    if domain_statistics.needs_direction(config):
        params["domain_direction"] = _everywhere(
            domain_statistics.direction_shapes(config), devices
        )
    return params


def _check_sde(config: ConfigDict) -> None:
    """Checks that the config's method has noise levels."""
    if config.method not in config_lib.SDES:
        raise ValueError(
            f"config.method is '{config.method}', which has no reverse SDE to measure; choose "
            f"{', '.join(config_lib.SDES)} or other parts"
        )


def energy_gradient(config: ConfigDict, devices, batch: int) -> Program:
    """The gradient of the weighted energies of the config's method, all in one backward pass."""
    size = config.data.image_size
    _check_sde(config)
    terms = methods.METHODS[config.method].terms(config[config.method])
    if not terms:
        raise ValueError(f"{config.method} has no energies; leave the part 'energies' out")
    scores = ("score", config_lib.SOURCE_SCORE)
    guides = [s for s in config_lib.needed_stages(config) if s not in scores]

    def gradient(params, y, x_t, t, weights):
        networks = compiled.networks(config, params)
        total = energies.total([term.energy(networks) for term in terms])
        references = composition.references_of(terms, networks, x_t)
        return jax.grad(total)(y, references(0.0, 1.0), t, weights)

    y = _rows((batch, size, size, 3), jnp.float32, devices)
    t, weights = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((), (len(terms),)))
    rest = _everywhere((t, weights), devices)
    arguments = (_params_of(config, guides, devices), y, y, *rest)
    return Program(f"energies {config.method}", compiler.jit(gradient), arguments, batch)


def translation(config: ConfigDict, devices, batch: int) -> Program:
    """The compiled translation of the config's method, with all steps."""
    _check_sde(config)
    size = config.data.image_size
    levels = compiled.levels(config)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = _params_of(config, config_lib.needed_stages(config), devices)
    if domain_statistics.needs_colours(config):
        params["colours"] = _everywhere(
            jax.ShapeDtypeStruct(histograms.SHAPE, jnp.float32), devices
        )
    rest = _everywhere((jax.tree.map(np.asarray, levels), key), devices)
    arguments = (
        params,
        _rows((batch, size, size, 3), jnp.uint8, devices),
        _rows((batch,), jnp.uint32, devices),
        *rest,
    )
    function = compiler.jit(compiled.program(config))
    return Program(f"sample {config.method}", function, arguments, batch, len(levels.grid.index))


TOKENS, TEXT_WIDTH = 77, 768  # the text encoder of SD-1.x


def _latent_diffusion(config: ConfigDict, devices, batch: int):
    """SD-1.x without weights: the model, and shapes of latents, texts and key."""
    dtype, size = jnp.dtype(config.dtype), config.data.image_size
    unet, vae = UNet(dtype=dtype, remat=config.remat), AutoencoderKL(dtype=dtype)
    side = size // 8
    key = jax.eval_shape(lambda: jax.random.key(0))
    text = jax.ShapeDtypeStruct((1, TOKENS, TEXT_WIDTH), jnp.float32)
    z, one = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, side, side, 4), (1,)))
    picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = {
        "unet": jax.eval_shape(unet.init, key, z, one, text),
        "vae": jax.eval_shape(vae.init, key, picture),
    }
    # Parameters only, without the collections of a forward pass (attention maps, features).
    shapes = {name: {"params": variables["params"]} for name, variables in shapes.items()}
    schedule = ddim.LatentSchedule(schedules.scaled_linear().alpha_bar)
    sd = pipeline.Model(unet, vae, shapes, diffusers.SCALING_FACTOR, schedule, None, {}, "")
    latents = _rows((batch, side, side, 4), jnp.float32, devices)
    text = _rows((batch, TOKENS, TEXT_WIDTH), jnp.float32, devices)
    words = None  # as `wording.texts_of` makes them
    if config.method == "p2p":
        shares, kept, places = (TOKENS, TOKENS), (TOKENS,), (2, TOKENS)
        words = prompt_to_prompt.Words(
            *(_rows((batch, *s), jnp.float32, devices) for s in (shares, kept)),
            _rows((batch, *places), jnp.bool_, devices),
        )
    elif config.method == "ledits":
        words = (_rows((batch, TOKENS), jnp.bool_, devices),) * 2
    return sd, latents, editors.Texts(text, text, text, words), _everywhere(key, devices)


def edit_steps(config: ConfigDict, devices, batch: int) -> Program:
    """The guided denoising steps of an edit by words, with SD-1.x's U-Net."""
    e = config.edit
    sd, latents, texts, key = _latent_diffusion(config, devices, batch)
    down = ddim.sampling(sd.schedule, e.steps)

    def steps(params, top, texts, key):
        unet = pipeline.noise_of(sd, {"unet": params})
        return pipeline.guided(unet, down, config, texts, top, key)

    arguments = (_everywhere(sd.params["unet"], devices), latents, texts, key)
    return Program(f"edit {config.method}", compiler.jit(steps), arguments, batch, e.steps)


def edit(config: ConfigDict, devices, batch: int) -> Program:
    """A complete edit with SD-1.x: encoding, inversion, guided denoising, decoding.

    The compiler counts one trip of each of its loops.
    """
    size = config.data.image_size
    sd, _, texts, key = _latent_diffusion(config, devices, batch)
    arguments = (
        _everywhere(sd.params, devices),
        _rows((batch, size, size, 3), jnp.uint8, devices),
        texts,
        key,
        _rows((batch,), jnp.uint32, devices),
    )
    function = compiler.jit(pipeline.program(sd, config))
    return Program(f"edit {config.method}, one trip of each loop", function, arguments, batch)


def evaluation(name: str, devices, batch: int, size: int) -> Program:
    """The feature extraction of `batch` images by "inception" or "efficientnet_lite0"."""
    module = {"inception": features.InceptionV3, "efficientnet_lite0": features.EfficientNetLite0}[
        name
    ]()
    key = jax.eval_shape(lambda: jax.random.key(0))
    picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    params = jax.eval_shape(module.init, key, picture)
    function = compiler.jit(extractors.vectors(module.apply))
    pictures = _rows((batch, size, size, 3), jnp.uint8, devices)
    return Program(f"evaluate {name}", function, (_everywhere(params, devices), pictures), batch)
