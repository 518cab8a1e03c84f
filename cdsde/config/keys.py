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

from cdsde.config.network_keys import NETWORKS
from cdsde.config.training_keys import GANS, GUIDED, LATENT, STAGES, TRAINING
from cdsde.diffusion.methods import METHODS as GUIDED_SDES
from cdsde.diffusion.methods.method import Setting

__all__ = [
    "EDITORS",
    "GANS",
    "GROUPS",
    "GUIDED",
    "KEYS",
    "LATENT",
    "METHODS",
    "SDES",
    "STAGES",
    "base",
]

SDES = tuple(GUIDED_SDES)
EDITORS = ("ddim", "pix2pix_zero", "pix2pix_zerocon", "pnp", "dds", "cds")
METHODS = (*SDES, *GANS, *EDITORS)

GROUPS: dict[str, dict[str, Setting]] = {
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
    **NETWORKS,
    "weights": {
        stage: Setting(
            str,
            f"Weights of `{stage}` where the work folder has no checkpoint of it: `shipped:NAME`, "
            "or a file.",
        )
        for stage in STAGES
    },
    **TRAINING,
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
