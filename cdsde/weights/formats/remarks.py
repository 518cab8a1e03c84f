"""What is said where a published network is used otherwise than its file says.

The solver and the levels of a run are those of the config. A file of diffusers also describes a
sampler, and the side of the images it was trained on; what differs is told in a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from cdsde.runtime.fields import shown
from cdsde.weights.formats import registry
from cdsde.weights.formats.opened import Opened

VARIANCES = {
    "fixed_small": "fixedsmall",
    "fixed_small_log": "fixedsmall",
    "fixed_large": "fixedlarge",
    "learned_range": "learned",
}


def read(config: ConfigDict, name: str) -> Opened:
    """The published network that a name stands for, with remarks on it in the log.

    Raises:
      ValueError: as `registry.read`.
    """
    opened = registry.read(name)
    keys = keys_instead(config, opened.sampler or {})
    if keys:
        fields = [f"{field} {shown((opened.sampler or {})[field])}" for field in keys]
        told = [f"{key} for {field}" for field, key in keys.items() if key]
        nothing = [field for field, key in keys.items() if not key]
        told += [f"nothing for {', '.join(nothing)}"] if nothing else []
        logging.warning(
            "%s asks its own sampler for %s; cdsde has solvers of its own, and takes %s.",
            *(name, ", ".join(fields), ", ".join(told)),
        )
    size, side = config.data.image_size, opened.side
    if side not in (None, size) and opened.fields.get("in_channels", 3) == 3:
        logging.warning(
            "%s was made for images of %d² pixels, and config.data.image_size is %d: results are "
            "best at the former.",
            *(name, side, size),
        )
    return opened


def keys_instead(config: ConfigDict, sampler: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a file's sampler that differ from what the config does, by name.

    Args:
      config: the task.
      sampler: `Opened.sampler`, only what the file says.

    Returns:
      For each field, the keys of the config that do the same, with the value, or "" where nothing
      does.
    """
    s, found = config.sample, {}
    bounded = sampler.get("thresholding", False)
    clip = sampler.get("clip_sample", s.clip)
    if clip != s.clip and not bounded:
        found["clip_sample"] = f"config.sample.clip={clip}"
    if clip and not bounded and sampler.get("clip_sample_range", 1) != 1:
        found["clip_sample_range"] = ""
    if bounded:
        found["thresholding"] = ""
    variance = VARIANCES.get(sampler.get("variance_type", ""))
    if variance and (s.solver, s.variance) != ("ancestral", variance):
        found["variance_type"] = f"config.sample.solver=ancestral and .variance={variance}"
    if s.steps is not None:  # otherwise every level is visited
        if "timestep_spacing" in sampler:
            found["timestep_spacing"] = "config.sample.steps and .spacing"
        if sampler.get("steps_offset"):
            found["steps_offset"] = "config.sample.start and .steps"
    if not sampler.get("set_alpha_to_one", True):
        found["set_alpha_to_one"] = ""
    return found
