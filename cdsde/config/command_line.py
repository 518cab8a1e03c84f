"""Mistakes on the command line, told in one sentence each.

ml_collections answers an unknown key with a long trace; here the overrides are looked at first.
"""

from __future__ import annotations

import ast
import re
import sys
import traceback
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from cdsde import config as config_lib

OVERRIDE = re.compile(r"^--?config\.([\w.]+)(?:=(.*))?$", re.DOTALL)


class UserError(Exception):
    """Something that the user can put right; its text is all that needs to be said."""


def parse(argv: list[str]) -> list[str]:
    """Parse flags as absl does, but explain what is wrong in one sentence and exit with 2."""
    try:
        check_overrides(argv)
        return flags.FLAGS(argv)
    except UserError as error:
        message = str(error)
    except flags.Error as error:
        # One line, where absl gives each flag that is missing its own.
        message = f"{' '.join(str(error).split())}; see python -m cdsde.main --help"
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        message = f"a value on the command line does not fit its config key ({error})"
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def config_path(argv: list[str]) -> str | None:
    """The value of --config, None if it is not given.

    Raises:
      UserError: it is given twice; overrides before the second would be lost.
    """
    found = []
    for position, argument in enumerate(argv):
        if match := re.match(r"^--?config=(.*)$", argument):
            found.append(match.group(1))
        elif argument in ("--config", "-config") and position + 1 < len(argv):
            found.append(argv[position + 1])
    if len(found) > 1:
        raise UserError(f"--config is given {len(found)} times ({', '.join(found)}); give it once")
    return found[0] if found else None


def check_overrides(argv: list[str]) -> None:
    """Check that the config file is there and that every override names a leaf and fits its type.

    Raises:
      UserError: one sentence that names the nearest valid keys or the type that is expected.
    """
    path = config_path(argv)
    if path is None:
        return  # absl says that --config is required, or this is --help
    config = load(path)
    leaves = config_lib.key_paths(config)
    for position, argument in enumerate(argv):
        match = OVERRIDE.match(argument)
        if match is None:
            continue
        key, value = match.groups()
        if value is None and position + 1 < len(argv):
            value = argv[position + 1]
        _check_override(config, leaves, key, value)


def load(path: str) -> ConfigDict:
    """The config that a file makes.

    Raises:
      UserError: there is no such file (names those that there are), it fails, or it has no
        get_config.
    """
    name, _, argument = path.partition(":")
    if not Path(name).is_file():
        found = sorted(str(p) for p in Path(name).parent.glob("*.py")) if name else []
        near = f"; there are {', '.join(found)}" if found else ""
        raise UserError(f"the config '{name}' is not a file{near}")
    scope = {"__name__": "cdsde_config", "__file__": name}
    try:
        exec(compile(Path(name).read_text(), name, "exec"), scope)
        if "get_config" in scope:
            return scope["get_config"](*([argument] if argument else []))
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == name]
        where = f"{name}, line {lines[-1]}," if lines else name
        if match := re.search(r'Key "([^"]+)" does not exist', str(error)):
            near = config_lib.nearest(match[1], config_lib.key_paths(config_lib.base()))
            raise UserError(
                f"{where} sets '{match[1]}', which no config has; the nearest are {near}"
            ) from error
        reason = " ".join(str(error).split())
        raise UserError(f"{where} fails with {type(error).__name__}: {reason}") from error
    raise UserError(f"{name} has no get_config(), which makes the config of every such file")


def check_key(leaves: list[str], key: str) -> None:
    """Check that a dotted key is one of `leaves`.

    Raises:
      UserError: one sentence that names the nearest keys, or those of the group that it is.
    """
    if key in leaves:
        return
    if inner := [leaf for leaf in leaves if leaf.startswith(f"{key}.")]:
        raise UserError(f"config.{key} is a group of keys; set one of {', '.join(inner[:6])}")
    raise UserError(f"config has no key '{key}'; the nearest are {config_lib.nearest(key, leaves)}")


def wrong_type(config: ConfigDict, key: str, value) -> str:
    """The sentence for a value that does not fit its key."""
    wanted = _type(config, key)
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    shape = plain.get(wanted, "a tuple such as '(1, 2)'" if wanted is tuple else wanted)
    return f"config.{key} is {shape}, and '{value}' is not"


def _type(config: ConfigDict, key: str) -> type:
    *groups, last = key.split(".")
    group = config_lib.get(config, ".".join(groups)) if groups else config
    return group.get_type(last)


def _check_override(config: ConfigDict, leaves: list[str], key: str, value: str | None) -> None:
    check_key(leaves, key)
    wanted = _type(config, key)
    if value is None:
        if wanted is not bool:
            raise UserError(f"config.{key} needs a value: --config.{key}=VALUE")
        return
    if not _fits(wanted, value):
        raise UserError(wrong_type(config, key, value))


def _fits(wanted: type, value: str) -> bool:
    if wanted is bool:
        return value.lower() in ("true", "false", "1", "0", "t", "f")
    if wanted in (int, float):
        try:
            wanted(value)
        except ValueError:
            return False
    if wanted is tuple:
        return re.match(r"^\s*\(.*\)\s*$|^[\d.,\s]+$", value) is not None
    return True


def assignments(texts) -> dict:
    """`{KEY: value}` of KEY=VALUE texts: a number, a tuple or True where VALUE reads as one.

    Raises:
      ValueError: a text without "=".
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set={text} is not KEY=VALUE, such as --set=data.root=DIR")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found
