"""Keys of training: those that all stages share, and one group per stage."""

from __future__ import annotations

from cdsde.diffusion.methods.method import Setting, seed_setting

Group = dict[str, Setting]
GUIDED = ("score", "encoder", "classifier")  # networks of the SDE methods
GANS = ("cut", "fastcut")
LATENT = ("autoencoder", "latent")  # networks of a small latent diffusion model, for editing
SOURCE_SCORE = "source_score"  # the score network of the source domain, shaped like `score`
FEATURES = ("vgg",)  # networks that are imported, not trained
# One training each; a GAN's three networks share one.
STAGES = (*GUIDED, SOURCE_SCORE, *GANS, *LATENT)


def _training(steps: int, batch_size: int, learning_rate: float, **more: Setting) -> Group:
    """Keys of the training of one stage."""
    return {
        "steps": Setting(steps, "Number of optimiser steps.", minimum=1),
        "batch_size": Setting(
            batch_size, "Images per step over all devices; for CUT, pairs of images.", minimum=1
        ),
        "learning_rate": Setting(
            learning_rate, "Peak learning rate, reached after the warm-up.", above=0
        ),
        **more,
    }


def _schedule(kind: str, warmup: int = 500) -> Group:
    return {
        "schedule": Setting(
            kind,
            "Learning rate after the warm-up; `cosine` decays it to 0 at the last step.",
            choices=("constant", "cosine"),
        ),
        "warmup": Setting(warmup, "Number of steps of linear warm-up.", minimum=0),
    }


def _guide_training(learning_rate: float, batch_size: int) -> Group:
    """Keys of the training of a guiding network: the classifier or the contrastive encoder."""
    return _training(
        5_000,
        batch_size,
        learning_rate,
        **_schedule("cosine"),
        weight_decay=Setting(
            0.05, "Weight decay of AdamW, applied to matrices and kernels.", minimum=0
        ),
        ema=Setting(0.999, "Decay of the moving average of the parameters.", minimum=0, below=1),
        max_index=Setting(1000, "Training draws noise levels below this index.", minimum=1),
    )


TRAINING: dict[str, Group] = {
    "train": {
        "stage": Setting(
            "",
            "Network to train. Empty: every network that the method needs and that the work folder "
            "does not have; weights that `weights.*` names do not count.",
            ("", *STAGES),
        ),
        "steps": Setting(
            int, "Number of optimiser steps. None: `steps` of the stage's group.", minimum=1
        ),
        "batch_size": Setting(
            int, "Images per step. None: `batch_size` of the stage's group.", minimum=1
        ),
        "seed": seed_setting(
            "Seed of the initial parameters, the order of the images and the noise."
        ),
        "fine_tune": Setting(
            False,
            "Start from imported weights or `weights.STAGE`, not from random parameters. The "
            "network of a file may be one of smaller images with as many patches.",
        ),
        "accumulate": Setting(
            1,
            "Number of parts into which a batch is cut; the step averages their gradients, which "
            "takes less memory.",
            minimum=1,
        ),
        "clip_norm": Setting(
            1.0,
            "Maximum global norm of the gradient; 0: no limit. CUT and FastCUT have no limit.",
            minimum=0,
        ),
        "log_every": Setting(50, "Steps between log lines.", minimum=1),
        "checkpoint_every": Setting(1_000, "Steps between checkpoints.", minimum=1),
        "keep": Setting(2, "Number of checkpoints to keep.", minimum=1),
        "sample_every": Setting(
            10_000, "Steps between sample sheets of the score stage; 0: no sheets.", minimum=0
        ),
        "profile": Setting(
            0,
            "Number of steps to record in `logs/STAGE/profile`, a trace that TensorBoard and "
            "Perfetto open; 0: none.",
            minimum=0,
        ),
    },
    "train.score": _training(
        500_000,
        64,
        1e-4,
        optimizer=Setting(
            "adam",
            "Optimiser; `muon` orthogonalises the updates of kernels and uses Adam for vectors.",
            ("adam", "muon"),
        ),
        muon_rate=Setting(
            0.02, "Peak learning rate of Muon, for kernels; vectors use `learning_rate`.", above=0
        ),
        **_schedule("constant"),
        beta2=Setting(0.999, "β2 of Adam.", minimum=0, below=1),
        ema=Setting(0.9999, "Decay of the moving average of the parameters.", minimum=0, below=1),
        snr_clip=Setting(
            0.0, "γ of min-SNR weighting; 0: all noise levels have weight 1.", minimum=0
        ),
        levels=Setting(
            "index",
            "Distribution of the noise levels: uniform in the index, or normal in log-SNR (EDM).",
            ("index", "log_snr"),
        ),
        log_snr_mean=Setting(
            2.4,
            "Mean of the normal distribution of `levels=log_snr`; the default is EDM's.",
            minimum=-30,
            maximum=30,
        ),
        log_snr_std=Setting(
            2.4,
            "Standard deviation of that distribution; the default is EDM's.",
            minimum=1e-3,
            maximum=100,
        ),
    ),
    "train.encoder": {
        **_guide_training(3e-4, 64),
        "temperature": Setting(0.2, "Temperature τ of NT-Xent.", minimum=1e-4),
        "view": Setting(
            "lowpass",
            "Second view of an image: its low-pass, as in the paper, or one in a random style: "
            "blurred, moved by a pixel, with thicker or thinner strokes and other contrast.",
            ("lowpass", "style"),
        ),
        "factor": Setting(32, "Factor N of the low-pass that makes the second view.", minimum=1),
        "clean": Setting(
            False, "The second view has no noise; else it has the noise level of the first."
        ),
    },
    "train.classifier": _guide_training(3e-4, 32),
    # As published for horse → zebra: 1,334 images per epoch, one pair per step, 400 epochs.
    "train.cut": _training(
        400 * 1334,
        1,
        2e-4,
        epoch=Setting(1334, "Steps per epoch; the learning rate decays once per epoch.", minimum=1),
        ema=Setting(
            0.0, "Decay of the moving average of the generator; 0: no average.", minimum=0, below=1
        ),
    ),
    "train.autoencoder": _training(
        2_000, 16, 1e-3, kl=Setting(1e-3, "Weight of the KL divergence.", minimum=0)
    ),
    "train.latent": _training(
        10_000,
        32,
        5e-4,
        ema=Setting(0.999, "Decay of the moving average of the parameters.", minimum=0, below=1),
        snr_clip=Setting(
            5.0, "γ of min-SNR weighting; 0: all noise levels have weight 1.", minimum=0
        ),
        drop_text=Setting(
            0.1, "Share of images trained without their caption.", minimum=0, maximum=1
        ),
        shift=Setting(
            0.0, "Maximum random shift of an image, as a share of its side.", minimum=0, maximum=1
        ),
    ),
}
