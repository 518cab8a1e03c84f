r"""Prompt-to-prompt (Hertz et al. 2022, arXiv 2208.01626): the source's attention in the edit.

Source and edit are denoised in lockstep from the same noise. During the first steps the edit's
cross-attention maps p become those of the source, p', where the texts agree:

    p_n ← c_n (Σ_m p'_m A_mn + b_n p_n), with A, b and c of word_alignment.py                  (1)

and self-attentions of at most `side`² positions use the source's queries and keys, which is to use
its maps. With a threshold `blend`, only the place of the words changes (local_blend.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.editing import attention_masks, ddim, editors, local_blend
from cdsde.networks.stable_diffusion.unet import Injection


class Words(NamedTuple):
    """What is known of the words of an edit, a row for each image.

    Attributes:
      shares, kept: `word_alignment.mapper` of the texts, `[B, M, M]` and `[B, M]`.
      places: bool `[B, 2, M]`, the tokens of caption and edited text that tell the place of the
        edit; all of them: everywhere.
    """

    shares: jax.Array
    kept: jax.Array
    places: jax.Array


def prompt_to_prompt(
    unet: Callable,
    x: jax.Array,
    ladder: ddim.Ladder,
    texts: editors.Texts,
    words: Words,
    scale=7.5,
    cross=0.8,
    attention=0.4,
    side: int = 16,
    blend: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The edited and the reconstructed latents, `[B, h, w, C]` each.

    Args:
      unet: `(x, t, context, inject)`.
      x: `[B, h, w, C]`, the inverted latents.
      ladder: the sampling moves.
      texts: hidden states; `negative` may be `[N, B, M, D]`, one a step (null_text.py).
      words: how the texts agree, and where the edit is.
      scale: w of classifier-free guidance, of source and edit.
      cross, attention: share of the steps, from the first on, with the source's cross-attention and
        self-attention.
      side: of the largest maps whose self-attention is taken.
      blend: τ of the local blend; None: the edit may change everything.
    """
    steps, batch, position = len(ladder.t), len(x), np.arange(len(ladder.t))
    pair = jnp.concatenate([editors.of_batch(text, batch) for text in texts[:2]])
    source_rows = 2 * batch + np.arange(batch)

    def body(carry, row):
        x, total = carry
        (t, start, end), negative, mapped, attend, blends = row
        taken = jnp.where(mapped, words.shares, 0.0), jnp.where(mapped, words.kept, 1.0)
        inject = Injection(source_rows, attention=attend, most=side**2, words=taken)
        negative = editors.of_batch(texts.negative if negative is None else negative, batch)
        context = jnp.concatenate([negative, negative, pair])
        args = jnp.concatenate([x, x]), t, context, inject
        if blend is None:
            out = unet(*args)
        else:
            out, maps, _ = editors.observe(unet, *args)
            total = local_blend.with_step(total, maps, words.places, x.shape[1:3])
        away, towards = jnp.split(out, 2)
        x = ddim.move(x, away + scale * (towards - away), start, end)
        if blend is not None:
            x = local_blend.blend(x, total, blend, blends)
        return (x, total), None

    rows = (
        ddim.Ladder(*map(jnp.asarray, ladder)),
        editors.per_step(texts.negative),
        position < jnp.round(cross * steps),
        position < jnp.round(attention * steps),
        position >= int(local_blend.SHARE_BEFORE * steps),
    )
    none_yet = None if blend is None else attention_masks.zeros(2 * batch, x.shape[1:3])
    (both, _), _ = jax.lax.scan(body, (jnp.concatenate([x, x]), none_yet), rows)
    return both[batch:], both[:batch]
