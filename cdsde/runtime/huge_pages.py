"""Memory in pages of 2 MiB, where Linux gives them to programs that ask.

A program allocates its arrays anew at each call, page by page. With pages of 4 KiB, a training step
of the small networks takes 1.2 times as long (docs/scaling.md). glibc asks for them only if an
environment variable says so when the program starts.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def ask(policy: Path = POLICY) -> None:
    """Starts this program again with huge pages, before it does anything else; else returns.

    It returns where the variable is set already, which users may do (`glibc.malloc.hugetlb=0`: no),
    where the system gives huge pages unasked or never, and where there is no glibc.

    Args:
      policy: the file in which the kernel tells to whom it gives huge pages.
    """
    given = os.environ.get(VARIABLE, "")
    if TUNABLE in given or not sys.executable or not _helps(policy):
        return
    os.environ[VARIABLE] = ":".join(filter(None, (given, f"{TUNABLE}=1")))
    os.execv(sys.executable, sys.orig_argv)


def _helps(policy: Path) -> bool:
    """Whether huge pages are given to those that ask, and there is glibc, which can ask."""
    try:
        asking = "[madvise]" in policy.read_text()
    except OSError:
        return False
    return asking and "CS_GNU_LIBC_VERSION" in os.confstr_names
