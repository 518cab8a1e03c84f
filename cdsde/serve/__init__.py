"""`--mode=serve`: a page to try a task on."""

# Names of version 0.1, when this was a module.
_MOVED = {"serve": "page.serve"}


def __getattr__(name: str):
    if name in _MOVED:
        raise ImportError(f"cdsde.serve.{name} is now cdsde.serve.{_MOVED[name]}")
    raise AttributeError(f"module 'cdsde.serve' has no attribute '{name}'")
