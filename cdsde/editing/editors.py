r"""Training-free editors of a latent, as compositions of the same parts, each one scan.

    word_swap        sampling from the inverted noise with the other text
    zerocon          pix2pix-zeroCon: at each step the edited latent x is moved against
                     λ ∇(λ_c L_c + λ_e L_e), maps and features of the source coming from a pass that
                     runs in lockstep; the noise of a classifier-free guided step is taken there
    pair form of it  pix2pix-zero's own: two copies, with the caption and with the edited text, are
                     moved together and the first is carried on
    plug_and_play    queries, keys and one convolution are the source's, whose latents are those of
                     the inversion
    dds, cds         no ladder: the difference of two noise predictions is the gradient of the
                     latent (Delta Denoising Score), and (2) of guidance.py with it (CDS)

Texts are CLIP's hidden states, `[77, D]` or one an image `[B, 77, D]`; latents `[B, h, w, 4]`.
`unet(x, t, context, **kwargs)` is a `UNet.apply` with its parameters bound. Nothing is drawn in
here: ids and noise are arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cdsde.diffusion import schedules
from cdsde.editing import guidance, ladders
from cdsde.networks.stable_diffusion.unet import Injection

KEPT = ["maps", "features"]


class Texts(NamedTuple):
    """Hidden states `[77, D]` or `[B, 77, D]` of the texts of an edit.

    Attributes:
      source: of the caption.
      target: of the edited text (ĉ).
      negative: what classifier-free guidance leads away from.
    """

    source: jax.Array
    target: jax.Array
    negative: jax.Array


class Zerocon(NamedTuple):
    """Settings of pix2pix-zeroCon; numbers may be traced, the others choose the program.

    Attributes:
      step: λ, length of a gradient step.
      map_weight, feature_weight: λ_c, λ_e; with λ_e = 0 it is pix2pix-zero's guidance.
      scale: w of classifier-free guidance.
      temperature: τ of (2).
      pair: pix2pix-zero's form.
    """

    step: Any = 0.1
    map_weight: Any = 1.0
    feature_weight: Any = 3.0
    scale: Any = 5.0
    temperature: float = 0.07
    pair: bool = False


def _rows(text: jax.Array, batch: int) -> jax.Array:
    return jnp.broadcast_to(text, (batch, *text.shape[-2:]))


def guided_eps(unet: Callable, x: jax.Array, t, texts: Texts, scale, other=None) -> jax.Array:
    """ε(x', negative) + w (ε(x, target) - ε(x', negative)), x' = `other` or x; one pass of both."""
    b = len(x)
    both = jnp.concatenate([x if other is None else other, x])
    context = jnp.concatenate([_rows(texts.negative, b), _rows(texts.target, b)])
    away, towards = jnp.split(unet(both, t, context), 2)
    return away + scale * (towards - away)


def observe(unet: Callable, x, t, context):
    """The noise, and what the network kept: attention maps and features, each by layer."""
    eps, kept = unet(x, t, context, mutable=KEPT)
    maps = guidance.captured(kept["maps"], "probabilities")
    return eps, maps, guidance.captured(kept["features"], "out")


def word_swap(unet: Callable, x: jax.Array, ladder: ladders.Ladder, texts: Texts, scale=5.0):
    """Sampling with the other text: `(latent, states)`."""
    return ladders.run(x, ladder, lambda x, t: guided_eps(unet, x, t, texts, scale))


def zerocon(
    unet: Callable,
    x: jax.Array,
    ladder: ladders.Ladder,
    texts: Texts,
    settings: Zerocon,
    ids: Mapping,
):
    """pix2pix-zeroCon, and pix2pix-zero as a case of it.

    Args:
      unet: `(x, t, context, **kwargs)`.
      x: `[B, h, w, 4]`, the inverted latents.
      ladder: downwards.
      texts: `negative` is the caption, unless another one is wanted.
      settings: see `Zerocon`.
      ids: patches by layer and size, each `[N, n]`: a row a step; {}: no features.

    Returns:
      `(latent, states [N + 1, B, h, w, 4], {"map", "feature", "gradient", "source"})`: both losses
      `[N, B]`, the length of the latent's gradient, of the pair form `[N, 2, B]` of both copies,
      and what the source itself came out as, `[B, h, w, 4]`.
    """
    batch, side = len(x), x.shape[1:3]

    def losses(edit, t, maps, features, chosen):
        """Weighted loss and its two parts, of latents with their texts stacked."""
        count = len(edit) // batch
        context = _rows(texts.target, batch)
        if count == 2:
            context = jnp.concatenate([_rows(texts.negative, batch), context])
        _, own_maps, own_features = observe(unet, edit, t, context)
        doubled = {k: jnp.concatenate([m] * count) for k, m in maps.items()}
        of_maps = guidance.map_loss(own_maps, doubled)
        of_maps = of_maps.reshape(count, batch).mean(0)
        last = {k: f[-batch:] for k, f in own_features.items()}
        of_features = jnp.zeros(batch) + guidance.feature_loss(
            last, features, chosen, side, settings.temperature
        )
        total = settings.map_weight * of_maps + settings.feature_weight * of_features
        return total.sum(), (of_maps, of_features)

    def body(carry, row):
        source, edit = carry
        (t, start, end), chosen = row
        eps, maps, features = observe(unet, source, t, _rows(texts.source, batch))
        copies = jnp.concatenate([edit, edit]) if settings.pair else edit
        slope, parts = jax.grad(losses, has_aux=True)(copies, t, maps, features, chosen)
        at = copies - settings.step * slope
        first, last = (at[:batch], at[-batch:])
        noise = guided_eps(unet, last, t, texts, settings.scale, first)
        edit = ladders.move(first, noise, start, end)
        length = jnp.sqrt(jnp.sum(slope**2, axis=(1, 2, 3)))
        if settings.pair:
            length = length.reshape(2, batch)
        source = ladders.move(source, eps, start, end)
        told = {"map": parts[0], "feature": parts[1], "gradient": length}
        return (source, edit), (edit, told)

    rows = (ladders.Ladder(*map(jnp.asarray, ladder)), ids)
    (source, edit), (states, told) = jax.lax.scan(body, (x, x), rows)
    return edit, jnp.concatenate([x[None], states]), {**told, "source": source}


def plug_and_play(
    unet: Callable,
    inverted: jax.Array,
    ladder: ladders.Ladder,
    texts: Texts,
    scale=7.5,
    convolution: float = 0.8,
    attention: float = 0.5,
):
    """Plug-and-play diffusion features.

    Args:
      unet: `(x, t, context, inject)`.
      inverted: `[N + 1, B, h, w, 4]`, the states of the inversion, the clean latent first.
      ladder: downwards, of the same rungs.
      texts: `source` is what the inversion was made with.
      scale: w.
      convolution, attention: for which share of the steps, from the first, activations are the
        source's.

    Returns:
      `(latent, states)`.
    """
    steps, batch = len(ladder.t), inverted.shape[1]
    x = inverted[-1]
    context = jnp.concatenate([_rows(text, batch) for text in (texts[0], texts[2], texts[1])])

    def body(x, row):
        (t, start, end), source, conv, attend = row
        eps = unet(jnp.concatenate([source, x, x]), t, context, Injection(conv, attend))
        _, away, towards = jnp.split(eps, 3)
        x = ladders.move(x, away + scale * (towards - away), start, end)
        return x, x

    position = jnp.arange(steps)
    rows = (
        ladders.Ladder(*map(jnp.asarray, ladder)),
        inverted[:0:-1],  # that of the highest rung first, the clean one never
        position < round(convolution * steps),
        position < round(attention * steps),
    )
    last, states = jax.lax.scan(body, x, rows)
    return last, jnp.concatenate([x[None], states])


def delta_denoising(
    unet: Callable,
    z: jax.Array,
    schedule: ladders.LatentSchedule,
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
    """Delta Denoising Score, and Contrastive Denoising Score with `ids`.

    Args:
      unet: `(x, t, context, **kwargs)`.
      z: `[B, h, w, 4]`, the image's latents.
      schedule: of the model.
      texts: `negative` stands in both branches' guidance.
      t: `[N]` int, an index a step.
      noise: `[N, B, h, w, 4]`, the same in both branches.
      scale: w.
      rate: of plain gradient descent.
      factor: of the score's difference, which is divided by the number of positions besides.
      feature_weight: of (2) of guidance.py.
      ids: patches by layer and size, `[N, n]` each; None: DDS.
      temperature: τ.

    Returns:
      `(latent, states, {"score", "feature", "gradient"})`: lengths of both gradients and the loss,
      `[N, B]`.
    """
    alpha_bar = jnp.asarray(schedule.alpha_bar)
    batch, side = len(z), z.shape[1:3]
    z0, normaliser = z, z.shape[1] * z.shape[2]

    def noisy(x, e, i):
        return schedules.perturb(x, e, alpha_bar[i])

    def lengths(g):
        return jnp.sqrt(jnp.sum(g**2, axis=(1, 2, 3)))

    def body(z, row):
        i, e, chosen = row
        source = texts._replace(target=texts.source)
        towards = guided_eps(unet, noisy(z, e, i), i, texts, scale)
        back = guided_eps(unet, noisy(z0, e, i), i, source, scale)
        slope = factor / normaliser * (towards - back)
        told = {"score": lengths(slope)}
        if chosen is not None:
            _, _, wanted = observe(unet, noisy(z0, e, i), i, _rows(texts.source, batch))

            def loss(z):
                _, _, own = observe(unet, noisy(z, e, i), i, _rows(texts.target, batch))
                each = guidance.feature_loss(own, wanted, chosen, side, temperature)
                return each.sum(), each

            pull, each = jax.grad(loss, has_aux=True)(z)
            pull *= feature_weight
            slope += pull
            told |= {"feature": each, "gradient": lengths(pull)}
        z = z - rate * slope
        return z, (z, told)

    last, (states, told) = jax.lax.scan(body, z, (t, noise, ids))
    return last, jnp.concatenate([z[None], states]), told
