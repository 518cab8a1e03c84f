"""Networks as pure linen modules: `init(key, x, t)` and `apply(params, x, t)`, NHWC."""

from cdsde.networks.adm import ADMEncoder, ADMUNet
from cdsde.networks.ddpm import DDPMUNet

__all__ = ["ADMEncoder", "ADMUNet", "DDPMUNet"]
