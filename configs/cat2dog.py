"""Cat → dog on AFHQ at 256²: the networks, energies and levels published with EGSDE.

Put AFHQ as DIR/{train,val}/{cat,dog,wild}/*.jpg, then

    python -m cdsde.main --config=configs/cat2dog.py --mode=train  --config.data.root=DIR
    python -m cdsde.main --config=configs/cat2dog.py --mode=sample --config.data.root=DIR

AFHQ has no test split: the published numbers are on its val split, and so samples this config.
Published, EGSDE: FID 65.82 ± 0.77, L2 47.22 ± 0.08, PSNR 19.31 ± 0.02, SSIM 0.415 ± 0.001. For
an accelerator: a guided step is 838 GFLOP an image; --config.dtype=bfloat16, and batch 64 takes 4.2
of 16 GiB on each of 8 TPU v5e chips, without remat (docs/scaling.md).
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.egsde_256(c, source="cat", target="dog")
    c.data.root = "data/afhq"
    c.sample.split = "val"
    return c
