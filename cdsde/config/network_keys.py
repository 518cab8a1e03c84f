"""Keys of the networks: one group for each that is trained."""

from __future__ import annotations

from cdsde.diffusion.methods.method import Setting

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


_NUM_HEADS = Setting(4, "Attention heads where `num_head_channels` is -1.", minimum=1)

NETWORKS: dict[str, Group] = {
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
}
