"""Any face → a photograph as in CelebA-HQ, at 256²: google/ddpm-ema-celebahq-256 of a hub.

Put drawings or photographs of faces as DIR/val/face/* and install the extra `hub`, then

    python -m cdsde.main --config=face2celeba --mode=sample --config.data.root=DIR

The default is SDEdit, which needs the score network alone. Training a guide (--mode=train) and
evaluation also need DIR/train/{face,celeba}/*.

Eight images take 2.1 GiB and 1,971 TFLOP in 500 steps, by the compiler's numbers for a TPU v5e
(`bash launch/tpu_check.sh --configs=face2celeba --chips=8 --programs=sample`, 2026-11-29).
Not run: no copy of its weights was at hand; the numbers need their shapes only.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.egsde_256(c, source="face", target="celeba")
    presets.from_hub(c, "google/ddpm-ema-celebahq-256")
    c.data.root = "data/faces"
    return c
