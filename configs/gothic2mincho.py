"""Characters in gothic (strokes of even width) → mincho (thin horizontals, serifs): embedded data.

    python -m cdsde.main --config=gothic2mincho --mode=sample
    python -m cdsde.main --config=gothic2mincho --mode=eval

Training sets share no character; the true result of every test character is known. How the shipped
networks were trained: cdsde/assets/checkpoints/MODEL_CARD.md. --mode=train trains
both score networks again; with --config.method=contrastive_sde, the encoder, too.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.glyphs(c, source="gothic", target="mincho")
    return c
