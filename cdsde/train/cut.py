r"""CUT and FastCUT (Park et al. 2020): the losses and the training step of their three networks.

With A, B images of the two domains, G the generator, D the discriminator, F the patch sampler:

    L_D = ½ (GAN(D(G(A)), fake) + GAN(D(B), real))                                              (1)
    L_G = λ_GAN GAN(D(G(A)), real) + ½ (L_NCE(A, G(A)) + L_NCE(B, G(B)))         with identity  (2)
    L_G = λ_GAN GAN(D(G(A)), real) + L_NCE(A, G(A))                              without
    L_NCE(x, y) = λ_NCE · mean over layers and patches of PatchNCE(F(G_enc(y)), F(G_enc(x)))    (3)

One step, as published: G generates images; D takes a step on (1); G and F take a step on (2) with
the new D. G runs forward once: the gradient with respect to its images is pulled back through it at
the end. With several pairs per step, all images share the patch positions, and a patch's negatives
are in its own image, so that the gradient is the mean of the gradients of the pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cdsde.diffusion import losses
from cdsde.train import state as state_lib


class Networks(NamedTuple):
    """The networks as pure functions of their parameters.

    Attributes:
      generate: `(params, x [B, H, W, 3]) -> [B, H, W, 3]`, in [-1, 1].
      encode: `(params, x) -> [features [B, h, w, C], ...]`.
      discriminate: `(params, x) -> logits`.
      sample: `(params, features, ids) -> [vectors [B, P, D], ...]`.
    """

    generate: Callable
    encode: Callable
    discriminate: Callable
    sample: Callable


def draw_ids(key, shapes, count: int) -> list[jax.Array]:
    """At most `count` distinct positions in each feature map `[B, h, w, C]`: int32 `[P]` each."""
    keys = jax.random.split(key, len(shapes))
    return [
        jax.random.permutation(k, s.shape[1] * s.shape[2])[:count]
        for k, s in zip(keys, shapes, strict=True)
    ]


def _mirror(x, flip):
    return jnp.where(flip, x[:, :, ::-1], x)


def generate(networks: Networks, settings: ConfigDict, generator, a, b, flip):
    """G(A), with A mirrored if `flip`, and G(B), or None without the identity term."""
    a = _mirror(a, flip)
    if not settings.identity:
        return networks.generate(generator, a), None
    results = networks.generate(generator, jnp.concatenate([a, b]))
    return results[: len(a)], results[len(a) :]


def discriminator_loss(networks: Networks, settings: ConfigDict, discriminator, fake, b):
    """The loss (1) and its two terms before the factor ½, as `(loss, {name: scalar})`."""
    logits = networks.discriminate(discriminator, jnp.concatenate([fake, b]))
    for_fake = losses.gan(logits[: len(fake)], False, settings.gan).mean()
    for_real = losses.gan(logits[len(fake) :], True, settings.gan).mean()
    values = {"discriminator_fake": for_fake, "discriminator_real": for_real}
    return (for_fake + for_real) / 2, values


def nce(networks: Networks, settings: ConfigDict, generator, sampler, source, fake, ids, flip):
    """The loss (3), L_NCE(source, fake).

    Args:
      networks, settings: the networks, and `config.cut` with its variant's values.
      generator, sampler: parameters.
      source, fake: `[B, H, W, 3]`; fake is generated from the source, mirrored if `flip`.
      ids: positions in each layer, `draw_ids`.
      flip: bool scalar.

    Returns:
      `(loss, losses)`: a scalar, and for each layer the loss of each patch before λ_NCE, `[B, P]`.
    """
    keys = networks.sample(sampler, networks.encode(generator, source), ids)
    features = [_mirror(x, flip) for x in networks.encode(generator, fake)]
    queries = networks.sample(sampler, features, ids)
    each = [
        losses.patch_nce(q, k, settings.temperature) for q, k in zip(queries, keys, strict=True)
    ]
    return settings.nce_weight * sum(x.mean() for x in each) / len(each), each


def generator_loss(
    networks: Networks,
    settings: ConfigDict,
    params: dict,
    discriminator,
    fake,
    same,
    a,
    b,
    ids,
    same_ids,
    flip,
):
    """The loss (2) and its terms; `params` has "generator" and "patch_sampler"."""
    logits = networks.discriminate(discriminator, fake)
    for_gan = settings.gan_weight * losses.gan(logits, True, settings.gan).mean()
    both = params["generator"], params["patch_sampler"]
    for_nce, _ = nce(networks, settings, *both, a, fake, ids, flip)
    values = {"gan": for_gan, "nce": for_nce}
    if not settings.identity:
        return for_gan + for_nce, values
    for_same, _ = nce(networks, settings, *both, b, same, same_ids, jnp.zeros((), bool))
    return for_gan + (for_nce + for_same) / 2, {**values, "nce_identity": for_same}


def gradients(networks: Networks, settings: ConfigDict, params: dict, a, b, ids, same_ids, flip):
    """The gradients of one step, in two parts: the second needs the updated discriminator.

    Returns:
      `(loss of D, its terms, gradient of D, finish)`; `finish(discriminator)` returns `(loss of G,
      its terms, gradients of "generator" and "patch_sampler")`.
    """
    (fake, same), pull = jax.vjp(
        lambda g: generate(networks, settings, g, a, b, flip), params["generator"]
    )
    (loss, values), gradient = jax.value_and_grad(
        lambda d: discriminator_loss(networks, settings, d, fake, b), has_aux=True
    )(params["discriminator"])

    def finish(discriminator):
        def loss_of(rest, fake, same):
            return generator_loss(
                networks, settings, rest, discriminator, fake, same, a, b, ids, same_ids, flip
            )

        rest = {k: params[k] for k in ("generator", "patch_sampler")}
        (loss, values), (grads, for_fake, for_same) = jax.value_and_grad(
            loss_of, argnums=(0, 1, 2), has_aux=True
        )(rest, fake, same)
        (pulled,) = pull((for_fake, for_same))
        grads["generator"] = jax.tree.map(jnp.add, grads["generator"], pulled)
        return loss, values, grads

    return loss, values, gradient, finish


def make_update(
    networks: Networks,
    settings: ConfigDict,
    c: ConfigDict,
    tx: optax.GradientTransformation,
    gather: Callable = lambda params: params,
) -> Callable:
    """The deterministic part of a step: `update(state, a, b, ids, same_ids, flip)`.

    Args:
      networks: the three networks.
      settings: `config.gan_settings`.
      c: `config.stage_training`.
      tx: `state.each_part` of an optimiser.
      gather: as in `state.make_step`.

    Returns:
      `update`, which returns `(state, metrics)`; see `generator_loss` for its arguments.
    """

    def part(state, grads: dict):
        params = {k: state.params[k] for k in grads}
        updates, opt_state = tx.update(grads, state.opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def update(state: state_lib.TrainState, a, b, ids, same_ids, flip):
        loss_d, values_d, gradient, finish = gradients(
            networks, settings, gather(state.params), a, b, ids, same_ids, flip
        )
        params_d, opt_state_d = part(state, {"discriminator": gradient})
        loss_g, values_g, grads = finish(gather(params_d["discriminator"]))
        params_g, opt_state_g = part(state, grads)
        params, opt_state = {**params_d, **params_g}, {**opt_state_d, **opt_state_g}
        metrics = {
            "loss": loss_g,
            "gradient_norm": optax.tree.norm(grads),
            "discriminator": loss_d,
            **values_g,
            **values_d,
        }
        return state_lib.advance(state, params, params["generator"], opt_state, c), metrics

    return update


def make_step(networks: Networks, settings: ConfigDict, update: Callable, images: Callable):
    """`step(state, batch) -> (state, metrics)`: draws patches and mirroring, then calls `update`.

    `images` is `(batch, key) -> (a, b)`, each `[B, H, W, 3]` in [-1, 1].
    """

    def step(state: state_lib.TrainState, batch):
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), 4)
        a, b = images(batch, keys[0])
        flip = jax.random.bernoulli(keys[1]) & settings.flip_equivariance
        shapes = jax.eval_shape(networks.encode, state.params["generator"], a)
        ids, same_ids = (draw_ids(key, shapes, settings.num_patches) for key in keys[2:])
        return update(state, a, b, ids, same_ids, flip)

    return step
