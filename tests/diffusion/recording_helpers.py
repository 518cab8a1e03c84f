"""Runs of the vectors of tests/golden/methods, with what they pass on the way recorded."""

from collections import defaultdict

import jax
import numpy as np
from vector_helpers import SETTINGS, arrays_of

from cdsde.data import to_float
from cdsde.diffusion import schedules
from cdsde.diffusion.levels import make_grid, respaced

_DIFFUSION = SETTINGS["diffusion"]
assert _DIFFUSION["beta_schedule"] == "linear"
ENDS = _DIFFUSION["num_diffusion_timesteps"], _DIFFUSION["beta_start"], _DIFFUSION["beta_end"]
_BETA = np.linspace(*ENDS[1:], ENDS[0])
# guided-diffusion, on which SDDM and DDIB stand, keeps its tables in float64.
EXACT = schedules.Schedule(_BETA, np.cumprod(1 - _BETA))


def respaced_grid(respacing):
    """The grid of the levels that the vectors' `respacing` keeps; "" keeps all."""
    kept = respaced(EXACT.num_steps, respacing or str(EXACT.num_steps))
    return make_grid(EXACT, int(kept[-1]) + 1, len(kept))


class Recording:
    """What functions get and give while a program runs, compiled or not, in order."""

    def __init__(self):
        self._seen = defaultdict(list)

    def of(self, name, function, shown=lambda result, *args: result):
        """`function`, which then records `shown(its result, *its arguments)`, if not None."""

        def recorded(*args):
            result = function(*args)
            if (value := shown(result, *args)) is not None:
                jax.debug.callback(self._seen[name].append, value, ordered=True)
            return result

        return recorded

    def taken(self):
        """`{name: [what each call showed]}` since the last time."""
        jax.effects_barrier()
        seen = defaultdict(list)
        for name, values in self._seen.items():
            seen[name] = jax.tree.map(np.asarray, values)
        for values in self._seen.values():
            values.clear()
        return seen


def assert_pictures_are_read_as_published(file):
    arrays = arrays_of(file)
    pictures = [name for name in arrays if name.endswith("source_uint8")]
    assert pictures
    for name in pictures:
        stem = name.removesuffix("source_uint8")
        (given,) = (stem + x for x in ("ref", "x0", "source") if stem + x in arrays)
        np.testing.assert_allclose(to_float(arrays[name]), arrays[given], rtol=0, atol=1e-7)
