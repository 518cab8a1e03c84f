"""Reads config files and overrides, and reports every mistake in one sentence.

Every program takes overrides as `--config.KEY=VALUE`. They are checked here first, because
ml_collections reports an unknown key with a long trace. A config file is executed once.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cdsde.config import checks, derived, keys, renamed, unused

OVERRIDE = re.compile(r"^--?config\.([\w.]+)(?:=(.*))?$", re.DOTALL)
NONE = "None"  # as the value of an override
HELP = (
    "The task: a file in configs/, or its name alone (cat2dog); --config.KEY=VALUE overrides any "
    "key (docs/configuration.md), and --config.KEY=None unsets it."
)


class UserError(Exception):
    """A mistake that the user can correct; the message is one complete sentence."""


def parse(argv: Sequence[str]) -> list[str]:
    """Parses flags as absl does; `FLAGS.config` then holds the config with its overrides.

    Returns:
      The positional arguments, with the program's name first.

    Raises:
      SystemExit: a flag is wrong; one sentence goes to standard error, and the code is 2.
    """
    try:
        return parse_into(flags.FLAGS, argv)
    except UserError as error:
        message = str(error)
    except flags.Error as error:
        # On one line; absl prints a line for each missing flag.
        message = f"{' '.join(str(error).split())}; see python -m cdsde.main --help"
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        message = f"a value on the command line does not fit its config key ({error})"
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def parse_into(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Defines the flag `config`, parses all flags and returns the positional arguments.

    Raises:
      UserError: the config file or an override is wrong.
      flags.Error: another flag is wrong.
    """
    path, rest = _without_config(list(argv))
    unset: list[str] = []
    before = ""
    if path is None:
        # Defined as a plain flag, so that --help shows it.
        flags.DEFINE(
            flags.ArgumentParser(),
            "config",
            None,
            HELP,
            values,
            flags.ArgumentSerializer(),
            module_name=sys.argv[0],
            required=True,
        )
    else:
        config = load(path)
        before = config.method
        check_overrides(config, rest)
        rest, unset = _without_unset(config, rest)
        config_flags.DEFINE_config_dict("config", config, HELP, values, sys_argv=rest)
    rest = values(rest)
    if path is not None:
        given = config_flags.get_override_values(values["config"])
        try:
            derived.adopt_sampling(values.config, [*given, *unset], before)
            derived.expand_home(values.config)
            if _is_valid(values.config):  # the program tells of a wrong value
                mode = values["mode"].value if "mode" in values else None
                unused.check(values.config, given, mode or "")
        except ValueError as error:
            raise UserError(str(error)) from error
    return rest


def _is_valid(config: ConfigDict) -> bool:
    try:
        checks.validate(config)
    except ValueError:
        return False
    return True


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Splits arguments into those without overrides, and overrides `{key: value}`.

    For programs that pass the overrides to `load_config` for several configs; each value gets the
    type of its key.

    Raises:
      UserError: an override is wrong.
    """
    rest, overrides = [], []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--set" or argument.startswith("--set="):
            raise UserError("--set=KEY=VALUE is now --config.KEY=VALUE")
        match = OVERRIDE.match(argument)
        if match is None:
            rest.append(argument)
        elif match[2] is None:
            overrides.append(f"{argument}={next(arguments, '')}")
        else:
            overrides.append(argument)
    config, values = keys.base(), flags.FlagValues()
    check_overrides(config, overrides)
    argv, unset = _without_unset(config, ["overrides", *overrides])
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    values(argv)
    return rest, dict.fromkeys(unset) | dict(config_flags.get_override_values(values["config"]))


def _without_unset(config: ConfigDict, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sets the keys whose last override is None in `config`, because absl's flags cannot.

    Returns:
      The other arguments, and the keys.
    """
    rest, given = [], {}
    arguments = iter(argv)
    for argument in arguments:
        match = OVERRIDE.match(argument)
        if match is None:
            rest.append(argument)
            continue
        key, value = match.groups()
        parts = [argument]
        if value is None and _type(config, key) is not bool:
            value = next(arguments, "")
            parts.append(value)
        given[key] = None if value == NONE else parts
    unset = [key for key, parts in given.items() if parts is None]
    for key in unset:
        set_key(config, key, None)
    return rest + sum((parts for parts in given.values() if parts), []), unset


def _without_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """The value of --config, and the other arguments.

    Raises:
      UserError: --config is given twice.
    """
    paths, rest = [], []
    arguments = iter(argv)
    for argument in arguments:
        if match := re.match(r"^--?config=(.*)$", argument):
            paths.append(match[1])
        elif argument in ("--config", "-config"):
            paths.append(next(arguments, ""))
        else:
            rest.append(argument)
    if len(paths) > 1:
        raise UserError(f"--config is given {len(paths)} times ({', '.join(paths)}); give it once")
    return (paths[0] if paths else None), rest


def folder() -> Path:
    """The folder of the project's configs: `configs/` in the checkout or the installed wheel."""
    package = Path(str(resources.files("cdsde")))
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find(name: str) -> Path:
    """The config file for a path, or for the name of one of the project's configs.

    Raises:
      UserError: the file does not exist; the sentence lists the existing ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = folder() / f"{path.stem}.py"
    # configs/NAME.py means the project's config, whatever the current folder.
    if path.parts[:-1] in ((), ("configs",)) and path.suffix in ("", ".py") and shipped.is_file():
        return shipped
    siblings = sorted(path.parent.glob("*.py")) if len(path.parts) > 1 else []
    known = [str(p) for p in siblings] or sorted(p.stem for p in folder().glob("*.py"))
    raise UserError(f"the config '{name}' is not a file; there are {', '.join(known)}")


def load(path: str) -> ConfigDict:
    """Loads a config: `get_config()` of FILE, or `get_config(ARGUMENT)` for `FILE:ARGUMENT`.

    Raises:
      UserError: the file does not exist, fails, or has no get_config.
    """
    name, _, argument = str(path).partition(":")
    file = find(name)
    scope = {"__name__": "cdsde_config", "__file__": str(file)}
    try:
        exec(compile(file.read_text(), str(file), "exec"), scope)
        if "get_config" in scope:
            config = scope["get_config"](*([argument] if argument else []))  # type: ignore[operator]
            _check_complete(config)
            if file.parent.resolve() != folder().resolve():  # those have names everywhere
                config.serve.tasks = tuple(_beside(file, name) for name in config.serve.tasks)
            return config
    except Exception as error:
        raise UserError(_failure(file, error)) from error
    raise UserError(f"{file} has no get_config(), which every config file defines")


def _check_complete(config) -> None:
    """Checks that what a config file returns has every key."""
    found = derived.key_paths(config) if isinstance(config, ConfigDict) else ()
    if missing := [key for key in keys.KEYS if key not in found]:
        raise ValueError(
            f"get_config returns no config with the key {missing[0]}; start from config.base()"
        )


def _beside(file: Path, name: str) -> str:
    """The path of a config that another one names, if it lies beside that file; else the name."""
    path, _, argument = name.partition(":")
    for candidate in (file.parent / path, file.parent / f"{path}.py"):
        if candidate.is_file():
            return f"{candidate.resolve()}{':' if argument else ''}{argument}"
    return name


def _failure(file: Path, error: Exception) -> str:
    """The error sentence for a config file that fails."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    where = f"{file}, line {lines[-1]}," if lines else str(file)
    if match := re.search(r'Key "([^"]+)" does not exist', str(error)):
        nearest = derived.nearest(match[1], keys.KEYS)
        return f"{where} sets '{match[1]}', which no config has; the nearest are {nearest}"
    reason = " ".join(str(error).split())
    return f"{where} fails with {type(error).__name__}: {reason}"


def check_overrides(config: ConfigDict, argv: Sequence[str]) -> None:
    """Checks that every override names a key and has the key's type.

    Raises:
      UserError: one sentence that names the nearest valid keys, or the expected type.
    """
    leaves = derived.key_paths(config)
    for position, argument in enumerate(argv):
        if match := OVERRIDE.match(argument):
            key, value = match.groups()
            if value is None and position + 1 < len(argv):
                value = argv[position + 1]
            check_key(leaves, key)
            _check_value(config, key, value)


def check_key(leaves: Sequence[str], key: str) -> None:
    """Checks that a dotted key is one of `leaves`.

    Raises:
      UserError: one sentence that names the nearest keys, the keys of a group, or the new name of a
        key of an earlier version.
    """
    if key in leaves:
        return
    if inner := [leaf for leaf in leaves if leaf.startswith(f"{key}.")]:
        raise UserError(f"config.{key} is a group of keys; set one of {', '.join(inner[:6])}")
    if sentence := renamed.about(key):
        raise UserError(sentence)
    raise UserError(f"config has no key '{key}'; the nearest are {derived.nearest(key, leaves)}")


def set_key(config: ConfigDict, key: str, value: Any) -> None:
    """Sets a key; None unsets it.

    Raises:
      ValueError: the value has the wrong type, or the key always has a value.
    """
    if value is None:
        value = derived.unset_value(key)
    if isinstance(value, bool) and _type(config, key) in (int, float):  # Python counts with them
        raise ValueError(wrong_type(config, key, value))
    try:
        config.update_from_flattened_dict({key: value})
    except (TypeError, OverflowError) as error:  # the latter: 10**400 as a float
        raise ValueError(wrong_type(config, key, value)) from error


def wrong_type(config: ConfigDict, key: str, value) -> str:
    """The error sentence for a value that does not have the type of its key."""
    expected = _type(config, key)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    tuples = "a tuple such as '(1, 2)'"
    if key in keys.KEYS and keys.KEYS[key].default == ():
        tuples = "a tuple of texts such as \"('a', 'b')\""
    name = names.get(expected, tuples if expected is tuple else expected)
    hint = "; None unsets it" if isinstance(keys.KEYS[key].default, type) else ""
    return f"config.{key} is {name}, and '{value}' is not{hint}"


def _type(config: ConfigDict, key: str) -> type:
    *groups, last = key.split(".")
    group = derived.get(config, ".".join(groups)) if groups else config
    return group.get_type(last)


def _check_value(config: ConfigDict, key: str, value: str | None) -> None:
    expected = _type(config, key)
    if value is None:
        if expected is not bool:
            raise UserError(f"config.{key} needs a value: --config.{key}=VALUE")
    elif value == NONE:
        try:
            derived.unset_value(key)
        except ValueError as error:
            raise UserError(str(error)) from error
    elif not _fits(expected, value):
        raise UserError(wrong_type(config, key, value))


def _fits(expected: type, value: str) -> bool:
    if expected is bool:
        return value.lower() in ("true", "false", "1", "0", "t", "f")
    if expected in (int, float):
        try:
            expected(value)
        except ValueError:
            return False
    if expected is tuple:
        return re.match(r"^\s*\(.*\)\s*$|^[\d.,\s]+$", value) is not None
    return True
