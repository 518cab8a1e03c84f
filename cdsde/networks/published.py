"""Score networks as their published files describe them: architecture, fields, and path.

A description is JSON text, the value of `config.score.published`, so that a config says everything
about its network. A reader in `weights/formats` writes it.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from cdsde.diffusion import paths
from cdsde.networks.adm import ADMUNet
from cdsde.networks.ddpm import DDPMUNet
from cdsde.networks.dit import DiT
from cdsde.networks.edm_dhariwal import DhariwalUNet
from cdsde.networks.edm_song import SongUNet
from cdsde.networks.ncsnpp import NCSNpp
from cdsde.networks.stable_diffusion.vae import AutoencoderKL
from cdsde.networks.unet2d import UNet2D

ARCHITECTURES: dict[str, type] = {
    "adm": ADMUNet,
    "ddpm": DDPMUNet,
    "UNet2D": UNet2D,
    "NCSNpp": NCSNpp,
    "SongUNet": SongUNet,
    "DhariwalUNet": DhariwalUNet,
    "DiT": DiT,
}


class Description(NamedTuple):
    """A published network.

    Attributes:
      arch: a key of `ARCHITECTURES`.
      fields: constructor fields of its class, plain JSON values.
      path: fields of `paths.Path`, plain JSON values.
      side: side of the images, or None if the network takes any.
      classes: number of classes, or None if it takes none.
      needs_class: whether it cannot do without a class.
      channels: channels of the images, 3, or of the latents.
      autoencoder: constructor fields of the `AutoencoderKL` of its latents and their "factor", or
        None if it sees images.
      sampler: how its publisher samples from it, as in `weights.formats.opened.Opened`.
    """

    arch: str
    fields: dict[str, Any]
    path: dict[str, Any]
    side: int | None = None
    classes: int | None = None
    needs_class: bool = False
    channels: int = 3
    autoencoder: dict[str, Any] | None = None
    sampler: dict[str, Any] | None = None


def to_text(description: Description) -> str:
    """The description as JSON."""
    plain = description._asdict()
    if description.sampler is None:
        del plain["sampler"]
    return json.dumps(plain, sort_keys=True)


def network_text(text: str) -> str:
    """A description's text without its sampler: the same for the same network."""
    return to_text(of_text(text)._replace(sampler=None))


def of_text(text: str) -> Description:
    """The inverse of `to_text`.

    Raises:
      ValueError: the text describes no network of `ARCHITECTURES`.
    """
    try:
        description = Description(**json.loads(text))
    except (TypeError, ValueError):
        raise ValueError(
            "config.score.published describes no network; it is filled in from the file that "
            "config.weights.score names, so leave it out"
        ) from None
    if description.arch not in ARCHITECTURES:
        raise ValueError(
            f"config.score.published names the architecture '{description.arch}'; there are "
            f"{', '.join(ARCHITECTURES)}"
        )
    return description


def module(description: Description, dtype, remat: bool):
    """The linen module, computing in `dtype`."""
    network = ARCHITECTURES[description.arch]
    known = network.__dataclass_fields__
    computing = {"dtype": dtype, "remat": remat}
    computing = {name: value for name, value in computing.items() if name in known}
    fields = {name: _tuples(value) for name, value in description.fields.items()}
    return network(**{**fields, **computing})


def autoencoder(description: Description, dtype) -> AutoencoderKL:
    """The autoencoder of a network on latents, computing in `dtype`."""
    told = description.autoencoder or {}
    fields = {name: _tuples(value) for name, value in told.items() if name != "factor"}
    return AutoencoderKL(**fields, dtype=dtype)


def learns_variance(description: Description) -> bool:
    """Whether the network's last channels are a variance, as many as those of the noise.

    EDM's samplers never use that half of an output.
    """
    fields, channels = description.fields, description.channels
    if description.arch in ("SongUNet", "DhariwalUNet"):
        return False
    return bool(fields.get("learn_sigma")) or fields.get("out_channels") == 2 * channels


def path_of(description: Description) -> paths.Path:
    """The network's path."""
    return paths.Path(**description.path)


def _tuples(value):
    """Lists as tuples, inside too; a linen field must be hashable."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
