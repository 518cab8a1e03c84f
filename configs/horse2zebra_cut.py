"""Horse → zebra at 256² by CUT: the published setting.

Put CycleGAN's images as DIR/{train,val}/{horse,zebra}/*.jpg (its trainA, trainB, testA, testB):

    ARGS="--config=horse2zebra_cut --config.data.root=DIR"
    python -m cdsde.main $ARGS --mode=train
    python -m cdsde.main $ARGS --mode=sample
    python -m cdsde.main $ARGS --mode=eval \
        --config.eval.inception=pt_inception-2015-12-05-6726825d.pth

Published: FID 45.5; users who train with the defaults and use the last checkpoint report 60 to 68.
For an accelerator: 533,600 steps of 1.42 TFLOP.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.gan_256(c, "cut", source="horse", target="zebra")
    return c
