r"""Which tokens of an edited text are tokens of the caption, for prompt-to-prompt's attention.

Of Hertz et al. 2022 (arXiv 2208.01626). `mapper` makes A, b and c of

    p_n ← c_n (Σ_m p'_m A_mn + b_n p_n)                                                        (1)

    replace    A = 1, b = 0 for texts that differ by words in the same places; where such a word
               has n tokens and had another number, A_mn = 1/n for all of its tokens
    refine     A_mn = 1 where token n of the edited text is token m of the caption, b_n = 1 where it
               is none of them; the alignment is Needleman's and Wunsch's
    reweight   c_n is a factor at the tokens of a word, 1 elsewhere

In the published code the caption's padding aligns with the edited text's, by position.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def aligned(source: Sequence[int], target: Sequence[int]) -> np.ndarray:
    """The token of `source` that each token of `target` is, or -1: int `[len(target)]`.

    Needleman's and Wunsch's global alignment with the published scores, 1 for equal tokens, -1 for
    different ones and 0 for a gap; of equal scores, a gap in `source` comes first.
    """
    score = np.zeros((len(source) + 1, len(target) + 1), int)
    for i, a in enumerate(source, 1):
        for j, b in enumerate(target, 1):
            both = score[i - 1, j - 1] + (1 if a == b else -1)
            score[i, j] = max(score[i, j - 1], score[i - 1, j], both)
    found, i, j = np.full(len(target), -1), len(source), len(target)
    while i and j:
        if score[i, j] == score[i, j - 1]:
            j -= 1
        elif score[i, j] == score[i - 1, j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            found[j] = i
    return found


def exchanged(source: Sequence[str], target: Sequence[str]) -> bool:
    """Whether the words differ in the same places alone, so that attention is to be replaced.

    "a cat on a bench" and "a cat on a wooden bench" differ otherwise, and so do two texts of
    equally many words of which one has moved.
    """
    if len(source) != len(target):
        return False
    numbers = {word: n for n, word in enumerate({*source, *target})}
    found = aligned([numbers[word] for word in source], [numbers[word] for word in target])
    return all(place in (n, -1) for n, place in enumerate(found))


def mapper(
    source: np.ndarray,
    target: np.ndarray,
    counts: tuple[int, int],
    words: np.ndarray,
    factor=1.0,
    lengths: tuple[Sequence[int], Sequence[int]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """c A and c b of equation (1), float32 `[M, M]` and `[M]`.

    Args:
      source, target: ids of caption and edited text, int `[M]` with padding.
      counts: their numbers of tokens, with start and end.
      words: bool `[M]`, the tokens of the edited text that are reweighted.
      factor: c at these tokens.
      lengths: the numbers of tokens of each word of both texts, to replace; None: to refine.
    """
    size, (before, after) = len(target), (min(n, len(target)) for n in counts)
    shares = np.eye(size, dtype=np.float32)
    shares[:, :after] = 0
    if lengths is not None:
        whole, i, j = np.zeros([size + sum(of) + 2 for of in lengths], np.float32), 0, 0
        for m, n in zip(*((1, *of, 1) for of in lengths), strict=True):  # with start and end
            whole[i : i + m, j : j + n] = np.eye(n) if m == n else 1 / n
            i, j = i + m, j + n
        shares[:, :after] = whole[:size, :after]
    else:
        found = aligned(source[:before], target[:after])
        kept = np.flatnonzero(found >= 0)
        shares[found[kept], kept] = 1
    weight = np.where(words, np.float32(factor), np.float32(1))
    return shares * weight, (shares.sum(0) == 0) * weight
