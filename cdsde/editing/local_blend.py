r"""Local blend of prompt-to-prompt (Hertz et al. 2022, section 3.2): the rest stays the source's.

With a the attention of a place to the words, added up over the steps so far, on the largest maps
within 16x16, and max₃ the maximum of 3x3 places,

    m = max₃ a > τ max over places of max₃ a                                                   (1)
    x ← x' + M (x - x'),   M = m of the caption or m of the edited text                        (2)

x' is the source's latent at the same level. As published, with τ = 0.3, (2) follows each move but
those of the first fifth of the steps.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from cdsde.editing import attention_masks

SHARE_BEFORE = 0.2  # of the steps, without a blend


def with_step(
    total: jax.Array, maps: Mapping, places: jax.Array, side: tuple[int, int]
) -> jax.Array:
    """The attention so far with that of a step added, `[2B, s, s]`.

    Args:
      total: the attention so far, or 0; sources first, then edits.
      maps: cross-attention maps by layer, of which the last 2B rows are those of the texts.
      places: bool `[B, 2, M]`, the tokens of the words in caption and edited text.
      side: rows and columns of the latents.
    """
    weight = jnp.concatenate([places[:, 0], places[:, 1]]).astype(jnp.float32)
    own = {layer: m[-len(weight) :] for layer, m in maps.items()}
    return total + attention_masks.of_layers(own, weight, side)


def mask(total: jax.Array, side: tuple[int, int], threshold) -> jax.Array:
    """M of equation (2), bool `[B, h, w]`, from the attention `[2B, s, s]` so far.

    Words without attention, which their text does not hold, are nowhere.
    """
    wide = nn.max_pool(total[..., None], (3, 3), padding="SAME")[..., 0]
    own = wide > threshold * wide.max((1, 2), keepdims=True)
    source, edit = jnp.split(own, 2)
    return attention_masks.stretched(source | edit, side)


def blend(both: jax.Array, total: jax.Array, threshold, active: jax.Array) -> jax.Array:
    """Equation (2) for latents `[2B, h, w, C]`, sources first; where not `active`, all stays."""
    source, edit = jnp.split(both, 2)
    inside = mask(total, both.shape[1:3], threshold)[..., None]
    return jnp.concatenate([source, jnp.where(inside | ~active, edit, source)])
