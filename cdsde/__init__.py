"""cdsde: unpaired image-to-image translation with energy-guided score-based SDEs.

Names are imported on first use, so `import cdsde` is fast.
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
# New names of the modules of version 0.1, for error messages.
_MOVED = {
    "config_checks": "config.checks",
    "presets": "config.presets",
    "sde": "diffusion.schedules",
    "energies": "diffusion.energies",
    "losses": "diffusion.losses",
    "methods": "diffusion.methods",
    "solvers": "diffusion.solvers",
    "models": "networks.build",
    "features": "evaluate.extractors",
    "latent": "networks.stable_diffusion, cdsde.editing and cdsde.weights.diffusers",
    "mesh": "runtime.mesh",
    "report": "runtime.progress and cdsde.runtime.records",
    "checkpoint": "weights.checkpoint",
    "exchange": "weights.exchange",
    "torch_weights": "weights.torch.convert",
    "sampler": "translation.compiled",
    "sample": "translation.run",
    "discriminant": "translation.domain_statistics",
    "colours": "diffusion.histograms",
    "live": "serve.live",
    "realism": "evaluate.realism",
    "augment": "train.augment",
    "examples": "data.inputs",
    "flag_errors": "config.command_line",
    "logs": "runtime.logs",
    "preemption": "runtime.preemption",
    "torch_files": "weights.torch.pickle_reader",
    "torch_kinds": "weights.torch.kinds",
    "torch_layouts": "weights.torch.layouts",
    "trajectories": "translation.film",
    "trees": "runtime.trees",
    "evaluate_edits": "evaluate.edits",
}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"cdsde.{_MODULE_OF[name]}"), name)
    if name in _MOVED:
        # Only the text of an ImportError survives in `from cdsde import NAME`.
        raise ImportError(f"cdsde.{name} is now cdsde.{_MOVED[name]}")
    raise AttributeError(f"module 'cdsde' has no attribute '{name}'")


def __dir__():
    return __all__
