"""Cat → dog on AFHQ at 64² with EDM's unconditional network (Karras et al. 2022).

Get `edm-afhqv2-64x64-uncond-vp.pkl` of EDM's authors and AFHQ as DIR/{train,val}/{cat,dog,wild}/*,
then

    ARGS="--config=afhq64_cat2dog --config.data.root=DIR
      --config.weights.score=edm-afhqv2-64x64-uncond-vp.pkl"
    python -m cdsde.main $ARGS --mode=train --config.train.stage=classifier
    python -m cdsde.main $ARGS --mode=sample

The network knows all three kinds of animals and stays near the source by itself. EGSDE's classifier
tells the domains and leads away from the source's; --config.method=sdedit needs no guide.

Eight images take 0.43 GiB and 324 TFLOP in 500 steps of SDEdit, by the compiler's numbers for a TPU
v5e (`bash launch/tpu_check.sh --configs=afhq64_cat2dog --chips=8 --programs=sample
--config.weights.score=FILE --config.method=sdedit`, 2026-11-29).
Not run: no copy of its weights was at hand; the numbers need their shapes only.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.afhq_64(c, source="cat", target="dog")
    return c
