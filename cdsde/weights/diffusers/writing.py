"""Writes a trained latent diffusion model in diffusers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from flax import traverse_util

from cdsde.data import tokenizer
from cdsde.networks.stable_diffusion.clip import CLIPTextModel
from cdsde.networks.stable_diffusion.unet import UNet
from cdsde.networks.stable_diffusion.vae import AutoencoderKL
from cdsde.runtime import files
from cdsde.runtime.trees import halved
from cdsde.weights.diffusers.networks import TEXT, WEIGHTS, published

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "prediction_type": "epsilon",
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def state_dict(params: Mapping, dtype: Any = None) -> dict[str, np.ndarray]:
    """Parameters `{"params": tree}` as arrays of `dtype` under published names and shapes.

    Without `dtype`, they are as small as `trees.halved` makes them.
    """
    named = {}
    for path, leaf in traverse_util.flatten_dict(params["params"]).items():
        value = np.asarray(leaf, np.float32)
        name, _ = published(path, value.shape)
        if path[-1] == "kernel":
            value = np.transpose(value, (3, 2, 0, 1)) if value.ndim == 4 else value.T
        value = halved(value) if dtype is None else value.astype(dtype)
        named[name] = np.ascontiguousarray(value)
    return named


class Parts(NamedTuple):
    """The parts of a model folder.

    Attributes:
      unet, vae, text: `(module, params)` each; the text encoder is a `CLIPTextModel`.
      factor: the factor that scales latents.
      tokenizer: the tokenizer of the text encoder.
      betas: first and last β of the schedule; default: SD-1.x.
    """

    unet: tuple[UNet, Mapping]
    vae: tuple[AutoencoderKL, Mapping]
    text: tuple[CLIPTextModel, Mapping]
    factor: float
    tokenizer: tokenizer.ClipTokenizer
    betas: tuple[float, float] = (0.00085, 0.012)


def save(folder: str | Path, parts: Parts) -> None:
    """Writes a model in diffusers' layout, float16 where it can be, which `networks.py` reads."""
    folder = Path(folder)
    unet = _unet_config(parts.unet[0], parts.text[0].text.width)
    _write(folder / "unet", unet, parts.unet[1])
    _write(folder / "vae", _vae_config(parts.vae[0], parts.factor), parts.vae[1])
    text = _text_config(parts.text[0], parts.tokenizer)
    _write(folder / "text_encoder", text, parts.text[1], "model")
    tokenizer.save(folder / "tokenizer", parts.tokenizer)
    scheduler = {**SCHEDULER, "beta_start": parts.betas[0], "beta_end": parts.betas[1]}
    files.write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    files.write_json(folder / "model_index.json", MODEL_INDEX)


def _unet_config(unet: UNet, text_width: int) -> dict:
    names = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in unet.attention]
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": unet.out_channels,
        "out_channels": unet.out_channels,
        "block_out_channels": list(unet.widths),
        "down_block_types": names,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(names)],
        "layers_per_block": unet.blocks,
        "attention_head_dim": list(unet.heads),
        "norm_num_groups": unet.groups,
        "norm_eps": unet.eps,
        "cross_attention_dim": text_width,
        "use_linear_projection": unet.linear,
    }


def _vae_config(vae: AutoencoderKL, factor: float) -> dict:
    blocks = len(vae.widths)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": vae.out_channels,
        "out_channels": vae.out_channels,
        "latent_channels": vae.latent_channels,
        "block_out_channels": list(vae.widths),
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "layers_per_block": vae.blocks,
        "norm_num_groups": vae.groups,
        "scaling_factor": factor,
    }


def _text_config(encoder: CLIPTextModel, tokens: tokenizer.ClipTokenizer) -> dict:
    fields = {theirs: getattr(encoder.text, ours) for ours, theirs in TEXT.items()}
    ends = {"bos_token_id": tokens.start, "eos_token_id": tokens.end}
    return {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **fields, **ends}


def _write(folder: Path, config: dict, params: Mapping, stem: str = WEIGHTS[0]) -> None:
    files.write_json(folder / "config.json", config)
    data = safetensors.numpy.save(state_dict(params))
    files.write_bytes(folder / f"{stem}.safetensors", data)
