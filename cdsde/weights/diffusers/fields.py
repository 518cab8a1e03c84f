"""Reads JSON files of a model in diffusers' layout, and refuses fields that would be ignored.

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


def read(path: str | Path, purpose: str) -> dict[str, Any]:
    """The object in a JSON file; `purpose` ends the sentence about a missing file.

    Raises:
      ValueError: the file does not exist or holds no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no {path}; {purpose}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSON and UTF-8 alike
        raise ValueError(f"{path} is not readable JSON ({error}); get the file again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object of fields; get the file again")
    return found


def check(
    config: Mapping[str, Any],
    where: str | Path,
    honoured: Collection[str],
    only: Mapping[str, tuple],
    without_effect: Collection[str] = (),
) -> None:
    """Checks that every field is known.

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
        if name in only:
            if not any(_same(value, known) for known in only[name]):
                usual = [json.dumps(known) for known in only[name] if known is not None] or ["null"]
                raise ValueError(
                    f"{where} sets {name} to {json.dumps(value)}, which is not supported; it must "
                    f"be {' or '.join(usual[:5])}"
                )
        elif name.startswith("_") or name in honoured or name in without_effect:
            continue
        elif value is not None:
            raise ValueError(
                f"{where} sets {name} to {json.dumps(value)}, a field that is not known here and "
                "may change the result; remove it if it changes nothing"
            )


def _same(value: Any, known: Any) -> bool:
    """Equality that tells true from 1; numbers are equal as numbers."""
    return value == known and isinstance(value, bool) == isinstance(known, bool)


def number(
    config: Mapping[str, Any], name: str, where: str | Path, kind: type = float, default: Any = None
) -> Any:
    """A finite number of a file, as `kind` (int or float).

    Raises:
      ValueError: the field is absent and has no default, or is no such number.
    """
    value = config.get(name, default)
    if value is None:
        raise ValueError(f"{where} does not contain {name}; get the file again from its publisher")
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or value - value != 0 or kind(value) != value:  # inf - inf is NaN
        wanted = "a whole number" if kind is int else "a finite number"
        raise ValueError(f"{where} sets {name} to {json.dumps(value)}; it must be {wanted}")
    return kind(value)
