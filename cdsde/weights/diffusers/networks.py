"""Loads networks from folders in the layout of diffusers or transformers.

Files are safetensors, half precision included; nothing is downloaded, and errors name what is
missing. Each loader returns a module and its parameters `{"params": tree}`, float32.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.networks.stable_diffusion.blip import BLIP, Decoder, Vision
from cdsde.networks.stable_diffusion.clip import (
    CLIP,
    CLIPTextModel,
    TextTransformer,
    VisionTransformer,
)
from cdsde.networks.stable_diffusion.unet import UNet
from cdsde.networks.stable_diffusion.vae import AutoencoderKL
from cdsde.weights.torch import convert

WEIGHTS = ("diffusion_pytorch_model", "model", "pytorch_model")
VARIANTS = ("", ".fp16", ".non_ema")
# Our fields of a transformer -> their names in `config.json`.
TRANSFORMER = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "activation": "hidden_act",
    "eps": "layer_norm_eps",
}
TEXT = {"vocabulary": "vocab_size", "positions": "max_position_embeddings", **TRANSFORMER}
VISION = {"image_size": "image_size", "patch_size": "patch_size", **TRANSFORMER}
SCALING_FACTOR = 0.18215  # of SD-1.x, whose files omit it


def read_config(folder: str | Path) -> dict[str, Any]:
    """The contents of a part's `config.json`.

    Raises:
      ValueError: the file does not exist.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"there is no {path}; a model in diffusers' layout has one in each part")
    return json.loads(path.read_text(encoding="utf-8"))


def read_weights(folder: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a part, floating point ones as float32; sharded files are joined.

    Raises:
      ValueError: there is no safetensors file.
    """
    folder = Path(folder)
    for name in (f"{stem}{variant}" for variant in VARIANTS for stem in WEIGHTS):
        index = folder / f"{name}.safetensors.index.json"
        if index.is_file():
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            parts = [convert.read_state_dict(folder / shard) for shard in shards]
            return {key: value for part in parts for key, value in part.items()}
        if (folder / f"{name}.safetensors").is_file():
            return convert.read_state_dict(folder / f"{name}.safetensors")
    raise ValueError(
        f"{folder} holds no weights: expected {WEIGHTS[0]}.safetensors or {WEIGHTS[1]}.safetensors "
        "there (a .bin is not read: convert it)"
    )


def published(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Published key and shape of a parameter; module names are the published ones."""
    name = convert.published_leaf(".".join(path[:-1]), path[-1])
    return name, convert.published_shape(path[-1], shape)


def fit(module, inputs, state_dict: Mapping[str, np.ndarray], where) -> dict:
    """A module's parameters `{"params": tree}` from a state dict.

    Args:
      module: a linen module.
      inputs: arguments of its `init`.
      state_dict: published names to arrays.
      where: path for the error message.

    Raises:
      ValueError: keys or shapes do not fit; the message lists them.
    """
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    try:
        return convert.fit(shapes, state_dict, published)
    except ValueError as error:
        raise ValueError(f"{where} does not fit its config.json: {error}") from None


def _fields(config: Mapping[str, Any], names: Mapping[str, str], where) -> dict[str, Any]:
    missing = [key for key in names.values() if key not in config]
    if missing:
        raise ValueError(f"{where}/config.json does not contain {', '.join(missing)}")
    return {field: config[key] for field, key in names.items()}


def unet_of(config: Mapping[str, Any], where="unet", **fields) -> UNet:
    """The `UNet` of a `config.json`; `fields` are further fields, such as dtype and remat.

    Raises:
      ValueError: the config needs something that `UNet` does not support.
    """
    known = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    downs = config["down_block_types"]
    ups = [name.replace("Up", "Down") for name in reversed(config["up_block_types"])]
    if ups != list(downs) or not set(downs) <= set(known):
        raise ValueError(
            f"{where}/config.json has the blocks {', '.join(downs)}; supported are "
            f"{' and '.join(known)}, with the same blocks in encoder and decoder"
        )
    for key in ("class_embed_type", "addition_embed_type", "encoder_hid_dim"):
        if config.get(key) is not None:
            raise ValueError(f"{where}/config.json sets {key}, which SD-1.x and 2.x do not have")
    heads = config.get("num_attention_heads") or config["attention_head_dim"]
    count = len(downs)
    return UNet(
        widths=tuple(config["block_out_channels"]),
        attention=tuple(known[name] for name in downs),
        blocks=config["layers_per_block"],
        heads=tuple(heads) if isinstance(heads, list) else (heads,) * count,
        groups=config["norm_num_groups"],
        eps=config["norm_eps"],
        out_channels=config["out_channels"],
        linear=config.get("use_linear_projection", False),
        **fields,
    )


def load_unet(folder: str | Path, **fields) -> tuple[UNet, dict]:
    """`UNet` and its parameters; `fields` are further fields, such as dtype and remat."""
    config = read_config(folder)
    module = unet_of(config, str(folder), **fields)
    side = 2 ** (len(module.widths) - 1)
    inputs = (
        jnp.zeros((1, side, side, config["in_channels"])),
        jnp.zeros(1),
        jnp.zeros((1, 1, config["cross_attention_dim"])),
    )
    return module, fit(module, inputs, read_weights(folder), folder)


def load_vae(folder: str | Path, **fields) -> tuple[AutoencoderKL, dict, float]:
    """`AutoencoderKL`, its parameters, and the factor that scales latents."""
    config = read_config(folder)
    names = {"blocks": "layers_per_block", "groups": "norm_num_groups"}
    names |= {"latent_channels": "latent_channels", "out_channels": "out_channels"}
    module = AutoencoderKL(
        widths=tuple(config["block_out_channels"]), **_fields(config, names, folder), **fields
    )
    side = 2 ** (len(module.widths) - 1)
    inputs = (jnp.zeros((1, side, side, config["in_channels"])),)
    params = fit(module, inputs, _renamed_attention(read_weights(folder)), folder)
    return module, params, config.get("scaling_factor") or SCALING_FACTOR


def _renamed_attention(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the attention layers of early SD files (query, key, value, proj_attn)."""
    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

    def rename(key: str) -> str:
        return re.sub(
            r"(attentions\.\d+)\.(query|key|value|proj_attn)\.",
            lambda m: f"{m[1]}.{new[m[2]]}.",
            key,
        )

    renamed = {rename(key): value for key, value in state_dict.items()}
    # Some early files store these linear layers as 1x1 convolutions.
    return {
        key: value[:, :, 0, 0] if ".to_" in key and value.ndim == 4 else value
        for key, value in renamed.items()
    }


def _text(config: Mapping[str, Any], where, **fields) -> TextTransformer:
    return TextTransformer(
        **_fields(config, TEXT, where), end=config.get("eos_token_id", 2), **fields
    )


def _without_positions(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: v for k, v in state_dict.items() if not k.endswith(".position_ids")}


def load_text_encoder(folder: str | Path, **fields) -> tuple[CLIPTextModel, dict]:
    """`CLIPTextModel` and its parameters."""
    config = read_config(folder)
    weights = _without_positions(read_weights(folder))
    # Some versions of transformers write the keys without the prefix.
    weights = {
        k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in weights.items()
    }
    module = CLIPTextModel(_text(config, folder, **fields))
    return module, fit(module, (jnp.zeros((1, 1), int),), weights, folder)


def load_clip(folder: str | Path, **fields) -> tuple[CLIP, dict]:
    """`CLIP` (both encoders) and its parameters."""
    config = read_config(folder)
    vision = VisionTransformer(**_fields(config["vision_config"], VISION, folder), **fields)
    text = _text(config["text_config"], folder, **fields)
    module = CLIP(text, vision, config["projection_dim"])
    inputs = (jnp.zeros((1, 1), int), jnp.zeros((1, vision.image_size, vision.image_size, 3)))
    return module, fit(module, inputs, _without_positions(read_weights(folder)), folder)


def load_blip(folder: str | Path) -> tuple[BLIP, dict]:
    """`BLIP`, the captioner, and its parameters."""
    config = read_config(folder)
    text = config["text_config"]
    module = BLIP(
        Vision(**_fields(config["vision_config"], VISION, folder)),
        Decoder(**_fields(text, TEXT, folder)),
        begin=text["bos_token_id"],
        end=text["sep_token_id"],
        pad=text["pad_token_id"],
    )
    side = module.vision.image_size
    weights = _without_positions(read_weights(folder))
    # A duplicate of the decoder's bias, which transformers does not use.
    weights.pop("text_decoder.cls.predictions.bias", None)
    inputs = (jnp.zeros((1, side, side, 3)), jnp.zeros((1, 1), int))
    return module, fit(module, inputs, weights, folder)
