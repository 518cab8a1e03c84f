"""Stops a training on SIGTERM or Ctrl-C, and loses no work.

Clusters send SIGTERM before they reclaim a machine. Programs call `Watch.reached()` after every
step. With one process, `Watch` records the signal. With several, JAX's preemption service informs
all of them, and `reached` becomes true at the same step in each, so that they write one checkpoint
together.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading

import jax
from absl import logging
from jax.experimental import multihost_utils

from cdsde.runtime import interrupts

# JAX's service counts from 0 when the program starts: steps of a resumed training, or of a second
# stage, would be numbers that it never asks for.
_CALLS = itertools.count(1)
# EX_TEMPFAIL of sysexits.h: not an error; the same command resumes. Launchers restart on it.
EXIT_CODE = 75


class Preempted(Exception):
    """The program received SIGTERM or Ctrl-C and has saved its work.

    Attributes:
      exit_code: the code with which a program ends.
    """

    def __init__(self, message: str, exit_code: int = EXIT_CODE):
        super().__init__(message)
        self.exit_code = exit_code


class Watch:
    """A context that watches for SIGTERM and Ctrl-C; the previous handlers return at its end.

    Before the first call of `reached` there is no work to save, and Ctrl-C does what it did before
    (KeyboardInterrupt, or see interrupts.py); so does every Ctrl-C after the first one. An ignored
    SIGINT stays so. Outside the main thread, where Python allows no handler, it watches nothing.

    Attributes:
      received: whether this process has received one of the two.
    """

    def __init__(self):
        self.received = self._interrupted = self._unsaved = False
        self._previous_handlers = {}
        # JAX's service has its own handler, which Python's would replace.
        self._single_process = jax.process_count() == 1

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():
            handlers = {}
            if callable(signal.getsignal(signal.SIGINT)):
                handlers[signal.SIGINT] = self._interrupt
            if self._single_process:
                handlers[signal.SIGTERM] = self._record
            for name, handler in handlers.items():
                self._previous_handlers[name] = signal.signal(name, handler)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def reached(self) -> bool:
        """Whether to save and stop after this step; all processes get True at the same step."""
        self._unsaved = True
        if self._single_process:
            return self.received
        return multihost_utils.reached_preemption_sync_point(next(_CALLS))

    def stopped(self, what: str, rest: str) -> Preempted:
        """The exception to raise once the work is saved: "WHAT was stopped by SIGNAL REST"."""
        by, code = ("Ctrl-C", interrupts.EXIT_CODE) if self._interrupted else ("SIGTERM", EXIT_CODE)
        return Preempted(f"{what} was stopped by {by} {rest}", code)

    def _record(self, number, frame) -> None:
        self.received = True

    def _interrupt(self, number, frame) -> None:
        if self._interrupted or not self._unsaved:
            self._previous_handlers[signal.SIGINT](number, frame)
            return
        self._interrupted = self.received = True
        logging.warning("Ctrl-C: the work is saved after this step; a second one ends at once")
        if not self._single_process:  # the others learn of it from the service
            os.kill(os.getpid(), signal.SIGTERM)
