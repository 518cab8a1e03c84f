"""How the publisher of a network samples from it, for the keys of `sample` that are None.

A folder of diffusers describes a sampler beside the network. Solver, start and number of steps are
those of the config; what else changes a picture is taken from the file, or refused in a sentence.
A key that is given is the user's choice, and the file's field is left aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.networks import published


def adopt(config: ConfigDict, name: str | None = None, of_file: bool = True) -> None:
    """Fills the keys of `sample` that are None, from the file of `config.score.published`.

    Args:
      config: the task; changed in place.
      name: the file, for messages.
      of_file: whether the file is asked; else, and where it is silent, the keys get their usual
        values, `config.LEFT_OPEN`.

    Raises:
      ValueError: the file asks for something that cannot be done.
    """
    s, found, text = config.sample, dict(config_lib.LEFT_OPEN), config.score.published
    description = published.of_text(text) if text and of_file else None
    asked = description.sampler if description else None
    where = f"the scheduler of {name}" if name else "the imported network's scheduler"
    on_latents = description is not None and description.autoencoder is not None
    if asked and s.clip is None and not on_latents:  # latents are never clipped
        found["clip"] = _clip(asked, where)
    if asked and s.solver == "ancestral":
        found["variance"] = asked["variance"]
    if asked and s.solver == "ddim" and asked.get("clean", 1.0) != 1:
        raise ValueError(
            f"{where} has set_alpha_to_one false, and here the last step of ddim leads to the "
            "clean image; set it to true in the file, or choose --config.sample.solver=dpmpp_2m "
            "or ancestral, which do not have it"
        )
    if asked and s.steps is not None:  # otherwise every level is visited
        found["spacing"] = asked["spacing"]
        if s.spacing is None and asked["spacing"] == "leading" and asked["offset"]:
            raise ValueError(
                f"{where} sets steps_offset to {asked['offset']}, and levels here end at 0; "
                "choose how they are spaced with --config.sample.spacing=index"
            )
    s.update({key: value for key, value in found.items() if s[key] is None})


def _clip(sampler: Mapping[str, Any], where: str) -> bool:
    """Whether predicted images are clipped to [-1, 1]."""
    if sampler["thresholding"]:
        raise ValueError(
            f"{where} sets thresholding to true, which is not supported; choose "
            "--config.sample.clip=True, which clips predicted images to -1 and 1, or False"
        )
    if sampler["clip"] not in (None, 1):
        raise ValueError(
            f"{where} sets clip_sample_range to {sampler['clip']}, and images here are clipped to "
            "-1 and 1 or not at all; choose with --config.sample.clip=True or False"
        )
    return sampler["clip"] is not None
