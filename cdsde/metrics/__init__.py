"""Metrics: arrays in, numbers out; nothing here knows files, networks or configs."""

from cdsde.metrics.distances import (
    Moments,
    add_moments,
    frechet_distance,
    jackknife_interval,
    kernel_distance,
    kernel_statistic,
    moments,
    precision_recall,
)
from cdsde.metrics.faithfulness import METRICS, bootstrap_interval, l2, mse, psnr, ssim

__all__ = [
    "METRICS",
    "Moments",
    "add_moments",
    "bootstrap_interval",
    "frechet_distance",
    "jackknife_interval",
    "kernel_distance",
    "kernel_statistic",
    "l2",
    "moments",
    "mse",
    "precision_recall",
    "psnr",
    "ssim",
]
