"""Batches: an endless shuffled stream for training, and a single ordered pass for other programs.

Both yield dicts of NumPy arrays; images are uint8 `[b, S, S, 3]` and become float on the device.
The training stream depends only on the seed, not on the number of processes or workers or on where
the run was stopped and resumed. The number of finished steps is the position in the stream.
"""

import functools
import operator
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from multiprocessing import resource_tracker
from typing import NamedTuple

import grain
import numpy as np

from cdsde.data.images import BrokenImage, Reading
from cdsde.data.sources import Source, image_id
from cdsde.runtime.padding import pad

# All sources are kept in memory where their resized images need at most this many bytes.
CACHE_BYTES = 256 * 2**20


class _Records:
    """A source as records {image uint8 `[S, S, 3]`, domain int32, id uint32}, with a cache.

    The cache is not pickled.
    """

    def __init__(self, source: Source, domain: int, read: Reading, keep: bool, labels=None):
        self._source, self._domain, self._read = source, domain, read
        self._keep, self._labels = keep, labels
        self._kept: dict[int, dict] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        index = operator.index(index)
        if index in self._kept:
            return self._kept[index]
        item = self._source[index]
        record = {
            # A crop is a view, which would keep the full image in memory.
            "image": np.ascontiguousarray(self._read(item["image"])),
            "domain": np.int32(self._domain),
            "id": np.uint32(image_id(item["id"])),
        }
        if self._labels is not None:
            record["label"] = self._labels[index]
        if self._keep:
            self._kept[index] = record
        return record

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": {}}

    def __repr__(self) -> str:
        return f"_Records({self._source!r}, domain={self._domain}, {self._read})"


class _ProcessShare(grain.transforms.DatasetSelectionMap):
    """Selects one process's part of the stream of all processes.

    Each global batch is cut into contiguous parts: the processes' batches, concatenated in order,
    equal the batch of a single process, and the domains alternate in each. With two streams, the
    second one gives the batches before number `cut_until`.
    """

    def __init__(
        self,
        length: int,
        start: int,
        batch_size: int,
        process_index: int,
        process_count: int,
        cut_until: int = 0,
    ):
        self._cut_until = cut_until * batch_size
        self._length = (length // batch_size - start) * (batch_size // process_count)
        self._batch_size, self._part = batch_size, batch_size // process_count
        self._first = start * batch_size + process_index * self._part

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[int, int]:
        step, row = divmod(index, self._part)
        position = step * self._batch_size + self._first + row
        return int(position < self._cut_until), position


def _cut_out(record: dict, generator: np.random.Generator, size: int) -> dict:
    """Crops the record's image to a random square of `size` pixels."""
    y, x = generator.integers(0, record["image"].shape[0] - size + 1, 2)
    return {**record, "image": record["image"][y : y + size, x : x + size]}


def _flip(record: dict, generator: np.random.Generator) -> dict:
    if generator.random() < 0.5:
        return {**record, "image": record["image"][:, ::-1]}
    return record


def shift(record: dict, generator: np.random.Generator, most: int) -> dict:
    """Moves the record's image by up to `most` pixels along each axis; borders are repeated."""
    padded = np.pad(record["image"], ((most, most), (most, most), (0, 0)), "edge")
    return _cut_out({**record, "image": padded}, generator, record["image"].shape[0])


class _Stream(NamedTuple):
    """The settings of the stream of training images; `train_iterator` documents each."""

    sources: Sequence[Source]
    labels: Sequence[np.ndarray | None]
    seed: int
    flip: bool
    shift: int
    keep: bool

    def dataset(self, read: Reading, cut: int | None = None) -> grain.MapDataset:
        """An endless stream of records, domains in turn; with random crops of `cut` pixels."""
        # Each domain has its own seed: with a common seed, sources of equal length and order (the
        # emoji) would be shuffled alike, and true pairs would meet in a batch.
        # The numbers of a sequence do not depend on its length.
        seeds = np.random.SeedSequence(self.seed).generate_state(len(self.sources) + 3).tolist()
        *order_seeds, flip_seed, crop_seed, shift_seed = seeds
        total = sum(len(source) for source in self.sources) * read.size**2 * 3
        keep = self.keep and total <= CACHE_BYTES
        domains = [
            grain.MapDataset.source(_Records(source, domain, read, keep, labels))
            .shuffle(seed=order_seeds[domain])
            .repeat()
            for domain, (source, labels) in enumerate(zip(self.sources, self.labels, strict=True))
        ]
        dataset = grain.MapDataset.mix(domains) if len(domains) > 1 else domains[0]
        # The random maps come before the selection of a process's part, so that their random
        # numbers depend on the position in the global stream, not on the number of processes.
        if cut is not None:
            dataset = dataset.random_map(functools.partial(_cut_out, size=cut), seed=crop_seed)
        if self.shift:
            move = functools.partial(shift, most=self.shift)
            dataset = dataset.random_map(move, seed=shift_seed)
        return dataset.random_map(_flip, seed=flip_seed) if self.flip else dataset


def train_iterator(
    sources: Sequence[Source],
    reading: Reading,
    *,
    batch_size: int,
    seed: int,
    flip: bool = True,
    shift: int = 0,
    workers: int = 0,
    labels: Sequence[np.ndarray] | None = None,
    start: int = 0,
    load_size: int | None = None,
    crop_until: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Creates an endless, shuffled stream of training batches that can start at any batch.

    Each source is a domain. The domains alternate, so the numbers of images per domain in a global
    batch (and in each process's part) differ by at most one. Each epoch of a source has its own
    order, and sources of equal length have different orders, so true pairs do not meet.

    Args:
      sources: one per domain, each with at least one image.
      reading: resizes images to S pixels.
      batch_size: images per batch of all processes together.
      seed: 0 or more; determines the order, the crops, the shifts and the flips.
      flip: mirror images left to right, with probability ½.
      shift: move images by up to this many pixels along each axis; borders are repeated.
      workers: number of decoding processes, which need a `__main__` guard and parsed absl flags;
        0 decodes in threads and keeps small data sets in memory.
      labels: one array `[N, ...]` per source, with a row for each image.
      start: number of batches to skip, in constant time. A run therefore resumes exactly from its
        number of steps, also with other numbers of processes and workers.
      load_size: size to which images are resized before a random crop of S pixels; None: no crop.
      crop_until: number of first batches with random crops; later images are resized to S.
      process_index, process_count: this process gets the part `process_index` of the
        `process_count` contiguous parts of each batch.

    Returns:
      A Grain iterator (with `get_state()` and `set_state(state)`) over dicts of `image` uint8
      `[b, S, S, 3]`, `domain` int32 `[b]` (position in `sources`), `id` uint32 `[b]` (`image_id`)
      and, with `labels`, `label`; b = batch_size / process_count.

    Raises:
      ValueError: `process_count` does not divide the batch, or a number or a source is wrong.
    """
    _check_positive(image_size=reading.size, batch_size=batch_size, process_count=process_count)
    _check_sources(sources)
    _check_processes(batch_size, process_index, process_count)
    _check_not_negative(seed=seed, workers=workers, start=start, shift=shift)
    rows = [None] * len(sources) if labels is None else labels
    stream = _Stream(sources, rows, seed, flip, shift, keep=workers == 0)
    streams = [stream.dataset(reading)]
    if load_size is not None and load_size > reading.size:
        streams.append(stream.dataset(reading._replace(size=load_size), reading.size))
    cut_until = crop_until if len(streams) > 1 else 0
    length = min(len(s) for s in streams)
    share = _ProcessShare(length, start, batch_size, process_index, process_count, cut_until)
    dataset = grain.MapDataset.select_from_datasets(streams, share)
    return _batches(dataset, batch_size // process_count, workers)


def _batches(dataset: grain.MapDataset, size: int, workers: int) -> grain.DatasetIterator:
    """Batches of `size` images, decoded in `workers` processes, or in threads if it is 0."""
    dataset = dataset.batch(size, drop_remainder=True)
    # An element is a batch here: Grain's default of 500 prefetched elements would fill the memory.
    iterable = dataset.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=4))
    if workers:
        _start_tracker()
        iterable = iterable.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            functools.partial(_end_with, os.getpid()),
        )
    return iter(iterable)


def _end_with(parent: int, worker: int, count: int) -> None:
    """Ends a worker whose program was killed, and so could not end it."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start_tracker() -> None:
    """Starts the process that frees the workers' shared memory, before a worker would start it.

    Python lets SIGINT through in the thread that starts it, which the workers would inherit: Ctrl-C
    would be a trace of each. The process warns of what killed workers leave, although it frees it.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    warnings = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    try:
        resource_tracker.ensure_running()
    finally:
        if warnings is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = warnings
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def eval_batches(
    source: Source,
    reading: Reading,
    *,
    batch_size: int,
    indices: Sequence[int] | None = None,
    broken: dict[str, str] | None = None,
) -> Iterator[dict]:
    """Iterates once over a source in order; decodes the next batch while this one is in use.

    Args:
      source: the images.
      reading: resizes images to S pixels.
      batch_size: B; the last batch is padded by repeating the last image.
      indices: positions in the source, in the order of the output; None takes all.
      broken: gets `{id: what is wrong}` of each image that cannot be decoded, which is then left
        out; None: such an image is an error.

    Yields:
      dict of `image` uint8 `[B, S, S, 3]`, `id` uint32 `[B]` (`image_id`), `name` list of B ids,
      `shape` list of B pairs, height and width of the images in the source, and `mask` bool `[B]`,
      False for padding. No batch without indices.

    Raises:
      ValueError: a size is not positive (at the call), or an image is broken (at its batch) and
        `broken` is None.
    """
    _check_positive(image_size=reading.size, batch_size=batch_size)
    positions = list(range(len(source)) if indices is None else indices)
    return _eval_batches(source, reading, batch_size, positions, broken)


def _eval_batches(
    source: Source,
    reading: Reading,
    batch_size: int,
    indices: list[int],
    broken: dict[str, str] | None,
) -> Iterator[dict]:
    def read(index: int):
        try:
            return source[index]
        except BrokenImage as error:
            if broken is None:
                raise
            broken[source.ids[index]] = error.problem
            return None

    def make(start: int) -> dict | None:
        read_ones = map(read, indices[start : start + batch_size])
        items = [item for item in read_ones if item is not None]
        if not items:
            return None
        pixels = np.stack([reading(item["image"]) for item in items])
        names = [item["id"] for item in items]
        shapes = [item["image"].shape[:2] for item in items]
        ids = np.array([image_id(name) for name in names], np.uint32)
        images, ids = pad((pixels, ids), batch_size)
        return {
            "image": images,
            "id": ids,
            "name": names + names[-1:] * (batch_size - len(names)),
            "shape": shapes + shapes[-1:] * (batch_size - len(shapes)),
            "mask": np.arange(batch_size) < len(items),
        }

    with futures.ThreadPoolExecutor(1) as executor:
        upcoming = None
        for start in range(0, len(indices), batch_size):
            current = upcoming or executor.submit(make, start)
            following = start + batch_size
            upcoming = executor.submit(make, following) if following < len(indices) else None
            if (batch := current.result()) is not None:
                yield batch


def _check_not_negative(**numbers: int) -> None:
    if min(numbers.values()) < 0:
        *most, last = (f"{name} {number}" for name, number in numbers.items())
        raise ValueError(f"{', '.join(most)} and {last} must be 0 or more.")


def _check_sources(sources: Sequence[Source]) -> None:
    if not sources:
        raise ValueError("train_iterator got no source: give one a domain.")
    for position, source in enumerate(sources):
        if len(source) == 0:
            raise ValueError(f"Source {position} ({source!r}) is empty: give at least one image.")


def _check_processes(batch_size: int, process_index: int, process_count: int) -> None:
    if batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} does not divide over {process_count} processes: use a "
            f"multiple of {process_count}."
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} must lie in 0..{process_count - 1}.")


def _check_positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} {value} is not positive: use 1 or more.")
