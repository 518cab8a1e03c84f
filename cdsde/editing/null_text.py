r"""Null-text inversion (Mokady et al. 2023, arXiv 2211.09794): negative texts that reconstruct.

With guidance, sampling leaves the states z*_i of a DDIM inversion. Starting at the noisiest one,
each step optimises the negative text ∅ by Adam, for at most J rounds, so that the guided move from
the current state z̄ leads to the next lower state z*_p:

    min over ∅ of mean (z*_p - move(z̄, ε(z̄, ∅) + w (ε(z̄, c) - ε(z̄, ∅))))²                     (1)

The text of a step begins as that of the step before, and the current state moves on with the text
that was found. Rates and stops are published for N = 50: step n has the rate 0.01 (1 - n/100) and
stops below a loss of 1e-5 + 2e-5 n; here each image stops by itself. With more steps the rate falls
to the same half of its first value, 0.01 (1 - n/(2N)); as published it would become negative.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from cdsde.editing import ddim

ROUNDS = 10
RATE, PUBLISHED_STEPS = 1e-2, 50  # the rate falls to half in these
STOP, LATER = 1e-5, 2e-5  # the loss at which a step stops, and its growth from step to step


def optimise(
    unet: Callable,
    states: jax.Array,
    ladder: ddim.Ladder,
    source: jax.Array,
    negative: jax.Array,
    scale=7.5,
) -> tuple[jax.Array, jax.Array]:
    """The negative text of each step, `[N, B, M, D]`, and the reconstruction, `[B, h, w, C]`.

    Args:
      unet: `(x, t, context)`.
      states: `[N + 1, B, h, w, C]`, the states of the inversion, the clean latent first.
      ladder: the sampling moves over the same rungs.
      source: `[B, M, D]`, the text of the inversion.
      negative: `[B, M, D]`, the text to begin with.
      scale: w of classifier-free guidance.
    """
    adam = optax.scale_by_adam()
    falling = 2 * max(PUBLISHED_STEPS, len(ladder.t))

    def of_images(chosen, new, old):
        """`new` where an image is chosen; numbers that count for all images are new."""

        def choose(a, b):
            return jnp.where(chosen[:, None, None], a, b) if a.ndim == 3 else a

        return jax.tree.map(choose, new, old)

    def body(carry, row):
        x, text = carry
        (t, start, end), wanted, number = row
        towards = unet(x, t, source)

        def moved(text):
            away = unet(x, t, text)
            return ddim.move(x, away + scale * (towards - away), start, end)

        def loss(text):
            each = jnp.mean((moved(text) - wanted) ** 2, (1, 2, 3))
            return each.sum(), each

        def improve(carry):
            n, text, moments, going = carry
            slope, each = jax.grad(loss, has_aux=True)(text)
            # As published, the stop is looked at after the round whose loss it is.
            update, new = adam.update(slope, moments)
            better = text - RATE * (1 - number / falling) * update
            text, moments = of_images(going, (better, new), (text, moments))
            return n + 1, text, moments, going & (each >= STOP + LATER * number)

        def going_on(carry):
            return (carry[0] < ROUNDS) & carry[3].any()

        begin = (0, text, adam.init(text), jnp.ones(len(x), bool))
        text = jax.lax.while_loop(going_on, improve, begin)[1]
        return (moved(text), text), text

    rows = (ddim.Ladder(*map(jnp.asarray, ladder)), states[-2::-1], jnp.arange(len(ladder.t)))
    (last, _), texts = jax.lax.scan(body, (states[-1], negative), rows)
    return texts, last
