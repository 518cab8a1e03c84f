"""What the tests of the pixel-space networks need: comparison, noise and small networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.editing import editors
from cdsde.networks.stable_diffusion.unet import UNet

SMALL = {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
SMALL_ADM = {**SMALL, "attention_factors": (2,), "num_head_channels": 16}
SMALL_DDPM = {**SMALL, "attention_resolutions": (8,), "image_size": 16}

# Without the optimiser of the code generator: half the compile time, the same arithmetic.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def error(actual, expected):
    assert actual.shape == expected.shape
    assert actual.dtype == jnp.float32
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


def noise(seed, index, shape):
    generator = np.random.Generator(np.random.PCG64(seed * 100000 + index))
    return generator.standard_normal(shape, dtype=np.float32)


def randomised(net, x, seed=0, **kwargs):
    """Parameters without the zeros of a fresh network, which would hide what stands before them."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, 0, **kwargs)
    leaves, tree = jax.tree.flatten(shapes)
    values = [0.1 * noise(seed, i, leaf.shape) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, values)


def small_latent_unet(widths, side, tokens):
    """A U-Net of Stable Diffusion's kind with random parameters, and what an edit with it begins.

    Returns:
      `(network, texts, top)`: `network(x, t, context, ...)`, three texts `[1, tokens, 12]`, and the
      noisiest latents of two images.
    """
    levels = len(widths)
    module = UNet(
        widths=widths, attention=(True,) * levels, blocks=1, heads=(2,) * levels, groups=4
    )
    x, text = jnp.zeros((1, side, side, 4)), jnp.zeros((1, tokens, 12))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, jnp.zeros(1), text)["params"]
    r = np.random.default_rng(0)
    params = jax.tree.map(lambda s: jnp.asarray(r.normal(0, 0.4, s.shape), jnp.float32), shapes)
    texts = editors.Texts(*jnp.asarray(r.normal(0, 2, (3, 1, tokens, 12)), jnp.float32))
    top = jax.random.normal(jax.random.key(1), (2, side, side, 4))
    return functools.partial(module.apply, {"params": params}), texts, top
