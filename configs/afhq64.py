"""Any animal's face → AFHQ at 64² with EDM's unconditional network (Karras et al. 2022).

Get `edm-afhqv2-64x64-uncond-vp.pkl` of EDM's authors and AFHQ as DIR/{train,val}/{cat,dog,wild}/*,
then

    python -m cdsde.main --config=afhq64 --mode=sample --config.data.root=DIR \
      --config.weights.score=edm-afhqv2-64x64-uncond-vp.pkl

The network knows all three kinds of animals, so that a translation stays near its source; guide it
with a classifier of the domains (--config.method=egsde after --mode=train
--config.train.stage=classifier).

Eight images take 0.43 GiB and 324 TFLOP in 500 steps, by the compiler's numbers for a TPU v5e
(`bash launch/tpu_check.sh --configs=afhq64 --chips=8 --programs=sample
--config.weights.score=FILE`, 2026-11-29).
Not run: no copy of its weights was at hand; the numbers need their shapes only.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.egsde_256(c, source="cat", target="dog")
    c.task = "afhq64"
    c.data.update(root="data/afhq", image_size=64)
    presets.factor(c, 8)
    c.encoder.attention_resolutions = c.classifier.attention_resolutions = (16, 8)
    c.encoder.channel_mult = c.classifier.channel_mult = (1, 2, 3, 4)
    c.method = "sdedit"
    c.sample.split = "val"
    return c
