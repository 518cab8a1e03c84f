"""Flat Twemoji drawings → Fluent's renders by CUT, on the embedded data at 64².

    python -m cdsde.main --config=twemoji2fluent_cut --mode=sample   # shipped networks
    python -m cdsde.main --config=twemoji2fluent_cut --mode=eval
    python -m cdsde.main --config=twemoji2fluent_cut --mode=train    # your own

FastCUT has no shipped network: train it first, with --config.method=fastcut. For the reverse
direction and for Noto, train with --config=fluent2twemoji or --config=noto2fluent and
--config.method=cut.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.emoji(c, source="twemoji", target="fluent", score_steps=10_000)
    c.task, c.method = "twemoji2fluent_cut", "cut"
    return c
