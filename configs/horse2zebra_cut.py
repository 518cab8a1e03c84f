"""Horse → zebra at 256² by CUT: the published set-up.

Put CycleGAN's images as DIR/{train,val}/{horse,zebra}/*.jpg (its trainA, trainB, testA, testB):

    ARGS="--config=configs/horse2zebra_cut.py --config.data.root=DIR"
    python -m cdsde.main $ARGS --mode=train
    python -m cdsde.main $ARGS --mode=sample
    python -m cdsde.main $ARGS --mode=eval \
        --config.eval.inception=pt_inception-2015-12-05-6726825d.pth

Published: FID 45.5; users who train with the defaults and take the last checkpoint report 60 to 68.
For an accelerator: a step is 1.42 TFLOP, and there are 533,600 of them.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.gan_256(c, "cut", source="horse", target="zebra")
    return c
