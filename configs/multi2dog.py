"""Cat and wild → dog on AFHQ at 256² with one three-class domain classifier (multi-domain EGSDE).

    python -m cdsde.main --config=multi2dog --mode=train  --config.data.root=DIR
    python -m cdsde.main --config=multi2dog --mode=sample --config.data.root=DIR

It translates every source domain; results are named DOMAIN_NAME.png.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.egsde_256(c, source="cat,wild", target="dog")
    c.method = "egsde"
    c.data.root = "data/afhq"
    c.sample.split = "val"
    return c
