"""What the tests of the pixel-space networks need: comparison, noise and small networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

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
