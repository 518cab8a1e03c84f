"""What a network was trained with, against what the config asks of it.

Shapes tell little: a network that predicts v, or that knows another domain, has the same parameters
as one that predicts ε. The record of a network's training (the config in its checkpoint, or the
card beside an exported file) is compared key by key. Keys that an older record lacks are passed
over, or have the one value that there was (EARLIER).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.networks import build, published

# Keys outside the network's group that determine whether parameters fit and what they mean.
CONTEXT = ("data.image_size", "sde.schedule", "sde.num_steps")
# Keys of a GAN that its generator depends on; its other networks do not translate.
GENERATOR = ("channels", "num_blocks", "group_channels")
EARLIER = {"score.fourier": ()}  # what networks have whose records are older than the key
WITHOUT_EFFECT = ("dropout", "label", "source_label", "guidance")  # on what a trained network means


def architecture(config: ConfigDict, stage: str) -> dict:
    """The keys that a checkpoint of the stage must share: its network's group and `CONTEXT`."""
    if stage in config_lib.GANS:  # checkpoints contain the generator, which alone translates
        return {"network": {k: config.cut[k] for k in GENERATOR}}
    if stage in config_lib.FEATURES:
        return {"network": {}}
    net = json.loads(config[config_lib.network_group(stage)].to_json())
    if stage in ("encoder", "classifier"):
        net |= build.encoder_half_constants(config[stage])
    return {"network": net, **{key: config_lib.get(config, key) for key in CONTEXT}}


def architecture_of_record(record: Mapping, config: ConfigDict, stage: str) -> dict:
    """The `architecture` of a checkpoint's config (a plain dict), in the keys of today's."""
    network = dict(record.get(config_lib.network_group(stage), {}))
    now = architecture(config, stage)
    found: dict[str, Any] = {"network": {k: network[k] for k in now["network"] if k in network}}
    for key in now:
        part, _, name = key.partition(".")
        if name and name in record.get(part, {}):
            found[key] = record[part][name]
    return found


def differences(saved: Mapping, config: ConfigDict, stage: str) -> list[str]:
    """A phrase for every key in which an `architecture` differs from that of the config."""
    then, now = (_flat(a, stage) for a in (saved, architecture(config, stage)))
    if then:
        then = {key: value for key, value in EARLIER.items() if key in now} | then
    # A key that only the record has is one of an earlier version, with another value than today's.
    return [
        f"config.{key} is {now.get(key)}, the weights have {then[key]}"
        for key in sorted(then)
        if _plain(then[key]) != _plain(now.get(key))
    ]


def check_domains(record: Mapping, config: ConfigDict, stage: str, where: str) -> None:
    """Checks that a network knows the domains that the config wants translated.

    Args:
      record: the config in its checkpoint, or the card beside its file; of these the group `data`
        and, on a card, the `stage` as which it was trained.
      config: the task.
      stage: the network.
      where: its file, for the message.

    Raises:
      ValueError: it was trained on other domains of the same data. Names of other data are not
        comparable: there, a warning is logged.
    """
    data = record.get("data", {})
    if stage in config_lib.FEATURES or not {"source", "target"} <= set(data):
        return
    then = domains_read(data, record.get("stage", stage))
    now = domains_read({**config.data, "domains": ()}, stage)
    if then == now:
        return
    # A generator knows one direction; other networks may know more domains than are translated.
    if stage not in config_lib.GANS and set(now) <= set(then):
        return
    told = f"{where} was trained on {' and '.join(then)}, and the config's {_keys(stage)}"
    if data.get("root") == config.data.root:
        raise ValueError(
            f"{told} {' and '.join(now)}, which it does not know; change the config back, or train "
            f"a network with --mode=train --config.train.stage={stage} in another --workdir"
        )
    logging.warning("%s %s, of other data: check that they mean the same", told, " and ".join(now))


def check_resumed(record: Mapping, config: ConfigDict, stage: str, where) -> None:
    """Checks that a training can go on from a checkpoint with the config.

    Args:
      record: the config in the checkpoint, a plain dict.
      config: the task.
      stage: the network.
      where: the checkpoint, for the message.

    Raises:
      ValueError: a key that gives the parameters their meaning differs; the message names all.
        For another `data.root`, which a folder that was moved has, a warning is logged.
    """
    wrong = differences(architecture_of_record(record, config, stage), config, stage)
    data = record.get("data", {})
    if {"source", "target"} <= set(data):
        then, now = domains_read(data, stage), domains_read(config.data, stage)
        if then != now:
            names = f"config's {_keys(stage)} {', '.join(now)}"
            wrong.append(f"the {names}, the weights have {', '.join(then)}")
    if wrong:
        raise ValueError(
            f"{where} was trained with another config, and training cannot go on from it: "
            f"{'; '.join(wrong)}; change these keys back, or use another --workdir"
        )
    before = data.get("root", config.data.root)
    if before != config.data.root:
        logging.warning(
            "%s was trained on the data of %s, and training goes on with config.data.root=%s: "
            "check that they are the same",
            where,
            before,
            config.data.root,
        )


def domains_read(data: Mapping, stage: str) -> tuple[str, ...]:
    """The domains that the training of a stage reads, in order, by the group `data` of a config."""
    sources = tuple(name.strip() for name in data["source"].split(",") if name.strip())
    if stage == "score":
        return (data["target"],)
    if stage == config_lib.SOURCE_SCORE:
        return sources
    both = (*sources, data["target"])
    named = () if stage in config_lib.GANS else tuple(data.get("domains") or ())
    return tuple(dict.fromkeys(named or both))


def _keys(stage: str) -> str:
    one = {"score": "data.target is", config_lib.SOURCE_SCORE: "data.source is"}
    return one.get(stage, "data.source and data.target are")


def _flat(architecture: Mapping, stage: str) -> dict[str, Any]:
    group = config_lib.network_group(stage)
    network = architecture["network"]
    if network.get("arch") == "published":  # of which the other keys say nothing
        network = {key: network[key] for key in ("arch", "published") if key in network}
        if text := network.get("published"):
            network["published"] = published.network_text(text)
    inner = {f"{group}.{k}": v for k, v in network.items()}
    rest = {k: v for k, v in architecture.items() if k != "network"}
    free = [f"{group}.{k}" for k in WITHOUT_EFFECT]
    return {k: v for k, v in {**inner, **rest}.items() if k not in free}


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
