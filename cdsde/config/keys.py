"""Every key of a config, with its default and its meaning, and the checks on them.

A task's file in `configs/` calls `base()` and changes what differs. Keys that may be None are
`placeholder(type)`, so that they can be set from the command line. No number is written twice:
what follows from others is derived where it is used.
"""

from __future__ import annotations

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

SDES = ("contrastive_sde", "egsde", "sdedit", "ilvr")
GANS = ("cut", "fastcut")
METHODS = (*SDES, *GANS, "edit")
EDITORS = ("ddim", "pix2pix_zero", "pix2pix_zerocon", "pnp", "dds", "cds")
GUIDED = ("score", "encoder", "classifier")  # the networks of the SDE methods
LATENT = ("autoencoder", "latent")  # a small latent diffusion model for edits by words
STAGES = GUIDED + GANS + LATENT  # what is trained; a GAN is a stage of its own
NEEDS = {  # the stages whose networks a method runs
    "cut": ("cut",),
    "fastcut": ("fastcut",),
    "edit": LATENT,
    "contrastive_sde": ("score", "encoder"),
    "egsde": ("score", "classifier"),
    "sdedit": ("score",),
    "ilvr": ("score",),
}


def _training(steps: int, batch_size: int, learning_rate: float, **changes) -> ConfigDict:
    """How one stage is trained."""
    c = ConfigDict()
    c.fine_tune = False  # begin from imported weights or config.weights.STAGE, not at random
    c.steps = steps  # optimiser steps
    c.batch_size = batch_size  # images a step, over all devices and processes
    c.optimizer = "adam"  # adam | muon: kernels' steps are made orthogonal, vectors have Adam's
    c.learning_rate = learning_rate  # peak, after the warm-up
    c.muon_rate = 0.02  # muon: the peak for kernels
    # constant | cosine (to 0 at `steps`) | linear (GANs: epoch by epoch, over the last `decay`)
    c.schedule = "constant"
    c.warmup = 500  # steps of linear warm-up
    c.weight_decay = 0.0  # AdamW; 0 is Adam
    c.beta1 = 0.9
    c.beta2 = 0.999
    c.clip_norm = 1.0  # global norm of the gradient; 0 switches clipping off
    c.accumulate = 1  # micro-batches a step; the encoder's negatives come from its micro-batch
    c.ema = 0.9999  # decay of the parameters' moving average (what sampling uses)
    c.augment = ConfigDict()  # on top of the flip; each image is moved by its own random amounts
    c.augment.shift = 0.0  # up to this share of the side, each axis
    c.augment.scale = 0.0  # zoom by a factor within 1 ± scale
    c.augment.rotate = 0.0  # up to so many degrees
    c.update(changes)
    return c


def _encoder_half(**changes) -> ConfigDict:
    """Architecture of an encoder half (EGSDE's classifier: half an ADM U-Net)."""
    c = ConfigDict()
    c.channels = 128
    c.channel_mult = (1, 1, 2, 2, 4, 4)
    c.num_res_blocks = 2
    c.attention_resolutions = (32, 16, 8)
    c.num_heads = 4
    c.num_head_channels = 64  # -1: use num_heads
    c.use_scale_shift_norm = True
    c.resblock_updown = True
    c.conv_resample = True
    c.new_attention_order = False
    c.pool = "attention"  # attention | adaptive (mean) | none (encoder only: a vector a position)
    c.dropout = 0.0
    c.group_channels = 1  # at least so many channels a group of normalisation; published: 1
    c.patch_size = 1  # space-to-depth before the first convolution; 1 in published networks
    c.update(changes)
    return c


def _gan(**changes) -> ConfigDict:
    """A method of CUT's family: networks and objective."""
    c = ConfigDict()
    c.channels = 64
    c.num_blocks = 9
    c.discriminator_channels = 64
    c.discriminator_layers = 3
    c.group_channels = 1  # normalised together in both networks; published: 1, instance norm
    c.patch_features = 256  # width of the vectors that are compared
    c.layers = (0, 4, 8, 12, 16)  # of the generator, whose features are compared
    c.num_patches = 256  # positions drawn in each
    c.temperature = 0.07
    c.across_batch = False  # negatives from the whole batch, too; published: from the same image
    c.gan = "lsgan"  # lsgan | vanilla | nonsaturating | wgangp
    c.gan_weight = 1.0
    c.nce_weight = 1.0
    c.identity = True  # the target's own images must come out as they are
    c.flip_equivariance = False  # the generator sees every other batch mirrored
    c.update(changes)
    return c


def base() -> ConfigDict:
    """The defaults: the published 256² set-up of EGSDE's cat→dog wherever it says something."""
    c = ConfigDict()
    c.task = "base"  # names the default work folder, runs/TASK
    # contrastive_sde | egsde | sdedit | ilvr | cut | fastcut | edit (by words: edit.method)
    c.method = "contrastive_sde"
    c.dtype = "float32"  # compute dtype of convolutions and products: float32 | bfloat16
    c.remat = False  # recompute blocks in the backward pass: less memory, more time

    # Devices of all processes in training: batches are split over all of them.
    m = c.mesh = ConfigDict()
    m.data = -1  # how many groups of devices, each with the whole network; -1: what fsdp leaves
    m.fsdp = 1  # devices that share the training state of one network: less memory, more traffic

    d = c.data = ConfigDict()
    d.root = "emoji"  # emoji (embedded) | a folder DIR/{train,val,test}/{domain}/ | tfds:NAME
    d.data_dir = placeholder(str)  # where TFDS data sets are kept (None: TFDS's default)
    d.source = "twemoji"  # domain that is translated; several: "cat,wild"
    d.target = "fluent"  # domain that is translated to
    d.domains = ()  # what encoder and classifier are trained on; (): the sources, then the target
    d.image_size = 256
    d.filter = "lanczos"  # lanczos | bicubic | bilinear, on uint8, shorter side to image_size
    d.fit = "crop"  # crop: the centre square | stretch: both sides to image_size
    d.flip = True  # random horizontal flips in training
    d.load_size = placeholder(int)  # read larger than image_size and cut out at random (GANs)
    d.workers = 0  # decoding processes; 0: in this process, small sets cached in memory

    s = c.sde = ConfigDict()
    s.schedule = "linear"  # linear | cosine
    s.num_steps = 1000  # T

    n = c.score = ConfigDict()
    n.arch = "adm"  # adm | ddpm
    n.channels = 128
    n.channel_mult = (1, 1, 2, 2, 4, 4)
    n.num_res_blocks = 1
    n.attention_resolutions = (16,)  # in pixels of the network's own grid
    n.num_heads = 4
    n.num_head_channels = 64  # -1: use num_heads
    n.use_scale_shift_norm = True
    n.resblock_updown = True
    n.conv_resample = True
    n.new_attention_order = False
    n.learn_sigma = True  # 6 output channels; the variance half is never used (nor trained here)
    n.dropout = 0.0
    n.prediction = "eps"  # what the network's output means: eps | v; published networks: eps
    n.group_channels = 1  # at least so many channels a group of normalisation (adm); published: 1
    n.patch_size = 1  # space-to-depth at both ends; 1 in published networks

    c.classifier = _encoder_half()
    c.encoder = _encoder_half()
    c.encoder.hidden_dim = 256  # width of the pooled vector; pool="none": of each position's
    c.encoder.embed_dim = 128  # width after the projection head

    # A small latent diffusion model, trained here for edits by words.
    n = c.autoencoder = ConfigDict()
    n.widths = (32, 48, 64)  # of the levels; each but the last halves the side
    n.blocks = 1  # residual blocks a level (one more in the decoder)
    n.channels = 4  # of the latents
    n.groups = 8  # of normalisation
    n = c.latent = ConfigDict()
    n.widths = (64, 112, 144)
    n.blocks = 1
    n.heads = 4
    n.groups = 16
    n.text_width = 128  # of the text encoder
    n.text_depth = 2
    n.text_heads = 4
    n.text_length = 16  # tokens of a caption
    n.vocabulary = 1500  # tokens learned from the captions

    # Files or names of weights used when the work folder has no checkpoint of a network:
    # "shipped:NAME" (part of the package) or a file for --mode=import.
    w = c.weights = ConfigDict()
    w.score = placeholder(str)
    w.encoder = placeholder(str)
    w.classifier = placeholder(str)
    w.cut = placeholder(str)
    w.fastcut = placeholder(str)
    w.autoencoder = placeholder(str)
    w.latent = placeholder(str)

    t = c.train = ConfigDict()
    # score | encoder | classifier | cut | fastcut | autoencoder | latent; "": all that the method
    # needs and that are not there
    t.stage = ""
    t.steps = placeholder(int)  # overrides the stage's own
    t.batch_size = placeholder(int)  # overrides the stage's own
    t.seed = 0
    t.score = _training(
        500_000,
        64,
        1e-4,
        snr_clip=0.0,  # γ of min-SNR; 0: simple loss
        levels="index",  # drawn uniformly | log_snr: normal in log ᾱ/(1-ᾱ), as EDM does
        log_snr_mean=2.4,  # of that normal distribution; EDM's
        log_snr_std=2.4,
    )
    t.encoder = _training(
        5_000,
        64,
        3e-4,
        weight_decay=0.05,
        schedule="cosine",
        ema=0.999,
        temperature=0.2,  # τ of NT-Xent
        factor=32,  # N of the low-pass view φ
        colour=0.0,  # that view's colours moved at random by so much; the encoder then cannot tell
        # by colour alone
        shared_time="batch",  # one t per batch | pair (then t tells pairs apart)
        max_index=1000,  # t is drawn below this index
    )
    t.classifier = _training(
        5_000, 32, 3e-4, weight_decay=0.05, schedule="cosine", ema=0.999, max_index=1000
    )
    # Published: horse → zebra, 1,334 images an epoch, one pair a step; Adam, β1 = 0.5.
    for name, epochs, decay in (("cut", 400, 200), ("fastcut", 200, 50)):
        t[name] = _training(
            epochs * 1334,
            1,  # pairs: an image of each domain
            2e-4,
            beta1=0.5,
            schedule="linear",
            epoch=1334,  # steps
            decay=decay,  # epochs
            warmup=0,
            clip_norm=0.0,
            ema=0.0,
        )
    t.autoencoder = _training(2_000, 16, 1e-3, schedule="cosine", warmup=100, ema=0.99, kl=1e-3)
    t.latent = _training(
        10_000,
        32,
        5e-4,
        schedule="cosine",
        warmup=200,
        ema=0.999,
        snr_clip=5.0,
        drop_text=0.1,  # share of the images shown without their caption
    )
    t.log_every = 50  # steps
    t.checkpoint_every = 1_000  # steps
    t.keep = 2  # checkpoints kept
    t.sample_every = 10_000  # steps between sheets of the score stage; 0: none
    t.sample_images = 8  # images on such a sheet

    s = c.sample = ConfigDict()
    s.input = placeholder(str)  # an image or a folder; None: the source domain's `split`
    s.output = placeholder(str)  # None: WORKDIR/samples/METHOD
    s.split = "test"
    s.start = placeholder(int)  # M, index + 1 at which the reverse SDE starts; None: the method's
    s.rounds = 1  # K
    s.steps = placeholder(int)  # network evaluations a round; None: every index below M
    s.spacing = "index"  # in what the levels are evenly spaced: index | log_snr
    # So many training images of each domain say how the source is given the target's colours before
    # it is perturbed, channel by channel (histogram specification); 0: it keeps its own
    s.match_colours = 0
    s.solver = "ancestral"  # ancestral | ddim | dpmpp_2m (DPM-Solver++ of second order)
    s.variance = "fixedsmall"  # fixedsmall | fixedlarge (ancestral)
    s.eta = 0.0  # ddim, dpmpp_2m: 0 deterministic (the ODE), 1 the SDE
    s.clip = False  # clip the predicted x0 to [-1, 1] at each step (helps with few steps)
    s.follow = False  # low-pass energy: follow its gradient in a step, not one Euler step of it
    s.seed = 0
    s.batch_size = 16
    s.limit = placeholder(int)  # only the first so many images
    s.sheet = 16  # images on sheet.png; 0: no sheet
    s.trajectory = False  # also trajectories/NAME.{png,webp}: each image on its way

    # Methods. Weights may be changed without compiling again.
    c.sdedit = ConfigDict(dict(start=500))
    c.ilvr = ConfigDict(
        dict(
            start=1000,
            factor=32,
            level="previous",  # of the projected source: previous | same
            from_noise=True,  # start from noise alone; False: from the perturbed source
        )
    )
    c.egsde = ConfigDict(
        dict(
            start=500,
            domain_weight=500.0,  # λ_s
            domain_similarity="cosine",  # cosine | neg_l2, of classifier features
            domain_band=0,  # of the domain energy, as contrastive_sde.band
            content_weight=2.0,  # λ_i
            content_similarity="neg_l2",  # neg_l2 | cosine, of the low-passed images
            factor=32,  # N
        )
    )
    c.contrastive_sde = ConfigDict(
        dict(
            start=500,
            weight=500.0,  # λ of the contrastive energy
            space="embedding",  # embedding (after the head) | hidden (before it) | features
            reference="perturbed",  # x_i: perturbed source | lowpass: φ(x0) perturbed to i
            content_weight=2.0,  # λ_i of the low-pass energy kept beside it; 0: none
            factor=32,  # N
            similarity="cosine",  # cosine | nce: patch contrast, for maps
            temperature=0.07,  # τ of nce
            # It guides only what a low-pass of this factor N keeps; -N: only what that takes away;
            # 0: all frequencies
            band=0,
            cutoff=0,  # the contrastive energy is off below this index
            # Contrast of domains: between mean features of so many training images of each; 0: none
            domain_images=0,
            domain_weight=0.0,  # λ_d; from the one mean to the other the energy falls by 1
            domain_band=0,  # of the contrast of domains, as band
        )
    )

    c.cut = _gan()
    c.fastcut = _gan(nce_weight=10.0, identity=False, flip_equivariance=True)

    x = c.export = ConfigDict()
    x.stage = "score"  # score | encoder | classifier | cut | fastcut | latent (a whole model)
    x.format = "published"  # published names, for published code | cdsde: float16 with a card
    x.path = placeholder(
        str
    )  # FILE.pt, .pth or .safetensors; None: WORKDIR/export/STAGE.safetensors

    v = c.serve = ConfigDict()
    v.host = "127.0.0.1"  # who may open the page: this machine alone; 0.0.0.0 is everybody
    v.port = 7860
    v.tasks = ()  # config files that can be chosen beside this one
    v.max_steps = 100  # of the slider: the program is compiled once for as many

    # Text-guided editing with a latent diffusion model on disk, in the layout of diffusers.
    c.model = ConfigDict()
    # DIR/{unet,vae,text_encoder,tokenizer,scheduler}, or "shipped:NAME"
    c.model.path = placeholder(str)
    c.model.captioner = placeholder(str)  # a BLIP folder, for captions that are not given
    d = c.edit = ConfigDict()
    d.method = "pix2pix_zerocon"  # ddim | pix2pix_zero | pix2pix_zerocon | pnp | dds | cds
    # An image or a folder; None: images of data.source's `split` whose captions hold `source`.
    d.input = placeholder(str)
    d.split = "test"
    d.output = placeholder(str)  # None: WORKDIR/edits/METHOD
    d.source = ""  # what is to change: "a cat"
    d.target = ""  # into what: "a dog"
    # Of the image; None: the data's own, NAME.txt beside NAME.png, or the captioner's.
    d.caption = placeholder(str)
    # Sentences with {} for source and target; (): the data's captions that hold `source`, or, for
    # images of `input`, built-in ones of photos.
    d.templates = ()
    d.source_bank = placeholder(str)  # a sentence a line; None: templates around `source`
    d.target_bank = placeholder(str)
    d.image_size = 512  # shorter side, then the centre square
    d.steps = 50  # of the inversion and of the sampling
    d.inversion_steps = placeholder(int)  # None: as many; plug-and-play's own code: 999
    d.inversion = "next"  # next | current | p2p0: where the inversion's noise is predicted
    d.regularise = True  # keep the inverted noise noise-like (pix2pix-zero, pix2pix_zerocon)
    d.strength = 1.0  # times the direction from source to target
    d.scale = placeholder(float)  # of classifier-free guidance; None: the method's own
    d.negative = placeholder(str)  # what it leads away from; None: the method's own
    d.step = 0.1  # λ, of the gradient steps
    d.map_weight = 1.0  # λ_c, of the cross-attention maps
    d.feature_weight = 3.0  # λ_e, of the patches (pix2pix_zerocon, cds)
    d.patches = (1, 2)  # sides of a patch
    d.num_patches = 256
    d.temperature = 0.07
    d.layers = "decoder"  # decoder | encoder: whose features are compared
    d.convolution = 0.8  # pnp: share of the steps in which it is the source's
    d.attention = 0.5
    d.iterations = 200  # dds, cds
    d.rate = 0.1
    d.seed = 0
    d.batch_size = 1
    d.limit = placeholder(int)

    e = c.eval = ConfigDict()
    e.split = "test"
    e.methods = ""  # methods whose results are evaluated side by side: "sdedit,egsde"; "": method
    e.bootstrap = 1000  # resamples of the 95% interval
    e.seed = 0
    # Realism: the target's images of this split are what results are compared with; "": left out.
    e.reference = "train"
    e.cache = placeholder(str)  # folder of their statistics; None: WORKDIR/eval/reference
    # Published weights of feature networks, each adding its metrics; EfficientNet-Lite0's come with
    # the package's requirements.
    e.inception = placeholder(str)  # FID, KID: pt_inception-2015-12-05-6726825d.pth
    e.lpips_alex = placeholder(str)  # LPIPS: torchvision's alexnet-owt-7be5be79.pth
    e.lpips_vgg = placeholder(str)  # LPIPS: torchvision's vgg16-397923af.pth
    # Edits by words (a config with `edit.target`).
    e.clip = placeholder(str)  # CLIP score: a folder of CLIP, with its tokenizer
    e.text = placeholder(str)  # what pictures are held against; None: edit.target
    e.dino = placeholder(str)  # structure distance: dino_vitbase8_pretrain.pth
    e.masks = placeholder(str)  # for the background: a folder of PNGs, white where the object is;
    # None: where the model of model.path looks for edit.source
    # A misspelt key in a config file fails rather than being a new one that nobody reads.
    return c.lock()
