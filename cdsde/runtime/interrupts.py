"""Ctrl-C on the command line: one sentence and exit code 130, whatever the program is doing.

A KeyboardInterrupt would wait for the end of a compilation, gets lost inside callbacks of compiled
code, and unwinds half-finished calls. So a thread takes the signal. Every file appears complete or
not at all (files.py), which is why a program may end at any moment. A training first saves its work
(preemption.py); a second Ctrl-C ends it at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

EXIT_CODE = 128 + signal.SIGINT  # what shells report of a program that Ctrl-C has ended


def take() -> None:
    """From now on a thread takes every SIGINT; programs call this before they import anything slow.

    It calls the handler of SIGINT that is installed then, as Python would. The one that this
    function installs ends the process.
    """
    # A shell starts programs in the background of a script with SIGINT ignored.
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    # Threads and processes that start later inherit the mask: nobody else gets the signal.
    signal.signal(signal.SIGINT, _end)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    threading.Thread(target=_listen, name="interrupts", daemon=True).start()


def _listen() -> None:
    while True:
        signal.sigwait([signal.SIGINT])
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            handler(signal.SIGINT, None)


def _end(number, frame) -> None:
    # Written to the descriptor: another thread may hold the lock of sys.stderr.
    text = "stopped by Ctrl-C; files that are complete stay, and the same command makes the rest"
    os.write(2, f"\n{text}\n".encode())
    # Imported by whoever has something to clean up; this module is imported before all others.
    if multiprocessing := sys.modules.get("multiprocessing"):
        for process in multiprocessing.active_children():
            process.kill()
    if files := sys.modules.get("cdsde.runtime.files"):
        files.discard_unfinished()
    os._exit(EXIT_CODE)
