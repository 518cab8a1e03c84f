"""Flat Twemoji drawings → Fluent's renders by CUT, on the embedded data at 32².

    python -m cdsde.main --config=twemoji2fluent_cut --mode=sample   # shipped networks
    python -m cdsde.main --config=twemoji2fluent_cut --mode=eval
    python -m cdsde.main --config=twemoji2fluent_cut --mode=train    # your own

For FastCUT add --config.method=fastcut. For the reverse direction and for Noto, use
--config=fluent2twemoji and --config=noto2fluent with --config.method=cut. CUT trains for 2,400
steps of eight pairs, FastCUT for 1,200: 40 and 10 minutes on 2 busy CPU cores.
"""

from cdsde import config
from cdsde.config import presets


def get_config():
    c = config.base()
    presets.emoji(c, source="twemoji", target="fluent", score_steps=10_000)
    c.task, c.method = "twemoji2fluent_cut", "cut"
    return c
