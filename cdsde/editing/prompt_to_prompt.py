r"""Prompt-to-prompt (Hertz et al. 2022, arXiv 2208.01626): the source's attention in the edit.

Source and edit are denoised in lockstep from the same noise. During the first steps the edit's
cross-attention maps p become those of the source, p', where the texts agree:

    p_n ← c_n (Σ_m p'_m A_mn + b_n p_n)                                                        (1)

    replace    A = 1, b = 0, for texts of equally many tokens
    refine     A_mn = 1 where token n of the edited text is token m of the caption, b_n = 1 where it
               is none of them; the alignment is Needleman's and Wunsch's
    reweight   c_n is a factor at the tokens of a word, 1 elsewhere

and self-attentions of at most 16x16 positions use the source's queries and keys, which is to use
its maps. In the published code the caption's padding aligns with the edited text's, by position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.editing import ddim, editors
from cdsde.networks.stable_diffusion.unet import Injection

POSITIONS = 16**2  # of the largest self-attention that takes the source's maps


def aligned(source: Sequence[int], target: Sequence[int]) -> np.ndarray:
    """The token of `source` that each token of `target` is, or -1: int `[len(target)]`.

    Needleman's and Wunsch's global alignment with the published scores, 1 for equal tokens, -1 for
    different ones and 0 for a gap; of equal scores, a gap in `source` comes first.
    """
    score = np.zeros((len(source) + 1, len(target) + 1), int)
    for i, a in enumerate(source, 1):
        for j, b in enumerate(target, 1):
            both = score[i - 1, j - 1] + (1 if a == b else -1)
            score[i, j] = max(score[i, j - 1], score[i - 1, j], both)
    found, i, j = np.full(len(target), -1), len(source), len(target)
    while i and j:
        if score[i, j] == score[i, j - 1]:
            j -= 1
        elif score[i, j] == score[i - 1, j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            found[j] = i
    return found


def mapper(
    source: np.ndarray, target: np.ndarray, counts: tuple[int, int], words: np.ndarray, factor=1.0
) -> tuple[np.ndarray, np.ndarray]:
    """c A and c b of equation (1), float32 `[M, M]` and `[M]`.

    Args:
      source, target: ids of caption and edited text, int `[M]` with padding.
      counts: their numbers of tokens, with start and end.
      words: bool `[M]`, the tokens of the edited text that are reweighted.
      factor: c at these tokens.
    """
    size, (before, after) = len(target), (min(n, len(target)) for n in counts)
    shares = np.eye(size, dtype=np.float32)
    if before != after:
        shares[:, :after] = 0
        found = aligned(source[:before], target[:after])
        kept = np.flatnonzero(found >= 0)
        shares[found[kept], kept] = 1
    weight = np.where(words, np.float32(factor), np.float32(1))
    return shares * weight, (1 - shares.sum(0)) * weight


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
      words: `mapper` of each image, `[B, M, M]` and `[B, M]`.
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
