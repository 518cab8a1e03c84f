"""Metrics: arrays in, numbers out; nothing here uses files, networks or configs."""

from cdsde.metrics.distances import (
    Moments,
    add_moments,
    frechet_distance,
    jackknife_interval,
    kernel_statistic,
    moments,
    precision_recall,
)
from cdsde.metrics.editing import (
    background,
    clip_score,
    directional_similarity,
    self_similarity,
    structure_distance,
)
from cdsde.metrics.faithfulness import METRICS, bootstrap_interval, l2, mse, psnr, ssim
from cdsde.metrics.shapes import blurred, legible, overlap

__all__ = [
    "METRICS",
    "Moments",
    "add_moments",
    "background",
    "blurred",
    "bootstrap_interval",
    "clip_score",
    "directional_similarity",
    "frechet_distance",
    "jackknife_interval",
    "kernel_statistic",
    "l2",
    "legible",
    "moments",
    "mse",
    "overlap",
    "precision_recall",
    "psnr",
    "self_similarity",
    "ssim",
    "structure_distance",
]
