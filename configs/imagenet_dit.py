"""Any picture → a class of ImageNet at 256²: DiT-XL/2 on latents (Peebles & Xie 2023).

Get `DiT-XL-2-256x256.pt` of DiT's authors, put pictures as DIR/val/picture/* and install the extra
`hub`, then

    python -m cdsde.main --config=imagenet_dit --mode=sample --config.data.root=DIR \
      --config.weights.score=DiT-XL-2-256x256.pt --config.score.label=207

Class 207 is the golden retriever. The method is SDEdit on the latents of Stable Diffusion's
autoencoder, guided by the class; energies see pixels, and do not go with it. Each step evaluates
the network twice; `score.guidance=1` switches the guidance off.

An image takes 24 TFLOP in 50 steps: two passes a step, each of 119 billion multiply-adds by the
paper's count. DiT is not trained here: --mode=train would make a score network of pixels.
Not run: no copy of its weights was at hand.
"""

from cdsde import config


def get_config():
    c = config.base()
    c.task = "imagenet_dit"
    c.data.update(root="data/pictures", source="picture", target="imagenet", image_size=256)
    c.model.path = "hf:stabilityai/sd-vae-ft-ema"
    c.score.update(label=207, guidance=4.0)
    c.method = "sdedit"
    c.sdedit.start = 600
    c.sample.update(split="val", solver="ddim", eta=0.0, steps=50)
    return c
