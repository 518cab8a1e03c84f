r"""ILVR (Choi et al. 2021, arXiv 2108.02938): the low frequencies are the source's at every level.

After each step, with φ the low-pass of factor N and x_t the source, freshly perturbed,

    y ← y + φ(x_t) - φ(y)    (equation 8)
"""

from __future__ import annotations

from cdsde.diffusion.methods.method import Method, Projection, Setting, start_setting


def start(settings):
    """Noise alone, or the perturbed source."""
    from cdsde.diffusion.methods import composition

    return composition.from_noise if settings.from_noise else composition.from_perturbed_source


def projection(settings) -> Projection:
    """Equation 8 of the paper."""
    from cdsde.diffusion import energies

    def apply(y, x_t):
        return y + energies.lowpass(x_t - y, settings.factor)

    return Projection(apply, settings.level)


ILVR = Method(
    name="ilvr",
    title="ILVR",
    settings={
        "start": start_setting(1000),
        "factor": Setting(32, "N of the low-pass whose frequencies are the source's.", minimum=1),
        "level": Setting(
            "previous",
            "Noise level of the projected source: where the step arrived, or where it began.",
            choices=("previous", "same"),
        ),
        "from_noise": Setting(True, "Start from noise alone; False: from the perturbed source."),
    },
    start=start,
    projection=projection,
)
