"""Configs: every key and its default, the values derived from keys, and the checks on them."""

from cdsde.config.derived import (
    domains,
    eval_methods,
    gan_settings,
    get,
    key_paths,
    method_settings,
    nearest,
    needed_stages,
    sources,
    stage_training,
    start_index,
)
from cdsde.config.keys import EDITORS, GANS, GUIDED, LATENT, METHODS, SDES, STAGES, base

__all__ = [
    "EDITORS",
    "GANS",
    "GUIDED",
    "LATENT",
    "METHODS",
    "SDES",
    "STAGES",
    "base",
    "domains",
    "eval_methods",
    "gan_settings",
    "get",
    "key_paths",
    "method_settings",
    "nearest",
    "needed_stages",
    "sources",
    "stage_training",
    "start_index",
]
