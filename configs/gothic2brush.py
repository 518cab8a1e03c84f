"""Characters in gothic (strokes of even width) → brush script: embedded data.

    python -m cdsde.main --config=gothic2brush --mode=train --config.train.stage=score
    python -m cdsde.main --config=gothic2brush --mode=sample
    python -m cdsde.main --config=gothic2brush --mode=eval

The encoder is shipped; the score network is not. Training sets share no character; the true result
of every test character is known.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.glyphs(c, source="gothic", target="brush")
    return c
