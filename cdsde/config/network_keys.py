"""Keys of the networks: one group per trained network."""

from __future__ import annotations

from cdsde.diffusion.methods.method import Setting

Group = dict[str, Setting]


def _adm(num_res_blocks: int, attention: tuple[int, ...]) -> Group:
    """Keys shared by the ADM U-Net and its encoder half."""
    return {
        "channels": Setting(128, "Base width; `channel_mult` multiplies it.", minimum=1),
        "channel_mult": Setting(
            (1, 1, 2, 2, 4, 4),
            "Width of each resolution level, as a multiple of `channels`.",
            minimum=1,
        ),
        "num_res_blocks": Setting(
            num_res_blocks, "Residual blocks per resolution level.", minimum=1
        ),
        "attention_resolutions": Setting(
            attention, "Sides of the feature maps that have attention, in positions.", minimum=1
        ),
        "num_head_channels": Setting(
            64, "Channels per attention head. -1: a fixed number of heads.", minimum=-1
        ),
        "resblock_updown": Setting(True, "Residual blocks change the resolution between levels."),
        "group_channels": Setting(
            1,
            "Minimum number of channels per group of a group normalisation; published: 1.",
            minimum=1,
        ),
        "patch_size": Setting(
            1,
            "Side of the square patches of pixels that become one position before the first layer.",
            minimum=1,
        ),
    }


_NUM_HEADS = Setting(
    4, "Number of attention heads, used where `num_head_channels` is -1.", minimum=1
)

NETWORKS: dict[str, Group] = {
    "score": {
        "arch": Setting(
            "adm",
            "Architecture of the score network. `published`: that of a file, see "
            "`score.published`.",
            ("adm", "ddpm", "published"),
        ),
        "published": Setting(
            str,
            "Description of a published network (JSON), filled in from the file that "
            "`weights.score` names; the other keys of this group but `label`, "
            "`source_label` and `guidance` have no effect then.",
        ),
        "label": Setting(
            int, "Class that a class-conditional published network is asked for.", minimum=0
        ),
        "source_label": Setting(
            int,
            "Class of the source, for methods that run a class-conditional network of the source "
            "domain, too: without guidance.",
            minimum=0,
        ),
        "guidance": Setting(
            1.0,
            "Scale of classifier-free guidance by `score.label` (DiT: 4). 1: none, at half the "
            "cost.",
            minimum=0,
        ),
        **_adm(1, (16,)),
        "num_heads": _NUM_HEADS,
        "use_scale_shift_norm": Setting(
            True, "The time embedding scales and shifts the features; False: it is added to them."
        ),
        "conv_resample": Setting(
            True,
            "Convolutions change the resolution where `resblock_updown` is False; False: averages "
            "and repeated pixels do.",
        ),
        "new_attention_order": Setting(
            False,
            "Attention channels are in guided-diffusion's new order; False: in its old order.",
        ),
        "learn_sigma": Setting(
            True,
            "The network has six output channels; the last three tell the variance of "
            "`sample.variance=learned`.",
        ),
        "dropout": Setting(0.0, "Dropout rate in training.", minimum=0, below=1),
        "prediction": Setting("eps", "Quantity that the network predicts.", ("eps", "v")),
        "fourier": Setting(
            (),
            "The network also sees sin(2ⁿπx) and cos(2ⁿπx) of the image x for these n, which "
            "magnify faint noise on white paper. Empty: the image alone.",
            minimum=0,
            maximum=10,
        ),
    },
    "encoder": {
        **_adm(2, (32, 16, 8)),
        "pool": Setting(
            "attention",
            "Pooling of the last feature map: attention, the mean over positions (`adaptive`), or "
            "one vector per position (`none`).",
            ("attention", "adaptive", "none"),
        ),
        "hidden_dim": Setting(256, "Width of the vectors before the projection head.", minimum=1),
        "embed_dim": Setting(128, "Width of the embedding after the projection head.", minimum=1),
    },
    "classifier": {
        **_adm(2, (32, 16, 8)),
        "pool": Setting(
            "attention",
            "Pooling of the last feature map: attention, or the mean over positions (`adaptive`).",
            ("attention", "adaptive"),
        ),
    },
    "cut": {
        "channels": Setting(64, "Base width of the generator.", minimum=1),
        "num_blocks": Setting(9, "Number of residual blocks of the generator.", minimum=1),
        "discriminator_channels": Setting(64, "Base width of the discriminator.", minimum=1),
        "discriminator_layers": Setting(3, "Number of layers of the discriminator.", minimum=1),
        "group_channels": Setting(
            1,
            "Channels per group of a normalisation; the published 1 is instance normalisation.",
            minimum=1,
        ),
        "patch_features": Setting(
            256, "Width of the patch vectors that PatchNCE compares.", minimum=1
        ),
        "layers": Setting(
            (0, 4, 8, 12, 16),
            "Layers of the generator whose features PatchNCE compares.",
            minimum=0,
        ),
        "num_patches": Setting(256, "Number of random positions per layer.", minimum=1),
        "temperature": Setting(0.07, "τ of PatchNCE.", minimum=1e-4),
        "gan": Setting("lsgan", "GAN loss.", ("lsgan", "nonsaturating")),
        "gan_weight": Setting(1.0, "λ of the GAN loss.", minimum=0),
        "nce_weight": Setting(
            float, "λ of PatchNCE. None: 1 for `cut`, 10 for `fastcut`.", minimum=0
        ),
        "identity": Setting(
            bool,
            "Train the generator to keep images of the target domain unchanged. None: True for "
            "`cut`, False for `fastcut`.",
        ),
        "flip_equivariance": Setting(
            bool,
            "Mirror the generator's input with probability ½, to make it equivariant. None: False "
            "for `cut`, True for `fastcut`.",
        ),
    },
    "autoencoder": {
        "widths": Setting(
            (32, 48, 64), "Width of each level; each level but the last halves the side.", minimum=1
        ),
        "channels": Setting(4, "Number of channels of the latents.", minimum=1),
    },
    "latent": {
        "widths": Setting((64, 112, 144), "Width of each level of the U-Net.", minimum=1),
        "heads": Setting(4, "Number of attention heads of the U-Net.", minimum=1),
        "text_width": Setting(128, "Width of the text encoder.", minimum=1),
        "text_depth": Setting(2, "Number of layers of the text encoder.", minimum=1),
        "text_length": Setting(
            16, "Number of tokens of a caption, including start and end.", minimum=3
        ),
        "vocabulary": Setting(
            1500, "Number of tokens that the tokenizer learns from the captions.", minimum=1
        ),
    },
}
