"""Fluent's glossy 3-D renders → flat Twemoji drawings: embedded data, shipped checkpoints.

    python -m cdsde.main --config=configs/fluent2twemoji.py --mode=sample
    python -m cdsde.main --config=configs/fluent2twemoji.py --mode=eval

Training all three networks again (--mode=train) takes about two hours on 2 CPU cores.
"""

from cdsde import config, presets


def get_config():
    c = config.base()
    presets.emoji(c, source="fluent", target="twemoji", score_steps=2800)
    return c
