"""Settings that several configs share; each function changes a config in place."""

from __future__ import annotations

from ml_collections import ConfigDict

# The tasks with shipped networks, which a page offers.
PAGE = ("gothic2mincho", "mincho2gothic", "gothic2brush")
PAGE += ("twemoji2fluent", "noto2fluent", "fluent2twemoji")


def small_networks(c: ConfigDict) -> None:
    """Networks of 1-3 M parameters for images of 64²: a few images per second on a laptop.

    Score networks see an image of 64² as 32² patches of 2² pixels, and Fourier features of them,
    which teach that paper is white and ink is black. v-prediction recovers colours at high noise.
    Noise levels that are normal in log-SNR spend a small budget where images take shape, and still
    train low noise, which cleans flat areas.
    """
    c.score.update(
        patch_size=2,
        fourier=(2, 3, 4, 5, 6),
        channels=32,
        channel_mult=(1, 3, 4),
        num_res_blocks=1,
        attention_resolutions=(8,),
        num_head_channels=32,
        resblock_updown=False,
        conv_resample=False,
        learn_sigma=False,
        prediction="v",
        group_channels=4,
    )
    for encoder_half in (c.encoder, c.classifier):
        encoder_half.update(
            patch_size=4,
            channels=64,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(8,),
            num_head_channels=32,
            resblock_updown=False,
            pool="adaptive",
        )
    # Contrast at each position: coarse colours alone distinguish whole images, and an encoder that
    # learns only these is another low-pass.
    c.encoder.update(hidden_dim=128, embed_dim=64, pool="none", group_channels=4)
    c.train.score.update(
        batch_size=16,
        optimizer="muon",
        muon_rate=0.02,
        learning_rate=1e-3,
        beta2=0.99,
        warmup=100,
        schedule="cosine",
        ema=0.999,
        levels="log_snr",
        log_snr_mean=2.0,
        log_snr_std=3.0,
    )
    c.train.encoder.update(
        steps=1000,
        batch_size=48,
        learning_rate=5e-4,
        warmup=100,
        max_index=600,
        temperature=0.1,
    )
    c.train.classifier.update(
        steps=1000, batch_size=24, learning_rate=5e-4, warmup=100, max_index=600
    )


def factor(c: ConfigDict, n: int) -> None:
    """Sets the low-pass factor N of every method and of the encoder's second view."""
    c.train.encoder.factor = n
    for method in ("ilvr", "egsde", "contrastive_sde", "sddm"):
        c[method].factor = n


def emoji(c: ConfigDict, source: str, target: str, score_steps: int) -> None:
    """A task on the embedded emoji at 64², with its shipped checkpoints.

    Tasks with the same target share a score network, which is trained on the target only. All tasks
    share one encoder and one classifier, trained on all three styles. A GAN knows one task.
    """
    _embedded(c, "emoji", source, target, ("twemoji", "noto", "fluent"), ("twemoji", "fluent"))
    small_gan(c)
    c.train.score.update(steps=score_steps, log_snr_mean=3.0, ema=0.998)
    factor(c, 4)
    c.ilvr.factor = c.train.encoder.factor = 8  # one low-pass pixel per position of the encoder's
    # Tuned on val: SDEdit, EGSDE and Contrastive-SDE have the same distance to the source, so that
    # their realism can be compared. Above it they lose faces; DDIB does not, and reads the source's
    # network. The contrast of domains (`contrastive_sde.domain_weight`) gains nothing at 64².
    c.sdedit.start = 175
    c.egsde.update(start=200, content_weight=5.0, domain_weight=40.0)
    c.contrastive_sde.update(start=200, content_weight=5.0, weight=500.0)
    c.ddib.start, c.sddm.until, c.sample.steps = 500, 150, 15
    if c.task == "twemoji2fluent":
        c.weights.cut = "shipped:cut-twemoji2fluent-64"


def glyphs(c: ConfigDict, source: str, target: str) -> None:
    """A task on the embedded glyphs at 64².

    Tasks with the same target share a score network, which is trained on the target only.
    """
    styles = "gothic", "mincho", "brush"
    _embedded(c, "glyphs", source, target, styles, styles)
    c.data.flip = False  # a mirrored character is not one; a moved one is
    for half in (c.encoder, c.classifier):
        half.update(patch_size=2, attention_resolutions=(16,))
    c.train.score.update(steps=20_000, log_snr_mean=2.5, log_snr_std=3.5)
    c.train.encoder.update(steps=600, batch_size=24, max_index=1000, view="style", clean=True)
    c.train.classifier.update(steps=600, max_index=1000)
    # Tuned on val: SDEdit from 600 is hardly nearer to the style than from 500, and loses
    # characters; so does EGSDE. No low-pass: it would keep the width of strokes.
    c.sdedit.start, c.ilvr.factor, c.sddm.factor = 500, 4, 8
    c.egsde.update(start=500, content_weight=0.0, domain_weight=100.0, factor=8)
    c.ddib.refine = 400  # makes the paper white
    c.contrastive_sde.update(
        start=600, weight=500.0, content_weight=0.0, similarity="nce", temperature=0.1, clean=True
    )
    c.contrastive_sde.score_weight = 0.5
    c.sample.steps = 20
    c.eval.shapes = True


def _embedded(c: ConfigDict, root: str, source: str, target: str, styles, scores) -> None:
    """A task on embedded data; `scores` are the styles with a shipped score network."""
    c.task = f"{source}2{target}"
    c.data.update(root=root, source=source, target=target, image_size=64, shift=3)
    c.data.domains = styles
    small_networks(c)
    c.train.score.batch_size = 32
    c.train.update(sample_every=1000, checkpoint_every=250)
    c.sddm.update(energy="egsde", blocks=16)  # of 4² pixels
    # Without `clip`: clipped predictions of white are on average below white.
    c.sample.update(solver="dpmpp_2m", spacing="log_snr", follow=True)
    c.serve.tasks = PAGE
    for stage in ("encoder", "classifier"):  # trained on all styles
        c.weights[stage] = f"shipped:{stage}-{root}-64"
    if target in scores:
        c.weights.score = f"shipped:score-{target}-64"
    if source in scores:
        c.weights.source_score = f"shipped:score-{source}-64"
    if {source, target} <= set(scores):
        c.method = "ddib"  # the best on most of them: docs/results.md


def egsde_256(c: ConfigDict, source: str, target: str) -> None:
    """The published 256² set-up of EGSDE: classifier, energies, M = 500 of 1000, bicubic resizing.

    `base()` already has the published ADM network and weights λ; this adds the rest of a task.
    """
    c.task = f"{source.replace(',', '_')}2{target}"
    c.data.update(source=source, target=target, image_size=256, filter="bicubic")
    c.sample.batch_size = 8
    factor(c, 32)
    # Half an ADM U-Net: width 128, depth 2, attention at 32, 16 and 8; trained 5,000 iterations.
    c.train.classifier.update(steps=5000, batch_size=32, learning_rate=3e-4, weight_decay=0.05)


def afhq_64(c: ConfigDict, source: str, target: str) -> None:
    """A task of AFHQ at 64², for EDM's network; EGSDE's settings, and guides of half the levels."""
    egsde_256(c, source, target)
    c.task = f"afhq64_{source}2{target}"
    c.data.update(root="data/afhq", image_size=64)
    factor(c, 8)
    c.encoder.attention_resolutions = c.classifier.attention_resolutions = (16, 8)
    c.encoder.channel_mult = c.classifier.channel_mult = (1, 2, 3, 4)
    c.method = "egsde"
    c.sample.split = "val"


def ddpm_256(c: ConfigDict) -> None:
    """The published DDPM network for CelebA-HQ (male → female)."""
    c.score.update(
        arch="ddpm",
        channels=128,
        channel_mult=(1, 1, 2, 2, 4, 4),
        num_res_blocks=2,
        attention_resolutions=(16,),
        learn_sigma=False,
    )


def gan_256(c: ConfigDict, method: str, source: str, target: str) -> None:
    """The published set-up of CUT and FastCUT: random crops of 256 from 286, one pair per step."""
    c.task = f"{source}2{target}_{method}"
    c.method = method
    c.data.update(
        root=f"data/{source}2{target}",
        source=source,
        target=target,
        image_size=256,
        load_size=286,
        fit="stretch",
        filter="bicubic",
    )
    c.sample.split = "val"


def small_gan(c: ConfigDict) -> None:
    """CUT and FastCUT for images of 64²: about a third of the width, and 6 residual blocks.

    Six is the smallest number of blocks for which the generator has layer 16.
    """
    c.cut.update(
        channels=24,
        num_blocks=6,
        discriminator_channels=32,
        discriminator_layers=2,
        patch_features=64,
        num_patches=64,
        group_channels=8,  # instance normalisation loses the lightness of flat drawings
    )
    # An epoch is 100 steps of eight pairs. With so few steps, the learning rate is four times the
    # published one.
    c.train.cut.update(steps=2_400, batch_size=8, epoch=100, learning_rate=8e-4, ema=0.99)


def from_hub(c: ConfigDict, name: str) -> None:
    """A published score network of a model hub, which its files describe; SDEdit needs no other."""
    c.weights.score = f"hf:{name}"
    c.method = "sdedit"
    c.sample.split = "val"
