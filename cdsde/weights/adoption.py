"""Configs take over the networks that published files describe.

A published score network is not described by the keys of the config, but by its file. So before
anything is built, `adopted` reads the descriptions of the networks that the config names, and
writes them into the config, which then says everything about its networks.
"""

from __future__ import annotations

from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.diffusion import paths
from cdsde.diffusion.methods import METHODS
from cdsde.networks import build, published
from cdsde.networks.published import Description
from cdsde.weights import checkpoint, diffusers, exported, hub, resolve, sampling
from cdsde.weights.formats import registry
from cdsde.weights.formats.opened import Opened
from cdsde.weights.resolve import SHIPPED

SCORES = ("score", config_lib.SOURCE_SCORE)


def adopted(config: ConfigDict, workdir, importing: bool = False) -> ConfigDict:
    """The config with the description of its published score network, if it has one.

    Args:
      config: the task; it stays as it is.
      workdir: the work folder, whose checkpoints have precedence over `config.weights`.
      importing: whether it is for --mode=import, see `registry.format_of`.

    Raises:
      ValueError: a file is no network that is known, two networks differ, or the network does not
        fit the task.
    """
    found = {stage: _text_of(config, workdir, stage, importing) for stage in SCORES}
    if _source_gives_way(config, found):
        logging.info("%s does not fit weights.score: left out", config.weights.source_score)
        config = config.copy_and_resolve_references()
        found[config_lib.SOURCE_SCORE] = config.weights[config_lib.SOURCE_SCORE] = None
    texts = {stage: text for stage, text in found.items() if text is not None}
    if not any(texts.values()):
        given = {key: config.score[key] for key in ("label", "source_label", "guidance")}
        if given != {"label": None, "source_label": None, "guidance": 1.0}:
            asked = (
                f"config.score.label is {given['label']}, source_label {given['source_label']} and "
                f"guidance {given['guidance']}, and"
            )
            if not texts:
                raise ValueError(
                    f"{asked} there is no score network yet; name a file that knows classes with "
                    "--config.weights.score=PATH"
                )
            raise ValueError(f"{asked} the score network takes no class; leave them out")
        config = config.copy_and_resolve_references()
        sampling.adopt(config)
        _check_variance(config, "config.score.learn_sigma is False")
        return config
    kinds = {text and published.network_text(text) for text in texts.values()}
    if len(kinds) > 1:
        for stage, text in texts.items():
            if not text and config.weights[stage]:
                resolve.file_of(
                    stage, config.weights[stage]
                )  # a file that is missing is told first
        raise ValueError(
            "config.weights.score and config.weights.source_score name networks of different "
            "architectures or noise levels, and a task has one of both; take two of one kind, or "
            "a method that runs no network of the source, with --config.weights.source_score=None"
        )
    config = config.copy_and_resolve_references()
    first = next(iter(texts))
    description = published.of_text(texts[first])
    if description.channels != 3:
        description = _on_latents(config, description)
    config.score.arch, config.score.published = "published", published.to_text(description)
    config.score.learn_sigma = published.learns_variance(description)
    samples = config.method in config_lib.SDES and not importing
    sampling.adopt(config, config.weights[first], of_file=samples)
    if samples:  # what was adopted must go with the method, too
        METHODS[config.method].check(config[config.method], config)
    check(config, description)
    return config


def describe(opened: Opened) -> Description:
    """The description of an opened network."""
    fields = opened.fields
    classes = fields.get("num_classes") or fields.get("num_class_embeds") or None
    as_many = fields["out_channels"] if opened.arch == "NCSNpp" else 3  # in as out
    free = opened.unlabelled or fields.get("null_class", False)
    return Description(
        opened.arch,
        fields,
        opened.path,
        side=fields.get("image_size") or fields.get("input_size"),
        classes=classes,
        needs_class=classes is not None and not free,
        channels=opened.channels or fields.get("in_channels") or as_many,
        sampler=dict(opened.sampler) if opened.sampler else None,
    )


def _on_latents(config: ConfigDict, description: Description) -> Description:
    """The description with the autoencoder of its latents, that of `config.model.path`.

    Raises:
      ValueError: there is none, it has other latents, or the task needs pixels.
    """
    if description.channels < 3:
        raise ValueError(
            f"the network of config.weights.score sees images of {description.channels} channels, "
            "and images here have 3; name a network of coloured images"
        )
    if config.model.path is None:
        raise ValueError(
            f"the network of config.weights.score works on latents of {description.channels} "
            "channels; name the folder of their autoencoder with --config.model.path=DIR"
        )
    fields, factor = diffusers.read_vae(autoencoder_folder(config))
    if fields["latent_channels"] != description.channels:
        raise ValueError(
            f"the autoencoder of config.model.path={config.model.path} has latents of "
            f"{fields['latent_channels']} channels, and the network of config.weights.score takes "
            f"{description.channels}; name another one"
        )
    for stage in config_lib.needed_stages(config):
        if stage not in SCORES:
            raise ValueError(
                f"config.method is '{config.method}', whose {stage} network sees pixels, and the "
                "network of config.weights.score works on latents; choose sdedit or ilvr"
            )
    for key in ("keep_size", "trajectory", "clip"):
        if config.sample[key]:
            raise ValueError(
                f"config.sample.{key} is True, which needs pixels, and the network of "
                "config.weights.score works on latents; set it to False"
            )
    return description._replace(autoencoder={**fields, "factor": factor})


def autoencoder_folder(config: ConfigDict) -> Path:
    """The folder of the autoencoder of `config.model.path`: its `vae/`, or itself."""
    folder = hub.local(config.model.path, "network")
    return folder / "vae" if (folder / "vae").is_dir() else folder


def check(config: ConfigDict, description: Description) -> None:
    """Checks that a published network fits a task.

    Raises:
      ValueError: it does not; the message names the key to change.
    """
    size, side = config.data.image_size, description.side
    if side is not None and description.autoencoder:
        side *= 2 ** (len(description.autoencoder["widths"]) - 1)
    if side not in (None, size):
        raise ValueError(
            f"the network of config.weights.score takes images of {side}² pixels, and "
            f"config.data.image_size is {size}; set it to {side}"
        )
    if (kind := description.fields.get("class_embed_type")) is not None:
        told = {"identity": "a vector", "timestep": "a number"}.get(kind, "something")
        raise ValueError(
            f"the network of config.weights.score takes {told} with each image (class_embed_type "
            f"is '{kind}' in its config.json), which no key here gives; name a network without it"
        )
    label, classes = config.score.label, description.classes
    wanted = {"label": "target"}
    if config_lib.SOURCE_SCORE in config_lib.needed_stages(config):
        wanted["source_label"] = "source"
    elif config.score.source_label is not None:
        raise ValueError(
            f"config.score.source_label is {config.score.source_label}, and {config.method} runs "
            "no network of the source domain; set it to None"
        )
    for key, domain in wanted.items():
        value = config.score[key]
        if value is None and description.needs_class and classes is not None:
            raise ValueError(
                f"the network of config.weights.score knows {classes} classes and needs one; "
                f"choose the {domain}'s with --config.score.{key}=0 to {classes - 1}"
            )
        if value is not None and (classes is None or value >= classes):
            known = "takes no class" if classes is None else f"knows the classes 0 to {classes - 1}"
            raise ValueError(
                f"config.score.{key} is {value}, and the network of config.weights.score {known}; "
                "change it, or set it to None"
            )
    if config.score.guidance != 1 and (label is None or not description.fields.get("null_class")):
        raise ValueError(
            f"config.score.guidance is {config.score.guidance}, and the network of "
            "config.weights.score knows no class that stands for any class (DiT does), or "
            "config.score.label is None; set the guidance to 1"
        )
    _check_variance(config, "the network of config.weights.score learned none")
    if config.method not in config_lib.SDES:
        return
    reached = paths.levels_known(
        published.path_of(description), build.schedule_of(config).alpha_bar
    )
    if (start := config_lib.start_index(config)) > reached:
        raise ValueError(
            f"config.sample.start is {start}, and the network of config.weights.score was trained "
            f"on noise up to level {reached}; lower it to {reached}"
        )


def _source_gives_way(config: ConfigDict, found: dict) -> bool:
    """Whether the task's shipped network of the source gives way to a published score network.

    It does not fit such a network, and the method runs none of the source domain.
    """
    stage = config_lib.SOURCE_SCORE
    shipped = (config.weights[stage] or "").startswith(SHIPPED) and found[stage] == ""
    return bool(found["score"]) and shipped and stage not in config_lib.needed_stages(config)


def _check_variance(config: ConfigDict, otherwise: str) -> None:
    """Checks that the network knows the variance that the solver is to take."""
    learned = config.method in config_lib.SDES and config.sample.variance == "learned"
    if learned and not config.score.learn_sigma:
        raise ValueError(
            f"config.sample.variance is 'learned', and {otherwise}; set it to fixedsmall or "
            "fixedlarge"
        )


def _text_of(config: ConfigDict, workdir, stage: str, importing: bool) -> str | None:
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
    if registry.format_of(name, importing) is None:
        card = hub.local(name).with_suffix(".json")
        if name.startswith(SHIPPED) or not card.is_file():
            return ""
        return exported.read_card(card)["architecture"]["network"].get("published") or ""
    return published.to_text(describe(registry.read(name)))
