"""Realism: distances between the features of translated images and of the target's real images.

Each process runs its share of the images through a feature network, in batches split over its
devices. The host accumulates sums and outer products in float64, so that the number of devices and
processes, batch size and padding do not change the result, and keeps the features of at most `keep`
random images for kernel distances and neighbours. The target's statistics are cached in a file
named by a hash of the extractor and of all pixels, so that changed images are measured again.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from cdsde import metrics
from cdsde.evaluate import extractors
from cdsde.runtime import mesh
from cdsde.runtime.files import write_bytes
from cdsde.runtime.padding import pad

BATCH = 32
LAYOUT = 3  # version of the cache files, part of their names: older files are not read


class Statistics(NamedTuple):
    """Feature statistics of a set of images.

    Attributes:
      count: number of images.
      moments: `{layer: Moments}` of all images, for the Fréchet distances.
      kept: `{layer: float32 [n, D]}`, features of the kept images.
      images: SHA-256 over the SHA-256 of each image's shape and pixels, in order.
    """

    count: int
    moments: dict[str, metrics.Moments]
    kept: dict[str, np.ndarray]
    images: str


class Measure(NamedTuple):
    """The layer that each distance of an extractor uses.

    Attributes:
      frechet: `{title: layer}` of Fréchet distances.
      kernel: `{title: layer}` of kernel distances, times 1000.
      neighbours: `{suffix of "precision-" and "recall-": layer}`.
    """

    frechet: dict[str, str]
    kernel: dict[str, str]
    neighbours: dict[str, str]


# EfficientNet's distances have names of their own: they are not the FID of any paper. With a few
# hundred images the Fréchet distance of its 1280 pooled features is mostly bias; that of the 40
# features of block 4 is not.
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
    """Feature statistics of a set of images; every process must call it and gets the same result.

    Args:
      extractor: an extractor with an entry in `MEASURES`.
      read: `position of the image -> uint8 [H, W, 3]`, all of one size; called for this process's
        share only.
      count: number of images.
      devices: the mesh, of this process's devices (default: all of them).
      keep: maximum number of images whose features are kept, chosen at random.
      cache: folder of cached results; None: no cache.
    """
    path = None
    if cache is not None:
        mine = mesh.share(count)
        images = _digest_of_all([_digest(read(j)) for j in mine], mine)
        key = hashlib.sha256(f"{LAYOUT} {extractor.name} {extractor.hash} {images} {keep}".encode())
        path = Path(cache) / f"{extractor.name}-{key.hexdigest()[:16]}.npz"
        known = _read(path, images)
        # A folder of its own on each machine has the file on some of them.
        if mesh.in_every_process(known is not None):
            return known
    result = _compute(extractor, read, count, devices, keep)
    if path is not None and jax.process_index() == 0:
        _write(path, result)
        logging.info("%s of %d images kept in %s", extractor.name, count, path)
    return result


def compare(name: str, fake: Statistics, real: Statistics) -> dict[str, dict]:
    """Every distance of extractor `name`: `{"FID": {"value", "low", "high", "images"}, ...}`.

    Intervals account for the sample of translated images only (`metrics.jackknife_interval`). low
    and high are None if not all their features are kept.

    Args:
      name: a key of `MEASURES`.
      fake, real: statistics of the translated and of the target's real images.
    """
    measure, results = MEASURES[name], {}

    def put(title, value, statistic=None):
        kept = len(next(iter(fake.kept.values())))
        low = high = None
        if statistic is not None and kept == fake.count > 3:
            low, high = metrics.jackknife_interval(statistic, fake.count)
        results[title] = {"value": value, "low": low, "high": high, "images": fake.count}

    for title, layer in measure.frechet.items():
        real_moments, kept = real.moments[layer], fake.kept[layer]

        def frechet(rows, kept=kept, real_moments=real_moments):
            return metrics.frechet_distance(metrics.moments(kept[rows]), real_moments)

        value = metrics.frechet_distance(fake.moments[layer], real_moments)
        # With 2048 features the jackknife's twenty distances would take longer than the sampling.
        put(title, value, frechet if kept.shape[1] <= 256 else None)
    for title, layer in measure.kernel.items():
        distance = metrics.kernel_statistic(fake.kept[layer], real.kept[layer])

        def kernel(rows, distance=distance):
            return 1000 * distance(rows)

        put(title, kernel(np.arange(len(fake.kept[layer]))), kernel)
    for title, layer in measure.neighbours.items():
        a, b = fake.kept[layer], real.kept[layer]
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
    # Sorted, since all processes must exchange them in the same order.
    layers = sorted({v for names in measure for v in names.values()})
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(0).permutation(count)[:keep]] = True
    sums: dict[str, metrics.Moments] = {}
    kept: dict[str, list] = {layer: [] for layer in layers}
    digests: list[np.ndarray] = []
    mine = np.array(mesh.share(count))
    for start in range(0, len(mine), size):
        positions = mine[start : start + size]
        images = np.stack([read(j) for j in positions])
        digests += map(_digest, images)
        out = extractor.apply(params, mesh.put_batch(pad(images, size), devices))
        for layer in layers:
            f = mesh.local_rows(out[layer])[: len(images)]
            if layer in measure.frechet.values():
                part = metrics.moments(f)
                sums[layer] = metrics.add_moments(sums[layer], part) if layer in sums else part
            kept[layer].append(f[chosen[positions]])
    drawn = mine[chosen[mine]]
    return Statistics(
        count,
        {layer: _over_processes(part, count) for layer, part in sums.items()},
        {layer: mesh.gather_rows(np.concatenate(f), drawn) for layer, f in kept.items()},
        _digest_of_all(digests, mine),
    )


def _over_processes(part: metrics.Moments, count: int) -> metrics.Moments:
    """The sum of all processes' moments, in float64 and in a fixed order."""
    if part.count == count:
        return part
    position = [jax.process_index()]
    totals = mesh.gather_rows(part.total[None], position)
    outer = mesh.gather_rows(part.outer[None], position)
    return metrics.Moments(count, totals.sum(0), outer.sum(0))


def _digest(image: np.ndarray) -> np.ndarray:
    """SHA-256 of one image, uint8 `[32]`."""
    content = str(image.shape).encode() + np.ascontiguousarray(image).tobytes()
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def _digest_of_all(digests, positions) -> str:
    return hashlib.sha256(mesh.gather_rows(np.stack(digests), positions).tobytes()).hexdigest()


def _write(path: Path, result: Statistics) -> None:
    arrays = {"images": np.array(result.count)} | {f"kept/{k}": v for k, v in result.kept.items()}
    for layer, m in result.moments.items():
        arrays |= {f"{field}/{layer}": value for field, value in m._asdict().items()}
    data = io.BytesIO()
    np.savez(data, **arrays)
    write_bytes(path, data.getvalue())


def _read(path: Path, images: str) -> Statistics | None:
    """What `_write` wrote; None where there is no whole file."""
    try:
        return _parsed(np.load(path), images)
    except FileNotFoundError:
        return None
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        logging.warning("%s cannot be read and is computed again: %s", path, error)
        return None


def _parsed(file, images: str) -> Statistics:
    with file as f:
        kept = {k.removeprefix("kept/"): f[k] for k in f.files if k.startswith("kept/")}
        sums = {
            k: metrics.Moments(int(f[f"count/{k}"]), f[f"total/{k}"], f[f"outer/{k}"])
            for k in kept
            if f"outer/{k}" in f.files
        }
        return Statistics(int(f["images"]), sums, kept, images)
