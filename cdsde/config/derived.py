"""Values derived from the keys of a config: networks, training, domains, levels; keys by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from cdsde.config import fitting
from cdsde.config.keys import (
    EDITORS,
    GANS,
    GUIDED_SDES,
    KEYS,
    LATENT,
    PUBLISHED,
    SDES,
    SOURCE_SCORE,
)

# Training settings that are not keys; _TRAINING_OF lists the stages with other values.
_TRAINING = {
    "optimizer": "adam",
    "muon_rate": 0.02,
    "schedule": "cosine",
    "warmup": 200,
    "weight_decay": 0.0,
    "beta1": 0.9,
    "beta2": 0.999,
    "ema": 0.99,
}
_TRAINING_OF = {
    # As published: Adam with β1 = 0.5, a linear decay in the last epochs, no clipping.
    "cut": {"beta1": 0.5, "schedule": "linear", "warmup": 0, "clip_norm": 0.0},
    "autoencoder": {"warmup": 100},
}
# The learning rate decays in the last half of CUT's epochs, and in the last quarter of FastCUT's,
# which trains for half as many steps.
_DECAY_PARTS = {"cut": 2, "fastcut": 4}
# Objectives of CUT and FastCUT, used where the config has None (Park et al. 2020, section 4).
_GAN_OBJECTIVE = {
    "cut": {"nce_weight": 1.0, "identity": True, "flip_equivariance": False},
    "fastcut": {"nce_weight": 10.0, "identity": False, "flip_equivariance": True},
}


# Keys of `sample` that a published network's file may decide, and their usual values.
LEFT_OPEN = {"clip": False, "variance": "fixedsmall", "spacing": "index"}


def usual(config: ConfigDict) -> dict[str, Any]:
    """The keys of `sample` that may be None, with their usual values where they are.

    They are those of `LEFT_OPEN`, and "eta" of the method (`Method.eta`).
    """
    eta = GUIDED_SDES[config.method].eta(config) if config.method in SDES else 0.0
    values, s = LEFT_OPEN | {"eta": eta}, config.sample
    return {key: value if s[key] is None else s[key] for key, value in values.items()}


def needed_stages(config: ConfigDict) -> tuple[str, ...]:
    """The networks that `config.method` runs, in the order in which they are trained."""
    method = config.method
    if method in SDES:
        return GUIDED_SDES[method].needed(config[method])
    return LATENT if method in EDITORS else (method,)


def adopt_sampling(config: ConfigDict, given: Iterable[str], before: str = "") -> None:
    """Sets the keys that a method chosen by an override brings.

    They are keys of `sample` (`Method.sampling`), or of an editor keys of `edit` (`PUBLISHED`).

    Args:
      config: changed in place.
      given: the overridden keys, which keep their values.
      before: the method of the config's file, whose settings are the file's own.

    Raises:
      ValueError: an overridden key of a network has no effect, see `fitting.check_given`.
    """
    given = set(given)
    fitting.check_given(config, sorted(given))
    if "method" not in given or config.method == before:
        return
    if config.method in SDES:
        group, own = "sample", GUIDED_SDES[config.method].brings(config)
    else:
        group, own = "edit", PUBLISHED.get(config.method, {})
    config[group].update({k: v for k, v in own.items() if f"{group}.{k}" not in given})


# Keys that name a file or folder.
PATHS = ("cache", "data.root", "data.data_dir", "sample.input", "sample.output", "export.path")
PATHS += ("model.path", "model.captioner", "edit.source_bank", "edit.target_bank")
PATHS += tuple(key for key in KEYS if key.startswith("weights."))
PATHS += tuple(f"eval.{n}" for n in ("cache", "inception", "clip", "dino", "masks"))
PATHS += ("eval.lpips_alex", "eval.lpips_vgg", "eval.lpips_squeeze")


def expand_home(config: ConfigDict) -> None:
    """Puts the home folder for a path's `~`, in place: shells leave it in options."""
    for key in PATHS:
        value, (group, _, name) = get(config, key), key.rpartition(".")
        if isinstance(value, str) and value.startswith("~"):
            (config[group] if group else config)[name] = os.path.expanduser(value)


def network_group(stage: str) -> str:
    """The group of the config that describes a stage's network, and its training."""
    return {SOURCE_SCORE: "score", "fastcut": "cut"}.get(stage, stage)


def stage_training(config: ConfigDict, stage: str) -> ConfigDict:
    """The training settings of a stage: its own keys, the shared keys, and the fixed values."""
    group = network_group(stage)
    c = ConfigDict(
        {**_TRAINING, "clip_norm": config.train.clip_norm, **_TRAINING_OF.get(group, {})}
    )
    c.update(config.train[group].to_dict())
    if stage == "fastcut":
        c.steps //= 2
    for name in ("steps", "batch_size"):
        if config.train[name] is not None:
            c[name] = config.train[name]
    if stage in GANS:
        c.decay = c.steps // c.epoch // _DECAY_PARTS[stage]
    c.update(accumulate=config.train.accumulate, fine_tune=config.train.fine_tune)
    return c


def gan_settings(config: ConfigDict, method: str) -> ConfigDict:
    """`config.cut`, with the values of the method ("cut" or "fastcut") where a key is None."""
    c = ConfigDict(config.cut.to_dict())
    for name, value in _GAN_OBJECTIVE[method].items():
        if c[name] is None:
            c[name] = value
    return c


def method_settings(config: ConfigDict) -> ConfigDict:
    """The settings of `config.method`: its group of the config, or `gan_settings` for a GAN."""
    if config.method in GANS:
        return gan_settings(config, config.method)
    return config.edit if config.method in EDITORS else config[config.method]


def sources(config: ConfigDict) -> tuple[str, ...]:
    """The source domains: `data.source`, split at commas."""
    return tuple(name.strip() for name in config.data.source.split(",") if name.strip())


def domains(config: ConfigDict) -> tuple[str, ...]:
    """The domains of encoder and classifier: `data.domains`, or else the sources and the target."""
    named = tuple(config.data.domains) or (*sources(config), config.data.target)
    return tuple(dict.fromkeys(named))


def eval_methods(config: ConfigDict) -> tuple[str, ...]:
    """The methods that `--mode=eval` compares: `eval.methods`, or else `config.method`."""
    named = tuple(m.strip() for m in config.eval.methods.split(",") if m.strip())
    return named or (config.method,)


def start_index(config: ConfigDict) -> int:
    """The start level M: `config.sample.start`, or the method's where that is None."""
    start = config.sample.start
    return config[config.method].start if start is None else start


def get(config: ConfigDict, key: str) -> Any:
    """The value at a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def unset_value(key: str) -> Any:
    """What a key is without a value: None, or "" or () where its empty value means that.

    Raises:
      ValueError: the key always has a value.
    """
    default = KEYS[key].default
    if isinstance(default, type):
        return None
    if may_be_empty(key):
        return type(default)()
    raise ValueError(
        f"config.{key} always has a value, so that None cannot unset it; give it a value, or leave "
        "it out"
    )


def may_be_empty(key: str) -> bool:
    """Whether a text or tuple may be empty: its default is, or its meaning explains it."""
    default, meaning = KEYS[key].default, KEYS[key].meaning
    return default in ("", ()) or "Empty:" in meaning


def key_paths(config: ConfigDict, prefix: str = "") -> list[str]:
    """Dotted names of all keys."""
    names = []
    for name in config:
        value, path = config[name], f"{prefix}{name}"
        names += key_paths(value, f"{path}.") if isinstance(value, ConfigDict) else [path]
    return names


def nearest(name: str, existing: Iterable[str], most: int = 3) -> str:
    """The names nearest to a mistyped one, for an error message.

    The full dotted key and its last part are both compared, so `train.batchsize` and `batch_size`
    both lead to `train.batch_size`.
    """
    existing = list(existing)
    tail = {other: other.rsplit(".", 1)[-1] for other in existing}
    last = name.rsplit(".", 1)[-1]

    def score(other: str) -> float:
        return max(
            difflib.SequenceMatcher(None, name, other).ratio(),
            0.99 * difflib.SequenceMatcher(None, last, tail[other]).ratio(),
        )

    # Ties go to the shorter name.
    return ", ".join(sorted(existing, key=lambda other: (-score(other), len(other)))[:most])
