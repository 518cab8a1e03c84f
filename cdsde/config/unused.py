"""Options that would have no effect beside the config's other keys: they are refused by name.

This is for the command line. Python programs share overrides between methods, such as
`{"sample.steps": 20}` for SDEdit and CUT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from cdsde.config import derived
from cdsde.config.keys import GUIDED_SDES, KEYS, SDES

# The editors that read a key of `edit`; the other keys are read by all of them, or checked where
# their values are.
READERS = {
    "edit.skip": ("edit_friendly", "ledits"),
    "edit.source_scale": ("edit_friendly",),
    "edit.threshold": ("ledits",),
    "edit.strength": ("pix2pix_zero", "pix2pix_zerocon"),
    "edit.cross_attention": ("p2p",),
    "edit.exchange": ("p2p",),
    "edit.reweight": ("p2p",),
    "edit.attention_side": ("p2p",),
    "edit.blend": ("p2p",),
    "edit.attention": ("p2p", "pnp"),
    "edit.convolution": ("pnp",),
    "edit.iterations": ("dds", "cds"),
    "edit.rate": ("dds", "cds"),
}
READERS |= dict.fromkeys(
    ("edit.regularise", "edit.step", "edit.map_weight"), ("pix2pix_zero", "pix2pix_zerocon")
)
READERS |= dict.fromkeys(
    ("edit.feature_weight", "edit.patches", "edit.num_patches", "edit.temperature", "edit.layers"),
    ("pix2pix_zerocon", "cds"),
)
# Keys of `sample` that only the reverse SDE reads.
OF_SDES = ("rounds", "steps", "start", "spacing", "solver", "eta", "variance", "follow")
OF_SDES += ("guide_every", "guide_levels", "clip")


def check(config: ConfigDict, given: Iterable[str], mode: str = "") -> None:
    """Checks that overrides have an effect.

    Args:
      config: with the overrides, validated.
      given: the overridden keys; one that has its default value says nothing.
      mode: the command line's. A page translates by several methods, and sheets of a training are
        SDEdit's, whatever the method: the keys of the reverse SDE count there.

    Raises:
      ValueError: one sentence that names the key, and the one beside which it has no effect.
    """
    for key in given:
        value = derived.get(config, key)
        if value == KEYS[key].default or key not in RULES:
            continue
        if mode in ("serve", "train") and key.split(".")[0] in ("sample", *SDES):
            continue
        for rule in RULES[key]:
            if reason := rule(config):
                raise ValueError(
                    f"config.{key} is {value}, which has no effect where {reason}; leave it out"
                )


def _read_by(known: Iterable[str]) -> Callable[[ConfigDict], str]:
    """The rule of a key that some methods read."""

    def rule(config):
        methods = derived.eval_methods(config)
        used = any(method in known for method in (*methods, config.method))
        return "" if used else f"config.method is '{config.method}'"

    return rule


def _beside(key: str, unused: Callable) -> Callable[[ConfigDict], str]:
    """The rule of a key that has no effect where `unused` is true of another key's value."""

    def rule(config):
        value = derived.get(config, key)
        # Each of several methods to evaluate may have brought another one.
        return f"config.{key} is {value!r}" if unused(value) and not config.eval.methods else ""

    return rule


RULES = {key: [_read_by(methods)] for key, methods in READERS.items()}
RULES |= {f"sample.{name}": [_read_by(SDES)] for name in OF_SDES}
RULES |= {
    f"{name}.{key}": [_read_by((name,))]
    for name, method in GUIDED_SDES.items()
    for key in method.settings
}
RULES["sample.eta"] += [_beside("sample.solver", lambda solver: solver == "ancestral")]
RULES["sample.variance"] += [_beside("sample.solver", lambda solver: solver != "ancestral")]
RULES["train.score.muon_rate"] = [_beside("train.score.optimizer", lambda name: name != "muon")]
for _name in ("log_snr_mean", "log_snr_std"):
    RULES[f"train.score.{_name}"] = [_beside("train.score.levels", lambda name: name == "index")]
for _name in ("exchange", "reweight"):
    RULES[f"edit.{_name}"] += [_beside("edit.cross_attention", lambda share: share == 0)]
RULES["edit.attention_side"] += [_beside("edit.attention", lambda share: share == 0)]
RULES["score.num_heads"] = [_beside("score.num_head_channels", lambda width: width != -1)]
