"""Models in diffusers' layout: `unet/ vae/ text_encoder/ tokenizer/ scheduler/`."""

from cdsde.weights.diffusers.networks import (
    SCALING_FACTOR,
    load_blip,
    load_clip,
    load_text_encoder,
    load_unet,
    load_vae,
    read_config,
    read_vae,
    unet_of,
)
from cdsde.weights.diffusers.schedule import Scheduler, read_schedule, read_scheduler
from cdsde.weights.diffusers.writing import Parts, save, state_dict

__all__ = [
    "Parts",
    "Scheduler",
    "SCALING_FACTOR",
    "load_blip",
    "load_clip",
    "load_text_encoder",
    "load_unet",
    "load_vae",
    "read_config",
    "read_schedule",
    "read_scheduler",
    "read_vae",
    "save",
    "state_dict",
    "unet_of",
]
