"""Characters in mincho (thin horizontals, serifs) → gothic (strokes of even width): embedded data.

    python -m cdsde.main --config=mincho2gothic --mode=train --config.train.stage=score
    python -m cdsde.main --config=mincho2gothic --mode=sample
    python -m cdsde.main --config=mincho2gothic --mode=eval

The encoder is shipped; the score network is not. Training sets share no character; the true result
of every test character is known.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.glyphs(c, source="mincho", target="gothic")
    return c
