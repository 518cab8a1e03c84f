"""Horse → zebra at 256² by FastCUT: the published setting.

Put CycleGAN's images as DIR/{train,val}/{horse,zebra}/*.jpg (its trainA, trainB, testA, testB):

    ARGS="--config=horse2zebra_fastcut --config.data.root=DIR"
    python -m cdsde.main $ARGS --mode=train
    python -m cdsde.main $ARGS --mode=sample
    python -m cdsde.main $ARGS --mode=eval \
        --config.eval.inception=pt_inception-2015-12-05-6726825d.pth

For an accelerator: 266,800 steps of 0.76 TFLOP.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.gan_256(c, "fastcut", source="horse", target="zebra")
    return c
