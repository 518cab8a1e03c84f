"""A cat into a dog, in words: pix2pix-zeroCon with a latent diffusion model of the SD-1.x family.

    python -m cdsde.main --config=configs/edit_cat2dog.py --mode=edit --config.model.path=DIR \
        --config.sample.input=cat.png --config.edit.caption="a photo of a cat"

DIR is a model in diffusers' layout (unet/ vae/ text_encoder/ tokenizer/ scheduler/, safetensors).
Without --config.edit.caption, --config.model.captioner=DIR names a BLIP that captions. Other
methods: --config.method=ddim | pix2pix_zero | pnp | dds | cds. For an accelerator: 200
evaluations of the U-Net and 50 of its gradient for an image.
"""

from cdsde import config


def get_config():
    c = config.base()
    c.task, c.method = "edit_cat2dog", "pix2pix_zerocon"
    c.data.image_size = 512
    c.sample.batch_size = 1
    c.edit.update(source="a cat", target="a dog")
    return c
