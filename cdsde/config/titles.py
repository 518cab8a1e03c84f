"""The printed names of methods, in tables and above columns of pictures."""

from __future__ import annotations

from cdsde.diffusion import methods

TITLES = {name: method.title for name, method in methods.METHODS.items()}
TITLES |= {"cut": "CUT", "fastcut": "FastCUT"}


def title(name: str) -> str:
    """The printed name of a method; that of anything else is its name."""
    return TITLES.get(name, name)
