"""Every key of a config: its default, what it means, and which values it takes.

A task's file in `configs/` calls `base()` and changes what differs; the defaults are the published
256² set-up of EGSDE's cat→dog wherever it says something. A key whose default is a type may also be
None, and then is. No number is written twice: what follows from other keys is in derived.py, and
what a method's own keys are is in its file in diffusion/methods/.

`python -m cdsde.config.reference` prints this table as docs/configuration.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cdsde.diffusion.methods import METHODS as GUIDED_SDES
from cdsde.diffusion.methods.method import Setting

SDES = tuple(GUIDED_SDES)
GANS = ("cut", "fastcut")
EDITORS = ("ddim", "pix2pix_zero", "pix2pix_zerocon", "pnp", "dds", "cds")
METHODS = (*SDES, *GANS, *EDITORS)
GUIDED = ("score", "encoder", "classifier")  # networks of the SDE methods
LATENT = ("autoencoder", "latent")  # networks of a small latent diffusion model, for edits
STAGES = (*GUIDED, *GANS, *LATENT)  # each is trained by itself; a GAN's three networks together

Group = dict[str, Setting]


def _adm(num_res_blocks: int, attention: tuple[int, ...]) -> Group:
    """Keys that the ADM U-Net and its encoder half share."""
    return {
        "channels": Setting(128, "Width of the first level.", minimum=1),
        "channel_mult": Setting((1, 1, 2, 2, 4, 4), "Width of each level, times `channels`."),
        "num_res_blocks": Setting(num_res_blocks, "Residual blocks a level.", minimum=1),
        "attention_resolutions": Setting(
            attention, "Sides of the maps that have attention, on the network's own grid."
        ),
        "num_head_channels": Setting(64, "Channels of an attention head."),
        "resblock_updown": Setting(True, "Residual blocks change the resolution."),
        "group_channels": Setting(
            1, "Least number of channels that are normalised together; published: 1.", minimum=1
        ),
        "patch_size": Setting(
            1, "Pixels a side that become one position before the first layer.", minimum=1
        ),
    }


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


_NUM_HEADS = Setting(4, "Attention heads where `num_head_channels` is -1.", minimum=1)

GROUPS: dict[str, Group] = {
    "": {
        "task": Setting("base", "Names the default work folder, `runs/TASK`."),
        "method": Setting("contrastive_sde", "What translates, or edits by words.", METHODS),
        "dtype": Setting(
            "float32", "Compute dtype of convolutions and products.", ("float32", "bfloat16")
        ),
        "remat": Setting(False, "Recompute blocks in the backward pass: less memory, more time."),
    },
    "mesh": {
        "fsdp": Setting(
            1,
            "Devices that share the training state of one network. Batches are split over all "
            "devices in any case.",
            minimum=1,
        ),
    },
    "data": {
        "root": Setting(
            "emoji",
            "`emoji` (in the package), a folder `DIR/{train,val,test}/{domain}/`, or `tfds:NAME`.",
        ),
        "data_dir": Setting(str, "Folder of TFDS data sets. None: TFDS's default."),
        "source": Setting("twemoji", "Domain that is translated; several: `cat,wild`."),
        "target": Setting("fluent", "Domain that is translated to."),
        "domains": Setting(
            (), "Domains that encoder and classifier are trained on. (): the sources, the target."
        ),
        "image_size": Setting(256, "Side of the square images, in pixels.", minimum=1),
        "filter": Setting(
            "lanczos", "Resampling, on uint8 pixels.", ("lanczos", "bicubic", "bilinear")
        ),
        "fit": Setting(
            "crop",
            "`crop`: the shorter side to `image_size`, then the centre square; `stretch`: both "
            "sides.",
            ("crop", "stretch"),
        ),
        "flip": Setting(True, "Mirror training images left to right at random."),
        "load_size": Setting(
            int,
            "Read training images at this size and cut `image_size` out at random. None: no.",
        ),
        "workers": Setting(
            0,
            "Processes that decode; 0: in this process, and small sets are kept in memory.",
            minimum=0,
        ),
    },
    "sde": {
        "schedule": Setting("linear", "Noise schedule β.", ("linear", "cosine")),
        "num_steps": Setting(1000, "T, the number of noise levels.", minimum=1),
    },
    "score": {
        "arch": Setting("adm", "Architecture of the score network.", ("adm", "ddpm")),
        **_adm(1, (16,)),
        "num_heads": _NUM_HEADS,
        "use_scale_shift_norm": Setting(True, "The time scales and shifts; False: is added."),
        "conv_resample": Setting(
            True, "Convolutions change the resolution, without `resblock_updown`."
        ),
        "new_attention_order": Setting(False, "Order of heads in the published attention."),
        "learn_sigma": Setting(
            True, "Six output channels, of which the last three (a variance) are never used."
        ),
        "dropout": Setting(0.0, "Share of features dropped in training.", minimum=0),
        "prediction": Setting("eps", "What the network's output means.", ("eps", "v")),
    },
    "encoder": {
        **_adm(2, (32, 16, 8)),
        "pool": Setting(
            "attention",
            "How positions become one vector; `adaptive`: mean; `none`: a vector each.",
            ("attention", "adaptive", "none"),
        ),
        "hidden_dim": Setting(256, "Width of the vectors before the head.", minimum=1),
        "embed_dim": Setting(128, "Width after the projection head.", minimum=1),
    },
    "classifier": {
        **_adm(2, (32, 16, 8)),
        "pool": Setting(
            "attention",
            "How positions become one vector; `adaptive`: mean.",
            ("attention", "adaptive"),
        ),
    },
    "cut": {
        "channels": Setting(64, "Width of the generator.", minimum=1),
        "num_blocks": Setting(9, "Residual blocks of the generator.", minimum=1),
        "discriminator_channels": Setting(64, "Width of the discriminator.", minimum=1),
        "discriminator_layers": Setting(3, "Layers of the discriminator.", minimum=1),
        "group_channels": Setting(
            1, "Channels normalised together; published: 1, instance norm.", minimum=1
        ),
        "patch_features": Setting(256, "Width of the vectors that are compared.", minimum=1),
        "layers": Setting((0, 4, 8, 12, 16), "Layers of the generator that are compared."),
        "num_patches": Setting(256, "Positions drawn in each layer.", minimum=1),
        "temperature": Setting(0.07, "τ of PatchNCE.", minimum=1e-4),
        "gan": Setting("lsgan", "GAN loss.", ("lsgan", "nonsaturating")),
        "gan_weight": Setting(1.0, "λ of the GAN loss."),
        "nce_weight": Setting(float, "λ of PatchNCE. None: 1 for `cut`, 10 for `fastcut`."),
        "identity": Setting(
            bool, "Images of the target must come out as they are. None: for `cut`."
        ),
        "flip_equivariance": Setting(
            bool, "The generator sees every other batch mirrored. None: for `fastcut`."
        ),
    },
    "autoencoder": {
        "widths": Setting((32, 48, 64), "Width of each level; each but the last halves the side."),
        "channels": Setting(4, "Channels of the latents.", minimum=1),
    },
    "latent": {
        "widths": Setting((64, 112, 144), "Width of each level of the U-Net."),
        "heads": Setting(4, "Attention heads of the U-Net.", minimum=1),
        "text_width": Setting(128, "Width of the text encoder.", minimum=1),
        "text_depth": Setting(2, "Layers of the text encoder.", minimum=1),
        "text_length": Setting(16, "Tokens of a caption.", minimum=3),
        "vocabulary": Setting(1500, "Tokens learned from the captions.", minimum=1),
    },
    "weights": {
        stage: Setting(
            str,
            f"Weights of `{stage}` where the work folder has no checkpoint of it: `shipped:NAME`, "
            "or a file.",
        )
        for stage in STAGES
    },
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
    "sample": {
        "input": Setting(
            str, "An image or a folder of images. None: `split` of the source domain."
        ),
        "output": Setting(str, "Folder of the results. None: `WORKDIR/samples/METHOD`."),
        "split": Setting("test", "Split that is translated, edited and evaluated."),
        "start": Setting(int, "M, index + 1 of the first noise level. None: the method's own."),
        "rounds": Setting(1, "K, how often a method goes down the levels.", minimum=1),
        "steps": Setting(int, "Network evaluations a round. None: every level below M.", minimum=1),
        "spacing": Setting("index", "In what the levels are evenly spaced.", ("index", "log_snr")),
        "match_colours": Setting(
            0,
            "Training images of each domain, from which the source's channels get the target's "
            "histograms before it is perturbed; 0: it keeps its own.",
            minimum=0,
        ),
        "solver": Setting(
            "ancestral",
            "Solver of the reverse SDE; `dpmpp_2m`: DPM-Solver++ of second order.",
            ("ancestral", "ddim", "dpmpp_2m"),
        ),
        "variance": Setting(
            "fixedsmall", "σ² of the ancestral step.", ("fixedsmall", "fixedlarge")
        ),
        "eta": Setting(0.0, "η of ddim and dpmpp_2m: 0 is the ODE, 1 the SDE.", minimum=0),
        "clip": Setting(False, "Clip the predicted x0 to [-1, 1] in each step."),
        "follow": Setting(
            False, "Follow the content energy's gradient exactly in a step, not by one Euler step."
        ),
        "seed": Setting(0, "Seed of the noise."),
        "batch_size": Setting(16, "Images at a time.", minimum=1),
        "limit": Setting(int, "Only the first so many images.", minimum=1),
        "sheet": Setting(16, "Images on the contact sheet; 0: no sheet.", minimum=0),
        "trajectory": Setting(False, "Also a strip and a film of each image on its way."),
    },
    **{name: dict(method.settings) for name, method in GUIDED_SDES.items()},
    "model": {
        "path": Setting(
            str,
            "Latent diffusion model: a folder in diffusers' layout, or `shipped:NAME`.",
        ),
        "captioner": Setting(str, "Folder of a BLIP, for images without a caption."),
    },
    "edit": {
        "source": Setting("", "What is to change, such as `a cat`."),
        "target": Setting("", "What it becomes, such as `a dog`."),
        "caption": Setting(
            str, "Caption of every image. None: NAME.txt beside NAME.png, or the captioner's."
        ),
        "templates": Setting(
            (),
            "Sentences with {} for source and target. (): captions of the data that hold "
            "`source`; for `sample.input`, sentences about photos.",
        ),
        "source_bank": Setting(str, "File of sentences about the source. None: `templates`."),
        "target_bank": Setting(str, "File of sentences about the target. None: `templates`."),
        "steps": Setting(50, "Steps of inversion and sampling.", minimum=1),
        "inversion_steps": Setting(int, "Steps of the inversion. None: `steps`.", minimum=1),
        "inversion": Setting(
            "next", "Where the inversion's noise is predicted.", ("next", "current", "p2p0")
        ),
        "regularise": Setting(True, "Keep the inverted noise noise-like (pix2pix-zero)."),
        "strength": Setting(1.0, "Times the direction from source to target."),
        "scale": Setting(float, "Of classifier-free guidance. None: the editor's own."),
        "negative": Setting(str, "Text that guidance leads away from. None: the editor's own."),
        "step": Setting(0.1, "λ, length of a gradient step."),
        "map_weight": Setting(1.0, "λ_c of the cross-attention maps."),
        "feature_weight": Setting(3.0, "λ_e of the patch contrast (pix2pix_zerocon, cds)."),
        "patches": Setting((1, 2), "Sides of the patches."),
        "num_patches": Setting(256, "Patches drawn in each layer.", minimum=1),
        "temperature": Setting(0.07, "τ of the patch contrast.", minimum=1e-4),
        "layers": Setting("decoder", "Whose features are contrasted.", ("decoder", "encoder")),
        "convolution": Setting(0.8, "pnp: share of the steps whose features are the source's."),
        "attention": Setting(0.5, "pnp: share of the steps whose attention is the source's."),
        "iterations": Setting(200, "dds, cds: gradient steps.", minimum=1),
        "rate": Setting(0.1, "dds, cds: rate of the gradient steps."),
    },
    "eval": {
        "methods": Setting("", "Methods side by side: `sdedit,egsde`. Empty: `method`."),
        "bootstrap": Setting(1000, "Resamples of the 95% interval.", minimum=1),
        "reference": Setting(
            "train", "Split of the target that realism is measured against; empty: none."
        ),
        "cache": Setting(
            str, "Folder of the reference's statistics. None: `WORKDIR/eval/reference`."
        ),
        "inception": Setting(str, "FID, KID: `pt_inception-2015-12-05-6726825d.pth`."),
        "lpips_alex": Setting(str, "LPIPS: torchvision's `alexnet-owt-7be5be79.pth`."),
        "lpips_vgg": Setting(str, "LPIPS: torchvision's `vgg16-397923af.pth`."),
        "clip": Setting(str, "CLIP score of edits: a folder of CLIP, with its tokenizer."),
        "text": Setting(str, "Text of the CLIP score. None: `edit.target`."),
        "dino": Setting(str, "Structure distance of edits: `dino_vitbase8_pretrain.pth`."),
        "masks": Setting(
            str,
            "PNGs, white where the object is, for LPIPS of the background. None: where the model "
            "looks for `edit.source`.",
        ),
    },
    "export": {
        "stage": Setting("score", "Which network is written; `latent`: a whole model.", STAGES),
        "format": Setting(
            "published",
            "`published`: names that published code reads; `cdsde`: float16, with a card.",
            ("published", "cdsde"),
        ),
        "path": Setting(
            str, "`.pt`, `.pth` or `.safetensors`. None: `WORKDIR/export/STAGE.safetensors`."
        ),
    },
    "serve": {
        "host": Setting(
            "127.0.0.1", "Who may open the page: this machine alone; `0.0.0.0`: everybody."
        ),
        "port": Setting(7860, "Port of the page.", minimum=1),
        "tasks": Setting((), "Configs that can be chosen beside this one."),
    },
}
KEYS: dict[str, Setting] = {
    f"{group}.{name}".removeprefix("."): setting
    for group, settings in GROUPS.items()
    for name, setting in settings.items()
}


def base() -> ConfigDict:
    """A config with every key at its default; locked, so that a misspelt key fails."""
    config = ConfigDict()
    for key, setting in KEYS.items():
        *groups, last = key.split(".")
        inner = config
        for name in groups:
            if name not in inner:
                inner[name] = ConfigDict()
            inner = inner[name]
        may_be_none = isinstance(setting.default, type)
        inner[last] = placeholder(setting.default) if may_be_none else setting.default
    return config.lock()
