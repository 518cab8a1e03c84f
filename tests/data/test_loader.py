import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from cdsde import data
from cdsde.data import loader


class Numbered:
    """Images whose pixels say which one it is and whether it is mirrored."""

    def __init__(self, count: int, name: str = "a", size: tuple[int, int] = (8, 8)):
        self.ids = [f"{name}{n}" for n in range(count)]
        self.size, self.reads, self.thread = size, [], None

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        self.reads.append(index)
        self.thread = threading.get_ident()
        image = np.full((*self.size, 3), index, np.uint8)
        image[:, : self.size[1] // 2, 1] = 255
        return {"image": image, "id": self.ids[index]}


def stream(sources, image_size=8, **options):
    reading = data.Reading(image_size)
    return data.train_iterator(sources, reading, **{"batch_size": 6, "seed": 1, **options})


def take(iterator, count: int) -> list[dict]:
    return [next(iterator) for _ in range(count)]


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def mirrored(batch) -> np.ndarray:
    return batch["image"][:, 0, -1, 1] == 255


# --- training ---


def test_batch_contents():
    sources = [Numbered(5, "a", (8, 8)), Numbered(9, "b", (16, 24))]
    batch = next(stream(sources))
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "image": ((6, 8, 8, 3), "uint8"),
        "domain": ((6,), "int32"),
        "id": ((6,), "uint32"),
    }
    columns = (batch["image"], batch["domain"], batch["id"])
    for image, domain, number in zip(*columns, strict=True):
        assert number == data.image_id("ab"[domain] + str(image[0, 0, 0]))


def test_each_epoch_holds_every_image_once_in_its_own_order():
    batches = take(stream([Numbered(12)], batch_size=4), 9)
    order = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches]).reshape(3, 12)
    assert (np.sort(order, axis=1) == np.arange(12)).all()
    assert len({tuple(epoch) for epoch in order.tolist()}) == 3


@pytest.mark.parametrize("count", [2, 3])
def test_domains_share_every_batch_evenly(count):
    sources = [Numbered(n, str(n)) for n in (1, 7, 40)[:count]]
    for process in range(2):
        options = {"batch_size": 10, "process_index": process, "process_count": 2}
        for whole, part in zip(
            take(stream(sources, batch_size=10), 8),
            take(stream(sources, **options), 8),
            strict=True,
        ):
            for batch in (whole, part):
                shares = np.bincount(batch["domain"], minlength=count)
                assert shares.max() - shares.min() <= 1


def test_sources_of_one_length_are_shuffled_apart():
    batches = take(stream([Numbered(50, "a"), Numbered(50, "b")], batch_size=50), 2)
    order = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches])
    assert (order[::2] == order[1::2]).mean() < 0.2


def test_flips_are_even_and_follow_the_seed():
    sources = [Numbered(10)]
    batches = take(stream(sources, batch_size=40), 5)
    share = np.mean([mirrored(batch).mean() for batch in batches])
    assert 0.4 < share < 0.6
    assert_equal(batches, take(stream(sources, batch_size=40), 5))
    others = take(stream(sources, batch_size=40, seed=2), 5)
    assert any((a["id"] != b["id"]).any() for a, b in zip(batches, others, strict=True))
    # An image is not mirrored always or never: the choice is made anew each time.
    first = [mirrored(batch)[batch["image"][:, 0, 0, 0] == 0] for batch in batches]
    assert 0 < np.concatenate(first).mean() < 1


def test_flip_off_keeps_images_and_order():
    sources = [Numbered(7), Numbered(3, "b")]
    plain, flipped = take(stream(sources, flip=False), 5), take(stream(sources), 5)
    assert not any(mirrored(batch).any() for batch in plain)
    for a, b in zip(plain, flipped, strict=True):
        np.testing.assert_array_equal(a["id"], b["id"])


def test_shifted_images_keep_their_order_and_borders():
    sources = [Numbered(7)]
    plain = take(stream(sources, flip=False), 5)
    shifted = take(stream(sources, flip=False, shift=2), 5)
    moved = [a["image"] != b["image"] for a, b in zip(plain, shifted, strict=True)]
    assert any(m.any() for m in moved)
    for a, b in zip(plain, shifted, strict=True):
        np.testing.assert_array_equal(a["id"], b["id"])
        for x, y in zip(a["image"], b["image"], strict=True):
            padded = np.pad(x, ((2, 2), (2, 2), (0, 0)), "edge")
            size = len(x)
            candidates = [padded[i : i + size, j : j + size] for i in range(5) for j in range(5)]
            assert any((y == c).all() for c in candidates)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_together_make_the_batch_of_one(count):
    sources = [Numbered(11), Numbered(5, "b")]
    single = take(stream(sources, batch_size=12), 8)
    parts = [
        take(stream(sources, batch_size=12, process_index=p, process_count=count), 8)
        for p in range(count)
    ]
    joined = [
        {name: np.concatenate([part[step][name] for part in parts]) for name in single[0]}
        for step in range(8)
    ]
    assert any(mirrored(batch).any() for batch in single)
    assert_equal(joined, single)


@pytest.mark.parametrize("start", [0, 1, 5])
def test_a_stream_begins_anywhere(start):
    sources = [Numbered(9), Numbered(4, "b")]
    whole = take(stream(sources), 14)
    assert_equal(take(stream(sources, start=start), 14 - start), whole[start:])
    # Another number of processes goes on where one stopped.
    parts = [
        take(stream(sources, start=start, process_index=p, process_count=2), 3) for p in (0, 1)
    ]
    joined = [
        {name: np.concatenate([part[step][name] for part in parts]) for name in whole[0]}
        for step in range(3)
    ]
    assert_equal(joined, whole[start : start + 3])


def test_one_image_fills_a_batch():
    batch = next(stream([Numbered(1)], batch_size=16))
    assert (batch["id"] == data.image_id("a0")).all()


def test_small_sources_are_read_once(monkeypatch):
    source = Numbered(6)
    take(stream([source]), 20)
    # Threads may decode an image twice when they meet, never once an epoch.
    assert len(source.reads) <= 12
    monkeypatch.setattr(loader, "CACHE_BYTES", 6 * 8 * 8 * 3 - 1)
    large = Numbered(6)
    batches = take(stream([large]), 20)
    assert len(large.reads) >= 120
    assert_equal(batches, take(stream([source]), 20))


def test_kept_images_stay_as_they_are_and_do_not_travel():
    records = loader._Records(Numbered(3, size=(32, 64)), 0, data.Reading(8), keep=True)
    first = records[0]
    assert first["image"].base is None or first["image"].base.size <= first["image"].size
    assert records[0] is first
    assert len(pickle.loads(pickle.dumps(records))._kept) == 0
    before = first["image"].copy()
    take(stream([Numbered(3)]), 10)
    np.testing.assert_array_equal(first["image"], before)


def test_broken_image_stops_the_stream(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"bad\.png' cannot be decoded"):
        next(stream([data.FilesSource(tmp_path)]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"process_count": 4},
            "batch_size 6 does not divide over 4 processes: use a multiple of 4",
        ),
        ({"process_count": 2, "process_index": 2}, r"process_index 2 must lie in 0\.\.1"),
        ({"batch_size": 0}, "batch_size 0 is not positive"),
        ({"image_size": -1}, "image_size -1 is not positive"),
        ({"seed": -1}, "seed -1, workers 0, start 0 and shift 0 must be 0 or more"),
        ({"workers": -1}, "workers -1, start 0 and shift 0 must be 0 or more"),
        ({"start": -1}, "start -1 and shift 0 must be 0 or more"),
        ({"shift": -1}, "shift -1 must be 0 or more"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        stream([Numbered(3)], **options)


def test_errors_of_sources():
    with pytest.raises(ValueError, match="got no source: give one a domain"):
        stream([])
    with pytest.raises(ValueError, match="Source 1 .* is empty"):
        stream([Numbered(3), Numbered(0)])


WORKERS = """
import sys
from absl import flags
from cdsde import data

def main():
    flags.FLAGS.mark_as_parsed()
    sources = [data.EmbeddedSource("emoji", style, "val") for style in ("noto", "fluent")]
    def make(workers, start=0):
        return data.train_iterator(
            sources, data.Reading(16), batch_size=20, seed=7, workers=workers, start=start)
    def same(a, b):
        return all((a[name] == b[name]).all() for name in a)
    plain = make(0)
    whole = [next(plain) for _ in range(7)]
    busy = make(2)
    assert all(same(next(busy), batch) for batch in whole[:3]), "workers change the stream"
    busy.close()
    again = make(2, 3)
    assert all(same(next(again), batch) for batch in whole[3:]), "resume differs"
    again.close()
    print("done", "tensorflow" in sys.modules, "torch" in sys.modules)

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_workers_give_the_same_stream_and_resume(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["done", "False", "False"]


KILLED = """
import os, signal
from absl import flags
from cdsde import data

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    source = data.EmbeddedSource("emoji", "noto", "val")
    batches = data.train_iterator([source], data.Reading(16), batch_size=2, seed=7, workers=2)
    next(batches)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_end_with_a_program_that_is_killed(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(KILLED)
    # The workers have the same pipes: this waits for the last of them.
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


# --- evaluation ---


def test_eval_batches_in_order_with_padding():
    source = Numbered(5, size=(16, 16))
    batches = list(data.eval_batches(source, data.Reading(8), batch_size=3))
    assert [batch["name"] for batch in batches] == [["a0", "a1", "a2"], ["a3", "a4", "a4"]]
    assert [batch["mask"].tolist() for batch in batches] == [[True] * 3, [True, True, False]]
    assert batches[1]["image"].shape == (3, 8, 8, 3)
    assert batches[1]["image"].dtype == np.uint8 and batches[1]["mask"].dtype == bool
    assert batches[1]["image"][:, 0, 0, 0].tolist() == [3, 4, 4]
    assert batches[1]["id"].tolist() == [data.image_id(name) for name in ("a3", "a4", "a4")]
    assert batches[1]["id"].dtype == np.uint32


def test_eval_batches_of_chosen_images():
    source = Numbered(9)
    batches = list(
        data.eval_batches(source, data.Reading(8), batch_size=2, indices=np.array([7, 0, 3, 8]))
    )
    assert [batch["name"] for batch in batches] == [["a7", "a0"], ["a3", "a8"]]
    assert all(batch["mask"].all() for batch in batches)
    assert list(data.eval_batches(source, data.Reading(8), batch_size=2, indices=[])) == []


def test_eval_batches_decode_one_batch_ahead():
    source = Numbered(100)
    batches = data.eval_batches(source, data.Reading(8), batch_size=4)
    assert not source.reads
    next(batches)
    batches.close()
    assert source.reads in (list(range(4)), list(range(8)))
    assert source.thread != threading.get_ident()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_eval_batches_leave_broken_images_out_on_request(tmp_path, size):
    for name in "abcde":
        data.write_png(tmp_path / f"{name}.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "e.png").write_bytes(b"text")
    broken = {}
    batches = data.eval_batches(
        data.FilesSource(tmp_path), data.Reading(8), batch_size=size, broken=broken
    )
    names = [
        n for batch in batches for n, ok in zip(batch["name"], batch["mask"], strict=True) if ok
    ]
    assert names == ["a.png", "c.png", "d.png"]
    assert list(broken) == ["b.png", "e.png"]
    assert all(f"{name}' cannot be decoded (" in broken[name] for name in broken)
    assert not any("replace" in problem for problem in broken.values())


def test_eval_batches_errors(tmp_path):
    with pytest.raises(ValueError, match="batch_size 0 is not positive"):
        data.eval_batches(Numbered(3), data.Reading(8), batch_size=0)
    data.write_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "b.png").write_bytes(b"text")
    batches = data.eval_batches(data.FilesSource(tmp_path), data.Reading(8), batch_size=1)
    assert next(batches)["name"] == ["a.png"]
    with pytest.raises(ValueError, match=r"b\.png' cannot be decoded"):
        next(batches)
