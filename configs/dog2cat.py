"""Dog → cat at 256² with a network of a hub: google/ddpm-ema-cat-256 (LSUN cats, DDPM).

Put AFHQ as DIR/{train,val}/{cat,dog,wild}/*.jpg and install the extra `hub`, then

    python -m cdsde.main --config=dog2cat --mode=sample --config.data.root=DIR

The default is SDEdit, which needs this network alone; --mode=train --config.train.stage=encoder or
classifier trains a guide. The network knows LSUN's cats, whole animals, not the faces of AFHQ. It
has the averaged weights; hf:google/ddpm-cat-256 has the last ones.

Eight images take 2.1 GiB and 1,971 TFLOP in 500 steps, by the compiler's numbers for a TPU v5e
(`bash launch/tpu_check.sh --configs=dog2cat --chips=8 --programs=sample`, 2026-11-29).
Not run: no copy of its weights was at hand; the numbers need their shapes only.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.egsde_256(c, source="dog", target="cat")
    presets.from_hub(c, "google/ddpm-ema-cat-256")
    c.data.root = "data/afhq"
    return c
