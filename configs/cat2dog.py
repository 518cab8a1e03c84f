"""Cat → dog on AFHQ at 256²: the networks, energies and levels published with EGSDE.

Put AFHQ as DIR/{train,val}/{cat,dog,wild}/*.jpg, then

    python -m cdsde.main --config=cat2dog --mode=train  --config.data.root=DIR
    python -m cdsde.main --config=cat2dog --mode=sample --config.data.root=DIR

AFHQ has no test split; the published results and this config use its val split.
Published, EGSDE: FID 65.82 ± 0.77, L2 47.22 ± 0.08, PSNR 19.31 ± 0.02, SSIM 0.415 ± 0.001; SDDM
(--config.method=sddm, T0 = 0.5T): FID 62.29 ± 0.63, SSIM 0.422, and with T0 = 0.6T
(--config.sddm.until=605) 49.43 ± 0.23, 0.361. For an accelerator: a guided step is 824 GFLOP per
image; with --config.dtype=bfloat16 and without remat, batch 64 takes 4.2 of 16 GiB on each of 8
TPU v5e chips (docs/scaling.md).
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.egsde_256(c, source="cat", target="dog")
    c.data.root = "data/afhq"
    c.sample.split = "val"
    return c
