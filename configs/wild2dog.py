"""Wild → dog on AFHQ at 256²: the networks, energies and levels published with EGSDE.

Put AFHQ as DIR/{train,val}/{cat,dog,wild}/*.jpg, then

    python -m cdsde.main --config=wild2dog --mode=train  --config.data.root=DIR
    python -m cdsde.main --config=wild2dog --mode=sample --config.data.root=DIR

AFHQ has no test split; the published results and this config use its val split.
Published, EGSDE: FID 59.75 ± 0.62, L2 54.34 ± 0.08, PSNR 18.14 ± 0.01, SSIM 0.343 ± 0.001; SDDM
(--config.method=sddm, T0 = 0.5T): FID 57.38 ± 0.53, SSIM 0.328. For an accelerator: a guided step
is 824 GFLOP per image; with --config.dtype=bfloat16 and without remat, batch 64 takes 4.2 of 16
GiB on each of 8 TPU v5e chips (docs/scaling.md).
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.egsde_256(c, source="wild", target="dog")
    c.data.root = "data/afhq"
    c.sample.split = "val"
    c.cyclediffusion.refine = 150  # as published; 100 for cat → dog
    return c
