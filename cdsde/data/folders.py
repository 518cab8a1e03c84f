"""The pictures of a folder, and what else lies there."""

import os
import re
from collections import Counter
from pathlib import Path

from absl import logging

from cdsde.data.images import extensions

PICTURE = "picture"
MOST_KINDS = 6  # in a message
# Kinds that look like pictures and are none; a message names them before the others.
PRETENDERS = ("broken link", "folder named like a picture")
ACCEPTED = "png, jpg, webp, gif, tiff, avif or other picture files"


def list_images(folder: str | os.PathLike) -> list[Path]:
    """Lists the picture files of a folder, sorted by name, without sub-folders.

    Links are followed. A warning counts what is left out, by kind.

    Raises:
      ValueError: the folder is missing, is a file, or contains no picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"Image folder '{folder}' {problem}: give a folder with {ACCEPTED}.")
    kinds = {path: _kind(path) for path in sorted(folder.iterdir())}
    images = [path for path, kind in kinds.items() if kind == PICTURE]
    rest = _counts({path: kind for path, kind in kinds.items() if kind != PICTURE})
    if not images:
        raise ValueError(
            f"Folder '{folder}' holds no image: put {ACCEPTED} right into it (there is: "
            f"{rest or 'nothing'})."
        )
    if rest:
        logging.warning("Folder '%s': %d images; left out: %s", folder, len(images), rest)
    return images


def _kind(path: Path) -> str:
    """What lies at a path, in words."""
    pictured = path.suffix.lower() in extensions()
    if path.is_symlink() and not path.exists():
        return "broken link"
    # Files with a leading dot, such as macOS's "._photo.jpg", are not images.
    hidden = path.name.startswith(".")
    if path.is_dir():
        if pictured:
            return "folder named like a picture"
        return "hidden folder" if hidden else "sub-folder"
    if hidden:
        return "hidden file"
    if not path.is_file():
        return "special file"
    if pictured:
        return PICTURE
    return f"{path.suffix.lower()} file" if path.suffix else "file without an ending"


def _counts(kinds: dict[Path, str]) -> str:
    """Counts by kind, the most frequent first after `PRETENDERS`: "3 .txt files (a.txt, ...)"."""
    counted = sorted(Counter(kinds.values()).most_common(), key=lambda kc: kc[0] not in PRETENDERS)
    parts = []
    for kind, count in counted[:MOST_KINDS]:
        first = next(path.name for path in kinds if kinds[path] == kind)
        shown = re.sub(r"\b(file|folder|link)\b", r"\1s", kind, count=1) if count > 1 else kind
        parts.append(f"{count} {shown} ({first}{', ...' if count > 1 else ''})")
    if more := sum(count for _, count in counted[MOST_KINDS:]):
        parts.append(f"{more} others")
    return ", ".join(parts)
