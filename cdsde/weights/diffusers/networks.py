"""Loads networks from folders in the layout of diffusers or transformers.

Files are safetensors, half precision included; nothing is downloaded, and errors name what is
missing. Each loader returns a module and its parameters `{"params": tree}`, float32.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
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
from cdsde.runtime import fields as json_fields
from cdsde.weights.diffusers import supported
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
BLOCK = 8  # two normalisations and two convolutions, with biases
FEW = 16  # blocks that take no time, for which all names are compared
SCALING_FACTOR = 0.18215  # of SD-1.x, whose files omit it


def read_config(folder: str | Path) -> dict[str, Any]:
    """The contents of a part's `config.json`.

    Raises:
      ValueError: the file does not exist.
    """
    return json_fields.read(
        Path(folder) / "config.json", "a model in diffusers' layout has one in each part"
    )


def read_weights(folder: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a part, floating point ones as float32; sharded files are joined.

    Raises:
      ValueError: there is no safetensors file.
    """
    folder = Path(folder)
    for name in (f"{stem}{variant}" for variant in VARIANTS for stem in WEIGHTS):
        index = folder / f"{name}.safetensors.index.json"
        if index.is_file():
            parts = [convert.read_state_dict(folder / shard) for shard in shards(index)]
            return {key: value for part in parts for key, value in part.items()}
        if (folder / f"{name}.safetensors").is_file():
            return convert.read_state_dict(folder / f"{name}.safetensors")
    raise ValueError(
        f"{folder} holds no weights: expected {WEIGHTS[0]}.safetensors or {WEIGHTS[1]}.safetensors "
        "there (a .bin is not read: convert it)"
    )


def shards(index: Path) -> list[str]:
    """Names of the files that an index lists, all in its own folder.

    Raises:
      ValueError: the index is damaged, or names something else.
    """
    table = json_fields.read(index, "it lists the files of the weights").get("weight_map")
    names = list(table.values()) if isinstance(table, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"{index} lists no files of weights; get the file again")
    return sorted(set(names))


def published(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Published key and shape of a parameter; module names are the published ones."""
    name = convert.published_leaf(".".join(path[:-1]), path[-1])
    return name, convert.published_shape(path[-1], shape)


def check_blocks(levels: int, blocks: int, state_dict: Mapping[str, Any], where) -> None:
    """Keeps numbers that no weight confirms from costing time.

    Args:
      levels: the number of levels.
      blocks: that of blocks in a level; each has `BLOCK` tensors at least.
      state_dict: the weights, whatever they are.
      where: the file, for the error message.

    Raises:
      ValueError: the weights are fewer.
    """
    if levels * blocks > FEW and levels * blocks * BLOCK > len(state_dict):
        raise ValueError(
            f"{where} does not fit its config.json: {levels} levels of {blocks} blocks need more "
            f"than its {len(state_dict)} tensors"
        )


def fit(module, inputs, state_dict: Mapping[str, np.ndarray], where, consume: bool = False) -> dict:
    """A module's parameters `{"params": tree}` from a state dict.

    Args:
      module: a linen module.
      inputs: arguments of its `init`.
      state_dict: published names to arrays.
      where: path for the error message.
      consume: take each array out of `state_dict`, as in `convert.fit`.

    Raises:
      ValueError: keys or shapes do not fit; the message lists them.
    """
    try:
        shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    except ValueError as error:
        raise ValueError(f"{where}/config.json makes no network: {error}") from None
    try:
        return convert.fit(shapes, state_dict, published, consume)
    except convert.Damaged as error:
        raise ValueError(f"{where}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{where} does not fit its config.json: {error}") from None


def _fields(config: Mapping[str, Any], names: Mapping[str, str], where) -> dict[str, Any]:
    missing = [key for key in names.values() if config.get(key) is None]
    if missing:
        raise ValueError(f"{where}/config.json does not contain {', '.join(missing)}")
    path = Path(where) / "config.json"
    for key in names.values():
        if key.endswith("eps"):
            if json_fields.number(config, key, path) < 0:
                raise ValueError(f"{path} sets {key} to {config[key]}; it must be at least 0")
        elif key in json_fields.LARGEST:
            _positive(config, key, path)
    return {field: config[key] for field, key in names.items()}


def _positive(config: Mapping[str, Any], name: str, path: Path) -> list[int]:
    """The numbers of a field, of which some have one a level, all at least 1.

    Raises:
      ValueError: one is not.
    """
    numbers = _listed(config[name])
    if not numbers or not all(type(n) is int and n >= 1 for n in numbers):
        each = ", one a level," if name in json_fields.A_LEVEL else ""
        raise ValueError(
            f"{path} sets {name} to {json_fields.shown(config[name])}; it must be a whole number"
            f"{each} of at least 1"
        )
    return numbers


def _check_divides(path: Path, name: str, number: int, widths: Mapping[str, Collection[int]]):
    """Checks that a number of groups or heads divides all widths: `{their field: widths}`."""
    for field, values in widths.items():
        if any(width % number for width in values):
            shown = ", ".join(map(str, values))
            raise ValueError(
                f"{path} sets {name} to {number}, which does not divide its {field} {shown}; get "
                "the file again"
            )


def _transformer(
    config: Mapping[str, Any],
    names: Mapping[str, str],
    where,
    only: Mapping[str, tuple],
    free: Collection[str] = (),
) -> dict[str, Any]:
    """The fields `names` of a file of transformers, after a check of all others."""
    path = Path(where) / "config.json"
    json_fields.check(config, path, names.values(), only, {*json_fields.TRANSFORMERS, *free})
    read = _fields(config, names, where)
    _check_divides(path, TRANSFORMER["heads"], read["heads"], {"hidden_size": [read["width"]]})
    if "patch_size" in read and read["patch_size"] > read["image_size"]:
        raise ValueError(
            f"{path} sets patch_size to {read['patch_size']}, more than its image_size "
            f"{read['image_size']}; get the file again"
        )
    return read


def _token(config: Mapping[str, Any], name: str, path: Path, default: int | None = None) -> int:
    """A field that names a token.

    Raises:
      ValueError: it is no id of the vocabulary.
    """
    token = config.get(name, default)
    if type(token) is not int or not 0 <= token < config["vocab_size"]:
        raise ValueError(
            f"{path} sets {name} to {json_fields.shown(token)}; it must be a whole number of at "
            f"least 0 and below vocab_size {config['vocab_size']}"
        )
    return token


def unet_of(config: Mapping[str, Any], where="unet", **fields) -> UNet:
    """The `UNet` of a `config.json`; `fields` are further fields, such as dtype and remat.

    Raises:
      ValueError: the config needs something that `UNet` does not support.
    """
    path = Path(where) / "config.json"
    json_fields.check(config, path, supported.UNET, supported.UNET_ONLY, supported.UNET_FREE)
    names = {"widths": "block_out_channels", "blocks": "layers_per_block"}
    names |= {"groups": "norm_num_groups", "eps": "norm_eps", "out_channels": "out_channels"}
    names |= {"inputs": "in_channels", "downs": "down_block_types", "ups": "up_block_types"}
    read = _fields({"norm_eps": 1e-5, "norm_num_groups": 32, **config}, names, where)
    known = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    downs, ups = ([str(name) for name in _listed(read.pop(way))] for way in ("downs", "ups"))
    ups = [name.replace("Up", "Down") for name in reversed(ups)]
    if ups != downs or not set(downs) <= set(known):
        raise ValueError(
            f"{path} has down_block_types {', '.join(downs)[:80]}; supported are "
            f"{' and '.join(known)}, with the same blocks in encoder and decoder"
        )
    if (inputs := read.pop("inputs")) != read["out_channels"]:
        raise ValueError(
            f"{path} sets in_channels to {inputs} and out_channels to {read['out_channels']}; both "
            "must be the channels of the latents (models for inpainting are not supported)"
        )
    read["widths"] = _widths(read, path)
    if len(read["widths"]) != len(downs):
        raise ValueError(
            f"{path} has {len(read['widths'])} block_out_channels and {len(downs)} "
            "down_block_types; there must be one of each a level"
        )
    attention = tuple(known[name] for name in downs)
    return UNet(
        **read,
        attention=attention,
        heads=_heads(config, read["widths"], attention, path),
        linear=config.get("use_linear_projection") or False,
        **fields,
    )


def _widths(read: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    """The width of each level, which the groups of normalisation divide."""
    widths = tuple(_listed(read["widths"]))
    _check_divides(path, "norm_num_groups", read["groups"], {"block_out_channels": widths})
    return widths


def _heads(
    config: Mapping[str, Any], widths: tuple[int, ...], attention: tuple[bool, ...], path: Path
) -> tuple[int, ...]:
    """The heads of each level; `attention_head_dim` means their number, as diffusers reads it."""
    names = ("num_attention_heads", "attention_head_dim")
    name = next((name for name in names if config.get(name) is not None), names[0])
    given = 8 if config.get(name) is None else config[name]
    heads = _positive({name: given}, name, path) * (1 if isinstance(given, list) else len(widths))
    if len(heads) != len(widths):
        raise ValueError(
            f"{path} sets {name} to {json_fields.shown(heads)}; it must be one number, or one for "
            f"each of its {len(widths)} levels"
        )
    # The middle, at the last width, has attention in any case.
    for level in (*(n for n, has in enumerate(attention) if has), -1):
        _check_divides(path, name, heads[level], {"block_out_channels": [widths[level]]})
    return tuple(heads)


def _shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def _listed(value: Any) -> list:
    """A field of one value a level."""
    return value if isinstance(value, list) else [value]


def load_unet(folder: str | Path, **fields) -> tuple[UNet, dict]:
    """`UNet` and its parameters; `fields` are further fields, such as dtype and remat."""
    config = read_config(folder)
    module = unet_of(config, str(folder), **fields)
    side = 2 ** (len(module.widths) - 1)
    if not isinstance(config.get("cross_attention_dim"), int):
        raise ValueError(
            f"{folder}/config.json sets cross_attention_dim to "
            f"{config.get('cross_attention_dim')}; it must be the width of the text encoder"
        )
    inputs = (
        _shape(1, side, side, config["in_channels"]),
        _shape(1),
        _shape(1, 1, config["cross_attention_dim"]),
    )
    weights = read_weights(folder)
    check_blocks(len(module.widths), module.blocks, weights, folder)
    return module, fit(module, inputs, weights, folder)


def read_vae(folder: str | Path) -> tuple[dict[str, Any], float]:
    """Constructor fields of the `AutoencoderKL` of a folder, and the factor that scales latents.

    Raises:
      ValueError: its `config.json` asks for something that `AutoencoderKL` does not support.
    """
    config, path = read_config(folder), Path(folder) / "config.json"
    json_fields.check(config, path, supported.VAE, supported.VAE_ONLY, supported.VAE_FREE)
    for field, block in (("down_block_types", "DownEncoder"), ("up_block_types", "UpDecoder")):
        if other := set(map(str, _listed(config.get(field) or []))) - {f"{block}Block2D"}:
            raise ValueError(
                f"{path} has {field} {', '.join(sorted(other))}; only {block}Block2D is supported"
            )
    names = {"blocks": "layers_per_block", "groups": "norm_num_groups"}
    names |= {"latent_channels": "latent_channels", "widths": "block_out_channels"}
    read = _fields(config, names, folder)
    read["widths"] = _widths(read, path)
    factor = json_fields.number(config, "scaling_factor", path, default=SCALING_FACTOR)
    if factor <= 0:
        raise ValueError(f"{path} sets scaling_factor to {factor}; it must be above 0")
    return read, factor


def load_vae(folder: str | Path, **fields) -> tuple[AutoencoderKL, dict, float]:
    """`AutoencoderKL`, its parameters, and the factor that scales latents."""
    read, factor = read_vae(folder)
    module = AutoencoderKL(**read, **fields)
    side = 2 ** (len(module.widths) - 1)
    weights = _renamed_attention(read_weights(folder))
    check_blocks(len(module.widths), module.blocks, weights, folder)
    params = fit(module, (_shape(1, side, side, 3),), weights, folder)
    return module, params, factor


def current_name(key: str) -> str:
    """Today's name of a parameter; early files call attention's query, key, value, proj_attn."""
    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    pattern = r"(attentions\.\d+)\.(query|key|value|proj_attn)\."
    return re.sub(pattern, lambda m: f"{m[1]}.{new[m[2]]}.", key)


def _renamed_attention(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the attention layers of early SD files."""
    renamed = {current_name(key): value for key, value in state_dict.items()}
    # Some early files store these linear layers as 1x1 convolutions.
    return {
        key: value[:, :, 0, 0] if ".to_" in key and value.ndim == 4 else value
        for key, value in renamed.items()
    }


def _text(config: Mapping[str, Any], where, **fields) -> TextTransformer:
    read = _transformer(config, TEXT, where, supported.TEXT_ONLY)
    end = _token(config, "eos_token_id", Path(where) / "config.json", default=2)
    return TextTransformer(**read, end=end, **fields)


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
    check_blocks(1, module.text.depth, weights, folder)
    return module, fit(module, (jnp.zeros((1, 1), int),), weights, folder)


def _pair(folder: str | Path) -> dict[str, Any]:
    """The config of a model of images and texts, whose parts are in `vision_config`, `text_config`.

    Raises:
      ValueError: a part is missing or no object, or a field is unknown.
    """
    config, path = read_config(folder), Path(folder) / "config.json"
    free = {*json_fields.TRANSFORMERS, *supported.PAIR_FREE, "model_type"}
    json_fields.check(config, path, supported.PAIR, {}, free)
    for name in ("vision_config", "text_config"):
        if not isinstance(config.get(name, {}), dict):
            raise ValueError(
                f"{path} sets {name} to {json_fields.shown(config[name])}; it must be an object "
                "with the fields of that part"
            )
    _fields(config, {name: name for name in supported.PAIR}, folder)
    return config


def load_clip(folder: str | Path, **fields) -> tuple[CLIP, dict]:
    """`CLIP` (both encoders) and its parameters."""
    config = _pair(folder)
    read = _transformer(config["vision_config"], VISION, folder, supported.VISION_ONLY)
    vision = VisionTransformer(**read, **fields)
    text = _text(config["text_config"], folder, **fields)
    module = CLIP(text, vision, config["projection_dim"])
    weights = _without_positions(read_weights(folder))
    check_blocks(1, vision.depth + text.depth, weights, folder)
    inputs = (jnp.zeros((1, 1), int), _shape(1, vision.image_size, vision.image_size, 3))
    return module, fit(module, inputs, weights, folder)


def load_blip(folder: str | Path) -> tuple[BLIP, dict]:
    """`BLIP`, the captioner, and its parameters."""
    config = _pair(folder)
    text = config["text_config"]

    def token(name: str) -> int:
        return _token(text, name, Path(folder) / "config.json")

    module = BLIP(
        Vision(
            **_transformer(
                config["vision_config"], VISION, folder, supported.VISION_ONLY, supported.BLIP_FREE
            )
        ),
        Decoder(**_transformer(text, TEXT, folder, supported.BLIP_TEXT_ONLY, supported.BLIP_FREE)),
        begin=token("bos_token_id"),
        end=token("sep_token_id"),
        pad=token("pad_token_id"),
    )
    side = module.vision.image_size
    weights = _without_positions(read_weights(folder))
    # A duplicate of the decoder's bias, which transformers does not use.
    weights.pop("text_decoder.cls.predictions.bias", None)
    check_blocks(1, module.vision.depth + module.text.depth, weights, folder)
    inputs = (_shape(1, side, side, 3), jnp.zeros((1, 1), int))
    return module, fit(module, inputs, weights, folder)
