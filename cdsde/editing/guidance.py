r"""What an edit is held to: the source's cross-attention maps, and its features patch by patch.

    L_c = Σ over layers of mean over heads of Σ over positions and tokens (M̂ - M)²               (1)
    L_e = Σ over layers and patch sizes of mean over patches of
          -log exp(⟨s_i, e_i⟩/τ) / Σ_j exp(⟨s_i, e_j⟩/τ)                                         (2)

M are attention maps of the source and M̂ of the edit; s are the source's feature vectors, pooled
over patches and of length 1, e the edit's at the same places. Sources: pix2pix-zero for (1),
Contrastive Denoising Score for (2): the query is the source, and the gradient flows through
positives and negatives alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from cdsde.diffusion.energies import unit


def captured(collection: Mapping, leaf: str) -> dict[str, jax.Array]:
    """What a network kept, by the path of the module that kept it."""
    found = {}
    for path, value in jax.tree_util.tree_leaves_with_path(collection):
        keys = [k.key for k in path if hasattr(k, "key")]
        if keys[-1] == leaf:
            found[".".join(keys[:-1])] = value
    return found


def of_decoder(path: str) -> bool:
    """Outputs of self-attention on the way up."""
    return path.startswith("up_blocks.") and path.endswith(".attn1")


def of_encoder(path: str) -> bool:
    """Outputs of self-attention and of residual blocks on the way down."""
    return path.startswith("down_blocks.") and (path.endswith(".attn1") or ".resnets." in path)


def map_loss(edit: Mapping, source: Mapping) -> jax.Array:
    """Equation (1), `[B]`, of maps `[B, heads, L, M]` by layer; the source's are constants."""
    total = jnp.zeros(())
    for layer, maps in edit.items():
        squared = (maps - jax.lax.stop_gradient(source[layer])) ** 2
        total += squared.sum((-2, -1)).mean(-1)
    return total


def as_map(x: jax.Array, height: int, width: int) -> jax.Array:
    """Features `[B, L, C]` of a latent of so many rows and columns → `[B, h, w, C]`."""
    if x.ndim == 4:
        return x
    length, factor = x.shape[1], 1
    while (height // factor) * (width // factor) > length:
        factor *= 2
    return x.reshape(x.shape[0], height // factor, width // factor, -1)


def pooled(x: jax.Array, patch: int) -> jax.Array:
    """Mean over squares of `patch` pixels, without odd remainders: `[B, h, w, C]` → `[B, P, C]`."""
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
    """Equation (2) of one layer and patch size, each patch's `[B, n]`.

    Args:
      edit, source: `[B, h, w, C]`; no gradient flows into the source.
      ids: `[n]` patches looked at, of the pooled map.
      patch: side of a patch.
      temperature: τ.
    """
    e = unit(pooled(edit, patch)[:, ids], eps=1e-12)
    s = jax.lax.stop_gradient(unit(pooled(source, patch)[:, ids], eps=1e-12))
    logits = jnp.einsum("bic,bjc->bij", s, e)
    same = jnp.einsum("bii->bi", logits)
    # As published: the positive comes first and once more as -10 among the negatives.
    n = logits.shape[-1]
    others = jnp.where(jnp.eye(n, dtype=bool), -10.0, logits)
    every = jnp.concatenate([same[..., None], others], axis=-1) / temperature
    return jax.nn.logsumexp(every, axis=-1) - same / temperature


def feature_loss(
    edit: Mapping,
    source: Mapping,
    ids: Mapping,
    side: tuple[int, int],
    temperature: float = 0.07,
) -> jax.Array:
    """Equation (2), `[B]`.

    Args:
      edit, source: features by layer.
      ids: `{layer: {patch size: [n]}}`; only these layers are looked at.
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
    """Patches of each layer and size, none twice.

    Args:
      key: typed key.
      shapes: features by layer, arrays or shapes.
      chosen: which layers.
      side: rows and columns of the latent.
      count: at most so many.
      patches: sizes.
      least: smaller maps are left out.
    """
    ids = {}
    for n, (layer, x) in enumerate(sorted(shapes.items())):
        h, w = jax.eval_shape(lambda x: as_map(x, *side), x).shape[1:3]
        if not chosen(layer) or h * w < least:
            continue
        keys = jax.random.split(jax.random.fold_in(key, n), len(patches))
        ids[layer] = {
            p: jax.random.permutation(k, (h // p) * (w // p))[:count]
            for p, k in zip(patches, keys, strict=True)
        }
    return ids
