"""Wild → dog on AFHQ at 64² with EDM's unconditional network (Karras et al. 2022).

With the files that afhq64_cat2dog.py names, which says what it costs:

    ARGS="--config=afhq64_wild2dog --config.data.root=DIR
      --config.weights.score=edm-afhqv2-64x64-uncond-vp.pkl"
    python -m cdsde.main $ARGS --mode=train --config.train.stage=classifier
    python -m cdsde.main $ARGS --mode=sample

Not run: no copy of its weights was at hand.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.afhq_64(c, source="wild", target="dog")
    return c
