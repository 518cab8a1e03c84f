"""Every key of a config: its default, its meaning and its allowed values.

A task's file in `configs/` calls `base()` and changes some keys. The defaults are EGSDE's published
256² set-up for cat→dog, where it defines a value. A key whose default is a type may be None, and is
None by default. Each number has one place: derived.py computes values from other keys, and each
file in diffusion/methods/ defines the keys of its method.

`python -m cdsde.config.reference` prints this table as docs/configuration.md.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cdsde.config.network_keys import NETWORKS
from cdsde.config.training_keys import (
    FEATURES,
    GANS,
    GUIDED,
    LATENT,
    SOURCE_SCORE,
    STAGES,
    TRAINING,
)
from cdsde.diffusion.methods import METHODS as GUIDED_SDES
from cdsde.diffusion.methods.method import Setting, seed_setting

__all__ = [
    "EDITORS",
    "FEATURES",
    "GANS",
    "GROUPS",
    "GUIDED",
    "KEYS",
    "LATENT",
    "METHODS",
    "PUBLISHED",
    "SDES",
    "SOURCE_SCORE",
    "STAGES",
    "base",
]

SDES = tuple(GUIDED_SDES)
# Each editor with the keys of `edit` and their values with which it is published, where another's
# differ; its `scale` is in edit/pipeline.py.
PUBLISHED: dict[str, dict[str, Any]] = {
    "ddim": {},
    "pix2pix_zero": {},
    "pix2pix_zerocon": {},
    "pnp": {"attention": 0.5},
    "p2p": {"attention": 0.4},
    "edit_friendly": {"steps": 100, "skip": 0.36},
    "ledits": {"steps": 34, "skip": 0.12},  # int(30 * 1.15), of which 30 are left
    "dds": {},
    "cds": {},
}
EDITORS = tuple(PUBLISHED)
METHODS = (*SDES, *GANS, *EDITORS)

GROUPS: dict[str, dict[str, Setting]] = {
    "": {
        "task": Setting("base", "Name of the task; the default work folder is `runs/TASK`."),
        "method": Setting(
            "contrastive_sde", "Method that translates images, or edits them by words.", METHODS
        ),
        "dtype": Setting(
            "float32",
            "Dtype in which convolutions and matrix products are computed.",
            ("float32", "bfloat16"),
        ),
        "remat": Setting(
            False, "Recompute blocks in the backward pass, which takes less memory and more time."
        ),
        "cache": Setting(
            "auto",
            "Folder of compiled programs and of statistics of data sets, with which later runs "
            "start faster. `auto`: `~/.cache/cdsde`. `off`: none.",
        ),
    },
    "mesh": {
        "fsdp": Setting(
            1,
            "Number of devices that share the training state of one network. Batches are always "
            "split over all devices.",
            minimum=1,
        ),
    },
    "data": {
        "root": Setting(
            "emoji",
            "Images: `emoji` or `glyphs` (included in the package), a folder that contains "
            "`{train,val,test}/{domain}/`, PIE-Bench's folder, or the TFDS data set `tfds:NAME`.",
        ),
        "data_dir": Setting(
            str, "Folder in which TFDS stores its data sets. None: TFDS's default."
        ),
        "source": Setting("twemoji", "Source domain, or several, such as `cat,wild`."),
        "target": Setting("fluent", "Target domain."),
        "domains": Setting(
            (), "Domains on which encoder and classifier are trained. Empty: sources and target."
        ),
        "pairs": Setting(
            "auto",
            "True results, for evaluation: `auto`, those of the embedded data; `name`, images of "
            "the target's folder that have the same name as the source's.",
            ("auto", "name"),
        ),
        "image_size": Setting(
            256, "Side of the square images in pixels.", minimum=1, maximum=16384
        ),
        "filter": Setting(
            "lanczos", "Filter that resizes the uint8 images.", ("lanczos", "bicubic", "bilinear")
        ),
        "fit": Setting(
            "crop",
            "How an image becomes square: `crop` resizes the shorter side to `image_size` and cuts "
            "out the centre; `stretch` resizes both sides; `pad` resizes the longer side and "
            "mirrors the image at its borders, which are cut off from results again.",
            ("crop", "stretch", "pad"),
        ),
        "flip": Setting(True, "Mirror training images left to right, with probability ½."),
        "shift": Setting(
            0,
            "Move training images by up to this many pixels along each axis; borders are repeated.",
            minimum=0,
        ),
        "load_size": Setting(
            int,
            "Size to which training images are resized before a random crop of `image_size`. "
            "None: no random crop.",
            minimum=1,
        ),
        "workers": Setting(
            0,
            "Number of processes that decode images. 0: this process decodes them and keeps small "
            "data sets in memory.",
            minimum=0,
            maximum=256,
        ),
    },
    "sde": {
        "schedule": Setting(
            "linear",
            "Noise schedule: β linear in the index, or ᾱ a squared cosine.",
            ("linear", "cosine"),
        ),
        "num_steps": Setting(1000, "T, the number of noise levels.", minimum=1, maximum=10**6),
    },
    **NETWORKS,
    "weights": {
        stage: Setting(
            str,
            f"Weights of `{stage}` that are used where the work folder has no checkpoint: "
            "`shipped:NAME`, a file, or `hf:OWNER/REPO[@REVISION][/PATH]` of a model hub.",
        )
        for stage in STAGES
    }
    | {"vgg": Setting(str, "VGG for SDDM: path of `vgg_normalised.pth` of AdaIN, to be imported.")},
    **TRAINING,
    "sample": {
        "input": Setting(str, "Image, or folder of images. None: `split` of the source domain."),
        "output": Setting(
            str,
            "Folder of the results. None: `WORKDIR/samples/METHOD`, or `WORKDIR/edits/METHOD` for "
            "edits.",
        ),
        "split": Setting("test", "Split of the images that are translated, edited and evaluated."),
        "start": Setting(
            int,
            "Start level M, the index of the first noise level plus 1. None: the method's `start`.",
            minimum=1,
        ),
        "rounds": Setting(
            1,
            "Number of rounds K; each round runs down all levels from the previous result.",
            minimum=1,
            maximum=100,
        ),
        "steps": Setting(
            int, "Network evaluations per round. None: every level below M.", minimum=1
        ),
        "spacing": Setting(
            str,
            "Quantity in which the noise levels are evenly spaced; `leading` and `trailing` are "
            "diffusers' ways, in the index from 0 up and from the start down. None: with "
            "`sample.steps` as the file of a published network says, else `index`.",
            ("index", "log_snr", "leading", "trailing"),
        ),
        "match_colours": Setting(
            0,
            "Number of training images per domain whose colour histograms are compared, to match "
            "the source's channels to the target before it is perturbed. 0: no matching.",
            minimum=0,
        ),
        "solver": Setting(
            "ancestral",
            "Solver of the reverse SDE; `dpmpp_2m` is DPM-Solver++(2M), of second order.",
            ("ancestral", "ddim", "dpmpp_2m"),
        ),
        "variance": Setting(
            str,
            "Variance σ² of the ancestral step; `learned` is that of a network with "
            "`score.learn_sigma`. None: with the ancestral solver as the file of a published "
            "network says, else `fixedsmall`.",
            ("fixedsmall", "fixedlarge", "learned"),
        ),
        "eta": Setting(
            float,
            "η of `ddim` and `dpmpp_2m`: 0 solves the ODE, 1 the SDE. None: as the method is "
            "published, else 0 with `ddim` and 1 with `dpmpp_2m`.",
            minimum=0,
            maximum=1,
        ),
        "clip": Setting(
            bool,
            "Clip the predicted clean image to [-1, 1] in each step. None: as the file of a "
            "published network says, False where it says nothing.",
        ),
        "follow": Setting(
            False,
            "Integrate the content energy's gradient exactly within a step, not by one Euler step.",
        ),
        "guide_every": Setting(
            1,
            "Guide every n-th step only, with n times the weights; the steps between skip the "
            "guide's networks and take less time.",
            minimum=1,
        ),
        "guide_levels": Setting(
            (),
            "(low, high): guide only at noise levels of low ≤ index < high; the others skip the "
            "guide's networks. (): at all levels.",
            minimum=0,
        ),
        "seed": seed_setting("Seed of the noise."),
        "batch_size": Setting(16, "Images per batch over all devices of a process.", minimum=1),
        "limit": Setting(
            int, "Maximum number of images; the first ones are taken. None: all.", minimum=1
        ),
        "sheet": Setting(16, "Number of images on the contact sheet; 0: no sheet.", minimum=0),
        "trajectory": Setting(
            False, "Also write a strip and a film of the intermediate states of each image."
        ),
        "keep_size": Setting(
            False,
            "Translate each image at its own size, by overlapping tiles of `image_size` that agree "
            "in each step. False: at `image_size`, as `data.fit` says.",
        ),
    },
    **{name: dict(method.settings) for name, method in GUIDED_SDES.items()},
    "model": {
        "path": Setting(
            str,
            "Latent diffusion model: a folder in the layout of diffusers, `hf:OWNER/REPO`, or "
            "`shipped:NAME`.",
        ),
        "captioner": Setting(
            str,
            "Folder of a BLIP model that captions images without a caption, or `hf:OWNER/REPO`.",
        ),
    },
    "edit": {
        "source": Setting("", "Object in the image that changes, such as `a cat`."),
        "target": Setting("", "Object that it becomes, such as `a dog`."),
        "caption": Setting(
            str,
            "Caption of every image. None: the caption of `model.captioner`, or else, of the lines "
            "of `NAME.txt` beside `NAME.png`, the first one that holds `edit.source`.",
        ),
        "templates": Setting(
            (),
            "Sentences with {} in place of source and target. Empty: training captions with "
            "`source`, or sentences about photos for `sample.input`.",
        ),
        "source_bank": Setting(
            str, "File of sentences about the source, one per line. None: `templates`."
        ),
        "target_bank": Setting(
            str, "File of sentences about the target, one per line. None: `templates`."
        ),
        "steps": Setting(50, "Number of steps of the inversion and of sampling.", minimum=1),
        "inversion_steps": Setting(
            int, "Number of steps of the inversion. None: `steps`.", minimum=1
        ),
        "inversion": Setting(
            "next",
            "Level at which the inversion predicts noise: after its step (`next`), before it "
            "(`current`), or as in pix2pix-zero (`p2p0`). `null_text` then optimises the negative "
            "text of each step, so that guided sampling reconstructs the image (ddim, p2p).",
            ("next", "current", "p2p0", "null_text"),
        ),
        "skip": Setting(
            0.36,
            "Share of the steps, from the noisiest on, that are left out (edit_friendly, ledits).",
            minimum=0,
            below=1,
        ),
        "regularise": Setting(
            True, "Regularise the inverted noise towards white noise (pix2pix-zero)."
        ),
        "strength": Setting(
            1.0,
            "Factor of the text direction from source to target (pix2pix_zero, pix2pix_zerocon).",
            minimum=-100,
            maximum=100,
        ),
        "scale": Setting(
            float, "Scale of classifier-free guidance. None: the editor's own.", minimum=0
        ),
        "source_scale": Setting(
            3.5, "Scale of guidance by the caption in the inversion (edit_friendly).", minimum=0
        ),
        "negative": Setting(
            str,
            "Negative text of classifier-free guidance. Empty: no words. None: the editor's own.",
        ),
        "step": Setting(
            0.1, "Step size λ of the gradient step (pix2pix_zero, pix2pix_zerocon).", minimum=0
        ),
        "map_weight": Setting(1.0, "λ_c of the loss on cross-attention maps.", minimum=0),
        "feature_weight": Setting(
            3.0, "λ_e of the patch contrast (pix2pix_zerocon, cds).", minimum=0
        ),
        "patches": Setting(
            (1, 2), "Sides of the patches, in positions of a feature map.", minimum=1
        ),
        "num_patches": Setting(256, "Number of patches per layer.", minimum=1),
        "temperature": Setting(0.07, "τ of the patch contrast.", minimum=1e-4),
        "layers": Setting(
            "decoder", "Part of the U-Net whose features are contrasted.", ("decoder", "encoder")
        ),
        "convolution": Setting(
            0.8, "Share of the steps that use the source's features (pnp).", minimum=0, maximum=1
        ),
        "attention": Setting(
            0.5,
            "Share of the steps that use the source's self-attention (pnp, p2p).",
            minimum=0,
            maximum=1,
        ),
        "cross_attention": Setting(
            0.8,
            "Share of the steps that use the source's cross-attention (p2p).",
            minimum=0,
            maximum=1,
        ),
        "exchange": Setting(
            "auto",
            "What becomes of the source's cross-attention (p2p): `refine` keeps the edit's own at "
            "words that the caption has not; `auto` gives them that of the words in whose places "
            "they stand, where the texts differ so alone, and else refines.",
            ("auto", "refine"),
        ),
        "reweight": Setting(
            1.0,
            "Factor of the attention to `target`, or to PIE-Bench's second `blended_word` (p2p).",
            minimum=-100,
            maximum=100,
        ),
        "attention_side": Setting(
            16,
            "Side of the largest maps whose self-attention is the source's, in positions (p2p).",
            minimum=1,
        ),
        "blend": Setting(
            float,
            "Share of the highest attention to `source` or `target`, or to PIE-Bench's "
            "`blended_word`, above which a place is edited; the rest stays the source's (p2p). "
            "None: every place is edited.",
            minimum=0,
            below=1,
        ),
        "threshold": Setting(
            0.9,
            "Quantile of attention and of noise above which a place is edited (ledits).",
            minimum=0,
            maximum=1,
        ),
        "iterations": Setting(200, "Number of gradient steps (dds, cds).", minimum=1),
        "rate": Setting(0.1, "Step size of the gradient steps (dds, cds).", minimum=0),
    },
    "eval": {
        "methods": Setting("", "Methods to compare, such as `sdedit,egsde`. Empty: `method`."),
        "bootstrap": Setting(
            1000,
            "Number of bootstrap resamples for the 95% intervals.",
            minimum=1,
            maximum=100_000,
        ),
        "reference": Setting(
            "train",
            "Split of the target domain that is the reference for realism. Empty: no realism.",
        ),
        "shapes": Setting(
            False,
            "Also measure black shapes on white against the true results: overlap of ink, and "
            "whether the right true result is the nearest (legible).",
        ),
        "cache": Setting(
            str, "Folder that stores the reference's statistics. None: `WORKDIR/eval/reference`."
        ),
        "inception": Setting(
            str, "Weights for FID and KID: path of `pt_inception-2015-12-05-6726825d.pth`."
        ),
        "lpips_alex": Setting(
            str, "Weights for LPIPS: path of torchvision's `alexnet-owt-7be5be79.pth`."
        ),
        "lpips_vgg": Setting(str, "Weights for LPIPS: path of torchvision's `vgg16-397923af.pth`."),
        "lpips_squeeze": Setting(
            str, "Weights for LPIPS: path of torchvision's `squeezenet1_1-b8a52dc0.pth`."
        ),
        "clip": Setting(
            str,
            "Model for the CLIP score of edits: a folder of CLIP with its tokenizer, or "
            "`hf:OWNER/REPO`.",
        ),
        "text": Setting(
            str,
            "Text that the CLIP score compares. None: `edit.target`, or the data's edited texts "
            "(PIE-Bench).",
        ),
        "dino": Setting(
            str,
            "Weights for the structure distance of edits: path of `dino_vitbase8_pretrain.pth`.",
        ),
        "masks": Setting(
            str,
            "Folder of masks (PNG, white on the object) for metrics of the background. None: the "
            "data's own (PIE-Bench), or the model's cross-attention to `edit.source` for LPIPS.",
        ),
    },
    "export": {
        "stage": Setting(
            "score", "Network to export; `latent` exports the whole latent diffusion model.", STAGES
        ),
        "format": Setting(
            "published",
            "File format: `published` has the parameter names of published code; `cdsde` is "
            "float16, with a card that describes the training; `stablehlo` is the compiled "
            "translation, with all its networks, for use without cdsde.",
            ("published", "cdsde", "diffusers", "stablehlo"),
        ),
        "path": Setting(
            str,
            "File to write: `.pt`, `.pth` or `.safetensors`; of `stablehlo` `.npz`. None: "
            "`WORKDIR/export/STAGE.safetensors` or `WORKDIR/export/METHOD.npz`.",
        ),
    },
    "serve": {
        "host": Setting(
            "127.0.0.1",
            "Address of the page: `127.0.0.1` serves this machine only, `0.0.0.0` every machine.",
        ),
        "port": Setting(7860, "Port of the page.", minimum=1, maximum=65535),
        "tasks": Setting(
            (),
            "Further configs that the page offers; names without a folder may lie beside the file.",
        ),
        "max_pixels": Setting(
            50_000_000,
            "Most pixels of a visitor's picture, which is not decoded beyond.",
            minimum=1,
        ),
        "max_megabytes": Setting(20, "Largest file that a visitor may upload.", minimum=1),
        "max_seconds": Setting(
            300, "Longest time that one translation may take; then it ends.", minimum=1
        ),
    },
}
KEYS: dict[str, Setting] = {
    f"{group}.{name}".removeprefix("."): setting
    for group, settings in GROUPS.items()
    for name, setting in settings.items()
}


def base() -> ConfigDict:
    """Builds a config with every key at its default; it is locked, so a misspelt key fails."""
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
