r"""Losses that tie an edit to its source: cross-attention maps, and features patch by patch.

    L_c = Σ over layers of mean over heads of Σ over positions and tokens (M̂ - M)²               (1)
    L_e = Σ over layers and patch sizes of mean over patches of
          -log exp(⟨s_i, e_i⟩/τ) / Σ_j exp(⟨s_i, e_j⟩/τ)                                         (2)

M are attention maps of the source, M̂ those of the edit; s are the source's feature vectors, pooled
over patches and normalised to length 1, e those of the edit at the same positions. Sources:
pix2pix-zero (Parmar et al. 2023) for (1), Contrastive Denoising Score (Nam et al. 2024) for (2):
the query is the source, and the gradient flows through positives and negatives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from cdsde.diffusion.energies import unit


def captured(collection: Mapping, leaf: str) -> dict[str, jax.Array]:
    """Sown values named `leaf`, by the dotted path of the module that sowed them."""
    values = {}
    for path, value in jax.tree_util.tree_leaves_with_path(collection):
        keys = [k.key for k in path if hasattr(k, "key")]
        if keys[-1] == leaf:
            values[".".join(keys[:-1])] = value
    return values


def of_decoder(path: str) -> bool:
    """Whether a module is a self-attention of the decoder."""
    return path.startswith("up_blocks.") and path.endswith(".attn1")


def of_encoder(path: str) -> bool:
    """Whether a module is a self-attention or a residual block of the encoder."""
    return path.startswith("down_blocks.") and (path.endswith(".attn1") or ".resnets." in path)


def map_loss(edit: Mapping, source: Mapping) -> jax.Array:
    """Equation (1), `[B]`, from maps `[B, heads, L, M]` by layer; no gradient for the source."""
    total = jnp.zeros(())
    for layer, maps in edit.items():
        squared = (maps - jax.lax.stop_gradient(source[layer])) ** 2
        total += squared.sum((-2, -1)).mean(-1)
    return total


def as_map(x: jax.Array, height: int, width: int) -> jax.Array:
    """Features `[B, L, C]` as a map `[B, h, w, C]`: `height` and `width` over a power of two."""
    if x.ndim == 4:
        return x
    length, factor = x.shape[1], 1
    while (height // factor) * (width // factor) > length:
        factor *= 2
    return x.reshape(x.shape[0], height // factor, width // factor, -1)


def pooled(x: jax.Array, patch: int) -> jax.Array:
    """Mean of each `patch`×`patch` square: `[B, h, w, C]` → `[B, P, C]`; remainders are dropped."""
    b, h, w, c = x.shape
    h, w = h // patch, w // patch
    x = x[:, : h * patch, : w * patch].reshape(b, h, patch, w, patch, c).mean((2, 4))
    return x.reshape(b, h * w, c)


def patch_loss(
    edit: jax.Array,
    source: jax.Array,
    ids: jax.Array,
    patch: int = 1,
    temperature: float = 0.07,
) -> jax.Array:
    """Equation (2) for one layer and patch size, `[B, n]`: the loss of each patch.

    Args:
      edit, source: `[B, h, w, C]`; no gradient flows into the source.
      ids: `[n]`, positions of the compared patches in the pooled map.
      patch: side of a patch.
      temperature: τ.
    """
    e = unit(pooled(edit, patch)[:, ids], eps=1e-12)
    s = jax.lax.stop_gradient(unit(pooled(source, patch)[:, ids], eps=1e-12))
    logits = jnp.einsum("bic,bjc->bij", s, e)
    same = jnp.einsum("bii->bi", logits)
    # As published: the positive comes first, and its place among the negatives holds -10.
    n = logits.shape[-1]
    others = jnp.where(jnp.eye(n, dtype=bool), -10.0, logits)
    logits = jnp.concatenate([same[..., None], others], axis=-1) / temperature
    return jax.nn.logsumexp(logits, axis=-1) - same / temperature


def feature_loss(
    edit: Mapping,
    source: Mapping,
    ids: Mapping,
    side: tuple[int, int],
    temperature: float = 0.07,
) -> jax.Array:
    """Equation (2), `[B]`.

    Args:
      edit, source: features by layer, `[B, h, w, C]` or `[B, L, C]`.
      ids: `{layer: {patch size: [n]}}`; other layers are ignored.
      side: rows and columns of the latent.
      temperature: τ.
    """
    total = 0.0
    for layer, sizes in ids.items():
        a, b = as_map(edit[layer], *side), as_map(source[layer], *side)
        for patch, chosen in sizes.items():
            total += patch_loss(a, b, chosen, int(patch), temperature).mean(-1)
    return total


def draw_ids(
    key,
    shapes: Mapping,
    chosen: Callable[[str], bool],
    side: tuple[int, int],
    count: int = 256,
    patches: tuple[int, ...] = (1, 2),
    least: int = 9,
) -> dict[str, dict[int, jax.Array]]:
    """Random patches of each layer and patch size, without repetition.

    A patch size that is larger than a layer's map is left out there.

    Args:
      key: typed key.
      shapes: features by layer, arrays or shapes.
      chosen: `(layer) -> bool`, whether a layer takes part.
      side: rows and columns of the latent.
      count: maximal number of patches.
      patches: patch sizes.
      least: maps with fewer positions are left out.

    Returns:
      `{layer: {patch size: [n]}}`, positions in the pooled map.

    Raises:
      ValueError: no patch fits into any map.
    """
    ids, largest = {}, 0
    for n, (layer, x) in enumerate(sorted(shapes.items())):
        h, w = jax.eval_shape(lambda x: as_map(x, *side), x).shape[1:3]
        if not chosen(layer) or h * w < least:
            continue
        largest = max(largest, min(h, w))
        keys = jax.random.split(jax.random.fold_in(key, n), len(patches))
        fitting = [(p, k) for p, k in zip(patches, keys, strict=True) if p <= min(h, w)]
        if fitting:
            ids[layer] = {
                p: jax.random.permutation(k, (h // p) * (w // p))[:count] for p, k in fitting
            }
    if largest and not ids:
        raise ValueError(
            f"config.edit.patches is {tuple(patches)}, and the largest feature map that is "
            f"compared has a side of {largest} positions; name smaller sides, such as '(1, 2)'"
        )
    return ids
