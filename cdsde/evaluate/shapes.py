"""How well results can be read: `eval.shapes`, for pictures in black on white with true results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cdsde import metrics
from cdsde.evaluate import extractors
from cdsde.runtime.padding import pad

BATCH = 32
OVERLAP = "overlap of ink to true target"
LEGIBLE = "legible"
BY_FEATURES = "legible by features"


class Shapes:
    """The true results of a split, which results are compared with.

    Args:
      extractor: EfficientNet-Lite0.
      read: `position -> uint8 [H, W, 3]` of the true results.
      count: number of all true results, among which the nearest is searched.
    """

    def __init__(self, extractor: extractors.Extractor, read: Callable, count: int):
        self._extractor = extractor
        self._images = np.stack([read(j) for j in range(count)])
        self._blurred = metrics.blurred(self._images / 255)
        self._features = _pooled(extractor, self._images)

    def __call__(self, read: Callable, chosen: Sequence[int]) -> dict[str, np.ndarray]:
        """Metrics of each chosen image: `{name: [N]}`.

        Args:
          read: `position -> uint8 [H, W, 3]` of the results.
          chosen: positions, of the results and of their true results.
        """
        chosen = np.asarray(chosen)
        results = np.stack([read(j) for j in chosen])
        features = _pooled(self._extractor, results)
        return {
            OVERLAP: metrics.overlap(results / 255, self._images[chosen] / 255),
            LEGIBLE: metrics.legible(metrics.blurred(results / 255), self._blurred, chosen),
            BY_FEATURES: metrics.legible(features, self._features, chosen),
        }


def _pooled(extractor: extractors.Extractor, images: np.ndarray) -> np.ndarray:
    parts = []
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        parts.append(np.asarray(extractor(pad(part, BATCH))["pooled"])[: len(part)])
    return np.concatenate(parts)
