"""Records of results: the output folder, the file names, and the settings that made the results.

Two runs with the same record make the same results: `claim` rejects a folder with another record.
"""

from __future__ import annotations

import hashlib
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
from cdsde.runtime.files import write_json, writing
from cdsde.version import __version__

RECORD = "settings.json"  # beside the images: the settings that made them
SHEET = "sheet.png"  # beside the images: a contact sheet of the first ones
SHOWN = 6  # differences between records in a message
# Newer keys are left out of a record where they have no effect, so that older records match.
NEUTRAL = (
    ("sample", "match_colours", 0),
    ("sample", "guide_every", 1),
    ("sample", "guide_levels", []),
    ("data", "fit", "crop"),
)
NEUTRAL += (("sample", "keep_size", False), ("contrastive_sde", "clean", False))
NEUTRAL += (("ddib", "refine", 0),)
NEUTRAL += (("contrastive_sde", "score_weight", 0.0),)
NEUTRAL += (("score", "label", None), ("score", "guidance", 1.0), ("score", "published", None))
NEUTRAL += (("score", "source_label", None), ("edit", "exchange", "auto"), ("edit", "blend", None))
NEUTRAL += (("edit", "attention_side", 16), ("edit", "reweight", 1.0))
LATER = ("model_files", "data")  # keys that records of earlier versions do not have
# Keys of earlier versions in records, and the value without an effect.
RETIRED = {
    "contrastive_sde": {"reference": "perturbed", "band": 0, "cutoff": 0, "domain_band": 0},
    "egsde": {"domain_band": 0},
    "cut": {"across_batch": False},
    "fastcut": {"across_batch": False},
}


def output_folder(config: ConfigDict, workdir) -> Path:
    """The folder of results: `config.sample.output`, or by default WORKDIR/samples/METHOD.

    For an editor the default is WORKDIR/edits/METHOD.

    Raises:
      ValueError: the folder is a file, or that of the images.
    """
    kind = "edits" if config.method in config_lib.EDITORS else "samples"
    output = config.sample.output
    folder = Path(workdir) / kind / config.method if output is None else Path(output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"results go to '{folder}', which is a file; choose another --config.sample.output"
        )
    if any(place.expanduser().resolve() == folder.resolve() for place in _input_folders(config)):
        raise ValueError(
            f"results go to '{folder}', from which the images are read, so that the next run would "
            "take them for images; choose another --config.sample.output"
        )
    return folder


def _input_folders(config: ConfigDict) -> list[Path]:
    """The folders from which the images of a run are read, if they are files."""
    if config.sample.input is not None:
        return [Path(config.sample.input)]
    parts = Path(config.data.root), config.sample.split
    return [Path(*parts, domain) for domain in config_lib.sources(config)]


def output_names(ids: Sequence[str]) -> list[str]:
    """One PNG name per input: its stem, or its full name where two inputs have the same stem.

    No input gets the name of the contact sheet.
    """
    full = [str(name).replace("/", "_") for name in ids]
    stems = [Path(name).stem if Path(name).suffix else name for name in full]
    count = Counter([*stems, Path(SHEET).stem])
    names = [f"{f if count[s] > 1 else s}.png" for s, f in zip(stems, full, strict=True)]
    # Names may still collide, such as those of a.jpg, a.png and a.jpg.png.
    return names if len(set(names)) == len(names) else [f"{f}.png" for f in full]


def settings_record(config: ConfigDict, origins: dict[str, str], source) -> dict:
    """The settings that determine the pixels of a translation.

    Args:
      config: the config of the run.
      origins: where each network's weights come from, by name.
      source: the input images.
    """
    plain = json.loads(config.to_json_best_effort())
    for key in ("input", "output", "batch_size", "limit", "sheet", "trajectory"):
        plain["sample"].pop(key)
    plain["sample"] |= config_lib.usual(config)
    record = {key: plain[key] for key in ("method", "dtype", "sde", "sample")}
    record[config.method] = json.loads(config_lib.method_settings(config).to_json())
    record["data"] = {key: plain["data"][key] for key in ("image_size", "filter", "fit")}
    if config.method in config_lib.SDES:
        asked = ("label", "source_label", "guidance")
        record["score"] = {key: plain["score"][key] for key in asked}
        about = plain["score"]["published"]
        if about is not None:  # the network, without what its file says of sampling
            parts = {key: x for key, x in json.loads(about).items() if key != "sampler"}
            about = json.dumps(parts, sort_keys=True)
        digest = None if about is None else hashlib.sha256(about.encode()).hexdigest()[:12]
        if config.sample.solver != "ancestral":  # others read no variance
            record["sample"]["variance"] = "fixedsmall"
        record["score"]["published"] = digest
    for part, key, neutral in NEUTRAL:
        if record.get(part, {}).get(key, ...) == neutral:
            del record[part][key]
    if not record.get("score", True):
        del record["score"]
    if config.method in config_lib.GANS:
        kept = {"keep_size": True} if config.sample.keep_size else {}
        record["sample"] = {"split": plain["sample"]["split"], **kept}
        record.pop("sde")
    else:
        record["start"] = config_lib.start_index(config)
    record["weights"] = origins
    # Without the number of images: users may add images or remove broken ones between runs.
    record["input"] = re.sub(r" of \d+ images", "", repr(source))
    return record


def read(folder: Path) -> dict | None:
    """The record of the results in a folder, in the current format; None where there is none.

    Raises:
      ValueError: the file does not hold a record.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # no JSON, or no text
        record = None
    if not isinstance(record, dict) or not _is_record(record):
        raise ValueError(
            f"'{path}' is damaged: it does not hold the settings that made the results beside it; "
            "delete the folder, or choose another --config.sample.output, and make them again"
        )
    return as_of_today(record)


def _is_record(record: dict) -> bool:
    """Whether an object read from JSON has the shape of a record, of translations or of edits."""
    kind = "edit" if "edit" in record else "sample"
    groups = {"weights", kind} | record.keys() & {"sde", "data", *config_lib.METHODS}
    if not all(isinstance(record.get(group), dict) for group in groups):
        return False
    return isinstance((record["edit"] if kind == "edit" else record).get("method"), str)


def as_of_today(record: dict) -> dict:
    """Converts a record of an earlier version to the current format."""
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
    """Creates the folder of a run's results and writes the run's record into it.

    Args:
      folder: the folder of the results.
      record: the settings that determine the pixels.
      names: file names of the results.

    Raises:
      ValueError: the folder contains results with another record, or other files with these names.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if (old := read(folder)) is not None:
        refuse_others(folder, old, record, "delete it or choose another --config.sample.output")
    elif jax.process_index() == 0:
        # A file without a record is not a result but would count as one (in an input folder, say).
        if foreign := next((name for name in names if (folder / name).exists()), None):
            raise ValueError(
                f"{folder} holds {foreign}, which is no result of --mode=sample (there is no "
                f"{RECORD} beside it); choose another --config.sample.output"
            )
        write_json(folder / RECORD, record)


def refuse_others(folder: Path, old: dict, new: dict, advice: str) -> None:
    """Checks that the record of a folder's results is that of a run.

    Args:
      folder: the folder of the results.
      old: their record, from `read`.
      new: the run's record.
      advice: the end of the message.

    Raises:
      ValueError: the records differ; the message names the keys.
    """
    new = json.loads(json.dumps(new))
    old = old | {key: new[key] for key in LATER if key in new and key not in old}
    if changed := differences(_complete(old), _complete(new)):
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise ValueError(
            f"{folder} holds results made with other settings (different: "
            f"{', '.join(changed[:SHOWN])}{more}); {advice}"
        )


def _complete(record: dict) -> dict:
    """A record with the keys that it leaves out because they have no effect."""
    parts = {key: dict(value) for key, value in record.items() if isinstance(value, dict)}
    for part, key, neutral in NEUTRAL:
        parts.setdefault(part, {}).setdefault(key, neutral)
    return record | parts


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """What two records differ in: "sample.seed was 0 and is 1", …; sorted by key."""
    found = []
    for key in sorted(new | old):
        before, now, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(before, dict) and isinstance(now, dict):
            found += differences(before, now, f"{name}.")
        elif isinstance(before, dict) or isinstance(now, dict):
            found.append(name)  # a group that only one of them has, such as that of the method
        elif before != now:
            found.append(f"{name} was {before} and is {now}")
    return found


def provenance() -> dict:
    """The facts needed to repeat a result beside its config: versions, commit, hardware, time."""
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
    """The commit of the checkout that contains this package; None outside a checkout.

    "-dirty" marks changes of the package's code or the configs; a benchmark's output is ignored.
    """
    commit = _git("describe", "--always", "--abbrev=12")
    changed = commit and _git("status", "--porcelain", "--", ".", "../configs")
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str) -> str | None:
    try:
        process = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() or None
