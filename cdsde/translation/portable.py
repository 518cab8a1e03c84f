"""`--mode=export --config.export.format=stablehlo`: a translation, for use without cdsde.

`weights.stablehlo` says what the file holds, and shows the program that runs it.
"""

from __future__ import annotations

from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.translation import compiled
from cdsde.weights import stablehlo


def export_translation(config: ConfigDict, workdir) -> Path:
    """Writes the translation by `config.method` to `config.export.path` and returns the path.

    It translates images of `config.data.image_size`, as `cdsde.translate` with the same levels,
    weights λ and rounds; the images, their ids and the seed are arguments.

    Raises:
      ValueError: the method is an editor, an option has no effect on such a file, or a network has
        no weights.
    """
    _check(config)
    params, origins = compiled.load_params(config, workdir)
    gan = config.method in config_lib.GANS
    numbers = () if gan else compiled.levels(config)
    leaves, tree = jax.tree_util.tree_flatten_with_path({"levels": numbers, "params": params})
    arrays = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}
    run, rounds = compiled.program(config), 1 if gan else config.sample.rounds

    def translate(arrays, images, ids, seed):
        both = jax.tree.unflatten(tree, [arrays[name] for name in names])
        drawn = () if gan else (both["levels"], jax.random.key(seed))
        return run(both["params"], images, ids, *drawn, rounds=rounds)[0]

    names = list(arrays)
    path = Path(config.export.path or Path(workdir) / "export" / f"{config.method}.npz")
    stablehlo.save(path, translate, arrays, config.data.image_size)
    for name, origin in origins.items():
        logging.info("%s: %s", name, origin)
    logging.info("the translation by %s is written to %s", config.method, path)
    return path


def _check(config: ConfigDict) -> None:
    if config.method in config_lib.EDITORS:
        raise ValueError(
            f"config.export.format is 'stablehlo', and config.method '{config.method}', which "
            "edits by words; only translations are written in that format"
        )
    if config.export.stage != "score":
        raise ValueError(
            f"config.export.stage is '{config.export.stage}', and config.export.format "
            "'stablehlo', which takes all networks of config.method; leave the stage out"
        )
    if config.sample.keep_size:
        raise ValueError(
            "config.sample.keep_size is True, and config.export.format 'stablehlo', which takes "
            "pictures of config.data.image_size; set it to False"
        )
