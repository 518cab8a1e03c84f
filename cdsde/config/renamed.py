"""Keys of earlier versions: the new name of each, or the reason why it is gone."""

from __future__ import annotations

import re

# Pattern of the old key, and the new key.
RENAMED = (
    (r"edit\.method", "method"),
    (r"edit\.(seed|limit|batch_size|input|output|split)", r"sample.\1"),
    (r"edit\.image_size", "data.image_size"),
    (r"eval\.split", "sample.split"),
    (r"fastcut\.(\w+)", r"cut.\1"),
    (r"train\.fastcut\.(\w+)", r"train.cut.\1"),
    (r"train\.\w+\.(accumulate|clip_norm|fine_tune)", r"train.\1"),
    (r"train\.latent\.augment\.shift", "train.latent.shift"),
)
# Pattern of the old key, and the reason why it is gone.
GONE = (
    (
        r"(contrastive_sde\.(band|cutoff|reference|domain_band)|egsde\.domain_band)",
        "no result needed it (docs/results/ablations.md)",
    ),
    (r"train\.encoder\.colour", "the second view is the low-pass alone"),
    (r"train\.encoder\.shared_time", "all images of a batch share one noise level"),
    (r"train\.\w+\.augment\.\w+", "only train.latent.shift is left"),
    (r"train\.(fast)?cut\.decay", "the learning rate decays in the last half of CUT's epochs, and "
     "in the last quarter of FastCUT's"),
    (r"cut\.across_batch", "negatives come from the same image, as published"),
    (r"mesh\.data", "its size is the number of devices divided by mesh.fsdp"),
    (r"serve\.max_steps", "the page takes any number of steps"),
    (r"train\.sample_images", "a sheet shows 8 images"),
    (r"eval\.seed", "the bootstrap has a fixed seed"),
    (r"(encoder|classifier)\.(num_heads|use_scale_shift_norm|conv_resample|new_attention_order|"
     r"dropout)", "it has its published value"),
    (r"(autoencoder|latent)\.(blocks|groups|text_heads)", "it is fixed"),
    (r"train\.\w+\.(optimizer|muon_rate|schedule|warmup|weight_decay|beta1|beta2|ema)",
     "it is fixed for this stage (cdsde/config/derived.py)"),
)  # fmt: skip


def about(key: str) -> str | None:
    """A sentence about a key of an earlier version; None for any other key."""
    for pattern, now in RENAMED:
        if match := re.fullmatch(pattern, key):
            return f"config.{key} is now config.{match.expand(now)}"
    for pattern, reason in GONE:
        if re.fullmatch(pattern, key):
            return f"config.{key} is gone: {reason}"
    return None
