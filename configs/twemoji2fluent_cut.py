"""Flat Twemoji drawings → Fluent's renders by CUT, on the embedded data at 32².

    python -m cdsde.main --config=configs/twemoji2fluent_cut.py --mode=sample   # shipped networks
    python -m cdsde.main --config=configs/twemoji2fluent_cut.py --mode=eval
    python -m cdsde.main --config=configs/twemoji2fluent_cut.py --mode=train    # your own

FastCUT: --config.method=fastcut. 3,000 and 1,500 steps of eight pairs: about an hour and ten
minutes on 2 CPU cores that had other work besides.
"""

from cdsde import config, presets


def get_config():
    c = config.base()
    presets.emoji(c, source="twemoji", target="fluent", score_steps=10_000)
    c.task, c.method = "twemoji2fluent_cut", "cut"
    c.weights.cut, c.weights.fastcut = "shipped:cut-emoji-32", "shipped:fastcut-emoji-32"
    return c
