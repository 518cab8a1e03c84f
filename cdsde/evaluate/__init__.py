"""`--mode=eval`: measure translations and edits."""

# Names of version 0.1, when this was a module.
_MOVED = {"evaluate": "translations.evaluate"}


def __getattr__(name: str):
    if name in _MOVED:
        raise ImportError(f"cdsde.evaluate.{name} is now cdsde.evaluate.{_MOVED[name]}")
    raise AttributeError(f"module 'cdsde.evaluate' has no attribute '{name}'")
