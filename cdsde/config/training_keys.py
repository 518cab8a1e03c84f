"""Keys of the training: what all stages share, and one group for each stage."""

from __future__ import annotations

from cdsde.diffusion.methods.method import Setting

Group = dict[str, Setting]
GUIDED = ("score", "encoder", "classifier")  # networks of the SDE methods
GANS = ("cut", "fastcut")
LATENT = ("autoencoder", "latent")  # networks of a small latent diffusion model, for edits
STAGES = (*GUIDED, *GANS, *LATENT)  # each is trained by itself; a GAN's three networks together


def _training(steps: int, batch_size: int, learning_rate: float, **more: Setting) -> Group:
    """Keys of the training of a stage."""
    return {
        "steps": Setting(steps, "Optimiser steps.", minimum=1),
        "batch_size": Setting(
            batch_size, "Images a step over all devices; pairs for CUT.", minimum=1
        ),
        "learning_rate": Setting(learning_rate, "Peak rate, after the warm-up."),
        **more,
    }


def _schedule(kind: str, warmup: int = 500) -> Group:
    return {
        "schedule": Setting(
            kind,
            "Learning rate after the warm-up; a cosine reaches 0 at the last step.",
            choices=("constant", "cosine"),
        ),
        "warmup": Setting(warmup, "Steps of linear warm-up.", minimum=0),
    }


def _guide_training(learning_rate: float, batch_size: int) -> Group:
    """Training of a network that guides: EGSDE's classifier, the contrastive encoder."""
    return _training(
        5_000,
        batch_size,
        learning_rate,
        **_schedule("cosine"),
        weight_decay=Setting(0.05, "AdamW's weight decay of matrices and kernels.", minimum=0),
        ema=Setting(0.999, "Decay of the parameters' moving average.", minimum=0),
        max_index=Setting(1000, "Noise levels are drawn below this index.", minimum=1),
    )


TRAINING: dict[str, Group] = {
    "train": {
        "stage": Setting(
            "", "Which network to train. Empty: all that the method needs and lacks.", ("", *STAGES)
        ),
        "steps": Setting(int, "Optimiser steps. None: the stage's own.", minimum=1),
        "batch_size": Setting(int, "Images a step. None: the stage's own.", minimum=1),
        "seed": Setting(0, "Decides initial parameters, order of images and noise.", minimum=0),
        "fine_tune": Setting(
            False, "Begin from imported weights or `weights.STAGE`, not at random."
        ),
        "accumulate": Setting(
            1,
            "Parts of a batch, one after the other, whose gradients are averaged: less memory.",
            minimum=1,
        ),
        "clip_norm": Setting(
            1.0, "Largest global norm of a gradient; 0: any. CUT is not clipped.", minimum=0
        ),
        "log_every": Setting(50, "Steps between lines of the log.", minimum=1),
        "checkpoint_every": Setting(1_000, "Steps between checkpoints.", minimum=1),
        "keep": Setting(2, "Checkpoints kept.", minimum=1),
        "sample_every": Setting(
            10_000, "Steps between sheets of the score stage; 0: none.", minimum=0
        ),
    },
    "train.score": _training(
        500_000,
        64,
        1e-4,
        optimizer=Setting(
            "adam", "`muon` makes the steps of kernels orthogonal.", ("adam", "muon")
        ),
        muon_rate=Setting(0.02, "Peak rate of Muon, for kernels; vectors have `learning_rate`."),
        **_schedule("constant"),
        beta2=Setting(0.999, "Adam's β2.", minimum=0),
        ema=Setting(0.9999, "Decay of the parameters' moving average.", minimum=0),
        snr_clip=Setting(0.0, "γ of min-SNR weighting; 0: the simple loss.", minimum=0),
        levels=Setting(
            "index",
            "Noise levels are drawn evenly, or normally in log-SNR as EDM does.",
            ("index", "log_snr"),
        ),
        log_snr_mean=Setting(2.4, "Mean of that normal distribution; EDM's."),
        log_snr_std=Setting(2.4, "Its standard deviation; EDM's.", minimum=1e-3),
    ),
    "train.encoder": {
        **_guide_training(3e-4, 64),
        "temperature": Setting(0.2, "τ of NT-Xent.", minimum=1e-4),
        "factor": Setting(32, "N of the low-pass that makes the second view.", minimum=1),
    },
    "train.classifier": _guide_training(3e-4, 32),
    # Published: horse → zebra, 1,334 images an epoch, one pair a step, 400 epochs.
    "train.cut": _training(
        400 * 1334,
        1,
        2e-4,
        epoch=Setting(1334, "Steps of an epoch, by which the rate decays.", minimum=1),
        ema=Setting(0.0, "Decay of the generator's moving average.", minimum=0),
    ),
    "train.autoencoder": _training(
        2_000, 16, 1e-3, kl=Setting(1e-3, "Weight of the KL divergence.", minimum=0)
    ),
    "train.latent": _training(
        10_000,
        32,
        5e-4,
        ema=Setting(0.999, "Decay of the parameters' moving average.", minimum=0),
        snr_clip=Setting(5.0, "γ of min-SNR weighting; 0: the simple loss.", minimum=0),
        drop_text=Setting(0.1, "Share of images shown without their caption.", minimum=0),
        shift=Setting(0.0, "Images are moved at random by up to this share of the side."),
    ),
}
