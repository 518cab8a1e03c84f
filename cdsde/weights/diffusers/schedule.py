"""Reads the noise schedule of a model in diffusers' layout.

`read_scheduler` reads every field that changes the mathematics; `read_schedule` turns that into the
schedule of a latent model and refuses what sampling of latents does not do. An absent field means
what diffusers' DDIMScheduler makes of it, since sampling is DDIM whatever sampler the file names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cdsde.diffusion import schedules
from cdsde.editing.ddim import PREDICTIONS, LatentSchedule
from cdsde.weights.diffusers import fields

# Samplers of a model that is trained on the discrete levels of DDPM.
SAMPLERS = (
    "DDIMScheduler DDIMInverseScheduler DDIMParallelScheduler DDPMScheduler DDPMParallelScheduler "
    "PNDMScheduler LMSDiscreteScheduler EulerDiscreteScheduler EulerAncestralDiscreteScheduler "
    "HeunDiscreteScheduler KDPM2DiscreteScheduler KDPM2AncestralDiscreteScheduler "
    "DEISMultistepScheduler UniPCMultistepScheduler DPMSolverMultistepScheduler "
    "DPMSolverMultistepInverseScheduler DPMSolverSinglestepScheduler DPMSolverSDEScheduler"
).split()
# Of these, the ones that clip the predicted image where the file does not say otherwise.
CLIPPING = tuple(name for name in SAMPLERS if name.startswith(("DDIM", "DDPM")))
SPACINGS = ("leading", "trailing", "linspace")
HONOURED = (
    "num_train_timesteps beta_start beta_end beta_schedule trained_betas prediction_type "
    "steps_offset set_alpha_to_one timestep_spacing rescale_betas_zero_snr clip_sample "
    "clip_sample_range"
).split()
ONLY = {
    "_class_name": tuple(SAMPLERS),
    "thresholding": (False, None),
    # These move the noise levels away from the indices on which the network was trained.
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "timestep_type": ("discrete", None),
    "interpolation_type": ("linear", None),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "predict_epsilon": (True, None),
}
# Settings of other samplers, or of what ONLY excludes.
WITHOUT_EFFECT = (
    "skip_prk_steps solver_order algorithm_type solver_type solver_p lower_order_final "
    "euler_at_final final_sigmas_type lambda_min_clipped variance_type predict_x0 "
    "disable_corrector noise_sampler_seed dynamic_thresholding_ratio sample_max_value flow_shift "
    "time_shift_type"
).split()


class Scheduler(NamedTuple):
    """What a scheduler's file says about the noise process and about sampling.

    Attributes:
      alpha_bar: ᾱ, float32 `[T]`; the last value is 0 where the file rescales to zero SNR.
      prediction: the network's output: "epsilon", "v_prediction" or "sample".
      offset: added to the indices of "leading" spacing.
      clean: ᾱ of the clean image: 1, or ᾱ_0.
      spacing: how the indices are spaced, one of `SPACINGS`.
      clip: bound of the predicted image, or None for no bound.
    """

    alpha_bar: np.ndarray
    prediction: str
    offset: int
    clean: float
    spacing: str
    clip: float | None


def read_scheduler(folder: str | Path) -> Scheduler:
    """The scheduler of a `scheduler/` folder, of a latent or a pixel model.

    Raises:
      ValueError: there is no file, or a field (named) is missing, unknown or not supported.
    """
    path = Path(folder) / "scheduler_config.json"
    config = fields.read(path, "it contains the noise levels of the model")
    fields.check(config, path, HONOURED, ONLY, WITHOUT_EFFECT)
    alpha_bar = _alpha_bar(config, path)
    clips = config.get("_class_name", CLIPPING[0]) in CLIPPING
    one = _flag(config, "set_alpha_to_one", path, True)
    clip = _flag(config, "clip_sample", path, clips)
    return Scheduler(
        alpha_bar,
        prediction=_choice(config, "prediction_type", path, PREDICTIONS),
        offset=_offset(config, path, len(alpha_bar)),
        clean=1.0 if one else float(alpha_bar[0]),
        spacing=_choice(config, "timestep_spacing", path, SPACINGS),
        clip=fields.number(config, "clip_sample_range", path, default=1.0) if clip else None,
    )


def read_schedule(folder: str | Path) -> LatentSchedule:
    """The schedule of a latent model, from its `scheduler/` folder.

    Raises:
      ValueError: as `read_scheduler`, or the file asks for something that sampling of latents does
        not do.
    """
    path = Path(folder) / "scheduler_config.json"
    found = read_scheduler(folder)
    if found.spacing != "leading":
        raise ValueError(
            f"{path} sets timestep_spacing to '{found.spacing}', which is not supported; models of "
            "SD-1.x have 'leading'"
        )
    if found.clip is not None:
        raise ValueError(
            f"{path} has clip_sample true (the default of its class), which would cut latents off; "
            "models of SD-1.x have false"
        )
    if not found.alpha_bar[-1]:
        raise ValueError(
            f"{path} sets rescale_betas_zero_snr to true, which is not supported; models of SD-1.x "
            "have false"
        )
    return LatentSchedule(found.alpha_bar, found.offset, found.prediction, found.clean)


def _flag(config: Mapping[str, Any], name: str, path: Path, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{path} sets {name} to {json.dumps(value)}; it must be true or false")
    return value


def _choice(config: Mapping[str, Any], name: str, path: Path, known: tuple[str, ...]) -> str:
    """A field's value; the first of `known` where it is absent."""
    value = config.get(name, known[0])
    if value not in known:
        raise ValueError(f"{path} has {name} {json.dumps(value)}; {', '.join(known)} are supported")
    return value


def _offset(config: Mapping[str, Any], path: Path, count: int) -> int:
    offset = fields.number(config, "steps_offset", path, int, default=0)
    if not 0 <= offset < count:
        raise ValueError(
            f"{path} sets steps_offset to {offset}; it must lie in 0..{count - 1}, the indices of "
            "its noise levels"
        )
    return offset


def _alpha_bar(config: Mapping[str, Any], path: Path) -> np.ndarray:
    """ᾱ, float32 `[T]`, with the rounding of diffusers."""
    beta = _betas(config, path)
    if not ((beta > 0) & (beta < 1)).all():
        raise ValueError(
            f"{path} has trained_betas that are not all between 0 and 1; get the file again"
        )
    alpha_bar = np.cumprod(1 - beta, dtype=np.float32)
    if not _flag(config, "rescale_betas_zero_snr", path, False):
        return alpha_bar
    # Lin et al. 2024: √ᾱ is shifted and scaled, so that its first value stays and its last is 0.
    root = np.sqrt(alpha_bar)
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return root**2


def _betas(config: Mapping[str, Any], path: Path) -> np.ndarray:
    """β, float32 `[T]`."""
    count = fields.number(config, "num_train_timesteps", path, int)
    if count < 1:
        raise ValueError(f"{path} sets num_train_timesteps to {count}; it must be at least 1")
    if config.get("trained_betas") is not None:
        try:
            beta = np.asarray(config["trained_betas"], np.float32)
        except (TypeError, ValueError):
            raise ValueError(f"{path} has trained_betas that are no list of numbers") from None
        if beta.shape != (count,):
            raise ValueError(
                f"{path} has trained_betas of shape {beta.shape}, and num_train_timesteps is "
                f"{count}; they must be one number a level"
            )
        return beta
    kind = config.get("beta_schedule")
    if kind == "squaredcos_cap_v2":
        return schedules.cosine(count).beta
    if kind not in ("scaled_linear", "linear"):
        raise ValueError(
            f"{path} has beta_schedule {json.dumps(kind)}; scaled_linear, linear and "
            "squaredcos_cap_v2 are supported"
        )
    first, last = (fields.number(config, name, path) for name in ("beta_start", "beta_end"))
    if not (0 < first < 1 and 0 < last < 1):
        raise ValueError(
            f"{path} has beta_start {first} and beta_end {last}; both must lie between 0 and 1"
        )
    if kind == "scaled_linear":
        return schedules.scaled_linear(count, first, last).beta
    return np.linspace(first, last, count, dtype=np.float32)
