"""The memory that a statement takes at most, in a process of its own."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys, jax
{imports}

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

jax.numpy.ones(3).block_until_ready()
before = peak()
{statement}
print(peak() - before)
"""
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")


def peak_of(imports: str, statement: str, *arguments) -> int:
    """Bytes beyond those that are held after the imports; the statement sees `sys.argv[1:]`."""
    script = SCRIPT.format(imports=imports, statement=statement)
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
