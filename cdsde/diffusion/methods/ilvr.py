r"""ILVR (Choi et al. 2021, arXiv 2108.02938): takes low frequencies from the source at each level.

After each step, with the low-pass φ of factor N and the freshly perturbed source x_t,

    y ← y + φ(x_t) - φ(y)    (equation 8)
"""

from __future__ import annotations

from cdsde.diffusion.methods.method import (
    Method,
    Projection,
    Setting,
    from_noise,
    start_setting,
)


def start(settings):
    """Pure noise, or the perturbed source."""
    from cdsde.diffusion.methods import composition

    return from_noise if settings.from_noise else composition.from_perturbed_source


def projection(settings) -> Projection:
    """The projection y + φ(x_t) - φ(y), equation 8 of the paper."""
    from cdsde.diffusion import energies, schedules

    def apply(y, x0, z, level):
        same = settings.level == "same"
        x_t = schedules.perturb(x0, z, level.alpha_bar if same else level.next_alpha_bar)
        return y + energies.lowpass(x_t - y, settings.factor)

    return Projection(apply)


ILVR = Method(
    name="ilvr",
    title="ILVR",
    settings={
        "start": start_setting(1000),
        "factor": Setting(
            32, "Factor N of the low-pass; its frequencies come from the source.", minimum=1
        ),
        "level": Setting(
            "previous",
            "Noise level of the source in the projection: the level after the step (`previous`), "
            "or the level before it (`same`).",
            choices=("previous", "same"),
        ),
        "from_noise": Setting(True, "Start from pure noise; False: from the perturbed source."),
    },
    start=start,
    projection=projection,
)
