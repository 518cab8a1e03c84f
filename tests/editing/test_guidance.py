"""Which patches the contrast of features compares."""

import jax
import jax.numpy as jnp
import pytest

from cdsde.editing import guidance

# Features of two layers on latents of 16 x 16: maps of 8 x 8 and of 4 x 4.
SHAPES = {
    "up_blocks.1.attn1": jax.ShapeDtypeStruct((1, 16, 4), jnp.float32),
    "up_blocks.2.attn1": jax.ShapeDtypeStruct((1, 64, 4), jnp.float32),
}


def drawn(patches, **changes):
    everything = {"chosen": lambda layer: True, "side": (16, 16), "patches": patches}
    return guidance.draw_ids(jax.random.key(0), SHAPES, **everything | changes)


def test_a_patch_larger_than_a_map_is_left_out_there():
    sizes = {
        layer: {p: len(ids) for p, ids in found.items()} for layer, found in drawn((2, 5)).items()
    }
    assert sizes == {"up_blocks.1.attn1": {2: 4}, "up_blocks.2.attn1": {2: 16, 5: 1}}
    # And the others are drawn as without it.
    for layer, found in drawn((2, 8)).items():
        assert (found[2] == drawn((2, 3))[layer][2]).all()


def test_patches_that_fit_into_no_map_are_refused():
    with pytest.raises(
        ValueError, match=r"^config.edit.patches is \(50,\), and .* side of 8 pos"
    ) as error:
        drawn((50,))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"config.edit.patches is \(9, 50\)"):
        drawn((9, 50))


def test_without_maps_there_is_nothing_to_draw():
    assert drawn((1,), chosen=lambda layer: False) == {}
