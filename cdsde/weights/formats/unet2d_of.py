"""Writes DDPM's and ADM's U-Nets as diffusers' UNet2DModel, and reads DDPM's back.

DDPM's network is a UNet2DModel under other names. ADM's is one unless a level resamples without
parameters, the first level is not as wide as the time's features, heads have several widths, or
normalisations several numbers of groups: a UNet2DModel has one number for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from cdsde.networks import ADMUNet, DDPMUNet, blocks

Path = tuple[str, ...]
# Names inside a block: DDPM's, then ADM's.
NAMES = {
    "temb_proj": "time_emb_proj",
    "nin_shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    "in_layers_0": "norm1",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
DDPM_NAMES = {
    "conv_in": "conv_in",
    "temb_dense_0": "time_embedding.linear_1",
    "temb_dense_1": "time_embedding.linear_2",
    "mid_block_1": "mid_block.resnets.0",
    "mid_attn_1": "mid_block.attentions.0",
    "mid_block_2": "mid_block.resnets.1",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
ADM_NAMES = {
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks_0_0": "conv_in",
    "middle_block_0": "mid_block.resnets.0",
    "middle_block_1": "mid_block.attentions.0",
    "middle_block_2": "mid_block.resnets.1",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
}
# What a UNet2DModel needs to be DDPM's network; see also `_types`.
DDPM_FIELDS = {
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
    "attention_head_dim": None,
    "norm_num_groups": blocks.GROUPS,
    "norm_eps": blocks.DDPM_EPS,
}
# What is so in both kinds, and in `to_ddpm` must be so.
PLAIN = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "attn_norm_num_groups": None,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}


def of_network(network: ADMUNet | DDPMUNet, params: Mapping) -> tuple[dict[str, Any], dict]:
    """Constructor fields and parameters of the `UNet2D` that equals a network.

    Raises:
      ValueError: no UNet2DModel equals it; the sentence names the field.
    """
    if isinstance(network, ADMUNet):
        return _of_adm(network, params)
    return _of_ddpm(network, params)


def to_ddpm(fields: Mapping[str, Any], params: Mapping, size: int) -> tuple[DDPMUNet, dict]:
    """The DDPM network that equals a `UNet2D`, and its parameters.

    Args:
      fields: all constructor fields of the `UNet2D`, as its reader gives them.
      params: its parameters.
      size: side of the images, which says where attention is.

    Raises:
      ValueError: a field (named) has a value that DDPM's network cannot have.
    """
    widths = list(fields["block_out_channels"])
    attention = [name == "AttnDownBlock2D" for name in fields["down_block_types"]]
    for name, value in (PLAIN | DDPM_FIELDS | _types(attention, "DownBlock2D")).items():
        found = fields[name]
        if (list(found) if isinstance(value, list) else found) != value:
            raise ValueError(f"{name} is {found}, and DDPM's network (score.arch) has {value}")
    network = DDPMUNet(
        channels=widths[0],
        channel_mult=tuple(w / widths[0] if w % widths[0] else w // widths[0] for w in widths),
        num_res_blocks=fields["layers_per_block"],
        attention_resolutions=tuple(size // 2**n for n, a in enumerate(attention) if a),
        image_size=size,
        out_channels=fields["out_channels"],
    )
    x = jax.ShapeDtypeStruct((1, size, size, fields["in_channels"]), jnp.float32)
    shapes = traverse_util.flatten_dict(
        jax.eval_shape(network.init, jax.random.key(0), x, 0)["params"]
    )
    flat = _flat(params)
    return network, _tree({path: flat[_ddpm_path(path, len(widths))] for path in shapes})


def _of_ddpm(network: DDPMUNet, params: Mapping) -> tuple[dict[str, Any], dict]:
    levels = len(network.channel_mult)
    if not network.resamp_with_conv and levels > 1:
        raise ValueError(
            "conv_resample is False, and levels of a UNet2DModel of DDPM resample with "
            "convolutions; export another format"
        )
    flat = _flat(params)
    sides = [network.image_size // 2**level for level in range(levels)]
    fields = {
        **PLAIN,
        **DDPM_FIELDS,
        **_types([side in network.attention_resolutions for side in sides], "DownBlock2D"),
        "in_channels": flat["conv_in", "kernel"].shape[2],
        "out_channels": network.out_channels,
        "block_out_channels": [int(mult * network.channels) for mult in network.channel_mult],
        "layers_per_block": network.num_res_blocks,
    }
    return fields, _tree({_ddpm_path(path, levels): value for path, value in flat.items()})


def _of_adm(network: ADMUNet, params: Mapping) -> tuple[dict[str, Any], dict]:
    widths = [int(mult * network.channels) for mult in network.channel_mult]
    if widths[0] != network.channels:
        raise ValueError(
            f"channel_mult begins with {network.channel_mult[0]}; the first level of a UNet2DModel "
            "is as wide as its time features, so there it must be 1"
        )
    if not (network.resblock_updown or network.conv_resample or len(widths) == 1):
        raise ValueError(
            "resblock_updown and conv_resample are False; levels of a UNet2DModel resample with "
            "one or the other"
        )
    if network.num_head_channels == -1 and network.num_heads_upsample not in (
        -1,
        network.num_heads,
    ):
        raise ValueError(
            f"num_heads_upsample is {network.num_heads_upsample} and num_heads "
            f"{network.num_heads}; encoder and decoder of a UNet2DModel have the same heads"
        )
    attention = [2**n in network.attention_factors for n in range(len(widths))]
    attended = {widths[-1], *(w for w, a in zip(widths, attention, strict=True) if a)}
    flat = _flat(params)
    groups = _groups(flat, network.group_channels)
    plain = "ResnetDownsampleBlock2D" if network.resblock_updown else "DownBlock2D"
    resample = "resnet" if network.resblock_updown else "conv"
    scale_shift = network.use_scale_shift_norm
    fields = {
        **PLAIN,
        **_types(attention, plain),
        "in_channels": flat["input_blocks_0_0", "kernel"].shape[2],
        "out_channels": network.out_channels,
        "freq_shift": 0,
        "flip_sin_to_cos": True,
        "block_out_channels": widths,
        "layers_per_block": network.num_res_blocks,
        "downsample_padding": 1,
        "downsample_type": resample,
        "upsample_type": resample,
        "attention_head_dim": _head_dim(network, attended),
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups if scale_shift else None,
        "norm_eps": blocks.ADM_EPS,
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "num_class_embeds": network.num_classes,
    }
    names = ADM_NAMES | _adm_names(network, attention)
    new: dict[Path, np.ndarray] = {}
    for (first, *middle, leaf), value in flat.items():
        if middle == ["qkv"]:
            heads = blocks.num_heads_for(
                value.shape[-1] // 3, network.num_heads, network.num_head_channels
            )
            for name, part in zip("qkv", _split(value, heads, network), strict=True):
                new[names[first], f"to_{name}", leaf] = part
        else:
            inner = [NAMES[name] for name in middle if name not in ("op", "conv")]
            new[names[first], *inner, leaf] = value
    return fields, _tree(new)


def _flat(params: Mapping) -> dict[Path, np.ndarray]:
    flat = traverse_util.flatten_dict(params["params"])
    return {path: np.asarray(value, np.float32) for path, value in flat.items()}


def _tree(flat: Mapping[Path, np.ndarray]) -> dict:
    return {"params": traverse_util.unflatten_dict(dict(flat))}


def _types(attention: list[bool], plain: str) -> dict[str, list[str]]:
    """Types of the blocks; `plain` is that of an encoder's level without attention."""
    down = ["AttnDownBlock2D" if attends else plain for attends in attention]
    up = [name.replace("Down", "Up") for name in reversed(down)]
    return {"down_block_types": down, "up_block_types": up}


def _ddpm_path(path: Path, levels: int) -> Path:
    """Path in a `UNet2D` of a parameter of DDPM's network."""
    first, *middle, leaf = path
    if first in DDPM_NAMES:
        return DDPM_NAMES[first], *(NAMES.get(name, name) for name in middle), leaf
    way, level, kind, *number = first.split("_")
    at = f"{way}_blocks.{level if way == 'down' else levels - 1 - int(level)}"
    if kind in ("downsample", "upsample"):
        return f"{at}.{kind}rs.0.conv", leaf
    kind = {"block": "resnets", "attn": "attentions"}[kind]
    return f"{at}.{kind}.{number[0]}", *(NAMES.get(name, name) for name in middle), leaf


def _adm_names(network: ADMUNet, attention: list[bool]) -> dict[str, str]:
    """Names of the modules of the levels of ADM's network -> those of a `UNet2D`."""
    names, index, last = {}, 1, len(attention) - 1
    end = "" if network.resblock_updown else ".conv"
    for level, attends in enumerate(attention):
        at = f"down_blocks.{level}"
        for n in range(network.num_res_blocks):
            names[f"input_blocks_{index}_0"] = f"{at}.resnets.{n}"
            if attends:
                names[f"input_blocks_{index}_1"] = f"{at}.attentions.{n}"
            index += 1
        if level < last:
            inner = "" if network.resblock_updown else "_op"
            names[f"input_blocks_{index}_0{inner}"] = f"{at}.downsamplers.0{end}"
            index += 1
    index = 0
    for level, attends in enumerate(reversed(attention)):
        at = f"up_blocks.{level}"
        for n in range(network.num_res_blocks + 1):
            names[f"output_blocks_{index}_0"] = f"{at}.resnets.{n}"
            if attends:
                names[f"output_blocks_{index}_1"] = f"{at}.attentions.{n}"
            if level < last and n == network.num_res_blocks:
                inner = "" if network.resblock_updown else "_conv"
                names[f"output_blocks_{index}_{1 + attends}{inner}"] = f"{at}.upsamplers.0{end}"
            index += 1
    return names


def _split(qkv: np.ndarray, heads: int, network: ADMUNet) -> list[np.ndarray]:
    """The parts for queries, keys and values of `[..., 3 C]`, whose channels ADM orders by head."""
    order = (3, heads) if network.new_attention_order else (heads, 3)
    parts = qkv.reshape(*qkv.shape[:-1], *order, -1)
    parts = np.moveaxis(parts, -3 if network.new_attention_order else -2, 0)
    return [part.reshape(*qkv.shape[:-1], -1) for part in parts]


def _groups(flat: Mapping[Path, np.ndarray], group_channels: int) -> int:
    widths = {len(value) for path, value in flat.items() if path[-1] == "scale"}
    groups = {min(blocks.GROUPS, width // group_channels) for width in widths}
    if len(groups) > 1:
        raise ValueError(
            f"group_channels is {group_channels}, which gives {min(groups)} to {max(groups)} "
            "groups; a UNet2DModel has one number of groups"
        )
    return groups.pop()


def _head_dim(network: ADMUNet, widths: set[int]) -> int | None:
    heads = {
        w: blocks.num_heads_for(w, network.num_heads, network.num_head_channels) for w in widths
    }
    if set(heads.values()) == {1}:
        return None
    dims = {width // count for width, count in heads.items()}
    if len(dims) > 1:
        raise ValueError(
            f"num_heads is {network.num_heads} in levels of {min(widths)} to {max(widths)} "
            "channels; heads of a UNet2DModel have one width, which num_head_channels gives"
        )
    return dims.pop()
