"""Reads the noise schedule of a model in diffusers' layout.

`read_scheduler` reads every field that changes the mathematics; `read_schedule` turns that into the
schedule of a latent model and refuses what sampling of latents does not do. An absent field has
diffusers' default, of the class that the file names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cdsde.diffusion import schedules
from cdsde.editing.ddim import PREDICTIONS, LatentSchedule
from cdsde.runtime import fields

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
FIRST_LEVEL = ("PNDMScheduler",)  # and the ones that end at ᾱ_0 instead of 1
DDPM = ("DDPMScheduler", "DDPMParallelScheduler")
LEADING = (*CLIPPING, *FIRST_LEVEL, "DPMSolverSinglestepScheduler")  # the others: linspace
# These have other ends of β than the rest where the file says nothing.
OTHER_ENDS = tuple(n for n in SAMPLERS if n.startswith(("Heun", "KDPM2", "DPMSolverSDE")))
SPACINGS = ("leading", "trailing", "linspace")
# fixed_large_log is missing: with it diffusers takes the root of a logarithm, and gets NaN.
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range")
HONOURED = (
    "num_train_timesteps beta_start beta_end beta_schedule trained_betas prediction_type "
    "steps_offset set_alpha_to_one timestep_spacing rescale_betas_zero_snr clip_sample "
    "clip_sample_range thresholding dynamic_thresholding_ratio sample_max_value variance_type"
).split()
ONLY = {
    "_class_name": tuple(SAMPLERS),
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
    "euler_at_final final_sigmas_type lambda_min_clipped predict_x0 disable_corrector "
    "noise_sampler_seed flow_shift time_shift_type tensor_format"
).split()


class Scheduler(NamedTuple):
    """What a scheduler's file says about the noise process and about sampling.

    Attributes:
      beta: β, float32 `[T]`.
      alpha_bar: ᾱ, float32 `[T]`; the last value is 0 where the file rescales to zero SNR.
      prediction: the network's output: "epsilon", "v_prediction" or "sample".
      offset: added to the indices of "leading" spacing.
      clean: ᾱ of the clean image: 1, or ᾱ_0.
      spacing: how the indices are spaced, one of `SPACINGS`.
      clip: bound of the predicted image, or None for no bound.
      threshold: instead of `clip`, the quantile of a predicted image that bounds it, and the
        largest such bound; None for none.
      variance: variance of a step's noise, one of `VARIANCES`; None: the file does not say.
    """

    beta: np.ndarray
    alpha_bar: np.ndarray
    prediction: str
    offset: int
    clean: float
    spacing: str
    clip: float | None
    threshold: tuple[float, float] | None
    variance: str | None


def read_scheduler(folder: str | Path, sampler: str | None = None) -> Scheduler:
    """The scheduler in a folder's `scheduler_config.json`, of a latent or a pixel model.

    Args:
      folder: the folder.
      sampler: the class that reads the file, where that is not the one which the file names.

    Raises:
      ValueError: there is no file, or a field (named) is missing, unknown or not supported.
    """
    path = Path(folder) / "scheduler_config.json"
    config = fields.read(path, "it contains the noise levels of the model")
    config |= {"_class_name": sampler} if sampler else {}
    fields.check(config, path, HONOURED, ONLY, WITHOUT_EFFECT)
    beta = _betas(config, path)
    alpha_bar = schedules.from_beta(beta).alpha_bar
    name = config.get("_class_name", CLIPPING[0])
    clips = name in CLIPPING
    one = _flag(config, "set_alpha_to_one", path, name not in FIRST_LEVEL)
    clip = _flag(config, "clip_sample", path, clips)
    threshold = _threshold(config, path)
    varies = config.get("variance_type") is not None
    silent = "leading" if name in LEADING else "linspace"
    return Scheduler(
        beta,
        alpha_bar,
        prediction=_choice(config, "prediction_type", path, PREDICTIONS),
        offset=_offset(config, path, len(alpha_bar)),
        clean=1.0 if one else float(alpha_bar[0]),
        spacing=_choice({"timestep_spacing": silent} | config, "timestep_spacing", path, SPACINGS),
        clip=_clip(config, path) if clip and not threshold else None,
        threshold=threshold,
        variance=_choice(config, "variance_type", path, VARIANCES) if varies else None,
    )


def timesteps(scheduler: Scheduler, steps: int) -> np.ndarray:
    """The indices that diffusers visits in `steps` steps, descending.

    Raises:
      ValueError: there are fewer levels, or the offset leads beyond the last one.
    """
    count = len(scheduler.beta)
    if not 1 <= steps <= count:
        raise ValueError(f"{steps} steps do not fit into {count} levels; take 1 to {count}")
    if scheduler.spacing == "linspace":
        t = np.round(np.linspace(0, count - 1, steps))[::-1]
    elif scheduler.spacing == "trailing":
        t = np.round(np.arange(count, 0, -count / steps)) - 1
    else:
        t = np.arange(steps)[::-1] * (count // steps) + scheduler.offset
    if t[0] >= count:
        raise ValueError(
            f"{steps} steps with steps_offset {scheduler.offset} begin at level {int(t[0])}, and "
            f"the last level is {count - 1}; take another number of steps"
        )
    return t.astype(np.int64)


def bounded(scheduler: Scheduler, x0: jax.Array) -> jax.Array:
    """Predicted images `[B, ...]`, clipped or thresholded as the scheduler says."""
    if scheduler.threshold:
        ratio, largest = scheduler.threshold
        bound = jnp.quantile(jnp.abs(x0).reshape(len(x0), -1), ratio, axis=1)
        bound = schedules.expand(jnp.clip(bound, 1.0, largest), x0)
        return jnp.clip(x0, -bound, bound) / bound
    return x0 if scheduler.clip is None else jnp.clip(x0, -scheduler.clip, scheduler.clip)


def read_schedule(folder: str | Path) -> LatentSchedule:
    """The schedule of a latent model, from its `scheduler/` folder.

    Raises:
      ValueError: as `read_scheduler`, or the file asks for something that sampling of latents does
        not do.
    """
    path = Path(folder) / "scheduler_config.json"
    found = read_scheduler(folder)
    # A latent model is sampled by a ladder of its own where the file leaves the spacing open.
    named = "timestep_spacing" in fields.read(path, "it contains the noise levels of the model")
    if named and found.spacing != "leading":
        raise ValueError(
            f"{path} sets timestep_spacing to '{found.spacing}', which is not supported; models of "
            "SD-1.x have 'leading'"
        )
    if found.clip is not None:
        raise ValueError(
            f"{path} has clip_sample true (the default of its class), which would cut latents off; "
            "models of SD-1.x have false"
        )
    if found.threshold is not None:
        raise ValueError(
            f"{path} sets thresholding to true, which would cut latents off; models of SD-1.x have "
            "false"
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


def _clip(config: Mapping[str, Any], path: Path) -> float:
    clip = fields.number(config, "clip_sample_range", path, default=1.0)
    if clip <= 0:
        raise ValueError(f"{path} sets clip_sample_range to {clip}; it must be above 0")
    return clip


def _threshold(config: Mapping[str, Any], path: Path) -> tuple[float, float] | None:
    if config.get("thresholding") is None or not _flag(config, "thresholding", path, False):
        return None
    ratio = fields.number(config, "dynamic_thresholding_ratio", path, default=0.995)
    largest = fields.number(config, "sample_max_value", path, default=1.0)
    if not 0 <= ratio <= 1 or largest < 1:
        raise ValueError(
            f"{path} sets dynamic_thresholding_ratio to {ratio} and sample_max_value to {largest}; "
            "the first must lie in 0..1, and the second be at least 1"
        )
    return ratio, largest


def _betas(config: Mapping[str, Any], path: Path) -> np.ndarray:
    """β, float32 `[T]`."""
    beta = _plain_betas(config, path)
    if not ((beta > 0) & (beta < 1)).all():
        raise ValueError(
            f"{path} has trained_betas that are not all between 0 and 1; get the file again"
        )
    if not _flag(config, "rescale_betas_zero_snr", path, False):
        return beta
    # Lin et al. 2024: √ᾱ is shifted and scaled, so that its first value stays and its last is 0;
    # in float32, as diffusers does it.
    root = np.sqrt(schedules.from_beta(beta).alpha_bar)
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alpha_bar = root**2
    return 1 - np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])


def _plain_betas(config: Mapping[str, Any], path: Path) -> np.ndarray:
    """β without rescaling."""
    count = fields.number(config, "num_train_timesteps", path, int, default=1000)
    if count < 1:
        raise ValueError(f"{path} sets num_train_timesteps to {count}; it must be at least 1")
    if config.get("trained_betas") is not None:
        try:
            beta = np.asarray(config["trained_betas"], np.float32)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{path} has trained_betas that are no list of numbers") from None
        if beta.shape != (count,):
            raise ValueError(
                f"{path} has trained_betas of shape {beta.shape}, and num_train_timesteps is "
                f"{count}; they must be one number a level"
            )
        return beta
    kind = config.get("beta_schedule", "linear")
    if kind == "squaredcos_cap_v2":
        return schedules.cosine(count).beta
    known = ("scaled_linear", "linear")
    # As in diffusers, no other class knows "sigmoid".
    known += ("sigmoid",) if config.get("_class_name") in DDPM else ()
    if kind not in known:
        raise ValueError(
            f"{path} has beta_schedule {json.dumps(kind)}; {', '.join(known)} and "
            "squaredcos_cap_v2 are supported"
        )
    other = config.get("_class_name") in OTHER_ENDS
    ends = {"beta_start": 0.00085 if other else 1e-4, "beta_end": 0.012 if other else 0.02}
    first, last = (fields.number(config, name, path, default=x) for name, x in ends.items())
    if not (0 < first < 1 and 0 < last < 1):
        raise ValueError(
            f"{path} has beta_start {first} and beta_end {last}; both must lie between 0 and 1"
        )
    if kind == "scaled_linear":
        return schedules.scaled_linear(count, first, last).beta
    if kind == "sigmoid":
        mixed = 1 / (1 + np.exp(-np.linspace(-6, 6, count)))
        return (mixed * (last - first) + first).astype(np.float32)
    return np.linspace(first, last, count, dtype=np.float32)
