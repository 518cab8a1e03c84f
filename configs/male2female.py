"""Male → female on CelebA-HQ at 256²: the DDPM network, energies and levels published with EGSDE.

Put the images as DIR/{train,val}/{male,female}/*, then

    python -m cdsde.main --config=male2female --mode=train  --config.data.root=DIR
    python -m cdsde.main --config=male2female --mode=sample --config.data.root=DIR

Published, EGSDE: FID 41.93 ± 0.11, L2 42.04 ± 0.03, PSNR 20.35 ± 0.01, SSIM 0.574 ± 0.000; SDDM
(--config.method=sddm) with T0 = 0.5 T (--config.sddm.until=505): FID 44.37, SSIM 0.526; with
--config.sddm.energy=egsde 42.24, 0.535; and 40.08 ± 0.13 with EGSDE's guidance below T0, which is
not in its last code. The command of its README, this config's T0, is `range_t` 52 of 100. For an
accelerator: a guided step is 947 GFLOP per image.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.egsde_256(c, source="male", target="female")
    presets.ddpm_256(c)
    c.data.root = "data/celeba_hq"
    c.sample.split = "val"
    c.sddm.until = 525
    return c
