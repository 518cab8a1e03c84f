"""Cat → dog by words: pix2pix-zeroCon with a latent diffusion model of the SD-1.x family.

    python -m cdsde.main --config=edit_cat2dog --mode=edit --config.model.path=DIR \
        --config.sample.input=cat.png --config.edit.caption="a photo of a cat"

DIR is a model in diffusers' layout (unet/ vae/ text_encoder/ tokenizer/ scheduler/, safetensors).
Instead of --config.edit.caption, --config.model.captioner=DIR names a BLIP model that captions the
image. Other methods: --config.method=ddim | pix2pix_zero | pnp | p2p | edit_friendly | ledits |
dds | cds. For an accelerator: an edit takes 200 evaluations of the U-Net and 50 of its gradient
per image.
"""

from cdsde import config


def get_config():
    c = config.base()
    c.task, c.method = "edit_cat2dog", "pix2pix_zerocon"
    c.data.image_size = 512
    c.sample.batch_size = 1
    c.edit.update(source="a cat", target="a dog")
    return c
