"""Models in diffusers' layout: `unet/ vae/ text_encoder/ tokenizer/ scheduler/`."""

from cdsde.weights.diffusers.networks import (
    SCALING_FACTOR,
    load_blip,
    load_clip,
    load_text_encoder,
    load_unet,
    load_vae,
    read_config,
)
from cdsde.weights.diffusers.schedule import read_schedule
from cdsde.weights.diffusers.writing import Parts, save, state_dict

__all__ = [
    "Parts",
    "SCALING_FACTOR",
    "load_blip",
    "load_clip",
    "load_text_encoder",
    "load_unet",
    "load_vae",
    "read_config",
    "read_schedule",
    "save",
    "state_dict",
]
