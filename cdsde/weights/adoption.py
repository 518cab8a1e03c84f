"""Configs take over the networks that published files describe.

A published score network is not described by the keys of the config, but by its file. So before
anything is built, `adopted` reads the descriptions of the networks that the config names, and
writes them into the config, which then says everything about its networks.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.diffusion import paths
from cdsde.networks import build, published
from cdsde.networks.published import Description
from cdsde.weights import checkpoint, formats
from cdsde.weights.formats.opened import Opened

SCORES = ("score", config_lib.SOURCE_SCORE)


def adopted(config: ConfigDict, workdir) -> ConfigDict:
    """The config with the description of its published score network, if it has one.

    Args:
      config: the task; it stays as it is.
      workdir: the work folder, whose checkpoints have precedence over `config.weights`.

    Raises:
      ValueError: a file is no network that is known, two networks differ, or the network does not
        fit the task.
    """
    found = {stage: _text_of(config, workdir, stage) for stage in SCORES}
    texts = {stage: text for stage, text in found.items() if text is not None}
    if not any(texts.values()):
        return config
    if len(set(texts.values())) > 1:
        raise ValueError(
            "config.weights.score and config.weights.source_score name networks of different "
            "architectures or noise levels, and a task has one of both; take two of one kind"
        )
    config = config.copy_and_resolve_references()
    config.score.arch, config.score.published = "published", next(iter(texts.values()))
    check(config, published.of_text(config.score.published))
    return config


def describe(opened: Opened) -> Description:
    """The description of an opened network."""
    fields = opened.fields
    classes = fields.get("num_classes")
    return Description(
        opened.arch,
        fields,
        opened.path,
        side=fields.get("image_size"),
        classes=classes or None,
        needs_class=bool(classes) and opened.arch in ("adm", "DiT"),
    )


def check(config: ConfigDict, description: Description) -> None:
    """Checks that a published network fits a task.

    Raises:
      ValueError: it does not; the message names the key to change.
    """
    size = config.data.image_size
    if description.side not in (None, size):
        raise ValueError(
            f"the network of config.weights.score takes images of {description.side}² pixels, and "
            f"config.data.image_size is {size}; set it to {description.side}"
        )
    label, classes = config.score.label, description.classes
    if label is None and description.needs_class:
        raise ValueError(
            f"the network of config.weights.score knows {classes} classes and needs one; choose "
            f"the target's with --config.score.label=0 to {classes - 1}"
        )
    if label is not None and (classes is None or label >= classes):
        known = f"knows the classes 0 to {classes - 1}" if classes else "takes no class"
        raise ValueError(
            f"config.score.label is {label}, and the network of config.weights.score {known}; "
            "change it, or set it to None"
        )
    if config.method not in config_lib.SDES:
        return
    known = paths.levels_known(published.path_of(description), build.schedule_of(config).alpha_bar)
    if (start := config_lib.start_index(config)) > known:
        raise ValueError(
            f"config.sample.start is {start}, and the network of config.weights.score was trained "
            f"on noise up to level {known}; lower it to {known}"
        )


def _text_of(config: ConfigDict, workdir, stage: str) -> str | None:
    """The description of a stage's network: "" where the config's keys describe it.

    None where the task has no such network.
    """
    step = checkpoint.newest_whole(workdir, stage)
    if step is not None:
        saved = checkpoint.saved_config(workdir, stage, step)
        return saved.get("score", {}).get("published") or ""
    name = config.weights[stage]
    if name is None:
        return None
    if formats.of_name(name) is None:
        return ""
    return published.to_text(describe(formats.read(name)))
