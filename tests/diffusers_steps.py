"""The steps of diffusers' DDPM and DDIM schedulers, to replay their runs. Products have solvers."""

import numpy as np

from cdsde.weights.diffusers import schedule


def previous(scheduler, timesteps, ddim):
    """The level after each one; DDIM takes t - T // N, whatever the list says."""
    if ddim:
        return timesteps - len(scheduler.beta) // len(timesteps)
    return np.append(timesteps[1:], -1)


def _levels(scheduler, t, previous, ddim):
    alpha_bar = scheduler.alpha_bar.astype(np.float64)
    clean = scheduler.clean if ddim else 1.0
    return alpha_bar[t], alpha_bar[previous] if previous >= 0 else clean


def split(scheduler, output, channels):
    """Prediction and learned variance (or None) of `[B, ..., C]`."""
    if str(scheduler.variance).startswith("learned"):
        return output[..., :channels], output[..., channels:]
    return output, None


def _x0_and_eps(scheduler, x, output, a):
    if scheduler.prediction == "epsilon":
        return (x - np.sqrt(1 - a) * output) / np.sqrt(a), output
    if scheduler.prediction == "sample":
        return output, (x - np.sqrt(a) * output) / np.sqrt(1 - a)
    return np.sqrt(a) * x - np.sqrt(1 - a) * output, np.sqrt(a) * output + np.sqrt(1 - a) * x


def variance(scheduler, t, before, ddim, learned=None):
    """The variance of the noise of a step from t to `before`."""
    a, b = _levels(scheduler, t, before, ddim)
    large = 1 - a / b
    if ddim:
        return (1 - b) / (1 - a) * large
    small = max((1 - b) / (1 - a) * large, 1e-20)
    if scheduler.variance == "learned_range":
        mix = (learned + 1) / 2
        return np.exp(mix * np.log(large) + (1 - mix) * np.log(small))
    return {"fixed_large": large, "learned": learned}.get(scheduler.variance, small)


def ddpm(scheduler, x, output, t, before, noise):
    """The next state and the predicted image; `noise` is None at t = 0."""
    a, b = _levels(scheduler, t, before, False)
    output, learned = split(scheduler, output, x.shape[-1])
    x0 = np.asarray(schedule.bounded(scheduler, _x0_and_eps(scheduler, x, output, a)[0]))
    mean = np.sqrt(b) * (1 - a / b) / (1 - a) * x0 + np.sqrt(a / b) * (1 - b) / (1 - a) * x
    if t == 0:
        return mean, x0
    return mean + np.sqrt(variance(scheduler, t, before, False, learned)) * noise, x0


def ddim(scheduler, x, output, t, before, noise, eta=0.0, clipped=False):
    """The next state and the predicted image; `clipped`: ε is that of the bounded image."""
    a, b = _levels(scheduler, t, before, True)
    x0, eps = _x0_and_eps(scheduler, x, output, a)
    x0 = np.asarray(schedule.bounded(scheduler, x0))
    if clipped:
        eps = (x - np.sqrt(a) * x0) / np.sqrt(1 - a)
    std = eta * np.sqrt(variance(scheduler, t, before, True))
    x = np.sqrt(b) * x0 + np.sqrt(max(1 - b - std**2, 0)) * eps
    return x + (std * noise if eta else 0), x0
