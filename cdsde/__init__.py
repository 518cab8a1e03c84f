"""cdsde: unpaired image-to-image translation with energy-guided score-based SDEs.

Names are imported when first used; nothing happens at import.
"""

from __future__ import annotations

import importlib

from cdsde.version import __version__

_MODULE_OF = {
    "load_torch": "weights.torch.convert",
    "load_config": "api",
    "load_sampler": "translation.compiled",
    "translate": "api",
}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"cdsde.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'cdsde' has no attribute '{name}'")


def __dir__():
    return __all__
