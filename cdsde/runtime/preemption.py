"""Stopping on SIGTERM, which is how clusters take a machine back, without losing work.

Programs ask `Watch.reached(step)` after every step. With one process the signal is remembered here;
with several JAX's preemption service tells all of them, and `reached` becomes true at one and the
same step, so that they write one checkpoint together.
"""

from __future__ import annotations

import signal
import threading

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h: nothing is wrong; the same command goes on. Launchers restart on it.
EXIT_CODE = 75


class Preempted(Exception):
    """The program was asked to end and has saved its work."""


class Watch:
    """Looks out for SIGTERM while it is a context; afterwards the signal does what it did before.

    In a thread other than the main one, where Python allows no handler, nothing is watched.
    """

    def __init__(self):
        self._asked = False
        self._before = None
        # JAX's service has a handler of its own, which Python's would replace.
        self._alone = jax.process_count() == 1

    def __enter__(self) -> Watch:
        if self._alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *error) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def reached(self, step: int) -> bool:
        """Whether to save and end after this step; all processes hear it at the same one."""
        if self._alone:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)

    def _remember(self, number, frame) -> None:
        self._asked = True
