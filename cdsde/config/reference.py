"""Prints the table of all keys: `python -m cdsde.config.reference > docs/configuration.md`."""

from __future__ import annotations

from cdsde.config.keys import GROUPS
from cdsde.diffusion.methods.method import Setting

HEAD = """# Configuration

This page lists every key of a config with its default and its meaning. A task's file in `configs/`
changes some keys. On the command line `--config.KEY=VALUE` overrides any key; in Python,
`cdsde.load_config("cat2dog", {"sample.steps": 50})` does. `None` unsets any key that may have no
value. `python -m cdsde.config.reference` writes this page.
"""


def page() -> str:
    """The page docs/configuration.md, in Markdown."""
    parts = [HEAD]
    for group, settings in GROUPS.items():
        parts.append(f"## {f'`{group}`' if group else 'Top level'}\n")
        parts.append("| key | default | meaning |\n|---|---|---|")
        prefix = f"{group}." if group else ""
        parts += [_row(f"{prefix}{name}", setting) for name, setting in settings.items()]
        parts.append("")
    return "\n".join(parts)


def _row(key: str, setting: Setting) -> str:
    default = None if isinstance(setting.default, type) else setting.default
    shown = '""' if default == "" else str(default)
    choices = [f"`{choice}`" for choice in setting.choices if choice != ""]
    meaning = f"{setting.meaning} One of {', '.join(choices)}." if choices else setting.meaning
    if any(limit is not None for limit in (setting.maximum, setting.above, setting.below)):
        meaning = f"{meaning} {setting.limits[0].upper()}{setting.limits[1:]}."
    return f"| `{key}` | `{shown}` | {meaning.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
    print(page(), end="")
