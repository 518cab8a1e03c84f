r"""Contrast of the score networks of two domains: away from what the source's takes for likely.

With the noises ε_t and ε_s that the networks of target and source predict,

    ε = ε_t + λ (ε_t - ε_s)                                                                  (1)

which is guidance by λ (log p_s - log p_t), p_s and p_t the domains perturbed to the level: the log
ratio that EGSDE's classifier is trained for, known by its gradient (ε_t - ε_s)/√(1-ᾱ). In other
words it is classifier-free guidance (Ho and Salimans 2022) with the source's network in place of
the unconditional one. It is specific to this project.
"""

from __future__ import annotations

from collections.abc import Callable

import jax


def contrasted(target: Callable, source: Callable, weight: float | jax.Array) -> Callable:
    """The predicted noise of equation (1), `(y, i) -> ε [B, H, W, C]`.

    Args:
      target, source: `(y, i) -> ε`, the score networks of the domains.
      weight: λ; where it is 0, the source's network does not run.
    """

    def eps(y, i):
        # The barrier runs the networks in sequence; in parallel they compete for a CPU's cache.
        here, y = jax.lax.optimization_barrier((target(y, i), y))

        def contrast():
            return here + weight * (here - source(y, i))

        return jax.lax.cond(weight != 0, contrast, lambda: here)

    return eps
