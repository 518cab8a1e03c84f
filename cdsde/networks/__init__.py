"""Networks as pure linen modules, NHWC: those of the SDE methods, `(x, t)`, and those of CUT."""

from cdsde.networks.adm import ADMEncoder, ADMUNet
from cdsde.networks.cut import CUTGenerator, PatchDiscriminator, PatchSampler
from cdsde.networks.ddpm import DDPMUNet

__all__ = [
    "ADMEncoder",
    "ADMUNet",
    "CUTGenerator",
    "DDPMUNet",
    "PatchDiscriminator",
    "PatchSampler",
]
