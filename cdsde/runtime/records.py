"""What a program writes beside its results: where they go, what they were made with.

A record decides whether two runs made the same thing: `claim` refuses a folder whose results were
made with other settings.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import jax
from ml_collections import ConfigDict

from cdsde import config as config_lib
from cdsde.runtime.files import write_json
from cdsde.version import __version__

RECORD = "settings.json"  # beside the images: what they were made with
SHEET = "sheet.png"  # beside them too: the first of them at a glance


# Keys of earlier versions in the records of results, and the value that changed nothing.
RETIRED = {
    "contrastive_sde": {"reference": "perturbed", "band": 0, "cutoff": 0, "domain_band": 0},
    "egsde": {"domain_band": 0},
    "cut": {"across_batch": False},
    "fastcut": {"across_batch": False},
}


def output_folder(config: ConfigDict, workdir) -> Path:
    """`config.sample.output`, or WORKDIR/samples/METHOD (of an editor WORKDIR/edits/METHOD).

    Raises:
      ValueError: it is a file.
    """
    kind = "edits" if config.method in config_lib.EDITORS else "samples"
    given = config.sample.output
    folder = Path(workdir) / kind / config.method if given is None else Path(given)
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"results go to '{folder}', which is a file; choose another --config.sample.output"
        )
    return folder


def output_names(ids: Sequence[str]) -> list[str]:
    """One PNG name per input: its stem, or its whole name where two stems are the same.

    No input takes the name of the contact sheet.
    """
    whole = [str(name).replace("/", "_") for name in ids]
    stems = [Path(name).stem if Path(name).suffix else name for name in whole]
    count = Counter([*stems, Path(SHEET).stem])
    names = [f"{w if count[s] > 1 else s}.png" for s, w in zip(stems, whole, strict=True)]
    # Such as a.jpg, a.png and a.jpg.png.
    return names if len(set(names)) == len(names) else [f"{w}.png" for w in whole]


def settings_record(config: ConfigDict, origins: dict[str, str], source) -> dict:
    """What decides the pixels of a translation's results."""
    plain = json.loads(config.to_json_best_effort())
    for key in ("input", "output", "batch_size", "limit", "sheet", "trajectory"):
        plain["sample"].pop(key)
    record = {key: plain[key] for key in ("method", "dtype", "sde", "sample")}
    record[config.method] = json.loads(config_lib.method_settings(config).to_json())
    record["data"] = {key: plain["data"][key] for key in ("image_size", "filter", "fit")}
    # Keys that came later are left out where they change nothing: older results are still those.
    for part, key, neutral in (("sample", "match_colours", 0), ("data", "fit", "crop")):
        if record[part].get(key) == neutral:
            del record[part][key]
    if config.method in config_lib.GANS:
        record["sample"] = {"split": plain["sample"]["split"]}
        record.pop("sde")
    else:
        record["start"] = config_lib.start_index(config)
    record["weights"] = origins
    # Without the number of images: one may be added, or a broken one taken away, in between.
    record["input"] = re.sub(r" of \d+ images", "", repr(source))
    return record


def as_of_today(record: dict) -> dict:
    """A record of an earlier version as this one would write it."""
    record = json.loads(json.dumps(record))
    for group, neutral in RETIRED.items():
        settings = record.get(group, {})
        for key in [k for k, value in neutral.items() if settings.get(k, ...) == value]:
            del settings[key]
    weights = record.get("weights", {})
    if "discriminant" in weights:
        weights["domain_direction"] = weights.pop("discriminant")
    return record


def claim(folder: Path, record: dict, names: Sequence[str]) -> None:
    """Make a folder of results, and write the record of a run's settings into it.

    Args:
      folder: of the results.
      record: what decides the pixels.
      names: of the results.

    Raises:
      ValueError: the folder holds results with another record, or files that are no results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    if path.exists():
        old, new = as_of_today(json.loads(path.read_text())), json.loads(json.dumps(record))
        changed = sorted(key for key in new | old if old.get(key) != new.get(key))
        if changed:
            raise ValueError(
                f"{folder} holds results made with other settings (different: "
                f"{', '.join(changed)}); delete it or choose another --config.sample.output"
            )
    elif jax.process_index() == 0:
        # Without a record it is no result, and would pass for one (the input folder, for example).
        if foreign := next((name for name in names if (folder / name).exists()), None):
            raise ValueError(
                f"{folder} holds {foreign}, which is no result of --mode=sample (there is no "
                f"{RECORD} beside it); choose another --config.sample.output"
            )
        write_json(path, record)


def provenance() -> dict:
    """What is needed to repeat a result beside its config: versions, commit, hardware, time."""
    packages = ("jax", "jaxlib", "flax", "numpy", "scipy", "Pillow", "dm-pix")
    return {
        "cdsde": __version__,
        "commit": _commit(),
        "packages": {name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """The commit of the checkout that this package runs from; None where it is installed.

    "-dirty" is said of the package's code and the configs, not of what a benchmark writes.
    """
    commit = _git("describe", "--always", "--abbrev=12")
    changed = commit and _git("status", "--porcelain", "--", ".", "../configs")
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
