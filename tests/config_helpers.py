"""Configs as the command line and as Python make them."""

from pathlib import Path

from absl import flags

from cdsde import load_config
from cdsde.config import checks, command_line

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


FOLDER = str(next(path for path in CONFIGS if path.stem == "folder"))


def parse(argv: list[str]):
    """The config as `cdsde.main` makes it: overrides looked at, parsed by absl, validated."""
    values = flags.FlagValues()
    command_line.parse_into(values, argv)
    checks.validate(values.config)
    return values.config


def from_command_line(*overrides: str, path: str = FOLDER):
    return parse(["main", f"--config={path}", *(f"--config.{o}" for o in overrides)])


def both_ways(key: str, value):
    """Setting a key on the command line, and in Python."""
    return (
        lambda: from_command_line(f"{key}={value}"),
        lambda: load_config(FOLDER, {key: value}),
    )


def one_sentence(text: str) -> bool:
    return bool(text) and "\n" not in text and "Traceback" not in text
