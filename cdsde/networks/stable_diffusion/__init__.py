"""Latent diffusion models of the SD-1.x family, and the editing of real images with them.

Networks are linen modules whose submodules carry the names of the published files, dots included
(`down_blocks.0.attentions.1`), so that a parameter's path joined with dots is its published name.
Images and latents are `[B, H, W, C]`.
"""
