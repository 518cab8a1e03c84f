"""Characters in gothic (strokes of even width) → brush script: embedded data.

    python -m cdsde.main --config=gothic2brush --mode=sample
    python -m cdsde.main --config=gothic2brush --mode=eval

Training sets share no character; the true result of every test character is known. How the shipped
networks were trained: cdsde/assets/checkpoints/MODEL_CARD.md. --mode=train trains
both score networks again; with --config.method=contrastive_sde, one of them and the encoder.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.glyphs(c, source="gothic", target="brush")
    # On val, the contrast of score networks doubles the kernel distance here.
    c.contrastive_sde.score_weight = 0.0
    return c
