"""The checks on a config: the allowed values of each key (keys.py), and combinations of keys."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from ml_collections import ConfigDict

from cdsde.config import derived, fitting
from cdsde.config.keys import EDITORS, GANS, GUIDED, GUIDED_SDES, KEYS, SDES
from cdsde.diffusion.methods.method import Setting

# Programs compute in 32 bits.
LARGEST = {int: 2**31 - 1, float: 1e38}


def validate(config: ConfigDict) -> None:
    """Checks every key by itself, then the combinations of keys.

    Raises:
      ValueError: one sentence that names the key, its value and the allowed values.
    """
    _each_key(config)
    _texts(config)
    _methods(config)
    _domains(config)
    _training(config)
    _networks(config)
    if config.method in SDES:
        _levels(config)
        _lowpass(config)
        GUIDED_SDES[config.method].check(config[config.method], config)
    if config.method in GANS or config.train.stage in GANS:
        _gan(config)
    if config.method in EDITORS:
        _edit(config)


def check_measures(config: ConfigDict) -> None:
    """Checks that the weights that `--mode=eval` is given measure what the method makes.

    Raises:
      ValueError: one sentence that names the key.
    """
    edits, e = config.method in EDITORS, config.eval
    unused = ("inception",) if edits else ("clip", "text", "dino", "masks")
    for key in unused:
        if e[key] is not None:
            one = "translations" if edits else "edits by words"
            raise ValueError(
                f"config.eval.{key} is {e[key]}, which measures {one}, and config.method is "
                f"'{config.method}'; leave it out"
            )
    if e.text is not None and e.clip is None:
        raise ValueError(
            f"config.eval.text is '{e.text}', which the CLIP score compares, and there is no CLIP; "
            "name its folder with --config.eval.clip=DIR, or leave the text out"
        )
    if e.inception is not None and not e.reference:
        raise ValueError(
            f"config.eval.inception is {e.inception}, and config.eval.reference is empty: FID "
            "needs a reference; name a split of the target, such as train, or leave it out"
        )


def _each_key(config: ConfigDict) -> None:
    """Checks choices and limits of numbers, in the order of the table."""
    for key, setting in KEYS.items():
        value: Any = derived.get(config, key)
        if value is None:
            derived.unset_value(key)  # a config file may set any key to None
            continue
        if not str(value).strip() and not derived.may_be_empty(key):
            instead = "None to unset it" if isinstance(setting.default, type) else "leave it out"
            raise ValueError(f"config.{key} is empty; give it a value, or {instead}")
        if key == "method" and value == "edit":
            raise ValueError(
                f"config.method is 'edit'; name the editor itself, one of {', '.join(EDITORS)}"
            )
        if setting.choices and value not in setting.choices:
            allowed = ", ".join(str(c) for c in setting.choices if c != "")
            raise ValueError(f"config.{key} is '{value}'; choose one of {allowed}")
        _numbers(key, value, setting)


def _numbers(key: str, value: Any, setting: Setting) -> None:
    """Checks a number, or each one of a tuple, against the limits of its key and of 32 bits."""
    if isinstance(setting.default, tuple):
        if setting.minimum is None:
            return
        if not all(type(n) is int and setting.allows(n) and n <= LARGEST[int] for n in value):
            raise ValueError(
                f"config.{key} is {value}; it must be a tuple of whole numbers, each "
                f"{setting.limits}, such as '(1, 2)'"
            )
        return
    kind = setting.default if isinstance(setting.default, type) else type(setting.default)
    if kind in LARGEST:
        if not _is_number(value, kind):
            wanted = "a whole number" if kind is int else "a number"
            limits = f", {setting.limits}" if setting.limits else ""
            raise ValueError(f"config.{key} is {value}; it must be {wanted}{limits}")
        if not setting.allows(value):
            raise ValueError(f"config.{key} is {value}; it must be {setting.limits or 'a number'}")
        largest = setting.maximum or LARGEST[kind]
        if not -largest <= value <= largest:
            raise ValueError(f"config.{key} is {value}; it must be at most {largest}")


def _is_number(value: Any, kind: type) -> bool:
    """Whether a value is a number of a kind, of Python or NumPy; True is none."""
    return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)


def _texts(config: ConfigDict) -> None:
    """Checks tuples of texts, and that a sentence has one field, the empty one."""
    for key in (k for k, s in KEYS.items() if s.default == () and s.minimum is None):
        value = derived.get(config, key)
        if not all(isinstance(text, str) and text.strip() for text in value):
            raise ValueError(
                f"config.{key} is {value}; it must be a tuple of texts, such as \"('a', 'b')\""
            )
    for template in config.edit.templates:
        if "{}" not in template or set("{}") & set(template.replace("{}", "")):
            raise ValueError(
                f"config.edit.templates has '{template}'; each sentence has {{}} in place of the "
                "object, and no other braces"
            )


def _methods(config: ConfigDict) -> None:
    known = EDITORS if config.method in EDITORS else (*SDES, *GANS)
    for method in derived.eval_methods(config):
        if method not in known:
            raise ValueError(
                f"config.eval.methods names '{method}'; choose from {', '.join(known)}"
            )
    if config.sample.match_colours and config.method not in SDES:
        raise ValueError(
            f"config.sample.match_colours is {config.sample.match_colours}, and config.method "
            f"'{config.method}', which does not start from a perturbed source; set it to 0"
        )
    if config.sample.keep_size and config.method in EDITORS:
        raise ValueError(
            f"config.sample.keep_size is True, and config.method '{config.method}', which edits at "
            "config.data.image_size; set it to False, or choose data.fit=pad"
        )
    if config.sample.keep_size and config.sample.trajectory:
        raise ValueError(
            "config.sample.keep_size and config.sample.trajectory are True, and a film shows "
            "pictures of config.data.image_size; set one of them to False"
        )
    _left_out(config)


def _left_out(config: ConfigDict) -> None:
    """Checks the keys that leave steps without guidance."""
    s, method = config.sample, GUIDED_SDES.get(config.method)
    for key, all_steps in (("guide_every", 1), ("guide_levels", ())):
        if s[key] != all_steps and not (method and method.terms(config[method.name])):
            raise ValueError(
                f"config.sample.{key} is {s[key]}, and config.method '{config.method}', which has "
                f"no guidance to leave out; set it to {all_steps}"
            )
    if s.guide_levels and not (len(s.guide_levels) == 2 and s.guide_levels[0] < s.guide_levels[1]):
        raise ValueError(
            f"config.sample.guide_levels is {s.guide_levels}; give two numbers, the lowest level "
            "that is guided and the first one above it, such as (200,600), or () for all"
        )


def _domains(config: ConfigDict) -> None:
    d = config.data
    if d.data_dir is not None and not str(d.root).startswith("tfds:"):
        raise ValueError(
            f"config.data.data_dir is '{d.data_dir}', which only TFDS data sets have, and "
            f"config.data.root is '{d.root}'; leave it out, or set the root to 'tfds:NAME'"
        )
    if d.load_size is not None and d.load_size < d.image_size:
        raise ValueError(
            f"config.data.load_size is {d.load_size}, less than config.data.image_size="
            f"{d.image_size}; training images are cropped from larger ones"
        )
    names = derived.sources(config)
    if not names:
        raise ValueError("config.data.source is empty; name the domain to translate")
    trained_on = derived.domains(config)
    for key, name in [*(("source", name) for name in names), ("target", d.target)]:
        if name not in trained_on:
            raise ValueError(
                f"config.data.{key} names '{name}', which is not one of config.data.domains "
                f"({', '.join(trained_on)}); choose one of these, or list it there"
            )


def _training(config: ConfigDict) -> None:
    t = config.train
    if t.fine_tune and not t.stage:
        raise ValueError(
            "config.train.fine_tune is True and config.train.stage is empty; name the network to "
            "fine-tune, such as --config.train.stage=score"
        )
    if t.accumulate > 1 and t.stage in GANS:
        raise ValueError(
            f"config.train.accumulate is {t.accumulate}, and the training of {t.stage} does not "
            "cut batches into parts; set it to 1 and lower train.cut.batch_size"
        )


def _networks(config: ConfigDict) -> None:
    for stage in GUIDED:
        for key in (f"{stage}.channel_mult", f"{stage}.attention_resolutions"):
            if key.endswith("mult") and not derived.get(config, key):
                raise ValueError(
                    f"config.{key} is (); it must be a tuple of whole numbers, one a level, such "
                    "as '(1, 2)'"
                )
        if config[stage].num_head_channels == 0:
            raise ValueError(
                f"config.{stage}.num_head_channels is 0; it must be at least 1, or -1 for a fixed "
                "number of heads"
            )
    if config.score.arch == "published" and not config.score.published:
        raise ValueError(
            "config.score.arch is 'published' without a description; name the network's file with "
            "--config.weights.score=PATH, which tells its architecture, and leave score.arch out"
        )
    for stage in GUIDED if config.method in SDES else ():
        if stage != "score" or config.score.arch != "published":
            fitting.check_sides(config, stage)
    fitting.check_used(config, derived.eval_methods(config))


def _levels(config: ConfigDict) -> None:
    s = config.sample
    if s.variance == "learned" and s.solver != "ancestral":
        raise ValueError(
            f"config.sample.variance is 'learned', and config.sample.solver '{s.solver}', which "
            "has no such option; choose ancestral, or leave the variance out"
        )
    total, start = config.sde.num_steps, derived.start_index(config)
    if not 1 <= start <= total:
        raise ValueError(
            f"config.sample.start is {start}; it must lie in 1..{total} (config.sde.num_steps)"
        )
    refine, _ = GUIDED_SDES[config.method].refine(config[config.method])
    if refine > total:
        raise ValueError(
            f"config.{config.method}.refine is {refine}; it must lie in 0..{total} "
            "(config.sde.num_steps)"
        )
    steps = config.sample.steps
    if steps is not None and steps > start:
        raise ValueError(
            f"config.sample.steps is {steps}, more than the {start} noise levels below "
            f"config.sample.start; lower it, or set it to None to use every level"
        )


def _lowpass(config: ConfigDict) -> None:
    size = config.data.image_size
    for key in (key for key in KEYS if key.endswith(".factor")):
        factor = derived.get(config, key)
        if size % factor or size // factor < 2:
            raise ValueError(
                f"config.{key} is {factor}; the low-pass needs a divisor of "
                f"config.data.image_size={size} that leaves at least 2 pixels"
            )


def _gan(config: ConfigDict) -> None:
    c, size = config.cut, config.data.image_size
    if size % 4:
        raise ValueError(f"config.data.image_size is {size}; {config.method} needs a multiple of 4")
    widths = c.channels, c.discriminator_channels
    if any(width % c.group_channels for width in widths):
        raise ValueError(
            f"config.cut.group_channels is {c.group_channels}; it must divide the channels, "
            f"{widths[0]} and {widths[1]} (discriminator)"
        )
    last = 11 + c.num_blocks
    if not c.layers or max(c.layers) > last:
        raise ValueError(
            f"config.cut.layers is {c.layers}; name entries of the generator up to {last}, its "
            "last residual block"
        )


def _edit(config: ConfigDict) -> None:
    e = config.edit
    _inversion(config)
    if e.inversion != "p2p0":
        return
    if config.method == "pnp":
        raise ValueError(
            "config.edit.inversion is 'p2p0', which has no state at the first and last level, and "
            "config.method is 'pnp', which needs one at each; choose next or current"
        )
    if e.steps < 3:
        raise ValueError(
            f"config.edit.inversion is 'p2p0', which leaves out the first and the last of its "
            f"{e.steps} steps; set config.edit.steps to at least 3, or choose next or current"
        )
    if e.inversion_steps not in (None, e.steps):
        raise ValueError(
            f"config.edit.inversion_steps is {e.inversion_steps}, and config.edit.inversion is "
            "'p2p0', which does not reach the levels of sampling; set it to None, or choose next "
            "or current"
        )


def _inversion(config: ConfigDict) -> None:
    """Checks that the editor uses the inversion, and that a step is left."""
    e, method = config.edit, config.method
    if e.inversion == "null_text" and method not in ("ddim", "p2p"):
        raise ValueError(
            f"config.edit.inversion is 'null_text', and config.method is '{method}', which does "
            "not use its texts; choose another, or config.method ddim or p2p"
        )
    if method in ("dds", "cds") and e.inversion_steps is not None:
        raise ValueError(
            f"config.edit.inversion_steps is {e.inversion_steps}, and config.method is '{method}', "
            "which inverts nothing; set it to None"
        )
    if method in ("cds", "pix2pix_zerocon") and not e.patches:
        raise ValueError(
            f"config.edit.patches is (), and config.method '{method}', which contrasts patches; "
            "name their sides, such as '(1, 2)'"
        )
    if method not in ("edit_friendly", "ledits"):
        return
    for key, neutral in (("inversion", "next"), ("inversion_steps", None)):
        if e[key] not in (neutral, e.steps):
            raise ValueError(
                f"config.edit.{key} is {e[key]!r}, and config.method is '{method}', which has an "
                f"inversion of its own; set it to {neutral}"
            )
    if round(e.skip * e.steps) >= e.steps:
        raise ValueError(
            f"config.edit.skip is {e.skip}, which leaves out all of the {e.steps} steps; lower it"
        )
