"""Flat Twemoji drawings → Fluent's renders by CUT, on the embedded data at 32².

    python -m cdsde.main --config=configs/twemoji2fluent_cut.py --mode=train
    python -m cdsde.main --config=configs/twemoji2fluent_cut.py --mode=sample
    python -m cdsde.main --config=configs/twemoji2fluent_cut.py --mode=eval

FastCUT: --config.method=fastcut.
"""

from cdsde import config, presets


def get_config():
    c = config.base()
    presets.emoji(c, source="twemoji", target="fluent", score_steps=10_000)
    c.task, c.method = "twemoji2fluent_cut", "cut"
    return c
