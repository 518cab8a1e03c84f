"""Sources of network parameters: checkpoints, shipped files and other code bases."""

# Names of version 0.1, when this was a module.
_MOVED = {
    "load": "resolve.load",
    "save": "exported.save",
    "shapes": "resolve.shapes",
    "architecture": "knowledge.architecture",
}


def __getattr__(name: str):
    if name in _MOVED:
        raise ImportError(f"cdsde.weights.{name} is now cdsde.weights.{_MOVED[name]}")
    raise AttributeError(f"module 'cdsde.weights' has no attribute '{name}'")
