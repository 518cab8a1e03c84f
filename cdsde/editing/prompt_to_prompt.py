r"""Prompt-to-prompt (Hertz et al. 2022, arXiv 2208.01626): the source's attention in the edit.

Source and edit are denoised in lockstep from the same noise. During the first steps the edit's
cross-attention maps p become those of the source, p', where the texts agree:

    p_n ← c_n (Σ_m p'_m A_mn + b_n p_n), with A, b and c of word_alignment.py                  (1)

and self-attentions of at most 16x16 positions use the source's queries and keys, which is to use
its maps.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.editing import ddim, editors
from cdsde.networks.stable_diffusion.unet import Injection

POSITIONS = 16**2  # of the largest self-attention that takes the source's maps


def prompt_to_prompt(
    unet: Callable,
    x: jax.Array,
    ladder: ddim.Ladder,
    texts: editors.Texts,
    words: tuple[jax.Array, jax.Array],
    scale=7.5,
    cross=0.8,
    attention=0.4,
) -> tuple[jax.Array, jax.Array]:
    """The edited and the reconstructed latents, `[B, h, w, C]` each.

    Args:
      unet: `(x, t, context, inject)`.
      x: `[B, h, w, C]`, the inverted latents.
      ladder: the sampling moves.
      texts: hidden states; `negative` may be `[N, B, M, D]`, one a step (null_text.py).
      words: `word_alignment.mapper` of each image, `[B, M, M]` and `[B, M]`.
      scale: w of classifier-free guidance, of source and edit.
      cross, attention: share of the steps, from the first on, with the source's cross-attention and
        self-attention.
    """
    steps, batch, position = len(ladder.t), len(x), np.arange(len(ladder.t))
    shares, kept = words
    pair = jnp.concatenate([editors.of_batch(text, batch) for text in texts[:2]])
    source_rows = 2 * batch + np.arange(batch)

    def body(x, row):
        (t, start, end), negative, mapped, attend = row
        taken = jnp.where(mapped, shares, 0.0), jnp.where(mapped, kept, 1.0)
        inject = Injection(source_rows, attention=attend, most=POSITIONS, words=taken)
        negative = editors.of_batch(texts.negative if negative is None else negative, batch)
        context = jnp.concatenate([negative, negative, pair])
        away, towards = jnp.split(unet(jnp.concatenate([x, x]), t, context, inject), 2)
        return ddim.move(x, away + scale * (towards - away), start, end), None

    rows = (
        ddim.Ladder(*map(jnp.asarray, ladder)),
        editors.per_step(texts.negative),
        position < jnp.round(cross * steps),
        position < jnp.round(attention * steps),
    )
    both, _ = jax.lax.scan(body, jnp.concatenate([x, x]), rows)
    return both[batch:], both[:batch]
