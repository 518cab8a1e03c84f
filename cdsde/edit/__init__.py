"""`--mode=edit`: edit images by words with a latent diffusion model."""

# Names of version 0.1, when this was a module.
_MOVED = {"edit": "run.edit"}


def __getattr__(name: str):
    if name in _MOVED:
        raise ImportError(f"cdsde.edit.{name} is now cdsde.edit.{_MOVED[name]}")
    raise AttributeError(f"module 'cdsde.edit' has no attribute '{name}'")
