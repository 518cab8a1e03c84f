"""CLIP's byte-pair tokenizer, read from a diffusers folder (`vocab.json`, `merges.txt`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer(NamedTuple):
    """Text → ids.

    Attributes:
      words: text → ids, without start and end.
      start, end: ids of the special tokens; the end also fills up.
      length: ids of a text, always so many.
    """

    words: Tokenizer
    start: int
    end: int
    length: int = LENGTH

    def count(self, text: str) -> int:
        """Ids of a text, start and end included, before it is cut."""
        return len(self.words.encode(text).ids) + 2

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """int32 `[B, length]`: start, words, end and more ends; a long text loses its end."""
        rows = np.full((len(texts), self.length), self.end, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start, *self.words.encode(text).ids[: self.length - 2]]
            row[: len(ids)] = ids
        return rows


def load(folder: str | Path) -> ClipTokenizer:
    """The tokenizer of a folder.

    Raises:
      ValueError: a file is missing or is none of this tokenizer.
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
        raise ValueError(f"{folder} does not hold CLIP's tokenizer: no {START}, or odd merges")
    settings = folder / "tokenizer_config.json"
    told = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    return of_vocabulary(vocabulary, merges, told.get("model_max_length", LENGTH))


def of_vocabulary(vocabulary: dict[str, int], merges, length: int = LENGTH) -> ClipTokenizer:
    """The tokenizer of ids by token and of merges, in their order."""
    words = _words(
        models.BPE(
            vocabulary,
            merges,
            unk_token=END,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    )
    # Written out in a text they are what they are called.
    words.add_special_tokens([START, END])
    return ClipTokenizer(words, vocabulary[START], vocabulary[END], length)


def learn(texts: Sequence[str], size: int, length: int = LENGTH) -> ClipTokenizer:
    """A tokenizer of at most `size` ids for such texts; the same texts give the same one."""
    words = _words(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
        show_progress=False,
    )
    words.train_from_iterator(texts, trainer)
    found = json.loads(words.to_str())["model"]
    vocabulary = dict(found["vocab"])
    # The end is the largest id, as CLIP's is, wherever the vocabulary ends.
    vocabulary |= {START: size - 2, END: size - 1}
    return of_vocabulary(vocabulary, [tuple(merge) for merge in found["merges"]], length)


def save(folder: str | Path, tokenizer: ClipTokenizer) -> None:
    """The files that `load` reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads(tokenizer.words.to_str())["model"]
    text = json.dumps(model["vocab"], ensure_ascii=False)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.length,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def _words(model: models.BPE) -> Tokenizer:
    """A model behind CLIP's reading of text."""
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
    """bool `[length]`: the tokens of a text that are those of `words`, each place they stand at.

    Raises:
      ValueError: they stand nowhere in it.
    """
    row, wanted = tokenize([text])[0], tokenize.words.encode(words).ids
    found = np.zeros(len(row), bool)
    for at in range(len(row) - len(wanted) + 1):
        if wanted and list(row[at : at + len(wanted)]) == wanted:
            found[at : at + len(wanted)] = True
    if not found.any():
        raise ValueError(f"the text '{text}' does not hold the word '{words}'")
    return found
