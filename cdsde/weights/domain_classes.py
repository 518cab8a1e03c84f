"""The table of classes of a score network that knows several domains (`score.domains`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TABLE = "label_emb"  # the module of ADMUNet, under "params"


def moved(params: dict, before: Sequence[str], now: Sequence[str]) -> dict:
    """The parameters of a network of other domains, to be trained on.

    A domain that the network knew keeps its vector, and a new one begins as 0: as a network that
    knew one domain, without a class.

    Args:
      params: `{"params": {module: ...}}`, with the table `[len(before), D]` if there are classes.
      before, now: the domains.
    """
    if tuple(before) == tuple(now):
        return params
    modules = {name: value for name, value in params["params"].items() if name != TABLE}
    if now:
        width = modules["time_embed_2"]["bias"].shape[0]
        table = np.zeros((len(now), width), np.float32)
        for row, name in enumerate(now):
            if name in before:
                table[row] = params["params"][TABLE]["embedding"][list(before).index(name)]
        modules[TABLE] = {"embedding": table}
    return {**params, "params": modules}
