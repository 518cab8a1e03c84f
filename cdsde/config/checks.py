"""The checks on a config: names, ranges, and what must fit together."""

from __future__ import annotations

from ml_collections import ConfigDict

from cdsde import config as config_lib


def validate(config: ConfigDict) -> None:
    """Check names, ranges and what must fit together.

    Raises:
      ValueError: one sentence that names the key, the value seen and what is allowed.
    """

    def one_of(key, allowed):
        value = config_lib.get(config, key)
        if value not in allowed:
            raise ValueError(f"config.{key} is '{value}'; choose one of {', '.join(allowed)}")

    def at_least(key, low, value=None):
        value = config_lib.get(config, key) if value is None else value
        if value is not None and value < low:
            raise ValueError(f"config.{key} is {value}; it must be at least {low}")

    one_of("method", config_lib.METHODS)
    editing = config.method == "edit"
    known = config_lib.EDITORS if editing else config_lib.METHODS
    for method in config_lib.named_methods(config):
        if method not in known:
            raise ValueError(
                f"config.eval.methods names '{method}'; choose from {', '.join(known)}"
            )
    one_of("dtype", ("float32", "bfloat16"))
    one_of("train.stage", ("",) + config_lib.STAGES)
    one_of("data.filter", ("lanczos", "bicubic", "bilinear"))
    one_of("edit.method", config_lib.EDITORS)
    one_of("edit.inversion", ("next", "current", "p2p0"))
    one_of("edit.layers", ("decoder", "encoder"))
    counts = ("steps", "inversion_steps", "iterations", "batch_size", "num_patches")
    for key in (f"edit.{name}" for name in counts):
        at_least(key, 1)
    one_of("data.fit", ("crop", "stretch"))
    one_of("sde.schedule", ("linear", "cosine"))
    one_of("score.arch", ("adm", "ddpm"))
    one_of("score.prediction", ("eps", "v"))
    one_of("train.score.levels", ("index", "log_snr"))
    one_of("sample.spacing", ("index", "log_snr"))
    one_of("sample.solver", ("ancestral", "ddim", "dpmpp_2m"))
    one_of("sample.variance", ("fixedsmall", "fixedlarge"))
    one_of("egsde.domain_similarity", ("cosine", "neg_l2"))
    one_of("egsde.content_similarity", ("cosine", "neg_l2"))
    one_of("contrastive_sde.space", ("embedding", "hidden", "features"))
    one_of("contrastive_sde.similarity", ("cosine", "nce"))
    pooled = config.encoder.pool != "none" and config.contrastive_sde.space != "features"
    if config.contrastive_sde.similarity == "nce" and pooled:
        raise ValueError(
            "config.contrastive_sde.similarity is 'nce', which compares positions; it needs "
            "config.contrastive_sde.space=features or an encoder with config.encoder.pool=none"
        )
    at_least("sample.match_colours", 0)
    if config.sample.match_colours and config.method not in config_lib.SDES:
        raise ValueError(
            f"config.sample.match_colours is {config.sample.match_colours}, and config.method "
            f"'{config.method}', which does not start from a perturbed source; set it to 0"
        )
    one_of("contrastive_sde.reference", ("perturbed", "lowpass"))
    at_least("contrastive_sde.domain_images", 0)
    contrast = config.contrastive_sde
    if contrast.domain_weight and not contrast.domain_images:
        raise ValueError(
            f"config.contrastive_sde.domain_weight is {contrast.domain_weight} and "
            "domain_images 0, so that there is nothing to contrast; set domain_images, such as "
            "128, or the weight 0"
        )
    one_of("ilvr.level", ("previous", "same"))
    one_of("export.stage", config_lib.STAGES)
    one_of("export.format", ("published", "cdsde"))
    one_of("train.encoder.shared_time", ("batch", "pair"))
    for stage in ("encoder", "classifier"):
        one_of(f"{stage}.pool", ("attention", "adaptive", "none")[: 3 if stage == "encoder" else 2])
    for stage in config_lib.GUIDED:
        for key in (f"{stage}.channel_mult", f"{stage}.attention_resolutions"):
            numbers = config_lib.get(config, key)
            least = 1 if key.endswith("mult") else 0
            if len(numbers) < least or not all(type(n) is int and n > 0 for n in numbers):
                raise ValueError(
                    f"config.{key} is {numbers}; it must be a tuple of whole numbers above 0, such "
                    "as '(1, 2)'"
                )
    for stage in config_lib.STAGES:
        linear = ("linear",) if stage in config_lib.GANS else ()
        one_of(f"train.{stage}.schedule", ("constant", "cosine", *linear))
        one_of(f"train.{stage}.optimizer", ("adam", "muon"))
        for key in ("steps", "batch_size", "accumulate"):
            at_least(f"train.{stage}.{key}", 1)
    if config.mesh.data != -1:
        at_least("mesh.data", 1)
    at_least("mesh.fsdp", 1)
    for key in ("data.image_size", "train.log_every", "train.checkpoint_every", "train.keep"):
        at_least(key, 1)
    at_least("sample.sheet", 0)
    for key in ("sample.rounds", "sample.batch_size", "sample.steps", "sample.limit"):
        at_least(key, 1)
    for key in ("train.steps", "train.batch_size", "eval.bootstrap", "sde.num_steps"):
        at_least(key, 1)
    at_least("train.encoder.temperature", 1e-4)
    at_least("train.score.log_snr_std", 1e-3)
    for stage in config_lib.GUIDED:
        at_least(f"{stage}.group_channels", 1)
    for method in config_lib.GANS:
        one_of(f"{method}.gan", ("lsgan", "vanilla", "nonsaturating", "wgangp"))
        for key in ("num_blocks", "num_patches", "discriminator_layers", "group_channels"):
            at_least(f"{method}.{key}", 1)
        widths = config[method].channels, config[method].discriminator_channels
        group = config[method].group_channels
        if any(width % group for width in widths):
            raise ValueError(
                f"config.{method}.group_channels is {group}; it must divide the channels, "
                f"{widths[0]} and {widths[1]} (discriminator)"
            )
        last = 11 + config[method].num_blocks
        if not config[method].layers or max(config[method].layers) > last:
            raise ValueError(
                f"config.{method}.layers is {config[method].layers}; name entries of the generator "
                f"up to {last}, its last residual block"
            )
    load = config.data.load_size
    if load is not None and load < config.data.image_size:
        raise ValueError(
            f"config.data.load_size is {load}, less than config.data.image_size="
            f"{config.data.image_size}; images are cut out of larger ones"
        )
    if not config_lib.sources(config):
        raise ValueError("config.data.source is empty; name the domain that is to be translated")

    for key, name in [("source", n) for n in config_lib.sources(config)] + [
        ("target", config.data.target)
    ]:
        if name not in config_lib.domains(config):
            raise ValueError(
                f"config.data.{key} names '{name}', which is not one of config.data.domains "
                f"({', '.join(config_lib.domains(config))}); choose one of these, or list it there"
            )

    total = config.sde.num_steps
    start = config_lib.start_index(config) if config.method in config_lib.SDES else total
    if not 1 <= start <= total:
        raise ValueError(
            f"config.sample.start is {start}; it must lie in 1..{total} (config.sde.num_steps)"
        )
    steps = config.sample.steps
    if steps is not None and steps > start:
        raise ValueError(
            f"config.sample.steps is {steps}, more than the {start} noise levels below "
            f"config.sample.start; lower it, or leave it out to take every level"
        )

    size = config.data.image_size
    if config.method in config_lib.GANS and size % 4:
        raise ValueError(f"config.data.image_size is {size}; {config.method} needs a multiple of 4")
    for stage in config_lib.GUIDED if config.method in config_lib.SDES else ():
        net = config[stage]
        down = net.patch_size * 2 ** (len(net.channel_mult) - 1)
        if size % down:
            raise ValueError(
                f"config.data.image_size is {size}, not a multiple of {down} as "
                f"config.{stage}.channel_mult ({len(net.channel_mult)} levels) and patch_size "
                f"{net.patch_size} ask for"
            )
    keys = ["egsde.factor", "contrastive_sde.factor", "ilvr.factor", "train.encoder.factor"]
    bands = ("contrastive_sde.band", "contrastive_sde.domain_band", "egsde.domain_band")
    keys += [key for key in bands if config_lib.get(config, key)]
    for key in keys if config.method in config_lib.SDES else ():
        given = config_lib.get(config, key)
        factor = abs(given) if key in bands else given
        if factor < 1 or size % factor or size // factor < 2:
            raise ValueError(
                f"config.{key} is {given}; the low-pass needs a divisor of "
                f"config.data.image_size={size} that leaves at least 2 pixels"
            )
