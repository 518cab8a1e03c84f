"""The options with which programs are compiled on a CPU."""

import jax
import jax.numpy as jnp

from cdsde.runtime import compiler


def test_convolutions_and_sums_are_compiled_by_xla_itself():
    def program(x, kernel):
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(y, axis=(1, 2))

    x, kernel = jnp.ones((2, 32, 32, 32)), jnp.ones((3, 3, 32, 32))
    text = compiler.jit(program).lower(x, kernel).compile().as_text()
    assert "convolution(" in text and "ynn_fusion" not in text
