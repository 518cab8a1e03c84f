"""Stops a program on SIGTERM, which clusters send before they reclaim a machine, and loses no work.

Programs call `Watch.reached(step)` after every step. With one process, `Watch` records the signal.
With several, JAX's preemption service informs all of them, and `reached` becomes true at the same
step in each, so that they write one checkpoint together.
"""

from __future__ import annotations

import signal
import threading

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h: not an error; the same command resumes. Launchers restart on it.
EXIT_CODE = 75


class Preempted(Exception):
    """The program received SIGTERM and has saved its work."""


class Watch:
    """A context that watches for SIGTERM; the previous handler returns at its end.

    Outside the main thread, where Python allows no handler, it watches nothing.
    """

    def __init__(self):
        self._received = False
        self._previous_handler = None
        # JAX's service has its own handler, which Python's would replace.
        self._single_process = jax.process_count() == 1

    def __enter__(self) -> Watch:
        if self._single_process and threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._record)
        return self

    def __exit__(self, *error) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step; all processes get True at the same step."""
        if self._single_process:
            return self._received
        return multihost_utils.reached_preemption_sync_point(step)

    def _record(self, number, frame) -> None:
        self._received = True
