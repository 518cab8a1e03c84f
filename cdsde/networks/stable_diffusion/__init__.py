"""Networks of the SD-1.x family of latent diffusion models, and BLIP's captioner.

They are linen modules whose submodules have the names of the published files, dots included
(`down_blocks.0.attentions.1`), so that a parameter's path joined with dots is its published name.
Images and latents are `[B, H, W, C]`.
"""
