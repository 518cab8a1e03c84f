"""Noto drawings → Fluent's glossy 3-D renders: embedded data, shipped checkpoints.

    python -m cdsde.main --config=configs/noto2fluent.py --mode=sample
    python -m cdsde.main --config=configs/noto2fluent.py --mode=eval

Training all three networks again (--mode=train) takes about two hours on 2 CPU cores.
"""

from cdsde import config, presets


def get_config():
    c = config.base()
    presets.emoji(c, source="noto", target="fluent", score_steps=5000)
    return c
