"""Text encodings of an edit: hidden states, and the direction between two banks of sentences.

    Δc = mean over target sentences of c - mean over source sentences of c

(pix2pix-zero, Parmar et al. 2023, equation 2), with c the hidden states `[77, D]`; not normalised.
Its first row is exactly 0, since all texts begin with the same token.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cdsde.data.tokenizer import ClipTokenizer
from cdsde.networks.stable_diffusion.clip import CLIPTextModel
from cdsde.runtime.files import read_text
from cdsde.runtime.padding import pad

BATCH = 32
PLACES = ("on the grass", "in the park", "at home", "by the sea", "in the snow", "on a table")
MANNERS = ("a photo of {}", "a painting of {}", "a drawing of {}", "a close-up of {}", "{}")


class Encoder(NamedTuple):
    """A text encoder ready for use: `encoder(texts) -> float32 [B, 77, D]`.

    Attributes:
      module, params: the network.
      tokenize: its tokenizer, `texts -> int32 [B, 77]`.
    """

    module: CLIPTextModel
    params: Any
    tokenize: ClipTokenizer

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Hidden states of all positions of each text, padding included: float32 `[B, 77, D]`."""
        ids = self.tokenize(texts)
        rows = []
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            hidden = _hidden(self.module, self.params, pad(part, BATCH))
            rows.append(np.asarray(hidden)[: len(part)])
        return np.concatenate(rows)


@functools.partial(jax.jit, static_argnums=0)
def _hidden(module, params, ids):
    return module.apply(params, ids).hidden


def mean(encoder: Encoder, sentences: Sequence[str]) -> np.ndarray:
    """Mean hidden state of a bank, float32 `[77, D]`.

    Raises:
      ValueError: the bank is empty.
    """
    if not sentences:
        raise ValueError("a bank of sentences is empty; give at least one sentence")
    return encoder(sentences).astype(np.float64).mean(0).astype(np.float32)


def direction(encoder: Encoder, source: Sequence[str], target: Sequence[str]) -> np.ndarray:
    """Δc, float32 `[77, D]`: mean of `target` minus mean of `source`; bank sizes may differ."""
    return mean(encoder, target) - mean(encoder, source)


def bank(concept: str, templates: Sequence[str] = ()) -> list[str]:
    """Sentences about a concept, from templates that contain {}, in a fixed order.

    Two concepts share the templates, so that their means differ only by the concepts.
    """
    if templates:
        # Not `format`: a training caption may have braces of its own.
        return [template.replace("{}", concept) for template in templates]
    return [
        f"{manner.format(concept)} {place}".strip() for manner in MANNERS for place in ("", *PLACES)
    ]


def read_bank(path: str | Path) -> list[str]:
    """The sentences of a file, one per line; blank lines are skipped.

    Raises:
      ValueError: the file does not exist, is no text in UTF-8, or has no sentence.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; a bank has one sentence a line")
    lines = [line.strip() for line in read_text(path, "save it as UTF-8").splitlines()]
    if not any(lines):
        raise ValueError(f"{path} has no sentence; a bank has one a line")
    return [line for line in lines if line]
