"""A small latent diffusion model of the embedded emoji and their names, and edits with it.

    python -m cdsde.main --config=configs/emoji_words.py --mode=edit \
        --config.edit.source="smiling" --config.edit.target="crying"

edits the test images whose names hold the word, with the shipped model. Train your own:

    python -m cdsde.main --config=configs/emoji_words.py --mode=train
    python -m cdsde.main --config=configs/emoji_words.py --mode=export --config.export.stage=latent

and name it with --config.model.path=runs/emoji_words/export/model. Own images work the same way: a
folder as --config.data.root, with NAME.txt beside each NAME.png.
"""

from cdsde import config


def get_config():
    c = config.base()
    c.task, c.method = "emoji_words", "edit"
    # Not flipped: names say left and right.
    c.data.update(source="twemoji", target="twemoji", image_size=64, flip=False)
    c.train.update(checkpoint_every=500)
    c.train.autoencoder.steps = 1_200
    c.train.latent.update(steps=3_000, learning_rate=8e-4, ema=0.998)
    c.train.latent.augment.shift = 0.03
    c.model.path = "shipped:emoji-words"
    c.edit.update(image_size=64, batch_size=8, num_patches=64)
    return c
