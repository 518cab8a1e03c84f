"""Your own two folders of pictures, with small networks that a laptop can train.

Put pictures into DIR/{train,val}/{domain}/. A test split, if any, is DIR/test/{domain}; use it with
--config.sample.split=test. Pictures are cropped to the centre square, unless --config.data.fit=pad.

    ARGS="--config=folder --config.data.root=DIR"
    ARGS="$ARGS --config.data.source=cat --config.data.target=dog"
    python -m cdsde.main $ARGS --mode=train  --workdir=runs/mine
    python -m cdsde.main $ARGS --mode=sample --workdir=runs/mine
    python -m cdsde.main $ARGS --mode=eval   --workdir=runs/mine

--config.train.steps=N sets the number of training steps; --config.sample.input=PATH translates one
picture or a folder.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    c.task = "folder"
    c.data.update(root="data/folder", source="source", target="target", image_size=64)
    presets.small_networks(c)
    presets.factor(c, 8)
    c.train.score.steps = 20_000
    c.train.sample_every = 2_000
    c.train.checkpoint_every = 500
    c.sample.update(steps=50, clip=True, split="val")
    return c
