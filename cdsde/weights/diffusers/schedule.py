"""Reads the noise schedule of a model in diffusers' layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cdsde.diffusion import schedules
from cdsde.editing.ddim import LatentSchedule

# Scheduler fields that change the result, with the values that equal omitting the field; other
# values are refused.
SAME_AS_ABSENT = {
    "rescale_betas_zero_snr": (False, None),
    "timestep_spacing": ("leading", None),
    "clip_sample": (False, None),
    "thresholding": (False, None),
}


def read_schedule(folder: str | Path) -> LatentSchedule:
    """The schedule in a `scheduler/` folder; sampling is DDIM whatever sampler the file names.

    Raises:
      ValueError: there is no file, or it has an unsupported value.
    """
    path = Path(folder) / "scheduler_config.json"
    if not path.is_file():
        raise ValueError(f"there is no {path}; it contains the noise levels of the model")
    config = json.loads(path.read_text(encoding="utf-8"))
    for field, same in SAME_AS_ABSENT.items():
        if config.get(field) not in same:
            raise ValueError(
                f"{path} sets {field} to {config[field]!r}, which is not supported; models of "
                f"SD-1.x have {same[0]!r}"
            )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"{path} has prediction_type '{prediction}'; epsilon and v_prediction are supported"
        )
    return LatentSchedule(
        _alpha_bar(config, path),
        offset=config.get("steps_offset", 0),
        prediction=prediction,
        clean=1.0 if config.get("set_alpha_to_one") else None,
    )


def _alpha_bar(config: Mapping[str, Any], path: Path) -> np.ndarray:
    """ᾱ, float32 `[T]`, with the rounding of diffusers."""
    if config.get("trained_betas") is not None:
        return np.cumprod(1 - np.asarray(config["trained_betas"], np.float32), dtype=np.float32)
    kind, count = config.get("beta_schedule"), config["num_train_timesteps"]
    first, last = config["beta_start"], config["beta_end"]
    if kind == "scaled_linear":
        return schedules.scaled_linear(count, first, last).alpha_bar
    if kind == "linear":
        beta = np.linspace(first, last, count, dtype=np.float32)
        return np.cumprod(1 - beta, dtype=np.float32)
    raise ValueError(f"{path} names the schedule '{kind}'; scaled_linear and linear are supported")
