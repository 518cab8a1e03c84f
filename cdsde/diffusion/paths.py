r"""The path adapter: any network of a Gaussian path as ε of our process.

Published networks see a noisy image on different paths. All are the state y of our process
(equation (1) of `schedules`), scaled. With a = √ᾱ, s = √(1-ᾱ), σ = s/a:

    vp    y = a x0 + s ε                     DDPM, guided-diffusion, diffusers, VP-SDE
    ve    y/a = x0 + σ ε                     VE-SDE (Song et al. 2021)
    edm   c_in y/a, c_in = 1/√(σ² + σ_d²)     EDM (Karras et al. 2022), with the data's deviation
    subvp a' y/a, 1 - a'² = σ a'             sub-VP-SDE (Song et al. 2021), x = a' x0 + (1-a'²) ε
    flow  y/(a+s) = (1-t) x0 + t ε           rectified flow (Liu et al. 2023), t = s/(a+s)

A network whose images are in [0, 1] has x0' = (x0+1)/2, so σ' = σ/2 in all of the above. What it
returns is one of `OUTPUTS`, each a linear combination with y. So one equation serves all networks,
with tables per noise level i:

    ε(y, i) = p_i y + o_i + q_i · network(k_i y + d_i, τ_i)                                      (1)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from cdsde.diffusion import schedules

# State -> its factor of y, of (a, s, σ_d).
STATES: dict[str, Callable] = {
    "vp": lambda a, s, d: np.ones_like(a),
    "ve": lambda a, s, d: 1 / a,
    "edm": lambda a, s, d: 1 / np.sqrt(s**2 + (a * d) ** 2),
    "flow": lambda a, s, d: 1 / (a + s),
    "subvp": lambda a, s, d: np.exp(-np.arcsinh(s / (2 * a))) / a,
}

# Output m -> (p, q) with ε = p y + q m, of (a, s, σ_d).
OUTPUTS: dict[str, Callable] = {
    "eps": lambda a, s, d: (0 * a, np.ones_like(a)),
    "minus_eps": lambda a, s, d: (0 * a, -np.ones_like(a)),
    "x0": lambda a, s, d: (1 / s, -a / s),
    # v = a ε - s x0 (Salimans & Ho 2022).
    "v": lambda a, s, d: (s, a),
    # u = ε - x0, the velocity of the flow's state; its opposite where t = 0 is noise.
    "u": lambda a, s, d: (1 / (a + s), a / (a + s)),
    "minus_u": lambda a, s, d: (1 / (a + s), -a / (a + s)),
    "score_vp": lambda a, s, d: (0 * a, -s),
    "score_ve": lambda a, s, d: (0 * a, -s / a),
    # x0 = c_skip y/a + c_out F (Karras et al. 2022, table 1), without the cancellation in x - x0.
    "F": lambda a, s, d: (
        s / (s**2 + (a * d) ** 2),
        -a * d / np.sqrt(s**2 + (a * d) ** 2),
    ),
}


def _levels(sigma, alpha_bar=None, schedule: str = "linear", scale: float = 1.0, **numbers):
    """Position in the network's own table of ᾱ, interpolated in log SNR; a whole number on it.

    The network is told it times `scale`.

    Below its lowest level the network is told that level, and above its highest one that.
    """
    if alpha_bar is None:
        alpha_bar = schedules.SCHEDULES[schedule](**numbers).alpha_bar
    known = np.asarray(alpha_bar, np.float64)
    with np.errstate(divide="ignore"):
        falling = -schedules.log_snr(np.minimum(known, 1 - 1e-12))
    finite = falling[np.isfinite(falling)]
    return scale * np.interp(2 * np.log(sigma), finite, np.arange(len(finite), dtype=np.float64))


def _vp(sigma, beta_min: float, beta_max: float, scale: float):
    """t of the VP-SDE, where ᾱ = exp(-t²(β1-β0)/2 - tβ0), times `scale`."""
    return scale * _sde_time(np.log1p(sigma**2), beta_min, beta_max)


def _subvp(sigma, beta_min: float, beta_max: float, scale: float):
    """The same of the sub-VP-SDE, whose noise is 1-ᾱ in place of its root."""
    return scale * _sde_time(2 * np.arcsinh(sigma / 2), beta_min, beta_max)


def _sde_time(log, beta_min: float, beta_max: float):
    """t with t²(β1-β0)/2 + tβ0 = `log`."""
    slope = beta_max - beta_min
    return 2 * log / (np.sqrt(beta_min**2 + 2 * slope * log) + beta_min)


def _nearest(sigma, sigmas):
    """Index of the nearest of `sigmas`."""
    known = np.asarray(sigmas, np.float64)
    return np.abs(known[:, None] - sigma).argmin(0).astype(np.float64)


# What a network is told of the noise -> function of σ `[T]` and of the numbers beside "kind".
TIMES: dict[str, Callable] = {
    "levels": _levels,
    "vp": _vp,
    "subvp": _subvp,
    "sigma": lambda sigma: sigma,
    "log_sigma": lambda sigma, factor=1.0, unit=1.0: factor * np.log(sigma / unit),
    "nearest": _nearest,
    "flow": lambda sigma, scale=1.0: scale * sigma / (1 + sigma),
    "minus_flow": lambda sigma, scale=1.0: scale / (1 + sigma),
}


class Path(NamedTuple):
    """How a network sees a noisy image.

    Attributes:
      state: what it gets, a key of `STATES`.
      output: what it returns, a key of `OUTPUTS`.
      time: what it is told of the noise: `{"kind": a key of TIMES, ...}` with that kind's numbers.
      data: the range of its images, (-1, 1) or (0, 1).
      sigma_data: σ_d of "edm" and "F".
      sigma_min: the lowest σ of its training, for images in `data`; None: its table's, or any.
      sigma_max: the highest σ of its training, for images in `data`; None: its table's, or any.
    """

    state: str
    output: str
    time: Mapping[str, Any]
    data: tuple[float, float] = (-1, 1)
    sigma_data: float = 0.5
    sigma_min: float | None = None
    sigma_max: float | None = None


class Tables(NamedTuple):
    """The tables of equation (1), float64 `[T]`: factors p, q, k, offsets o, d, and time τ."""

    p: np.ndarray
    q: np.ndarray
    o: np.ndarray
    k: np.ndarray
    d: np.ndarray
    time: np.ndarray


def tables(path: Path, alpha_bar: np.ndarray) -> Tables:
    """Equation (1) of a path at the levels ᾱ `[T]`, each in (0, 1).

    Raises:
      ValueError: the path names something unknown; the message lists what is known.
    """
    for what, name, known in (
        ("state", path.state, STATES),
        ("output", path.output, OUTPUTS),
        ("time", path.time.get("kind"), TIMES),
    ):
        if name not in known:
            raise ValueError(f"a path has no {what} '{name}'; there are {', '.join(known)}")
    alpha_bar = np.asarray(alpha_bar, np.float64)
    low, high = path.data
    half = (high - low) / 2  # x0' = half x0 + middle
    middle = (high + low) / 2
    signal = np.sqrt(alpha_bar)
    sigma = half * np.sqrt(1 - alpha_bar) / signal
    # a, s of the network's own images: a² + s² = 1, s/a = σ'.
    a = 1 / np.sqrt(1 + sigma**2)
    s = sigma * a
    y_scale, y_shift = half * a / signal, middle * a  # y' of y
    factor = STATES[path.state](a, s, path.sigma_data)
    # Below its lowest noise the network is told that noise, by which it also divides a score.
    told = np.maximum(sigma, path.sigma_min or 0)
    p, q = OUTPUTS[path.output](a, s, path.sigma_data)
    q = -told if path.output == "score_ve" else q
    numbers = {name: value for name, value in path.time.items() if name != "kind"}
    time = TIMES[path.time["kind"]](told, **numbers)
    return Tables(p * y_scale, q, p * y_shift, factor * y_scale, factor * y_shift, time)


def levels_known(path: Path, alpha_bar: np.ndarray) -> int:
    """How many of the levels ᾱ `[T]`, from the cleanest on, the network has been trained on."""
    alpha_bar = np.asarray(alpha_bar, np.float64)
    sigma = (path.data[1] - path.data[0]) / 2 * np.sqrt(1 / alpha_bar - 1)
    highest = path.sigma_max or np.inf
    if path.time["kind"] == "levels":
        time = {k: v for k, v in path.time.items() if k not in ("kind", "scale")}
        table = time.get("alpha_bar") or schedules.SCHEDULES[time.pop("schedule")](**time).alpha_bar
        least = min(value for value in np.asarray(table, np.float64) if value > 0)
        highest = min(highest, np.sqrt(1 / least - 1))
    return int((sigma <= 1.01 * highest).sum())
