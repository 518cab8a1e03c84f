r"""Training-free editors of a latent, each one scan over the steps.

    word_swap        samples from the inverted noise with the edited text
    zerocon          pix2pix-zeroCon: each step first moves the edited latent,
                     x ← x - λ ∇(λ_c L_c + λ_e L_e) with L_c, L_e of guidance.py, then takes a
                     classifier-free guided DDIM step; the source is denoised in lockstep and gives
                     the reference maps and features
    zerocon, pair    pix2pix-zero: the gradient moves two copies of the latent, one with the caption
                     and one with the edited text; the DDIM step continues from the first
    plug_and_play    takes queries, keys and one convolution's output from the source, whose latents
                     are the states of the inversion
    delta_denoising  gradient descent on the latent: the difference of two noise predictions is the
                     gradient (Delta Denoising Score, DDS), to which Contrastive Denoising Score
                     (CDS) adds that of equation (2) of guidance.py

Texts are CLIP's hidden states, `[77, D]` or per image `[B, 77, D]`; latents are `[B, h, w, 4]`.
`unet(x, t, context, **kwargs)` is `UNet.apply` with its parameters bound. Nothing random happens
here: patch ids and noise are arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.diffusion import schedules
from cdsde.editing import ddim, guidance
from cdsde.networks.stable_diffusion.unet import Injection

KEPT = ["maps", "features"]


class Texts(NamedTuple):
    """Hidden states of the texts of an edit, `[77, D]` or `[B, 77, D]` each.

    Attributes:
      source: the caption.
      target: the edited text (ĉ).
      negative: the text that classifier-free guidance leads away from; null-text inversion makes
        one for each step, `[N, B, 77, D]`.
      words: what an editor needs to know of single words, arrays `[B, ...]`.
    """

    source: jax.Array
    target: jax.Array
    negative: jax.Array
    words: Any = None


class Zerocon(NamedTuple):
    """Settings of pix2pix-zeroCon; all but `pair` may be traced.

    Attributes:
      step: λ, length of a gradient step.
      map_weight, feature_weight: λ_c, λ_e; λ_e = 0 gives pix2pix-zero's guidance.
      scale: w of classifier-free guidance.
      temperature: τ of equation (2) of guidance.py.
      pair: whether to use pix2pix-zero's pair form.
    """

    step: Any = 0.1
    map_weight: Any = 1.0
    feature_weight: Any = 3.0
    scale: Any = 5.0
    temperature: float = 0.07
    pair: bool = False


def of_batch(text: jax.Array, batch: int) -> jax.Array:
    """A text for each image, `[B, 77, D]`."""
    return jnp.broadcast_to(text, (batch, *text.shape[-2:]))


def per_step(text: jax.Array) -> jax.Array | None:
    """The texts of the steps of a scan, `[N, B, 77, D]`; None: one text serves all steps."""
    return text if text.ndim == 4 else None


def guided_eps(unet: Callable, x: jax.Array, t, texts: Texts, scale, other=None) -> jax.Array:
    """Classifier-free guidance, ε(x', negative) + w (ε(x, target) - ε(x', negative)).

    x' is `other`, or x if that is None; one network call evaluates both terms.
    """
    b = len(x)
    both = jnp.concatenate([x if other is None else other, x])
    context = jnp.concatenate([of_batch(texts.negative, b), of_batch(texts.target, b)])
    negative, target = jnp.split(unet(both, t, context), 2)
    return negative + scale * (target - negative)


def observe(unet: Callable, x, t, context, *inject):
    """The predicted noise, the cross-attention maps and the features, the latter two by layer."""
    eps, kept = unet(x, t, context, *inject, mutable=KEPT)
    maps = guidance.captured(kept["maps"], "probabilities")
    return eps, maps, guidance.captured(kept["features"], "out")


def word_swap(unet: Callable, x: jax.Array, ladder: ddim.Ladder, texts: Texts, scale=5.0):
    """Sampling with the edited text: `(latent, states [N + 1, B, h, w, 4])`."""

    def body(x, row):
        (t, start, end), negative = row
        own = texts if negative is None else texts._replace(negative=negative)
        x = ddim.move(x, guided_eps(unet, x, t, own, scale), start, end)
        return x, x

    rows = ddim.Ladder(*map(jnp.asarray, ladder)), per_step(texts.negative)
    last, states = jax.lax.scan(body, x, rows)
    return last, jnp.concatenate([x[None], states])


def zerocon(
    unet: Callable,
    x: jax.Array,
    ladder: ddim.Ladder,
    texts: Texts,
    settings: Zerocon,
    ids: Mapping,
):
    """pix2pix-zeroCon; with `settings.pair` and λ_e = 0, pix2pix-zero (Parmar et al. 2023).

    Args:
      unet: `(x, t, context, **kwargs)`.
      x: `[B, h, w, 4]`, the inverted latents.
      ladder: the sampling moves.
      texts: `negative` is usually the caption.
      settings: see `Zerocon`.
      ids: patches by layer and size, `[N, n]` each, a row per step; {} for no feature loss.

    Returns:
      `(latent, states [N + 1, B, h, w, 4], {"map", "feature", "gradient", "source"})`: the losses
      L_c and L_e `[N, B]`, the length of the latent's gradient `[N, B]` (pair form: of both copies,
      `[N, 2, B]`), and the reconstructed source `[B, h, w, 4]`.
    """
    batch = len(x)

    def body(carry, row):
        source, edit = carry
        (t, start, end), chosen = row
        eps, *reference = observe(unet, source, t, of_batch(texts.source, batch))
        loss = functools.partial(_guidance_loss, unet, texts, settings)
        copies = jnp.concatenate([edit, edit]) if settings.pair else edit
        slope, parts = jax.grad(loss, has_aux=True)(copies, t, *reference, chosen)
        moved = copies - settings.step * slope
        first, last = (moved[:batch], moved[-batch:])
        noise = guided_eps(unet, last, t, texts, settings.scale, first)
        edit = ddim.move(first, noise, start, end)
        length = _lengths(slope)
        if settings.pair:
            length = length.reshape(2, batch)
        source = ddim.move(source, eps, start, end)
        return (source, edit), (edit, {"map": parts[0], "feature": parts[1], "gradient": length})

    rows = (ddim.Ladder(*map(jnp.asarray, ladder)), ids)
    (source, edit), (states, measured) = jax.lax.scan(body, (x, x), rows)
    return edit, jnp.concatenate([x[None], states]), {**measured, "source": source}


def _guidance_loss(unet, texts: Texts, settings: Zerocon, edit, t, maps, features, chosen):
    """λ_c L_c + λ_e L_e, summed over images, and `(L_c, L_e)`, `[B]` each.

    Args:
      unet, texts, settings: those of `zerocon`.
      edit: `[B, h, w, 4]`; in the pair form `[2B, h, w, 4]`, the copies with the caption first.
      t: index of the level.
      maps, features: of the source, by layer.
      chosen: `{layer: {patch size: [n]}}`.
    """
    count = 2 if settings.pair else 1
    batch, side = len(edit) // count, edit.shape[1:3]
    context = of_batch(texts.target, batch)
    if settings.pair:
        context = jnp.concatenate([of_batch(texts.negative, batch), context])
    _, edit_maps, edit_features = observe(unet, edit, t, context)
    repeated = {k: jnp.concatenate([m] * count) for k, m in maps.items()}
    map_loss = guidance.map_loss(edit_maps, repeated)
    map_loss = map_loss.reshape(count, batch).mean(0)
    last = {k: f[-batch:] for k, f in edit_features.items()}
    feature_loss = jnp.zeros(batch) + guidance.feature_loss(
        last, features, chosen, side, settings.temperature
    )
    total = settings.map_weight * map_loss + settings.feature_weight * feature_loss
    return total.sum(), (map_loss, feature_loss)


def _lengths(gradient: jax.Array) -> jax.Array:
    """Euclidean length of each image's gradient, `[B, h, w, C]` → `[B]`."""
    return jnp.sqrt(jnp.sum(gradient**2, axis=(1, 2, 3)))


def plug_and_play(
    unet: Callable,
    inverted: jax.Array,
    ladder: ddim.Ladder,
    texts: Texts,
    scale=7.5,
    convolution: float = 0.8,
    attention: float = 0.5,
):
    """Plug-and-play diffusion features (Tumanyan et al. 2023).

    Args:
      unet: `(x, t, context, inject)`.
      inverted: `[N + 1, B, h, w, 4]`, the states of the inversion, the clean latent first.
      ladder: the sampling moves over the same rungs.
      texts: `source` is the text of the inversion.
      scale: w of classifier-free guidance.
      convolution, attention: share of the steps, from the first on, with the source's activations.

    Returns:
      `(latent, states [N + 1, B, h, w, 4])`.
    """
    steps, batch = len(ladder.t), inverted.shape[1]
    x, taken_from = inverted[-1], np.tile(np.arange(batch), 2)
    context = jnp.concatenate([of_batch(text, batch) for text in (texts[0], texts[2], texts[1])])

    def body(x, row):
        (t, start, end), source, conv, attend = row
        inject = Injection(taken_from, conv, attend)
        eps = unet(jnp.concatenate([source, x, x]), t, context, inject)
        _, negative, target = jnp.split(eps, 3)
        x = ddim.move(x, negative + scale * (target - negative), start, end)
        return x, x

    position = jnp.arange(steps)
    rows = (
        ddim.Ladder(*map(jnp.asarray, ladder)),
        inverted[:0:-1],  # from the highest rung down, without the clean latent
        position < round(convolution * steps),
        position < round(attention * steps),
    )
    last, states = jax.lax.scan(body, x, rows)
    return last, jnp.concatenate([x[None], states])


def delta_denoising(
    unet: Callable,
    z: jax.Array,
    schedule: ddim.LatentSchedule,
    texts: Texts,
    t: jax.Array,
    noise: jax.Array,
    scale=7.5,
    rate=0.1,
    factor=2000.0,
    feature_weight=0.0,
    ids: Mapping | None = None,
    temperature: float = 0.07,
):
    """Delta Denoising Score (Hertz et al. 2023); with `ids`, Contrastive Denoising Score.

    Args:
      unet: `(x, t, context, **kwargs)`.
      z: `[B, h, w, 4]`, the image's latents.
      schedule: noise levels of the model.
      texts: `negative` serves the guidance of both branches.
      t: `[N]` int, the index of each step.
      noise: `[N, B, h, w, 4]`, the same in both branches.
      scale: w of classifier-free guidance.
      rate: step length of plain gradient descent.
      factor: weight of the noise difference, which is also divided by h·w.
      feature_weight: weight of equation (2) of guidance.py.
      ids: patches by layer and size, `[N, n]` each; None for DDS.
      temperature: τ of equation (2).

    Returns:
      `(latent, states, {"score", "feature", "gradient"})`: `[N, B]` each, the length of the noise
      difference's gradient, the feature loss and the length of its gradient.
    """
    alpha_bar = jnp.asarray(schedule.alpha_bar)
    z0, positions = z, z.shape[1] * z.shape[2]
    unedited = texts._replace(target=texts.source)

    def body(z, row):
        i, e, chosen = row

        def noisy(x):
            return schedules.perturb(x, e, alpha_bar[i])

        target = guided_eps(unet, noisy(z), i, texts, scale)
        source = guided_eps(unet, noisy(z0), i, unedited, scale)
        slope = factor / positions * (target - source)
        measured = {"score": _lengths(slope)}
        if chosen is not None:
            pull, loss = _feature_slope(unet, z, z0, noisy, i, texts, chosen, temperature)
            pull *= feature_weight
            slope += pull
            measured |= {"feature": loss, "gradient": _lengths(pull)}
        z = z - rate * slope
        return z, (z, measured)

    last, (states, measured) = jax.lax.scan(body, z, (t, noise, ids))
    return last, jnp.concatenate([z[None], states]), measured


def _feature_slope(unet, z, z0, noisy: Callable, t, texts: Texts, chosen: Mapping, temperature):
    """Gradient of equation (2) of guidance.py by z, `[B, h, w, 4]`, and its value, `[B]`.

    `noisy` perturbs z and the source latents z0 alike, to level t.
    """
    batch, side = len(z), z.shape[1:3]
    _, _, source = observe(unet, noisy(z0), t, of_batch(texts.source, batch))

    def loss(z):
        _, _, edit = observe(unet, noisy(z), t, of_batch(texts.target, batch))
        values = guidance.feature_loss(edit, source, chosen, side, temperature)
        return values.sum(), values

    return jax.grad(loss, has_aux=True)(z)
