"""Compares the arguments beside a file of guided-diffusion with a config, for --mode=import.

An imported network is described by the config's keys alone. Shapes confirm most of them, and
`NAME.config.json`, where there is one, the others: the noise, the heads of attention and their
order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cdsde.networks import build
from cdsde.weights.formats import beside, guided_diffusion


def check(config: ConfigDict, path: Path) -> None:
    """Checks that the configuration beside a file says what the config does; it need not exist.

    Raises:
      ValueError: it is damaged, or says something else; the message names the keys.
    """
    found, where = beside.config_of(path, None), beside.config_path(path)
    if found is None:
        return
    told = guided_diffusion.arguments_told(found, where)
    differ = []
    for key, theirs in _keys_of(told).items():
        group, name = key.split(".")
        if (ours := config[group][name]) != theirs:
            differ.append(f"config.{key} is {ours}, the file has {theirs}")
    if differ:
        raise ValueError(
            f"{where} does not fit the config: {'; '.join(differ)}; set these keys to what the "
            "file has"
        )
    if strange := _without_key(config, told):
        raise ValueError(
            f"{where} does not fit the config: it has {', '.join(strange)}, for which there is no "
            "key; leave --mode=import out, and name the file where you sample"
        )


def _keys_of(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the keys of the config are by the arguments, where no shape tells it."""
    keys = {
        "sde.schedule": told["noise_schedule"],
        "sde.num_steps": told["diffusion_steps"],
        "score.prediction": "eps",
        "score.new_attention_order": told["use_new_attention_order"],
        "score.num_head_channels": told["num_head_channels"],
    }
    # Where heads have a number of channels, nobody asks for their number.
    return keys | ({"score.num_heads": told["num_heads"]} if _by_number(told) else {})


def _without_key(config: ConfigDict, told: Mapping[str, Any]) -> list[str]:
    """The arguments that change the network and that no key can say."""
    time, strange = guided_diffusion.path_of(told)["time"], []
    if _by_number(told) and told["num_heads_upsample"] not in (-1, told["num_heads"]):
        strange.append(f"num_heads_upsample {told['num_heads_upsample']}")
    if told["predict_xstart"]:
        strange.append("predict_xstart")
    if "scale" in time:
        strange.append("rescale_timesteps")
    if not np.allclose(time["alpha_bar"], build.schedule_of(config).alpha_bar):
        strange.append(f"another {told['noise_schedule']} noise on {len(time['alpha_bar'])} levels")
    return strange


def _by_number(told: Mapping[str, Any]) -> bool:
    return told["num_head_channels"] == -1
