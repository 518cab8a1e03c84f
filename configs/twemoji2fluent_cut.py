"""Flat Twemoji drawings → Fluent's renders by CUT, on the embedded data at 32².

    python -m cdsde.main --config=configs/twemoji2fluent_cut.py --mode=sample   # shipped networks
    python -m cdsde.main --config=configs/twemoji2fluent_cut.py --mode=eval
    python -m cdsde.main --config=configs/twemoji2fluent_cut.py --mode=train    # your own

FastCUT: --config.method=fastcut; the other way and from Noto: configs/fluent2twemoji.py and
configs/noto2fluent.py with --config.method=cut. 2,400 and 1,200 steps of eight pairs: forty and ten
minutes on 2 CPU cores that had as much work besides.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.emoji(c, source="twemoji", target="fluent", score_steps=10_000)
    c.task, c.method = "twemoji2fluent_cut", "cut"
    return c
