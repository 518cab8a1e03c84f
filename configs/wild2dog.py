"""Wild → dog on AFHQ at 256²: the networks, energies and levels published with EGSDE.

Put AFHQ as DIR/{train,val}/{cat,dog,wild}/*.jpg, then

    python -m cdsde.main --config=configs/wild2dog.py --mode=train  --config.data.root=DIR
    python -m cdsde.main --config=configs/wild2dog.py --mode=sample --config.data.root=DIR

AFHQ has no test split: the published numbers are on its val split, and so samples this config.
Published, EGSDE: FID 59.75 ± 0.62, L2 54.34 ± 0.08, PSNR 18.14 ± 0.01, SSIM 0.343 ± 0.001. For
an accelerator: a guided step is 838 GFLOP an image; --config.dtype=bfloat16, and batch 64 takes 4.2
of 16 GiB on each of 8 TPU v5e chips, without remat (docs/scaling.md).
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.egsde_256(c, source="wild", target="dog")
    c.data.root = "data/afhq"
    c.sample.split = "val"
    return c
