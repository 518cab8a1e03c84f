"""CLIP's byte-pair tokenizer: load, save and learn it (`vocab.json`, `merges.txt`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from cdsde.runtime.files import write_bytes

LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


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
      ValueError: a file is missing or does not belong to CLIP's tokenizer.
    """
    folder = Path(folder)
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} has no {name}; a tokenizer is its vocab.json and merges.txt"
            )
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if START not in vocabulary or END not in vocabulary or any(len(m) != 2 for m in merges):
        raise ValueError(
            f"{folder} does not hold CLIP's tokenizer: no {START}, or malformed merges"
        )
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path = folder / "special_tokens_map.json"  # takes precedence, as in transformers
    settings |= json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    loaded = of_vocabulary(vocabulary, merges, _length(settings, folder))
    return loaded._replace(pad=_pad(settings, vocabulary, folder))


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
    token = settings.get("pad_token") or END
    token = token.get("content") if isinstance(token, dict) else token
    if token not in vocabulary:
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
    """Learns a tokenizer with at most `size` ids from texts; deterministic."""
    words = _words(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
        show_progress=False,
    )
    words.train_from_iterator(texts, trainer)
    model = json.loads(words.to_str())["model"]
    vocabulary = dict(model["vocab"])
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
        raise ValueError(f"the text '{text}' does not hold the word '{words}'{cut}")
    return matches
