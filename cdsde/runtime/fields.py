"""Reads JSON files of published models, and refuses fields that would be ignored.

A field of a file that is read is one of four kinds: it is honoured; it has no effect on what is
computed here; it has the only value that is supported; or the file is refused by its name.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

# What transformers writes into every config.json, without an effect on an encoder's states.
TRANSFORMERS = frozenset(
    "architectures attention_dropout attn_implementation bad_words_ids begin_suppress_tokens "
    "bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id "
    "diversity_penalty do_sample dropout dtype early_stopping encoder_no_repeat_ngram_size "
    "eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id "
    "forced_eos_token_id id2label initializer_factor initializer_range is_encoder_decoder label2id "
    "length_penalty logit_scale_init_value max_length min_length no_repeat_ngram_size "
    "num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states "
    "output_scores pad_token_id prefix problem_type projection_dim pruned_heads "
    "remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id "
    "suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder "
    "tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version "
    "typical_p use_bfloat16 use_cache use_return_dict".split()
)

# The largest number in a field, in any of the files: more makes no network, but costs time and
# memory before the weights could contradict it. The least is 0, or -1 where that means "none".
_SIZE, _WIDTH, _MANY = 2**12, 2**14, 10**6
LARGEST = {
    "attention_head_dim": _WIDTH,
    "attn_norm_num_groups": _WIDTH,
    "block_out_channels": _WIDTH,
    "cross_attention_dim": _WIDTH,
    "depth": 256,
    "diffusion_steps": 10**5,
    "hidden_size": _WIDTH,
    "image_size": _SIZE,
    "in_channels": _WIDTH,
    "input_size": _SIZE,
    "intermediate_size": 2**17,
    "latent_channels": _WIDTH,
    "layers_per_block": 64,
    "max_position_embeddings": 2**17,
    "nf": _WIDTH,
    "norm_num_groups": _WIDTH,
    "num_attention_heads": _WIDTH,
    "num_channels": _WIDTH,
    "NUM_CLASSES": _MANY,
    "num_class_embeds": _MANY,
    "num_classes": _MANY,
    "num_head_channels": _WIDTH,
    "num_heads": _WIDTH,
    "num_heads_upsample": _WIDTH,
    "num_hidden_layers": 256,
    "num_res_blocks": 64,
    "num_scales": 10**5,
    "num_train_timesteps": 10**5,
    "out_channels": _WIDTH,
    "patch_size": _SIZE,
    "projection_dim": _WIDTH,
    "time_embedding_dim": 2**17,
    "vocab_size": _MANY,
}
_INFINITE = 1e300  # for whole numbers, too, which may be larger than any float
A_LEVEL = ("block_out_channels", "attention_head_dim", "num_attention_heads")  # may be lists
LEVELS = 16  # the longest such list
# Largest file, in bytes. The vocabulary of Stable Diffusion's tokenizer has 1.1 MB, and no config
# 0.1 MB. Python makes objects of 20 times the size of a JSON text.
LARGEST_FILE = 2 * 2**20
# Fewest bytes of a long JSON text for each of its lists and objects. One that has more of them is
# made to cost time; an array in the header of a safetensors file is an object of two lists and has
# 50 bytes at the least.
BYTES_A_LIST, SHORT = 8, 1000


def read(path: str | Path, purpose: str) -> dict[str, Any]:
    """The object in a JSON file; `purpose` ends the sentence about a missing file.

    Raises:
      ValueError: the file does not exist, holds no JSON object, or is larger than `LARGEST_FILE`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no {path}; {purpose}")
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ValueError(
            f"{path} has {size:,} bytes, and no file of fields more than {LARGEST_FILE:,}; get the "
            "file again"
        )
    try:
        found = parsed(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and UTF-8 alike
        raise ValueError(f"{path} is not readable JSON ({error}); get the file again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object of fields; get the file again")
    return found


def parsed(text: str) -> Any:
    """What a JSON text of a few million characters says, at a small cost.

    Raises:
      ValueError: it is no JSON, is nested too deeply, or is little else than lists.
    """
    if text.count("[") + text.count("{") > max(SHORT, len(text) // BYTES_A_LIST):
        raise ValueError("it is little else than lists")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check(
    config: Mapping[str, Any],
    where: str | Path,
    honoured: Collection[str],
    only: Mapping[str, tuple],
    without_effect: Collection[str] = (),
) -> None:
    """Checks that every field is known, and that numbers are within `LARGEST`.

    Args:
      config: the fields of a file.
      where: the file, for the error message.
      honoured: fields that the caller reads.
      only: supported values of fields that the caller does not read; the first is the usual one.
        An absent field has it.
      without_effect: fields that do not change what is computed here.

    Raises:
      ValueError: a field has an unsupported value, or nobody knows it.
    """
    for name, value in config.items():
        if name in LARGEST and value is not None:
            _check_size(name, value, where)
        if name in only:
            if not any(_same(value, known) for known in only[name]):
                usual = [json.dumps(known) for known in only[name] if known is not None] or ["null"]
                raise ValueError(
                    f"{where} sets {name} to {shown(value)}, which is not supported; it must "
                    f"be {' or '.join(usual[:5])}"
                )
        elif name.startswith("_") or name in honoured or name in without_effect:
            continue
        elif value is not None:
            raise ValueError(
                f"{where} sets {name} to {shown(value)}, a field that is not known here and "
                "may change the result; remove it if it changes nothing"
            )


def _check_size(name: str, value: Any, where: str | Path) -> None:
    listed = name in A_LEVEL and isinstance(value, list | tuple)
    numbers = value if listed else [value]
    if (
        not all(type(n) is int and -1 <= n <= LARGEST[name] for n in numbers)
        or len(numbers) > LEVELS
    ):
        lists = f", or a list of at most {LEVELS} of them" if name in A_LEVEL else ""
        raise ValueError(
            f"{where} sets {name} to {shown(value)}; it must be a whole number up to "
            f"{LARGEST[name]}{lists}"
        )


def shown(value: Any) -> str:
    """A value of a file for an error message, cut off where it is long."""
    try:
        text = json.dumps(value)
    except RecursionError:  # nested a little less deeply than what cannot be read
        return "lists in lists"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _same(value: Any, known: Any) -> bool:
    """Equality that tells true from 1; numbers are equal as numbers."""
    return value == known and isinstance(value, bool) == isinstance(known, bool)


def number(
    config: Mapping[str, Any], name: str, where: str | Path, kind: type = float, default: Any = None
) -> Any:
    """A finite number of a file, as `kind` (int or float), at most that of `LARGEST`.

    Raises:
      ValueError: the field is absent and has no default, or is no such number.
    """
    value = config.get(name, default)
    if value is None:
        raise ValueError(f"{where} does not contain {name}; get the file again from its publisher")
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if plain and name in LARGEST:
        _check_size(name, value, where)
    if not plain or not abs(value) < _INFINITE or kind(value) != value:
        wanted = "a whole number" if kind is int else "a finite number"
        raise ValueError(f"{where} sets {name} to {shown(value)}; it must be {wanted}")
    return kind(value)
