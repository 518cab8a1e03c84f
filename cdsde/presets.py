"""Parts that several configs share; each takes a config and changes it in place."""

from __future__ import annotations

from ml_collections import ConfigDict


def small_networks(c: ConfigDict) -> None:
    """Networks of 1-3 M parameters for images of 32² to 64²: a few images a second on a laptop.

    v-prediction and min-SNR weights reach a clean picture in a fraction of the steps of plain
    ε-matching, which is what a small budget is short of.
    """
    c.score.update(
        channels=32,
        channel_mult=(1, 3, 4),
        num_res_blocks=1,
        attention_resolutions=(8,),
        num_head_channels=32,
        resblock_updown=False,
        conv_resample=False,
        learn_sigma=False,
        prediction="v",
    )
    for half in (c.encoder, c.classifier):
        half.update(
            patch_size=2,
            channels=64,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(8,),
            num_head_channels=32,
            resblock_updown=False,
            conv_resample=False,
            pool="adaptive",
        )
    c.encoder.update(hidden_dim=128, embed_dim=64)
    c.train.score.update(
        batch_size=16,
        learning_rate=1e-3,
        beta2=0.99,
        warmup=100,
        schedule="cosine",
        ema=0.999,
        snr_clip=5.0,
    )
    c.train.encoder.update(steps=2000, batch_size=64, learning_rate=5e-4, warmup=100)
    c.train.classifier.update(steps=800, batch_size=32, learning_rate=5e-4, warmup=100)


def factor(c: ConfigDict, n: int) -> None:
    """The low-pass factor N, the same for every method and the encoder's second view."""
    c.train.encoder.factor = n
    for method in ("ilvr", "egsde", "contrastive_sde"):
        c[method].factor = n


def emoji(c: ConfigDict, source: str, target: str, score_steps: int) -> None:
    """A task on the embedded emoji at 32², with its shipped checkpoints.

    Score networks know their target only, so tasks with one target share one; encoders and
    classifiers know both domains and serve either direction.
    """
    c.task = f"{source}2{target}"
    c.data.update(root="emoji", source=source, target=target, image_size=32)
    small_networks(c)
    factor(c, 8)
    c.train.score.steps = score_steps
    c.train.sample_every = 1000
    c.train.checkpoint_every = 500
    # Few, clipped steps: a quick look that the full grid hardly changes (see the model cards).
    c.sample.update(steps=25, clip=True)
    both = "-".join(sorted((source, target)))
    c.weights.score = f"shipped:score-{target}-32"
    c.weights.encoder = f"shipped:encoder-{both}-32"
    c.weights.classifier = f"shipped:classifier-{both}-32"
