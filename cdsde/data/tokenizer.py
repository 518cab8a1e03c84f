"""CLIP's byte-pair tokenizer: load, save and learn it (`vocab.json`, `merges.txt`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from cdsde.runtime import fields
from cdsde.runtime.files import read_text, write_bytes

LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# Fields of the settings, besides the window: the tokens by role, with what each may be (of the
# padding: any), lists of further tokens, what has one supported value, and what does not change ids
# (how they become text again, or what transformers' calls are given anyway).
ROLES = {"bos_token": (START,), "eos_token": (END,), "unk_token": (END, None), "pad_token": ()}
ADDED = ("additional_special_tokens", "extra_special_tokens")
ONLY = {
    "add_prefix_space": (False, None),
    "do_lower_case": (True, None),
    "padding_side": ("right", None),
    "split_special_tokens": (False, None),
    "tokenizer_class": ("CLIPTokenizer", "CLIPTokenizerFast", None),
    "truncation_side": ("right", None),
}
PLAIN = {name: (False,) for name in ("lstrip", "rstrip", "single_word")}
WITHOUT_EFFECT = frozenset(
    "backend chat_template clean_up_tokenization_spaces errors is_local local_files_only "
    "max_length model_input_names name_or_path pad_to_multiple_of pad_token_type_id padding "
    "processor_class return_tensors special_tokens_map_file stride tokenizer_file "
    "transformers_version truncation truncation_strategy use_fast".split()
)


class ClipTokenizer(NamedTuple):
    """Converts texts to token ids.

    Attributes:
      words: converts a text to ids without start and end.
      start, end: ids of the special tokens.
      length: number of ids of every text, the window.
      pad: id of the padding; None: the end token.
    """

    words: Tokenizer
    start: int
    end: int
    length: int = LENGTH
    pad: int | None = None

    def count(self, text: str) -> int:
        """The number of ids of a text, with start and end, before truncation."""
        return len(self.words.encode(text).ids) + 2

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids, int32 `[B, length]`: start, words, end, padding.

        A text that is longer than the window is cut, with a warning.
        """
        pad = self.end if self.pad is None else self.pad
        rows = np.full((len(texts), self.length), pad, np.int32)
        cut = []
        for row, text in zip(rows, texts, strict=True):
            words = self.words.encode(text).ids
            ids = [self.start, *words[: self.length - 2], self.end]
            row[: len(ids)] = ids
            if len(words) > self.length - 2:
                cut.append(text)
        if cut:
            logging.warning(
                "%d of %d texts are longer than the %d tokens of the text encoder and are cut; the "
                "first, of %d tokens, is '%s'",
                len(cut),
                len(texts),
                self.length,
                self.count(cut[0]),
                cut[0],
            )
        return rows


def load(folder: str | Path) -> ClipTokenizer:
    """Loads the tokenizer of a diffusers folder.

    Raises:
      ValueError: a file is missing or damaged, does not belong to CLIP's tokenizer, or has a field
        that would be ignored; the message names the file.
    """
    folder = Path(folder)
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} has no {name}; a tokenizer is its vocab.json and merges.txt"
            )
    vocabulary = fields.read(folder / "vocab.json", "a tokenizer needs it")
    lines = read_text(folder / "merges.txt", "get the file again").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if START not in vocabulary or END not in vocabulary or any(len(m) != 2 for m in merges):
        raise ValueError(
            f"{folder} does not hold CLIP's tokenizer: no {START}, or malformed merges"
        )
    _check_vocabulary(vocabulary, merges, folder)
    if (folder / "added_tokens.json").is_file():
        _check_added(vocabulary, folder / "added_tokens.json")
    settings = {}
    # The second takes precedence, as in transformers.
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            found = fields.read(folder / name, "a tokenizer needs it")
            _check_settings(found, vocabulary, folder / name)
            settings |= found
    loaded = of_vocabulary(vocabulary, merges, _length(settings, folder))
    return loaded._replace(pad=_pad(settings, vocabulary, folder))


def _check_vocabulary(vocabulary: dict, merges: list[tuple], folder: Path) -> None:
    """Checks that ids are different whole numbers, and that merges make the longer tokens."""
    ids, most = list(vocabulary.values()), fields.LARGEST["vocab_size"]
    if not all(type(n) is int and 0 <= n < most for n in ids) or len(set(ids)) < len(ids):
        raise ValueError(
            f"{folder}/vocab.json gives tokens no id of their own, a whole number from 0 to "
            f"{most - 1}; get the file again"
        )
    try:
        "".join(vocabulary).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{folder}/vocab.json holds tokens that are no text ({error}); get the file again"
        ) from None
    made = {a + b for a, b in merges}
    strange = [part for a, b in merges for part in (a, b, a + b) if part not in vocabulary]
    if strange:
        raise ValueError(
            f"{folder}/merges.txt has {strange[0]!r}, which is not in vocab.json; get both files "
            "again"
        )
    longer = [t for t in vocabulary if len(t.removesuffix("</w>")) > 1 and t not in (START, END)]
    lost = [token for token in longer if token not in made]
    if lost:
        raise ValueError(
            f"{folder}/merges.txt makes {len(longer) - len(lost)} of the {len(longer)} longer "
            f"tokens of vocab.json (not {lost[0]!r}); get both files again"
        )


def _check_added(vocabulary: dict, path: Path) -> None:
    """Checks that added_tokens.json, from tokens to ids, adds nothing."""
    for token, number in fields.read(path, "a tokenizer needs it").items():
        if token not in (START, END) or number != vocabulary[token]:
            raise _special(path, "adds the token", token)


def _special(where: Path, what: str, token) -> ValueError:
    return ValueError(
        f"{where} {what} {fields.shown(token)}, which is not supported; take a tokenizer with the "
        f"special tokens of CLIP, {START} and {END}"
    )


def _check_settings(settings: dict, vocabulary: dict, path: Path) -> None:
    """Checks the fields of tokenizer_config.json or special_tokens_map.json."""
    read = ("model_max_length", "added_tokens_decoder", *ROLES, *ADDED)
    fields.check(settings, path, read, ONLY, WITHOUT_EFFECT)
    for role, tokens in ROLES.items():
        token = _content(settings.get(role), f"{path}, in {role},")
        if tokens and role in settings and token not in tokens:
            raise _special(path, f"has as {role}", token)
    for field in ADDED:
        for token in _listed(settings.get(field)):
            if _content(token, f"{path}, in {field},") not in (START, END):
                raise _special(path, f"has in {field}", token)
    known, where = settings.get("added_tokens_decoder"), f"{path}, in added_tokens_decoder,"
    numbers = list(known) if isinstance(known, dict) else []
    pad = _content(settings.get("pad_token"), where)
    for number, entry in zip(numbers, _listed(known), strict=False):
        token = _content(entry, where)
        if token not in (START, END, pad) or str(vocabulary.get(token)) != number:
            raise _special(path, f"gives the id {number} to", token)


def _listed(value) -> list:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [] if value is None else [value]


def _content(token, where: str):
    """The text of a token, which may be an object with its `content` and how it is found."""
    if not isinstance(token, dict):
        return token
    fields.check(token, where, ("content",), PLAIN, ("normalized", "special"))
    return token.get("content")


def _length(settings: dict, folder: Path) -> int:
    """The window; transformers writes 10^30 where a tokenizer has none."""
    length = settings.get("model_max_length", LENGTH)
    if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 3:
        raise ValueError(
            f"{folder}/tokenizer_config.json sets model_max_length to {length!r}; it must be a "
            "number of tokens, 3 or more"
        )
    return LENGTH if length > 10**6 else int(length)


def _pad(settings: dict, vocabulary: dict[str, int], folder: Path) -> int:
    """The id of the padding, which SD-2.x has other than the end token."""
    token = _content(settings.get("pad_token"), str(folder)) or END
    if not isinstance(token, str) or token not in vocabulary:
        raise ValueError(f"{folder} names the pad_token {token!r}, which is not in its vocab.json")
    return vocabulary[token]


def of_vocabulary(vocabulary: dict[str, int], merges, length: int = LENGTH) -> ClipTokenizer:
    """Builds the tokenizer from a vocabulary (token to id) and merges in order."""
    words = _words(
        models.BPE(
            vocabulary,
            merges,
            unk_token=END,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    )
    # A text may contain the special tokens by name.
    words.add_special_tokens([START, END])
    return ClipTokenizer(words, vocabulary[START], vocabulary[END], length)


def learn(texts: Sequence[str], size: int, length: int = LENGTH) -> ClipTokenizer:
    """Learns a tokenizer with at most `size` ids from texts; deterministic.

    Raises:
      ValueError: the texts have more characters.
    """
    words = _words(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    trainer = trainers.BpeTrainer(
        vocab_size=max(size - 2, 0),
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
        show_progress=False,
    )
    words.train_from_iterator(texts, trainer)
    model = json.loads(words.to_str())["model"]
    vocabulary = dict(model["vocab"])
    if len(vocabulary) > size - 2:
        raise ValueError(
            f"config.latent.vocabulary is {size}, and the captions have {len(vocabulary)} "
            f"characters; set it to {len(vocabulary) + 2} or more"
        )
    # The end token has the largest id, as in CLIP, even where the vocabulary has fewer tokens.
    vocabulary |= {START: size - 2, END: size - 1}
    return of_vocabulary(vocabulary, [tuple(merge) for merge in model["merges"]], length)


def save(folder: str | Path, tokenizer: ClipTokenizer) -> None:
    """Writes the files that `load` reads."""
    folder = Path(folder)
    model = json.loads(tokenizer.words.to_str())["model"]
    text = json.dumps(model["vocab"], ensure_ascii=False)
    write_bytes(folder / "vocab.json", text.encode())
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    write_bytes(folder / "merges.txt", ("\n".join(lines) + "\n").encode())
    pad = tokenizer.words.id_to_token(tokenizer.end if tokenizer.pad is None else tokenizer.pad)
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.length,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": pad,
    }
    write_bytes(folder / "tokenizer_config.json", json.dumps(settings, indent=2).encode())


def _words(model: models.BPE) -> Tokenizer:
    """A byte-pair model with CLIP's normalisation and word splitting."""
    words = Tokenizer(model)
    words.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return words


def word_positions(tokenize: ClipTokenizer, text: str, words: str) -> np.ndarray:
    """Marks every occurrence of `words` among the tokens of a text, bool `[length]`.

    Raises:
      ValueError: the text does not contain the words.
    """
    row, ids = tokenize([text])[0], tokenize.words.encode(words).ids
    matches = np.zeros(len(row), bool)
    for start in range(len(row) - len(ids) + 1):
        if ids and list(row[start : start + len(ids)]) == ids:
            matches[start : start + len(ids)] = True
    if not matches.any():
        cut = (
            f" within the first {tokenize.length} tokens" if tokenize.count(text) > len(row) else ""
        )
        raise ValueError(
            f"the text '{beginning(text)}' does not hold the word '{beginning(words)}'{cut}"
        )
    return matches


def beginning(text: str) -> str:
    """A text's first 80 characters, for messages."""
    return text if len(text) <= 80 else text[:79] + "…"
