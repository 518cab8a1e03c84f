"""Stopping on a signal with several processes, where JAX's service decides at which step."""

import jax
from jax.experimental import multihost_utils

from cdsde.runtime import preemption


def test_the_service_is_told_the_steps_of_the_program(monkeypatch):
    """It counts from 0, also where a training goes on from a late step, or a stage follows."""
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda n: asked.append(n) or n == 5
    )
    reached = []
    for steps in (3, 2):
        with preemption.Watch() as watch:
            reached += [watch.reached() for _ in range(steps)]
    first = asked[0]
    assert asked == list(range(first, first + 5)) and reached == [n == 5 for n in asked]
