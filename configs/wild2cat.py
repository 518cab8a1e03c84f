"""Wild animal → cat at 256² with a network of a hub: google/ddpm-ema-cat-256 (LSUN cats, DDPM).

Put AFHQ as DIR/{train,val}/{cat,dog,wild}/*.jpg and install the extra `hub`, then

    python -m cdsde.main --config=wild2cat --mode=sample --config.data.root=DIR

As dog2cat, with the source wild; --mode=train trains a guide.

Eight images take 2.1 GiB and 1,971 TFLOP in 500 steps, by the compiler's numbers for a TPU v5e
(`bash launch/tpu_check.sh --configs=wild2cat --chips=8 --programs=sample`, 2026-11-29).
Not run: no copy of its weights was at hand; the numbers need their shapes only.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.egsde_256(c, source="wild", target="cat")
    presets.from_hub(c, "google/ddpm-ema-cat-256")
    c.data.root = "data/afhq"
    return c
