"""Horse → zebra at 256² by FastCUT: the published set-up.

Put CycleGAN's images as DIR/{train,val}/{horse,zebra}/*.jpg (its trainA, trainB, testA, testB):

    ARGS="--config=configs/horse2zebra_fastcut.py --config.data.root=DIR"
    python -m cdsde.main $ARGS --mode=train
    python -m cdsde.main $ARGS --mode=sample
    python -m cdsde.main $ARGS --mode=eval \
        --config.eval.inception=pt_inception-2015-12-05-6726825d.pth

For an accelerator: a step is 0.76 TFLOP, and there are 266,800 of them.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.gan_256(c, "fastcut", source="horse", target="zebra")
    return c
