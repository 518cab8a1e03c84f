"""Programs start again once where that gives them huge pages, with the same arguments."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from pathlib import Path
from cdsde.runtime import huge_pages
print("started", flush=True)
huge_pages.ask(Path(sys.argv[1]))
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[2:], flush=True)
sys.exit(3)
"""


def started(tmp_path: Path, policy: str, **variables) -> tuple[int, str]:
    """How often a program starts under a kernel's policy, and what its last start prints."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "policy").write_text(policy)
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | variables
    arguments = [tmp_path / "program.py", tmp_path / "policy", "--a=b c", "d"]
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    *starts, last = done.stdout.splitlines()
    assert last.endswith("['--a=b c', 'd']")
    return len(starts), last.split(" [")[0]


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="no glibc")
def test_it_asks_once_and_keeps_arguments_and_other_tunables(tmp_path):
    asking = "always [madvise] never"
    assert started(tmp_path, asking) == (2, "glibc.malloc.hugetlb=1")
    others = "glibc.malloc.check=1"
    assert started(tmp_path, asking, GLIBC_TUNABLES=others) == (
        2,
        f"{others}:glibc.malloc.hugetlb=1",
    )


@pytest.mark.parametrize("policy", ["[always] madvise never", "always madvise [never]", ""])
def test_it_does_not_start_again_where_nothing_is_gained(tmp_path, policy):
    assert started(tmp_path, policy) == (1, "None")


def test_a_user_may_say_no(tmp_path):
    no = "glibc.malloc.hugetlb=0"
    assert started(tmp_path, "always [madvise] never", GLIBC_TUNABLES=no) == (1, no)
