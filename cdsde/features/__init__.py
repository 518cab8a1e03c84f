"""Feature networks of the evaluation: pictures in, numbers to compare pictures by out.

Pictures are uint8 `[B, H, W, 3]`:

    features.load("efficientnet_lite0")(pictures)["block4_mean"]          # [B, 40]
    features.load("inception", "pt_inception-....pth")(pictures)["2048"]  # [B, 2048]
    features.load("lpips_alex", "alexnet-....pth")(a, b)["distance"]      # [B]

The networks are linen modules without state, float32, NHWC, for inference only; `__call__` includes
the pre-processing. Parameters have their published names, which `torch_weights` reads and writes.
Names are imported when first used: `extractor` needs `torch_weights`, and that needs the networks.
"""

from __future__ import annotations

import importlib

_MODULE_OF = {
    "DINO": "dino",
    "EfficientNetLite0": "efficientnet",
    "Extractor": "extractor",
    "InceptionV3": "inception",
    "LPIPSAlex": "lpips",
    "LPIPSVGG": "lpips",
    "NAMES": "extractor",
    "load": "extractor",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"cdsde.features.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'cdsde.features' has no attribute '{name}'")


def __dir__():
    return __all__
