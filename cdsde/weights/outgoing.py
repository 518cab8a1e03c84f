"""`--mode=export` of a published score network: as the file that it came from, or for diffusers.

The config's keys do not describe such a network, its description does (networks/published.py).
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cdsde.diffusion import schedules
from cdsde.networks import published
from cdsde.networks.published import Description
from cdsde.runtime import files
from cdsde.weights import resolve
from cdsde.weights.formats import beside, diffusers_unet, guided_diffusion, unet2d_of
from cdsde.weights.torch import convert

PROJECTS = {
    "adm": "guided-diffusion",
    "UNet2D": "diffusers",
    "NCSNpp": "score_sde_pytorch",
    "SongUNet": "EDM",
    "DhariwalUNet": "EDM",
    "DiT": "DiT",
}
PREDICTIONS = {output: name for name, output in diffusers_unet.OUTPUTS.items()}


def export(config: ConfigDict, workdir) -> Path:
    """Writes the network that `config.score.published` describes and returns the path.

    Raises:
      ValueError: the format has no such network, or there are no weights.
    """
    stage, form = config.export.stage, config.export.format
    description = published.of_text(config.score.published)
    write = WRITERS.get((form, description.arch))
    if write is None:
        known = [other for other, arch in WRITERS if arch == description.arch]
        instead = " or ".join([*known, "stablehlo (the translation)"])
        reason = (
            "has a card about a training that cdsde does not know"
            if form == "cdsde"
            else "is not written for these"
        )
        raise ValueError(
            f"the {stage} network is one of {PROJECTS.get(description.arch, description.arch)}, "
            f"and config.export.format is '{form}', which {reason}; choose {instead}"
        )
    params, origin = resolve.load(config, workdir, stage)
    name = stage if form == "diffusers" else f"{stage}.safetensors"
    path = Path(config.export.path or Path(workdir) / "export" / name)
    try:
        write(path, config, description, params)
    except ValueError as error:
        raise ValueError(f"the {stage} network cannot be exported as {form}: {error}") from None
    logging.info("%s of %s written to %s", stage, origin, path)
    return path


def _guided_diffusion(path: Path, config: ConfigDict, description: Description, params) -> None:
    """Writes the state dict, and beside it the arguments that it does not tell."""
    size = config.data.image_size
    arguments = guided_diffusion.arguments_of(description.fields, description.path, size)
    convert.save_state_dict(path, params, "adm")
    files.write_json(beside.config_path(path), {"arguments": arguments})


def _diffusers(path: Path, config: ConfigDict, description: Description, params) -> None:
    fields = description.fields
    scheduler = _scheduler(description)
    if description.arch == "adm":
        module = published.module(description, jnp.float32, remat=False)
        fields, params = unet2d_of.of_network(module, params)
    diffusers_unet.write(path, fields, params, scheduler, config.data.image_size)


def _scheduler(description: Description) -> dict:
    """Fields of the scheduler with the network's noise levels, prediction and sampler.

    Raises:
      ValueError: it has other levels, or is told other times.
    """
    path, time = published.path_of(description), description.path["time"]
    if path.state != "vp" or time["kind"] != "levels" or "scale" in time:
        raise ValueError(
            "its noise levels are not those of DDPM's indices, which alone are written there"
        )
    alpha_bar = np.asarray(time["alpha_bar"], np.float64)
    if not alpha_bar[-1]:
        raise ValueError("its last level has no signal, and only other levels are written there")
    levels = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-2}
    if np.allclose(alpha_bar, schedules.cosine(len(alpha_bar)).alpha_bar, rtol=1e-6, atol=0):
        levels = {"beta_schedule": "squaredcos_cap_v2"}
    elif not np.allclose(alpha_bar, schedules.linear(len(alpha_bar)).alpha_bar, rtol=1e-6, atol=0):
        beta = 1 - alpha_bar / np.r_[1.0, alpha_bar[:-1]]
        levels = {"trained_betas": beta.tolist()}
    learned = published.learns_variance(description)
    return {
        **levels,
        "num_train_timesteps": len(alpha_bar),
        "prediction_type": PREDICTIONS[path.output],
        **diffusers_unet.sampler_fields(description.sampler, learned),
    }


WRITERS = {
    ("published", "adm"): _guided_diffusion,
    ("diffusers", "adm"): _diffusers,
    ("diffusers", "UNet2D"): _diffusers,
}
