r"""Training losses: deterministic functions of arrays; no network is called here.

ε-matching (Ho et al. 2020, equation 14), with the signal-to-noise weight of Hang et al. 2023:

    L = mean_b w(ᾱ_b) · mean_hwc (ε̂_b - ε_b)²,   w = min(snr, γ)/snr,   snr = ᾱ/(1-ᾱ)      (1)

The variance of a network with `score.learn_sigma` (Nichol & Dhariwal 2021, equations 15 and 16):
the term of the variational bound of the step from i to i-1, in bits per dimension, without a
gradient into ε̂. With the learned v in [-1, 1], e = ε̂ - ε, the posterior's variance β̃:

    L = (-1 + d + (1 + w e²) exp(-d)) / (2 log 2),   d = (v+1)/2 log β/β̃,   w = β/(α (1-ᾱ_{i-1}))
    L = -log₂ P(x),  x of 256 values under N(x - √(β/α) e, σ²),   in the last step, i = 0       (5)

where β̃ is that of the step before, and σ² = β̃ exp(d).

NT-Xent (Chen et al. 2020, equation 1) over the 2B views of the global batch:

    L = mean_a -log  exp(⟨z_a, z_p(a)⟩/τ) / Σ_{b≠a} exp(⟨z_a, z_b⟩/τ)                        (2)

For maps, the mean of two such losses: (2) among the images at one position, which teaches what is
there, and (2) among the positions of one image, which teaches where it is.                (3)

PatchNCE (Park et al. 2020, equation 3) at each position p of an image, keys without gradient:

    L_p = -log  exp(⟨q_p, k_p⟩/τ) / Σ_r exp(⟨q_p, k_r⟩/τ)                                      (4)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cdsde.diffusion import energies, schedules


def eps_matching(prediction, eps, alpha_bar, snr_clip: float | None = None):
    """ε-matching with min-SNR weights, equation (1).

    Args:
      prediction: predicted noise, `[B, H, W, C]`.
      eps: the noise that was added, `[B, H, W, C]`.
      alpha_bar: ᾱ of each image, `[B]`.
      snr_clip: γ; None sets w = 1 at every noise level.

    Returns:
      The loss, a float32 scalar.
    """
    per_image = jnp.mean((prediction - eps) ** 2, axis=(1, 2, 3))
    if snr_clip is not None:
        snr = alpha_bar / (1 - alpha_bar)
        per_image = per_image * jnp.minimum(snr, snr_clip) / snr
    return jnp.mean(per_image)


def variance_bound(v, prediction, eps, x0, i, schedule):
    """The variational bound of a learned variance, equation (5).

    Args:
      v: the learned share of the variance, `[B, H, W, C]`.
      prediction: predicted noise, `[B, H, W, C]`; no gradient flows into it.
      eps: the noise that was added, `[B, H, W, C]`.
      x0: the clean images in [-1, 1], `[B, H, W, C]`.
      i: the noise level of each image, int `[B]`.
      schedule: the noise schedule.

    Returns:
      The mean over images, in bits per dimension, a float32 scalar.
    """
    ab = np.asarray(schedule.alpha_bar, np.float64)
    before = np.concatenate([[1.0], ab[:-1]])
    beta = 1 - ab / before
    # The last step, of β̃ = 0, takes that of the step before it, as in the published code.
    rows = np.maximum(np.arange(len(ab)), min(1, len(ab) - 1))
    posterior = beta[rows] * np.maximum(1 - before[rows], 1e-20) / (1 - ab[rows])
    ratio = np.log(beta / posterior)
    weight = beta / ((1 - beta) * np.maximum(1 - before[rows], 1e-20))

    def of_level(values):
        return schedules.gather(np.asarray(values, np.float32), i)[:, None, None, None]

    error = jax.lax.stop_gradient(prediction) - eps
    d = (v + 1) / 2 * of_level(ratio)
    step = (d - 1 + (1 + of_level(weight) * error**2) * jnp.exp(-d)) / 2
    std = jnp.exp((d + np.log(posterior[0])) / 2)
    distance = np.sqrt(beta[0] / (1 - beta[0])) * error

    def below(edge):
        return jax.scipy.stats.norm.cdf((distance + edge) / std)

    upper = jnp.where(x0 > 0.999, 1.0, below(1 / 255))
    lower = jnp.where(x0 < -0.999, 0.0, below(-1 / 255))
    last = -jnp.log(jnp.maximum(upper - lower, 1e-12))
    is_last = (i == 0)[:, None, None, None]
    return jnp.mean(jnp.where(is_last, last, step)) / np.log(2)


def nt_xent(first, second, temperature):
    """NT-Xent over two views of a batch, equation (2).

    Args:
      first, second: embeddings of the two views, `[B, D]` (normalised here).
      temperature: τ > 0.

    Returns:
      `(loss, accuracy)`: float32 scalars; the accuracy is the share of views whose positive is the
      nearest view.
    """
    z = energies.unit(jnp.concatenate([first, second]))
    n = z.shape[0]
    logits = z @ z.T / temperature
    logits = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, logits)
    positive = jnp.roll(jnp.arange(n), n // 2)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, positive)
    return jnp.mean(loss), jnp.mean(jnp.argmax(logits, -1) == positive)


def nt_xent_of_maps(first, second, temperature):
    """NT-Xent of maps, equation (3).

    Args:
      first, second: maps of the two views, `[B, h, w, D]` (normalised here).
      temperature: τ > 0.

    Returns:
      `(loss, accuracy)`, as `nt_xent`.
    """
    b, h, w, d = first.shape
    first, second = (z.reshape(b, h * w, d) for z in (first, second))

    def along(axis):
        loss, accuracy = jax.vmap(nt_xent, (axis, axis, None))(first, second, temperature)
        return jnp.mean(loss), jnp.mean(accuracy)

    return jax.tree.map(lambda a, b: (a + b) / 2, along(1), along(0))


def cross_entropy(logits, labels):
    """Mean cross-entropy and accuracy of `logits` `[B, n]` for integer `labels` `[B]`."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(loss), jnp.mean(jnp.argmax(logits, -1) == labels)


def alignment_uniformity(first, second):
    """Alignment, mean d² of the positives, and uniformity, log mean exp(-2 d²) over all pairs.

    Wang & Isola 2020. Training logs both and does not optimise them; lower is better.

    Args:
      first, second: embeddings `[B, D]`; maps are flattened to one vector per image.
    """
    first, second = (z.reshape(len(z), -1) for z in (first, second))
    a, b = energies.unit(first), energies.unit(second)
    alignment = jnp.mean(jnp.sum((a - b) ** 2, -1))
    z = jnp.concatenate([a, b])
    d2 = 2 - 2 * z @ z.T
    pairs = ~jnp.eye(z.shape[0], dtype=bool)
    uniformity = jax.nn.logsumexp(jnp.where(pairs, -2 * d2, -jnp.inf)) - jnp.log(pairs.sum())
    return alignment, uniformity


def patch_nce(queries, keys, temperature: float = 0.07):
    """PatchNCE, equation (4).

    Args:
      queries, keys: unit vectors `[B, P, D]`; no gradient flows into the keys.
      temperature: τ.

    Returns:
      The loss of each patch, `[B, P]`.
    """
    return energies.patch_nce(queries, jax.lax.stop_gradient(keys), temperature)


def gan(logits, real: bool, mode: str = "lsgan"):
    """GAN loss of a discriminator's logits D: the distance from a label, 1 for real, 0 for fake.

        lsgan            (D - label)²                       Mao et al. 2017, without the factor ½
        nonsaturating    softplus(-D) for 1, softplus(D) for 0         Goodfellow et al. 2014

    Args:
      logits: `[B, ...]`.
      real: the label.
      mode: "lsgan" or "nonsaturating".

    Returns:
      The loss of each image, `[B]`, a mean over its logits.

    Raises:
      ValueError: the mode is unknown.
    """
    x = logits.reshape(logits.shape[0], -1)
    if mode == "lsgan":
        loss = (x - float(real)) ** 2
    elif mode == "nonsaturating":
        loss = jax.nn.softplus(-x if real else x)
    else:
        raise ValueError(f"unknown GAN loss '{mode}'; choose lsgan or nonsaturating")
    return loss.mean(axis=1)
