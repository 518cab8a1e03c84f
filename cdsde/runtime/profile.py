"""A trace of some steps of a run, which TensorBoard and Perfetto (ui.perfetto.dev) open."""

from __future__ import annotations

from pathlib import Path

import jax
from absl import logging


class Trace:
    """Records `count` steps into `folder`, starting after the second one, which compiles nothing.

    With `count` = 0 it records nothing.
    """

    def __init__(self, folder: Path, first: int, count: int):
        self._folder, self._begin, self._end = folder, first + 2, first + 2 + count
        self._running = False

    def after(self, step: int, result) -> None:
        """Starts or ends the trace after `step`, whose `result` is waited for then."""
        if step == self._begin < self._end:
            jax.block_until_ready(result)
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = True
        elif step == self._end and self._running:
            jax.block_until_ready(result)
            self.close()
            logging.info("trace of %d steps in %s", self._end - self._begin, self._folder)

    def close(self) -> None:
        """Ends the trace if it is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
