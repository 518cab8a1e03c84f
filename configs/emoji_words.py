"""A small latent diffusion model of the embedded emoji and words for them, and edits with it.

    python -m cdsde.main --config=emoji_words --mode=edit \
        --config.edit.source=dark --config.edit.target=light

edits the test images of which a caption contains the word, with the shipped model. Train your own:

    python -m cdsde.main --config=emoji_words --mode=train
    python -m cdsde.main --config=emoji_words --mode=export --config.export.stage=latent

and use it with --config.model.path=runs/emoji_words/export/model. For your own images, name a
folder with --config.data.root, and beside each NAME.png put NAME.txt with its captions, one a line.
"""

from cdsde import config


def get_config():
    c = config.base()
    c.task, c.method = "emoji_words", "pix2pix_zerocon"
    # No flips, since names contain left and right.
    c.data.update(source="twemoji", target="twemoji", image_size=64, flip=False)
    c.train.update(checkpoint_every=500)
    c.train.autoencoder.steps = 1_200
    c.train.latent.update(steps=3_000, learning_rate=8e-4, ema=0.998, shift=0.03)
    c.model.path = "shipped:emoji-words"
    c.sample.batch_size = 8
    c.edit.num_patches = 64
    # Chosen on val by eye ("dark" to "light", "man" to "woman"). At the published scale of 5, the
    # colours saturate. The regularisation's step sizes are for Stable Diffusion; on latents of
    # 16x16, a sixteenth of its latents, they damage the reconstruction.
    c.edit.update(scale=2.5, step=0.05, strength=1.5, regularise=False)
    return c
