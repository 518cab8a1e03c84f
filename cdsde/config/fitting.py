"""Whether the widths, heads and sides of a network fit each other, told by key.

The networks check themselves, in terms of their own fields; here a config learns it before anything
is built. The rules are those of `networks.blocks` and of the classes that `networks.build` makes.
"""

from __future__ import annotations

from collections.abc import Iterable

from ml_collections import ConfigDict

from cdsde.config.keys import GUIDED, GUIDED_SDES, KEYS, LATENT, SDES

GROUPS = 32  # of a normalisation in the networks on pixels, at most
AUTOENCODER_GROUPS, LATENT_GROUPS, TEXT_HEADS = 8, 16, 4
FIXED_HEADS = 4  # of encoder and classifier where `num_head_channels` is -1
# Keys of `score` that the network of DDPM does not have.
ADM_ONLY = ("num_head_channels", "num_heads", "resblock_updown", "use_scale_shift_norm")
ADM_ONLY += ("new_attention_order", "group_channels")


def check_used(config: ConfigDict, methods: tuple[str, ...]) -> None:
    """Checks the networks that the methods run, and the one that is trained.

    Raises:
      ValueError: one sentence that names the key.
    """
    trained = "score" if config.train.stage == "source_score" else config.train.stage
    guided = [m for m in methods if m in SDES]
    used = {stage for m in guided for stage in GUIDED_SDES[m].needed(config[m])} | {trained}
    for stage in GUIDED:
        if stage in used or (stage == "score" and "source_score" in used):
            check(config, stage)
    if trained in LATENT:
        check_latent(config)


def check(config: ConfigDict, stage: str) -> None:
    """Checks the network of a stage of `GUIDED`.

    Raises:
      ValueError: one sentence that names the key.
    """
    if stage == "score" and config.score.arch == "published":
        return
    check_sides(config, stage)
    sides = _attention(config, stage)
    _widths(config, stage)
    net = config[stage]
    if stage == "score" and net.arch == "ddpm":
        return
    levels = [n for n, side in enumerate(sides) if side in net.attention_resolutions]
    for level in (*levels, -1):  # the middle has attention, too
        _heads(config, stage, int(net.channel_mult[level] * net.channels))


def check_sides(config: ConfigDict, stage: str) -> None:
    """Checks that the levels of a network divide the image."""
    net, size = config[stage], config.data.image_size
    down = net.patch_size * 2 ** (len(net.channel_mult) - 1)
    if size % down:
        raise ValueError(
            f"config.data.image_size is {size}, not a multiple of {down} as "
            f"config.{stage}.channel_mult ({len(net.channel_mult)} levels) and patch_size "
            f"{net.patch_size} require"
        )


def _attention(config: ConfigDict, stage: str) -> list[int]:
    """The sides of a network's feature maps; `attention_resolutions` are some of them.

    As in published lists, it may name sides that more levels would have: config files share it
    between sizes of images. An override may not (`check_given`).
    """
    sides = _sides(config, stage)
    for side in config[stage].attention_resolutions:
        halvings = sides[0] // side
        if sides[0] % side or halvings & (halvings - 1):  # not a power of 2
            raise ValueError(_no_such_side(config, stage, side))
    return sides


def _sides(config: ConfigDict, stage: str) -> list[int]:
    """The side of the feature maps of each level."""
    net = config[stage]
    first = config.data.image_size // net.patch_size
    return [first // 2**level for level in range(len(net.channel_mult))]


def _no_such_side(config: ConfigDict, stage: str, side: int) -> str:
    sides = ", ".join(map(str, _sides(config, stage)))
    return (
        f"config.{stage}.attention_resolutions names {side}, and the feature maps have sides "
        f"{sides} (config.data.image_size={config.data.image_size}, "
        f"patch_size {config[stage].patch_size}); choose among these, or set it to () for "
        "attention in the middle alone"
    )


def check_given(config: ConfigDict, given: Iterable[str]) -> None:
    """Checks that overrides of networks' keys have an effect.

    Args:
      config: with the overrides, not yet validated.
      given: the overridden keys.

    Raises:
      ValueError: one sentence that names the key.
    """
    for key in given:
        stage, _, name = key.partition(".")
        if stage not in GUIDED or (stage == "score" and config.score.arch == "published"):
            continue
        net, size = config[stage], config.data.image_size
        value = net[name]
        if name == "attention_resolutions" and net.patch_size > 0 and size % net.patch_size == 0:
            for side in value:
                if type(side) is int and side > 0 and side not in _sides(config, stage):
                    raise ValueError(_no_such_side(config, stage, side))
        if name in ADM_ONLY and stage == "score" and net.arch == "ddpm":
            if value != (usual := KEYS[key].default):
                raise ValueError(
                    f"config.{key} is {value}, and config.score.arch 'ddpm', a network without "
                    f"it; leave it out, or set it to {usual}, which has no effect there"
                )


def _widths(config: ConfigDict, stage: str) -> None:
    net = config[stage]
    ddpm = stage == "score" and net.arch == "ddpm"
    least = 1 if ddpm else net.group_channels
    for width in _normalised(net, ddpm, decoder=stage == "score"):
        groups = min(GROUPS, width // least)
        if groups == 0 or width % groups or (least == 1 and width < GROUPS):
            given = "" if ddpm else f", and config.{stage}.group_channels={least}"
            powers = "" if ddpm else ", and 1, 2, 4, 8, 16 or 32 as group_channels"
            raise ValueError(
                f"config.{stage}.channels is {net.channels}, which with channel_mult "
                f"{tuple(net.channel_mult)} gives a layer of {width} channels{given}: these cannot "
                f"be cut into groups for normalisation; choose a multiple of {GROUPS}{powers}"
            )
    if net.channels < 2:  # the time has a sine and a cosine
        raise ValueError(f"config.{stage}.channels is {net.channels}; it must be at least 2")


def _normalised(net: ConfigDict, ddpm: bool, decoder: bool) -> list[int]:
    """Numbers of channels of all normalised feature maps."""
    widths = [int(mult * net.channels) for mult in net.channel_mult]
    skips = [net.channels if ddpm else widths[0]]
    for level, width in enumerate(widths):
        skips += [width] * (net.num_res_blocks + (level < len(widths) - 1))
    found, h = [*skips, *widths], widths[-1]
    for width in reversed(widths) if decoder else ():
        for _ in range(net.num_res_blocks + 1):
            found.append(h + skips.pop())
            h = width
    return list(dict.fromkeys(found))


def _heads(config: ConfigDict, stage: str, width: int) -> None:
    net = config[stage]
    if net.num_head_channels != -1:
        if width % net.num_head_channels:
            raise ValueError(
                f"config.{stage}.num_head_channels is {net.num_head_channels}, which does not "
                f"divide the {width} channels of a layer with attention (channels times "
                "channel_mult); choose a divisor of them"
            )
        return
    if stage != "score" and net.pool == "attention":
        raise ValueError(
            f"config.{stage}.num_head_channels is -1, and config.{stage}.pool 'attention', whose "
            "heads have a fixed width; set it to a divisor of the channels, such as 32"
        )
    heads, key = (net.num_heads, "num_heads") if stage == "score" else (FIXED_HEADS, None)
    if width % heads:
        told = f"{key} is {heads}, which does" if key else "num_head_channels is -1: 4 heads do"
        raise ValueError(
            f"config.{stage}.{told} not divide the {width} channels of a layer with attention "
            "(channels times channel_mult); choose another"
        )


def check_latent(config: ConfigDict) -> None:
    """Checks the networks of a latent diffusion model that is trained.

    Raises:
      ValueError: one sentence that names the key.
    """
    net, size = config.latent, config.data.image_size
    for stage, groups in (("autoencoder", AUTOENCODER_GROUPS), ("latent", LATENT_GROUPS)):
        widths = tuple(config[stage].widths)
        if not widths or any(width % groups for width in widths):
            raise ValueError(
                f"config.{stage}.widths is {widths}; it must be a tuple of multiples of {groups} "
                f"(groups of a normalisation), one a level, such as '({2 * groups}, {4 * groups})'"
            )
    downs = len(config.autoencoder.widths) - 1, len(net.widths) - 1
    if size % 2 ** sum(downs):
        raise ValueError(
            f"config.data.image_size is {size}, not a multiple of {2 ** sum(downs)} as "
            f"config.autoencoder.widths ({downs[0] + 1} levels) and config.latent.widths "
            f"({downs[1] + 1} levels) require"
        )
    if any(width % net.heads for width in net.widths):
        raise ValueError(
            f"config.latent.heads is {net.heads}, which does not divide each of "
            f"config.latent.widths {tuple(net.widths)}; choose a divisor of them"
        )
    if net.text_width % TEXT_HEADS:
        raise ValueError(
            f"config.latent.text_width is {net.text_width}; it must be a multiple of {TEXT_HEADS}, "
            "the heads of the text encoder"
        )
