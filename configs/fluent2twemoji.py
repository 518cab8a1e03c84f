"""Fluent's glossy 3-D renders → flat Twemoji drawings: embedded data, shipped checkpoints.

    python -m cdsde.main --config=fluent2twemoji --mode=sample
    python -m cdsde.main --config=fluent2twemoji --mode=eval

How the shipped networks were trained: cdsde/assets/checkpoints/MODEL_CARD.md. --mode=train trains
both score networks again; with --config.method=contrastive_sde, one of them and the encoder.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.emoji(c, source="fluent", target="twemoji", score_steps=3500)
    return c
