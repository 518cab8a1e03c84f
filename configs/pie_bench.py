"""PIE-Bench: 700 images, each with its own words, edited and measured as published.

    ARGS="--config=pie_bench --config.data.root=DIR --config.model.path=MODEL"
    python -m cdsde.main $ARGS --mode=edit --config.edit.inversion=null_text
    python -m cdsde.main $ARGS --mode=eval --config.eval.clip=CLIP --config.eval.dino=FILE

DIR holds annotation_images/ and mapping_file.json, MODEL is a model of the SD-1.x family in
diffusers' layout. --config.data.source=1 takes the images of one editing type. Any editor can be
chosen by --config.method; --config.eval.methods=ddim,p2p,ledits compares several.
"""

from cdsde import config


def get_config():
    c = config.base()
    c.task, c.method = "pie_bench", "p2p"
    c.data.update(source="all", target="all", image_size=512)
    c.sample.batch_size = 1
    # Of PIE-Bench's own prompt-to-prompt.
    c.edit.update(cross_attention=0.4, attention=0.6, attention_side=32)
    c.edit.update(exchange="refine", reweight=2.0, blend=0.3)
    return c
