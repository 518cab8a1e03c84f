"""Realism: distances between the features of translated images and of the target's real ones.

Each process reads its share of the images and puts them through a feature network in batches split
over its devices; the host adds their sums and outer products up in float64, so that the number of
devices and processes, the batch size and the padding do not change the result, and keeps the
features that kernel distances and neighbours need (of at most `keep` images, drawn from the list).
The target's statistics are kept in a file named by a hash of the extractor and of every pixel they
are made of: a changed image is never an old number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from cdsde import metrics
from cdsde.evaluate import extractors
from cdsde.runtime import mesh
from cdsde.runtime.files import replacing
from cdsde.runtime.padding import pad

BATCH = 32
LAYOUT = 3  # of the files; part of their names, so that older ones are not read


class Statistics(NamedTuple):
    """What is known of the features of a set of images.

    Attributes:
      count: number of images.
      moments: `{layer: Moments}` of all images, for the Fréchet distances.
      kept: `{layer: float32 [n, D]}` of the images drawn.
      images: SHA-256 over the SHA-256 of each image's shape and pixels, in order.
    """

    count: int
    moments: dict[str, metrics.Moments]
    kept: dict[str, np.ndarray]
    images: str


class Measure(NamedTuple):
    """How an extractor's features are compared.

    Attributes:
      frechet: `{name in the table: layer}`.
      kernel: the same, of kernel distances (times 1000).
      neighbours: name of precision and recall -> layer.
    """

    frechet: dict[str, str]
    kernel: dict[str, str]
    neighbours: dict[str, str]


# EfficientNet's distances have names of their own: they are not the FID of any paper. Of its 1280
# pooled numbers the Fréchet distance is mostly bias at a few hundred images, of block 4's 40 not.
MEASURES = {
    "efficientnet_lite0": Measure(
        {"FD-EffNetLite0-block4": "block4_mean"},
        {"KID-EffNetLite0 x1000": "pooled"},
        {"EffNetLite0": "pooled"},
    ),
    "inception": Measure({"FID": "2048"}, {"KID x1000": "2048"}, {"Inception": "2048"}),
}


def statistics(
    extractor: extractors.Extractor,
    read: Callable[[int], np.ndarray],
    count: int,
    *,
    devices=None,
    keep: int = 10_000,
    cache: str | Path | None = None,
) -> Statistics:
    """Features of a set of images. Every process calls this, and gets the whole result.

    Args:
      extractor: with an entry in `MEASURES`.
      read: `number of the image -> uint8 [H, W, 3]`, all of one size; called for this process's
        share alone.
      count: number of images.
      devices: the mesh, of this process's devices (default: all of them).
      keep: images whose features are kept, drawn at random where there are more.
      cache: a folder for the result; None: not kept.
    """
    path = None
    if cache is not None:
        mine = mesh.share(count)
        images = _digest_of_all([_digest(read(j)) for j in mine], mine)
        key = hashlib.sha256(f"{LAYOUT} {extractor.name} {extractor.hash} {images} {keep}".encode())
        path = Path(cache) / f"{extractor.name}-{key.hexdigest()[:16]}.npz"
        if path.exists():
            return _read(path, images)
    made = _compute(extractor, read, count, devices, keep)
    if path is not None and jax.process_index() == 0:
        _write(path, made)
        logging.info("%s of %d images kept in %s", extractor.name, count, path)
    return made


def compare(name: str, made: Statistics, real: Statistics) -> dict[str, dict]:
    """Every distance of extractor `name`: `{"FID": {"value", "low", "high", "images"}, ...}`.

    Intervals are of the translated images alone (`metrics.jackknife_interval`); where not all their
    features are kept there is none, and low and high are None.
    """
    measure, results = MEASURES[name], {}

    def put(title, value, statistic=None):
        kept = len(next(iter(made.kept.values())))
        low = high = None
        if statistic is not None and kept == made.count > 3:
            low, high = metrics.jackknife_interval(statistic, made.count)
        results[title] = {"value": value, "low": low, "high": high, "images": made.count}

    for title, layer in measure.frechet.items():
        real_moments, kept = real.moments[layer], made.kept[layer]

        def frechet(at, kept=kept, real_moments=real_moments):
            return metrics.frechet_distance(metrics.moments(kept[at]), real_moments)

        value = metrics.frechet_distance(made.moments[layer], real_moments)
        # With 2048 numbers an image twenty more of them would take longer than the sampling.
        put(title, value, frechet if kept.shape[1] <= 256 else None)
    for title, layer in measure.kernel.items():
        distance = metrics.kernel_statistic(made.kept[layer], real.kept[layer])

        def kernel(at, distance=distance):
            return 1000 * distance(at)

        put(title, kernel(np.arange(len(made.kept[layer]))), kernel)
    for title, layer in measure.neighbours.items():
        a, b = made.kept[layer], real.kept[layer]
        if min(len(a), len(b)) > 3:
            precision, recall = metrics.precision_recall(a, b)
            put(f"precision-{title}", precision)
            put(f"recall-{title}", recall)
    return results


def _compute(extractor, read, count, devices, keep) -> Statistics:
    devices = devices or mesh.make_mesh(jax.local_devices())
    size = mesh.round_up(BATCH, devices)
    params = mesh.put_replicated(extractor.params, devices)
    measure = MEASURES[extractor.name]
    # Sorted: processes exchange them in this order.
    layers = sorted({v for names in measure for v in names.values()})
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(0).permutation(count)[:keep]] = True
    sums: dict[str, metrics.Moments] = {}
    kept: dict[str, list] = {layer: [] for layer in layers}
    digests: list[np.ndarray] = []
    mine = np.array(mesh.share(count))
    for start in range(0, len(mine), size):
        at = mine[start : start + size]
        images = np.stack([read(j) for j in at])
        digests += map(_digest, images)
        out = extractor.apply(params, mesh.put_batch(pad(images, size), devices))
        for layer in layers:
            f = mesh.local_rows(out[layer])[: len(images)]
            if layer in measure.frechet.values():
                part = metrics.moments(f)
                sums[layer] = metrics.add_moments(sums[layer], part) if layer in sums else part
            kept[layer].append(f[chosen[at]])
    drawn = mine[chosen[mine]]
    return Statistics(
        count,
        {layer: _over_processes(part, count) for layer, part in sums.items()},
        {layer: mesh.gather_rows(np.concatenate(f), drawn) for layer, f in kept.items()},
        _digest_of_all(digests, mine),
    )


def _over_processes(part: metrics.Moments, count: int) -> metrics.Moments:
    """The sum of what every process has; in float64, and in one order."""
    if part.count == count:
        return part
    at = [jax.process_index()]
    totals = mesh.gather_rows(part.total[None], at)
    return metrics.Moments(count, totals.sum(0), mesh.gather_rows(part.outer[None], at).sum(0))


def _digest(image: np.ndarray) -> np.ndarray:
    """SHA-256 of one image, uint8 `[32]`."""
    content = str(image.shape).encode() + np.ascontiguousarray(image).tobytes()
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def _digest_of_all(digests, at) -> str:
    return hashlib.sha256(mesh.gather_rows(np.stack(digests), at).tobytes()).hexdigest()


def _write(path: Path, made: Statistics) -> None:
    arrays = {"images": np.array(made.count)} | {f"kept/{k}": v for k, v in made.kept.items()}
    for layer, m in made.moments.items():
        arrays |= {f"{field}/{layer}": value for field, value in m._asdict().items()}
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)


def _read(path: Path, images: str) -> Statistics:
    with np.load(path) as f:
        kept = {k.removeprefix("kept/"): f[k] for k in f.files if k.startswith("kept/")}
        sums = {
            k: metrics.Moments(int(f[f"count/{k}"]), f[f"total/{k}"], f[f"outer/{k}"])
            for k in kept
            if f"outer/{k}" in f.files
        }
        return Statistics(int(f["images"]), sums, kept, images)
