"""The words of an edit: what each image shows, what it is to show, and their encodings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cdsde.data import tokenizer
from cdsde.edit import text_directions
from cdsde.edit.pipeline import GUIDED, Model
from cdsde.editing import editors, word_alignment
from cdsde.editing.prompt_to_prompt import Words


class Wording(NamedTuple):
    """The words of one image.

    Attributes:
      caption: what the image shows.
      edited: what the result is to show; None: the caption with the target in place of the source.
      source, target: the words that change and what they become, in caption and edited text.
      blended: the word of each text that tells the place of the edit, and of which the second can
        be reweighted; (): everywhere, and none.
    """

    caption: str
    edited: str | None
    source: tuple[str, ...]
    target: tuple[str, ...]
    blended: tuple[str, ...] = ()

    def told(self) -> dict[str, str]:
        """What a result tells of them."""
        if not self.edited:
            return {"caption": self.caption}
        blended = {"blended": " ".join(self.blended)} if self.blended else {}
        return {"caption": self.caption, "edited": self.edited, **blended}


def of_caption(e: ConfigDict, caption: str) -> Wording:
    """The words of an image with this caption, by `edit.source` and `edit.target`."""
    source, target = bare(e.source), bare(e.target)
    return Wording(caption, None, (source,), (target,), (source, target))


def texts_of(model: Model, config: ConfigDict, wordings: Sequence[Wording]) -> editors.Texts:
    """The texts for editing images with these words, float32 `[B, 77, D]` each.

    Raises:
      ValueError: a bank of sentences is missing or empty, a caption does not contain the word to be
        swapped, or the word lies beyond the window of the text encoder.
    """
    e, encoder = config.edit, model.encoder
    captions = [w.caption for w in wordings]
    _check_windows(encoder.tokenize, ((w.caption, w.source) for w in wordings))
    if config.method == "ledits":
        return _of_concepts(encoder, e, wordings)
    source = encoder(captions)
    if config.method in GUIDED and all(w.edited is None for w in wordings):
        for concept, bank in zip((e.source, e.target), banks(e), strict=True):
            _check_windows(encoder.tokenize, ((text, (bare(concept),)) for text in bank))
        target = source + e.strength * text_directions.direction(encoder, *banks(e))[None]
        negative = source if e.negative is None else encoder([e.negative])
        return editors.Texts(source, target, np.broadcast_to(negative, source.shape))
    changed = [w.edited or swapped(w.caption, e.source, e.target) for w in wordings]
    _check_windows(
        encoder.tokenize, ((text, w.target) for text, w in zip(changed, wordings, strict=True))
    )
    target = encoder(changed)
    if config.method in GUIDED:
        target = source + e.strength * (target - source)
        negative = source if e.negative is None else encoder([e.negative])
    else:
        negative = encoder([e.negative or ""])
    words = None
    if config.method == "p2p":
        words = _mapped(encoder.tokenize, captions, changed, wordings, e)
    return editors.Texts(source, target, np.broadcast_to(negative, source.shape), words)


def _of_concepts(encoder, e: ConfigDict, wordings: Sequence[Wording]) -> editors.Texts:
    """LEDITS++'s texts: the words alone, and where they are among the tokens."""
    tokenize = encoder.tokenize
    removed, added = ([" ".join(w[n]) for w in wordings] for n in (2, 3))
    _check_windows(tokenize, ((text, (text,)) for text in (*removed, *added) if text))
    places = np.arange(tokenize.length)[None]

    def inside(texts):
        """Between start and end; nowhere in an empty text."""
        counts = np.array([tokenize.count(text) for text in texts])[:, None]
        return (places > 0) & (places < counts - 1)

    source = encoder(removed)
    negative = np.broadcast_to(encoder([e.negative or ""]), source.shape)
    words = inside(added), inside(removed)
    return editors.Texts(source, encoder(added), negative, words)


def _mapped(tokenize, captions, changed, wordings, e: ConfigDict) -> Words:
    """Prompt-to-prompt's words of each image: how its texts agree, and where the edit is."""
    found = []
    for before, after, wording in zip(captions, changed, wordings, strict=True):
        texts, places = (before, after), np.ones((2, tokenize.length), bool)
        if wording.blended:
            both = zip(texts, wording.blended, strict=True)
            places = np.stack([_tokens(tokenize, text, word) for text, word in both])
        counts = tokenize.count(before), tokenize.count(after)
        lengths = None
        parts = before.lower().split(), after.lower().split()
        if e.exchange == "auto" and word_alignment.exchanged(*parts):
            lengths = _lengths(tokenize, before), _lengths(tokenize, after)
        # Without such words, all tokens are a place and none is reweighted.
        factor = e.reweight if wording.blended else 1.0
        args = *tokenize(texts), counts, places[1], factor, lengths
        found.append((*word_alignment.mapper(*args), places))
    return Words(*map(np.stack, zip(*found, strict=True)))


def _tokens(tokenize, text: str, word: str) -> np.ndarray:
    """Where a word is among the tokens of a text, bool `[M]`.

    Nowhere if the text does not hold it, or beyond the tokens that the encoder reads.
    """
    begin = place_of(word, text)
    if begin is None or tokenize.count(text[: begin + len(word)]) > tokenize.length:
        return np.zeros(tokenize.length, bool)
    return tokenizer.word_positions(tokenize, text, word)


def _lengths(tokenize, text: str) -> list[int]:
    """The number of tokens of each word, without start and end."""
    return [tokenize.count(word) - 2 for word in text.split()]


def _check_windows(tokenize, texts: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Checks that the words that are edited are not cut off where the text holds them."""
    for text, words in texts:
        for word in words:
            start = place_of(word, text)
            end = None if start is None else start + len(word)
            if end is not None and tokenize.count(text[:end]) > tokenize.length:
                whole, part = tokenizer.beginning(text), tokenizer.beginning(word)
                raise ValueError(
                    f"the text encoder reads {tokenize.length} tokens, and in '{whole}' the word "
                    f"'{part}', which is edited, comes after them; shorten the text"
                )


def banks(e: ConfigDict) -> list[list[str]]:
    """The sentences about the source and about the target, from files or templates.

    Raises:
      ValueError: a file is missing or empty.
    """
    return [
        text_directions.read_bank(path) if path else text_directions.bank(concept, e.templates)
        for path, concept in ((e.source_bank, e.source), (e.target_bank, e.target))
    ]


def swapped(caption: str, source: str, target: str) -> str:
    """The caption with `target` in place of `source`; without their articles if need be.

    Raises:
      ValueError: the caption does not contain `source`.
    """
    for old, new in ((source, target), (bare(source), bare(target))):
        if (start := place_of(old, caption)) is not None:
            return caption[:start] + new + caption[start + len(old) :]
    raise ValueError(
        f"the caption '{caption}' does not hold '{source}', which is to become '{target}'; give "
        "another --config.edit.caption or --config.edit.source"
    )


def holds(words: str) -> Callable[[str], bool]:
    """Whether a caption contains the words, as a function of it."""
    return lambda caption: place_of(words, caption) is not None


def place_of(words: str, caption: str) -> int | None:
    """Position of the first match of whole words ("man" is not in "woman"), ignoring case."""
    match = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", caption, re.IGNORECASE)
    return match.start() if match else None


def bare(concept: str) -> str:
    """A concept without its article.

    Raises:
      ValueError: it is blank.
    """
    words = concept.split()
    if not words:
        raise ValueError(
            "config.edit.source or config.edit.target is blank; name the object, such as 'a cat'"
        )
    return " ".join(words[1:] if words[0].lower() in ("a", "an", "the") and words[1:] else words)
