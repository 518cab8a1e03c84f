r"""Training losses. Arrays in, scalars out; nothing is random and no network is known here.

ε-matching (Ho et al. 2020, equation 14), with the signal-to-noise weight of Hang et al. 2023:

    L = mean_b w(ᾱ_b) · mean_hwc (ε̂_b - ε_b)²,   w = min(snr, γ)/snr,   snr = ᾱ/(1-ᾱ)      (1)

NT-Xent (Chen et al. 2020, equation 1) over the 2B views of the global batch:

    L = mean_a -log  exp(⟨z_a, z_p(a)⟩/τ) / Σ_{b≠a} exp(⟨z_a, z_b⟩/τ)                        (2)

and of maps, position by position: half of (2) among the images at one position, so that a vector
tells what is there, and half among the positions of one image, so that it tells where; (3)

PatchNCE (Park et al. 2020, equation 3) at each position p of an image, keys without gradient:

    L_p = -log  exp(⟨q_p, k_p⟩/τ) / Σ_r exp(⟨q_p, k_r⟩/τ)                                      (4)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from cdsde.diffusion import energies


def eps_matching(prediction, eps, alpha_bar, snr_clip: float | None = None):
    """Equation (1).

    Args:
      prediction: `[B, H, W, C]` predicted noise.
      eps: `[B, H, W, C]` the noise that was added.
      alpha_bar: `[B]` ᾱ of each image.
      snr_clip: γ; None weighs all noise levels alike (w = 1).

    Returns:
      The loss, a float32 scalar.
    """
    per_image = jnp.mean((prediction - eps) ** 2, axis=(1, 2, 3))
    if snr_clip is not None:
        snr = alpha_bar / (1 - alpha_bar)
        per_image = per_image * jnp.minimum(snr, snr_clip) / snr
    return jnp.mean(per_image)


def nt_xent(first, second, temperature):
    """Equation (2).

    Args:
      first, second: `[B, D]` embeddings of the two views (normalised here).
      temperature: τ > 0.

    Returns:
      `(loss, accuracy)`: float32 scalars; accuracy is how often the positive is the nearest view.
    """
    z = energies.unit(jnp.concatenate([first, second]))
    n = z.shape[0]
    logits = z @ z.T / temperature
    logits = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, logits)
    positive = jnp.roll(jnp.arange(n), n // 2)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, positive)
    return jnp.mean(loss), jnp.mean(jnp.argmax(logits, -1) == positive)


def nt_xent_of_maps(first, second, temperature):
    """Equation (3).

    Args:
      first, second: `[B, h, w, D]` maps of the two views (normalised here).
      temperature: τ > 0.

    Returns:
      `(loss, accuracy)`, as of `nt_xent`.
    """
    b, h, w, d = first.shape
    one, other = (z.reshape(b, h * w, d) for z in (first, second))

    def along(axis):
        loss, accuracy = jax.vmap(nt_xent, (axis, axis, None))(one, other, temperature)
        return jnp.mean(loss), jnp.mean(accuracy)

    return jax.tree.map(lambda a, b: (a + b) / 2, along(1), along(0))


def cross_entropy(logits, labels):
    """Mean cross-entropy and accuracy of `logits` `[B, n]` against integer `labels` `[B]`."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(loss), jnp.mean(jnp.argmax(logits, -1) == labels)


def alignment_uniformity(first, second):
    """Wang & Isola 2020: mean d² of the positives, and log mean exp(-2 d²) over all pairs.

    Both from embeddings `[B, D]` (maps are taken as one long vector); lower is better for each.
    Logged, not trained on.
    """
    first, second = (z.reshape(len(z), -1) for z in (first, second))
    a, b = energies.unit(first), energies.unit(second)
    alignment = jnp.mean(jnp.sum((a - b) ** 2, -1))
    z = jnp.concatenate([a, b])
    d2 = 2 - 2 * z @ z.T
    off = ~jnp.eye(z.shape[0], dtype=bool)
    uniformity = jax.nn.logsumexp(jnp.where(off, -2 * d2, -jnp.inf)) - jnp.log(off.sum())
    return alignment, uniformity


def patch_nce(queries, keys, temperature: float = 0.07):
    """Equation (4).

    Args:
      queries, keys: `[B, P, D]`, rows of length 1; no gradient flows into the keys.
      temperature: τ.

    Returns:
      The loss of each patch, `[B, P]`.
    """
    return energies.patch_nce(queries, jax.lax.stop_gradient(keys), temperature)


def gan(logits, real: bool, mode: str = "lsgan"):
    """How far a discriminator's logits are from calling the images real, or not real.

    Args:
      logits: `[B, ...]`.
      real: what they ought to say.
      mode: "lsgan" (no factor ½) or "nonsaturating".

    Returns:
      The mean for each image, `[B]`.
    """
    x = logits.reshape(logits.shape[0], -1)
    if mode == "lsgan":
        each = (x - float(real)) ** 2
    elif mode == "nonsaturating":
        each = jax.nn.softplus(-x if real else x)
    else:
        raise ValueError(f"unknown GAN loss '{mode}'; choose lsgan or nonsaturating")
    return each.mean(axis=1)
