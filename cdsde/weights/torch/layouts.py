"""Layouts of published networks: constructor fields inferred from state dicts, and module names.

Contract: a state dict is `{published name: anything with a shape}` without `module.`. The functions
`infer_*` return constructor fields of the network class; `known` are the fields that the caller
knows. They follow the majority of the keys, so that a single broken key is reported as such and
does not lead to a wrong network. They raise ValueError if the keys fit several layouts or none.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np


def has_prefix(state_dict: Iterable[str], prefix: str) -> bool:
    """Whether any key begins with `prefix`."""
    return any(key.startswith(prefix) for key in state_dict)


def _most_common(values: Iterable[Any], what: str) -> Any:
    """The most frequent value, so that a single broken key does not decide."""
    counts = Counter(values)
    if not counts:
        raise ValueError(f"no key determines {what}: the file is incomplete.")
    return counts.most_common(1)[0][0]


def _width(state_dict: Mapping[str, Any], block: str, leaves: tuple[str, ...]) -> int:
    keys = [f"{block}.{leaf}" for leaf in leaves if f"{block}.{leaf}" in state_dict]
    return _most_common((state_dict[k].shape[0] for k in keys), f"the width of {block}")


def _mult(width: int, channels: int) -> int | float:
    return width / channels if width % channels else width // channels


ADM_LEAVES = ("out_layers.0.weight", "out_layers.0.bias", "out_layers.3.weight")
ADM_LEAVES += ("out_layers.3.bias", "in_layers.2.weight", "in_layers.2.bias")


class _Layout(NamedTuple):
    """A candidate layout of an ADM encoder; `resampling` is "block", "conv", "mean" or None."""

    num_res_blocks: int
    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    resampling: str | None


def _adm_layout(state_dict: Mapping[str, Any], count: int, levels: int) -> _Layout | None:
    """The layout of `count` input blocks as `levels` equal levels; None if they do not fit."""
    per_level = count // levels
    widths, attention, resampling = [], [], set()
    for level in range(levels):
        # Block 0 is the stem; the last block of each level but the last one resamples.
        first = level * per_level + 1
        res = [f"input_blocks.{i}" for i in range(first, first + per_level - 1)]
        if not all(has_prefix(state_dict, f"{b}.0.out_layers.") for b in res):
            return None
        attended = {has_prefix(state_dict, f"{b}.1.") for b in res}
        width = {_width(state_dict, f"{b}.0", ADM_LEAVES) for b in res}
        if level < levels - 1:
            down = f"input_blocks.{first + per_level - 1}"
            if has_prefix(state_dict, f"{down}.1."):
                return None
            if has_prefix(state_dict, f"{down}.0.op."):
                resampling.add("conv")
            elif has_prefix(state_dict, f"{down}.0."):
                resampling.add("block")
                width.add(_width(state_dict, f"{down}.0", ADM_LEAVES))
            else:
                resampling.add("mean")
        if len(width) > 1 or len(attended) > 1:
            return None
        widths += width
        attention += attended
    if len(resampling) > 1:
        return None
    return _Layout(per_level - 1, tuple(widths), tuple(attention), next(iter(resampling), None))


def infer_adm(state_dict: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the ADM U-Net, or of the encoder apart from its head."""
    embed = [f"time_embed.{i}.{leaf}" for i in (0, 2) for leaf in ("weight", "bias")]
    sizes = (state_dict[k].shape[0] // 4 for k in embed if k in state_dict)
    channels = _most_common(sizes, "the number of channels")
    indices = [int(m.group(1)) for k in state_dict if (m := re.match(r"input_blocks\.(\d+)\.", k))]
    count = max(indices) + 1
    layouts = [
        layout
        for levels in range(1, count // 2 + 1)
        if count % levels == 0 and (layout := _adm_layout(state_dict, count, levels))
    ]
    if has_prefix(state_dict, "output_blocks."):
        up = re.compile(r"(output_blocks\.\d+)\.(\d\.conv|[1-9]\.in_layers)\.")
        ups = len({m.group(1) for k in state_dict if (m := up.match(k))})
        layouts = [x for x in layouts if x.resampling == "mean" or len(x.widths) == ups + 1]
    layouts = [x for x in layouts if _agrees(x, state_dict, known)] or layouts
    if len(layouts) != 1:
        choices = ", ".join(
            f"num_res_blocks={x.num_res_blocks} with {len(x.widths)} levels" for x in layouts
        )
        raise ValueError(
            f"the {count} input blocks fit {choices or 'no regular arrangement of levels'}: "
            f"{'pass num_res_blocks' if layouts else 'the file is incomplete or of another kind'}."
        )
    layout = layouts[0]
    fields = {
        "channels": channels,
        "channel_mult": tuple(_mult(w, channels) for w in layout.widths),
        "num_res_blocks": layout.num_res_blocks,
        "attention_factors": tuple(2**i for i, a in enumerate(layout.attention) if a),
        "use_scale_shift_norm": _most_common(
            (
                2 * state_dict[k.replace("emb_layers.1", "out_layers.0")].shape[0] == v.shape[0]
                for k, v in state_dict.items()
                if k.endswith("emb_layers.1.bias")
                and k.replace("emb_layers.1", "out_layers.0") in state_dict
            ),
            "use_scale_shift_norm",
        ),
        "resblock_updown": layout.resampling in ("block", None),
        "conv_resample": layout.resampling != "mean",
        "num_classes": None,
    }
    if "label_emb.weight" in state_dict:
        fields["num_classes"] = state_dict["label_emb.weight"].shape[0]
    if has_prefix(state_dict, "output_blocks."):
        fields["out_channels"] = _width(state_dict, "out.2", ("weight", "bias"))
    return fields


def _agrees(layout: _Layout, state_dict: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether a layout agrees with the known fields."""
    levels = len(layout.widths)
    known_levels = {len(known["channel_mult"])} if "channel_mult" in known else {levels}
    if "image_size" in known and (side := _pool_side(state_dict)):
        known_levels.add((known["image_size"] // side).bit_length())
    return known_levels == {levels} and known.get("num_res_blocks") in (None, layout.num_res_blocks)


def _pool_side(state_dict: Mapping[str, Any]) -> int | None:
    position = state_dict.get("I2Iout.2.positional_embedding")
    return None if position is None else round((position.shape[1] - 1) ** 0.5)


def infer_adm_encoder(state_dict: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the ADM encoder."""
    fields = infer_adm(state_dict, known)
    adaptive = has_prefix(state_dict, "I2Iout.3.")
    head = "I2Iout.3" if adaptive else "I2Iout.2.c_proj"
    fields["pool"] = "adaptive" if adaptive else "attention"
    fields["out_channels"] = _width(state_dict, head, ("weight", "bias"))
    if not adaptive and (side := _pool_side(state_dict)):
        fields["image_size"] = side * 2 ** (len(fields["channel_mult"]) - 1)
    return fields


def infer_ddpm(state_dict: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the DDPM U-Net; `attention_resolutions` refer to `image_size`, default 256."""
    levels = len({k.split(".")[1] for k in state_dict if k.startswith("down.")})
    block = re.compile(r"down\.0\.block\.(\d+)\.")
    channels = _width(state_dict, "conv_in", ("weight", "bias"))
    leaves = ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "norm2.weight")
    widths = [_width(state_dict, f"down.{i}.block.0", leaves) for i in range(levels)]
    image_size = known.get("image_size", 256)
    return {
        "channels": channels,
        "channel_mult": tuple(_mult(w, channels) for w in widths),
        "num_res_blocks": len({m.group(1) for k in state_dict if (m := block.match(k))}),
        "attention_resolutions": tuple(
            image_size // 2**i for i in range(levels) if has_prefix(state_dict, f"down.{i}.attn.")
        ),
        "image_size": image_size,
        "resamp_with_conv": levels == 1 or has_prefix(state_dict, "down.0.downsample."),
        "out_channels": _width(state_dict, "conv_out", ("weight", "bias")),
    }


def dotted_name(module: str) -> str:
    """Separates numbers by dots: `in_blocks_3_0.layers_2` -> `in_blocks.3.0.layers.2`."""
    return re.sub(r"_(?=\d)|(?<=\d)_", ".", module)


def ddpm_name(module: str) -> str:
    """Published name of a DDPM module; `mid.block_1` and `mid.attn_1` keep their underscore."""
    if module.startswith("mid_"):
        return module.replace("mid_", "mid.", 1)
    return dotted_name(module.replace("temb_dense", "temb.dense"))


def adm_pointwise(module: str) -> int:
    """Trailing ones of an ADM weight: 1-d convolutions in attention, 2-d in the adaptive head."""
    if module == "I2Iout.3":
        return 2
    return int(module.endswith((".qkv", ".proj_out", ".qkv_proj", ".c_proj")))


def ddpm_pointwise(module: str) -> int:
    """Trailing ones of a DDPM weight: attention has 2-d convolutions."""
    return 2 if module.endswith((".q", ".k", ".v", ".proj_out")) else 0


def efficientnet_name(module: str) -> str:
    """Published name of an EfficientNet module: `_blocks_3._bn0` -> `_blocks.3._bn0`."""
    return re.sub(r"^_blocks_(?=\d)", "_blocks.", module)


def without_counters(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict without the counters of batch normalisation, which only training needs."""
    return {k: v for k, v in state_dict.items() if not k.endswith(".num_batches_tracked")}


def rename_lpips(slices: Iterable[Iterable[Any]], state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that LPIPS needs from torchvision's or `lpips`' file, with the names of `lpips`.

    torchvision's `features.3.weight` becomes `slice2.3.weight`, and its classifier is left out. In
    files of `lpips`, the prefix `net.` and the constants of the scaling are removed, and `lins.0`
    becomes `lin0`.

    Args:
      slices: the convolutions of each slice, with their `index` in torchvision's `features`.
      state_dict: published names to any values.
    """
    slice_of = {layer.index: n for n, layers in enumerate(slices, 1) for layer in layers}

    def backbone(match):
        number = slice_of.get(int(match[1]))
        return f"slice{number}.{match[1]}." if number else match[0]

    renamed = {}
    for key, value in state_dict.items():
        key = re.sub(r"^features\.(\d+)\.", backbone, key.removeprefix("net."))
        key = re.sub(r"^lins\.(?=\d)", "lin", key)
        if not key.startswith(("classifier.", "scaling_layer.")):
            renamed[key] = value
    return renamed


def without_blurs(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict without CUT's fixed blur kernels, which are not parameters."""
    return {k: v for k, v in state_dict.items() if not k.endswith(".filt")}


def _blur(taps: tuple[int, ...], gain: int, channels: int) -> np.ndarray:
    kernel = np.outer(taps, taps).astype(np.float32)
    return np.tile(gain * kernel / kernel.sum(), (channels, 1, 1, 1))


def cut_generator_blurs(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The blur kernels that the published generator's file also contains."""
    blocks = infer_cut_generator(state_dict, {})["num_blocks"]
    first, second = (len(state_dict[f"model.{n}.bias"]) for n in (4, 8))
    return {
        "model.7.filt": _blur((1, 2, 1), 1, first),
        "model.11.filt": _blur((1, 2, 1), 1, second),
        f"model.{12 + blocks}.filt": _blur((1, 3, 3, 1), 4, second),
        f"model.{16 + blocks}.filt": _blur((1, 3, 3, 1), 4, first),
    }


def cut_discriminator_blurs(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The blur kernels that the published discriminator's file also contains."""
    layers = infer_cut_discriminator(state_dict, {})["num_layers"]
    before = [0, *range(3, 4 * layers - 1, 4)]  # convolutions that a blur follows
    return {
        f"model.{4 * n + 2}.filt": _blur((1, 2, 1), 1, len(state_dict[f"model.{index}.bias"]))
        for n, index in enumerate(before)
    }


def patch_sampler_name(module: str) -> str:
    """Published name of a layer of CUT's F: `mlp_0_2` -> `mlp_0.2`."""
    return re.sub(r"^(mlp_\d+)_", r"\1.", module)


def infer_cut_generator(state_dict: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of CUT's generator."""
    blocks = {k.split(".")[1] for k in state_dict if ".conv_block." in k}
    return {
        "channels": _width(state_dict, "model.1", ("weight", "bias")),
        "num_blocks": len(blocks),
        "out_channels": _width(state_dict, f"model.{21 + len(blocks)}", ("weight", "bias")),
    }


def infer_cut_discriminator(
    state_dict: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of CUT's discriminator."""
    last = max(int(k.split(".")[1]) for k in state_dict)
    return {
        "channels": _width(state_dict, "model.0", ("weight", "bias")),
        "num_layers": (last - 2) // 4,
    }


def infer_cut_patch_sampler(
    state_dict: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields of CUT's patch sampler."""
    return {"features": _width(state_dict, "mlp_0.2", ("weight", "bias")), "use_mlp": True}
