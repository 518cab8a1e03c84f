"""The fields of a model's `config.json` files: which are read, which are fixed, which are free.

For each network, `X` lists the fields that networks.py reads, `X_ONLY` the supported values of
fields that the network fixes, and `X_FREE` the fields that do not change its output.
"""

from __future__ import annotations

from cdsde.networks.stable_diffusion.layers import ACTIVATIONS

SILU = ("silu", "swish", None)
UNET_ONLY = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": SILU,
    "addition_embed_type": (None,),
    "addition_time_embed_dim": (None,),
    "attention_type": ("default", None),
    "center_input_sample": (False, None),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False, None),
    "conv_in_kernel": (3, None),
    "conv_out_kernel": (3, None),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False, None),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (False, None),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "only_cross_attention": (False, None),
    "projection_class_embeddings_input_dim": (None,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False, None),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "transformer_layers_per_block": (1,),
}
UNET = (
    "attention_head_dim block_out_channels cross_attention_dim down_block_types in_channels "
    "layers_per_block norm_eps norm_num_groups num_attention_heads out_channels up_block_types "
    "use_linear_projection"
).split()
# Softmax is float32 here in any case; dropout is for training.
UNET_FREE = "addition_embed_type_num_heads dropout sample_size upcast_attention".split()
VAE_ONLY = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": SILU,
    "in_channels": (3,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "out_channels": (3,),
    "shift_factor": (None, 0),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
VAE = (
    "block_out_channels down_block_types latent_channels layers_per_block norm_num_groups "
    "scaling_factor up_block_types"
).split()
VAE_FREE = ("force_upcast", "sample_size")
ENCODER_ONLY = {"hidden_act": tuple(ACTIVATIONS)}
TEXT_ONLY = {
    **ENCODER_ONLY,
    "model_type": ("clip_text_model", "clip", None),
    "add_cross_attention": (False, None),
    "is_decoder": (False, None),
}
VISION_ONLY = {
    **ENCODER_ONLY,
    "num_channels": (3,),
    "model_type": ("clip_vision_model", "blip_vision_model", "clip", "blip", None),
}
BLIP_TEXT_ONLY = {
    **ENCODER_ONLY,
    "add_cross_attention": (True, False, None),
    "is_decoder": (True,),
    "model_type": ("blip_text_model", "blip", None),
    "position_embedding_type": ("absolute", None),
}
BLIP_FREE = (
    "attention_probs_dropout_prob encoder_hidden_size hidden_dropout_prob label_smoothing".split()
)
PAIR = ("text_config", "vision_config", "projection_dim")
PAIR_FREE = ("text_config_dict", "vision_config_dict", "image_text_hidden_size")
