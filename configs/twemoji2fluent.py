from cdsde import config as config_lib
def get_config():
    c = config_lib.base()
    c.task='twemoji2fluent'
    c.data.image_size = 32
    c.score.update(channels=32, channel_mult=(1,3,4), num_res_blocks=1, attention_resolutions=(8,), num_head_channels=32, resblock_updown=False, conv_resample=False, learn_sigma=False)
    for n in (c.encoder,c.classifier):
        n.update(channels=32, channel_mult=(1,2,4), num_res_blocks=1, attention_resolutions=(8,), num_head_channels=32, pool='adaptive', resblock_updown=False, conv_resample=False)
    for m in ('ilvr','egsde','contrastive_sde'): c[m].factor=8
    c.train.encoder.factor=8
    return c
