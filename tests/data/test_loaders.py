"""Batches: every example as often as promised, the same ones for the same seed, and errors that arrive."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.data.batches import Shard
from jeffnet.data.loaders import GrainEvalLoader, TrainBatch, TrainLoader, eval_loader, steps_per_epoch, train_loader
from jeffnet.data.preprocess import EvalTransform, TrainTransform
from jeffnet.data.sources import Example, ImageFolder
from jeffnet.errors import ConfigError, DatasetError, ImageError

TRAIN = TrainTransform(8)
EVALUATE = EvalTransform(Preprocessing(8, crop_pct=1.0))
# Without augmentation: what differs now is the order alone.
PLAIN = TrainTransform(8, scale=(1, 1), ratio=(1, 1), hflip=0)


class Noise:
    """Pictures of noise; the label of each is its number."""

    def __init__(self, length: int, mode: str = "RGB") -> None:
        self.classes = tuple(str(number) for number in range(length))
        self.channels = 3 if mode == "RGB" else 1
        shape = (length, 12, 12, 3) if mode == "RGB" else (length, 12, 12)
        self.pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Example:
        return Example(Image.fromarray(self.pixels[index]), index, self.name(index))

    def name(self, index: int) -> str:
        return f"noise {index}"


def batches(loader: TrainLoader, count: int) -> list[TrainBatch]:
    return list(itertools.islice(loader, count))


def labels(loader: TrainLoader, count: int) -> np.ndarray:
    return np.concatenate([batch["label"] for batch in batches(loader, count)])


def assert_same(ours: list[TrainBatch], theirs: list[TrainBatch]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one["label"], other["label"])
        np.testing.assert_array_equal(one["image"], other["image"])


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_training_batches_have_the_promised_shapes(mode: str, channels: int):
    (batch,) = batches(train_loader(Noise(10, mode), TRAIN, 4, seed=0), 1)
    assert batch.keys() == {"image", "label"}
    assert batch["image"].shape == (4, 8, 8, channels) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32


def test_label_and_picture_belong_together():
    source = Noise(20)
    transform = TrainTransform(12, scale=(1, 1), ratio=(1, 1), hflip=0)
    for batch in batches(train_loader(source, transform, 5, seed=0), 8):
        np.testing.assert_array_equal(batch["image"], source.pixels[batch["label"]])


def test_every_epoch_has_every_example_once_in_another_order():
    """4 does not divide 10: batches hold the end of one epoch and the beginning of the next, and nothing is lost."""
    epochs = labels(train_loader(Noise(10), PLAIN, 4, seed=0), 25).reshape(10, 10)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(10), (10, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 10
    assert (epochs != np.arange(10)).any(axis=1).all()


def test_augmentation_differs_between_epochs():
    """One example, eight epochs of it: as many views."""
    views = [batch["image"].tobytes() for batch in batches(train_loader(Noise(1), TRAIN, 1, seed=0), 8)]
    assert len(set(views)) == 8


@pytest.mark.parametrize("threads", [0, 1, 5])
def test_batches_depend_on_the_seed_not_on_the_threads(threads: int):
    source = Noise(30)
    expected = batches(train_loader(source, TRAIN, 8, seed=3, threads=2), 12)
    assert_same(batches(train_loader(source, TRAIN, 8, seed=3, threads=threads), 12), expected)


def test_another_seed_is_another_order_and_other_views():
    source = Noise(30)
    assert (labels(train_loader(source, PLAIN, 30, 0), 1) != labels(train_loader(source, PLAIN, 30, 1), 1)).any()
    one, other = (batches(train_loader(Noise(1), TRAIN, 1, seed), 1)[0]["image"] for seed in (0, 1))
    assert (one != other).any()


def test_the_next_seed_does_not_repeat_this_ones_epochs():
    """Grain's shuffle adds the epoch's number to its seed: given ours, epoch 1 of seed 0 would be epoch 0 of seed 1."""
    first, second = (labels(train_loader(Noise(20), PLAIN, 20, seed), 6).reshape(6, 20) for seed in (0, 1))
    assert not {tuple(epoch) for epoch in first} & {tuple(epoch) for epoch in second}


@pytest.mark.parametrize("done", [0, 1, 7])
@pytest.mark.parametrize("threads", [0, 3])
def test_a_restored_loader_continues_bit_for_bit(done: int, threads: int):
    """Through JSON, into a loader that was elsewhere; 7 batches of 4 are in the third epoch of 10."""
    loader = train_loader(Noise(10), TRAIN, 4, seed=1, threads=threads)
    batches(loader, done)
    state = json.loads(json.dumps(loader.get_state()))
    expected = batches(loader, 6)
    restored = train_loader(Noise(10), TRAIN, 4, seed=1, threads=2)
    batches(restored, 3)
    restored.set_state(state)
    assert restored.get_state() == state
    assert_same(batches(restored, 6), expected)


def test_a_state_stays_what_it_was_while_the_loader_goes_on():
    loader = train_loader(Noise(10), TRAIN, 4, seed=1)
    state = loader.get_state()
    before = json.dumps(state)
    batches(loader, 3)
    assert json.dumps(state) == before != json.dumps(loader.get_state())


def test_a_state_of_another_run_is_refused():
    loader = train_loader(Noise(10), TRAIN, 4, seed=1)
    for other in (train_loader(Noise(10), TRAIN, 4, seed=2), train_loader(Noise(11), TRAIN, 4, seed=1)):
        with pytest.raises(ConfigError, match="of seed 1 and 10 pictures"):
            other.set_state(loader.get_state())


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"seed": 1, "length": 10},
        {"position": {}, "seed": 1, "length": 10},
        {"position": -1, "seed": 1, "length": 10},
        None,
        [],
    ],
)
def test_what_is_no_state_is_refused(state):
    with pytest.raises(ConfigError, match="not the state of a training loader"):
        train_loader(Noise(10), TRAIN, 4, seed=1).set_state(state)


def test_evaluation_gives_every_example_once_in_order_and_pads_the_last_batch():
    source = Noise(10)
    loader = eval_loader(source, EvalTransform(Preprocessing(12, crop_pct=1.0)), 4)
    found = list(loader)
    assert len(found) == len(loader) == 3
    for batch in found:
        assert {key: (np.shape(value), np.asarray(value).dtype) for key, value in batch.items()} == {
            "image": ((4, 12, 12, 3), np.uint8),
            "label": ((4,), np.int32),
            "mask": ((4,), np.bool_),
            "index": ((4,), np.int32),
        }
    keys = ("image", "label", "mask", "index")
    image, label, mask, index = (np.concatenate([batch[key] for batch in found]) for key in keys)
    np.testing.assert_array_equal(mask, [True] * 10 + [False] * 2)
    np.testing.assert_array_equal(index, [*range(10), -1, -1])
    np.testing.assert_array_equal(label, [*range(10), 0, 0])
    np.testing.assert_array_equal(image[:10], source.pixels)
    assert not image[10:].any()


@pytest.mark.parametrize(("length", "batch_size", "count"), [(8, 4, 2), (9, 4, 3), (3, 16, 1)])
def test_evaluation_of_any_length(length: int, batch_size: int, count: int):
    loader = eval_loader(Noise(length), EVALUATE, batch_size)
    masks = [batch["mask"] for batch in loader]
    assert len(loader) == len(masks) == count
    assert {len(mask) for mask in masks} == {batch_size} and sum(mask.sum() for mask in masks) == length


def test_evaluation_can_be_repeated_and_broken_off():
    loader = eval_loader(Noise(10), EVALUATE, 2)
    for _ in loader:
        break
    first, second = ([batch["index"].tolist() for batch in loader] for _ in range(2))
    assert first == second == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


@pytest.fixture
def damaged(tmp_path: Path) -> ImageFolder:
    """Twelve pictures, of which one is cut short."""
    for label in ("a", "b"):
        folder = tmp_path / "train" / label
        folder.mkdir(parents=True)
        for number in range(6):
            Image.fromarray(Noise(1).pixels[0]).save(folder / f"{number}.png")
    path = tmp_path / "train" / "b" / "3.png"
    path.write_bytes(path.read_bytes()[:100])
    return ImageFolder(tmp_path)


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("loader", [train_loader, eval_loader])
def test_a_damaged_picture_reaches_the_caller_by_name(loader, threads: int, damaged: ImageFolder):
    made: TrainLoader | GrainEvalLoader
    if loader is train_loader:
        made = train_loader(damaged, TRAIN, 4, seed=0, threads=threads)
    else:
        made = eval_loader(damaged, EVALUATE, 4, threads=threads)
    with pytest.raises(ImageError, match=r"^image '.*3\.png' .*truncated") as raised:
        list(itertools.islice(made, 3))
    assert type(raised.value) is ImageError and "\n" not in str(raised.value)


@pytest.mark.parametrize("seed", range(4))
def test_after_an_error_the_state_is_that_of_the_last_whole_batch(seed: int, damaged: ImageFolder):
    """Among these orders are some where the damaged picture is not the first of its batch."""
    loader = train_loader(damaged, TRAIN, 3, seed)
    state, good = loader.get_state(), []
    with pytest.raises(ImageError):
        for batch in loader:
            good.append(batch)
            state = loader.get_state()
    assert loader.get_state() == state
    Image.new("RGB", (9, 9)).save(damaged._root / "train/b/3.png")
    mended = train_loader(damaged, TRAIN, 3, seed)
    expected = batches(mended, len(good) + 3)
    assert_same(good, expected[: len(good)])
    resumed = train_loader(damaged, TRAIN, 3, seed)
    resumed.set_state(state)
    assert_same(batches(resumed, 3), expected[len(good) :])


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_damaged_picture_can_be_left_out(damaged: ImageFolder, threads: int, batch_size: int):
    """Its row stays, masked, so that it can be named; all others are as they would be without it."""
    loader = eval_loader(damaged, EVALUATE, batch_size, threads=threads, on_bad_image="skip")
    rows = list(loader)
    index, mask = (np.concatenate([batch[key] for batch in rows]) for key in ("index", "mask"))
    assert [loader.name(i) for i in index[(index >= 0) & ~mask]] == ["train/b/3.png"]
    np.testing.assert_array_equal(np.sort(index[mask]), np.setdiff1d(np.arange(12), [9]))


@pytest.mark.parametrize(("length", "count", "batch_size"), [(11, 3, 2), (5, 4, 3), (12, 2, 4), (1, 3, 8)])
def test_hosts_share_an_evaluation_set(length: int, count: int, batch_size: int):
    """Each example once over all of them, and as many batches for each, or the others would wait for ever."""
    loaders = [eval_loader(Noise(length), EVALUATE, batch_size, 1, shard=Shard(host, count)) for host in range(count)]
    assert len({len(loader) for loader in loaders}) == 1
    batches_ = [list(loader) for loader in loaders]
    assert all(len(found) == len(loaders[0]) for found in batches_)
    rows = [batch for found in batches_ for batch in found]
    index, mask = (np.concatenate([batch[key] for batch in rows]) for key in ("index", "mask"))
    np.testing.assert_array_equal(np.sort(index[mask]), np.arange(length))
    assert all(loader.num_examples == length for loader in loaders)


@pytest.mark.parametrize("count", [2, 3])
def test_the_batches_of_all_hosts_are_those_of_one(count: int):
    """The pictures too: augmentation depends on the place in the whole order, not on the host."""
    whole = batches(train_loader(Noise(20), TRAIN, 4 * count, seed=2), 7)
    hosts = [batches(train_loader(Noise(20), TRAIN, 4, seed=2, shard=Shard(host, count)), 7) for host in range(count)]
    for number, batch in enumerate(whole):
        for host, found in enumerate(hosts):
            piece = slice(4 * host, 4 * (host + 1))
            np.testing.assert_array_equal(found[number]["label"], batch["label"][piece])
            np.testing.assert_array_equal(found[number]["image"], batch["image"][piece])


@pytest.mark.parametrize("repeats", [2, 3])
def test_repeats_follow_one_another_each_augmented_anew(repeats: int):
    """In the order without repeats; 5 pictures of a batch and 3 copies do not match, and nothing is lost."""
    once = labels(train_loader(Noise(10), PLAIN, 5, seed=0), 8)
    found = batches(train_loader(Noise(10), TRAIN, 5, seed=0, repeats=repeats), 8 * repeats)
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in found]), np.repeat(once, repeats))
    views = np.concatenate([batch["image"] for batch in found])
    assert len({view.tobytes() for view in views}) == len(views)


@pytest.mark.parametrize("count", [2, 3])
def test_the_batches_of_all_hosts_are_those_of_one_with_copies_too(count: int):
    whole = batches(train_loader(Noise(20), TRAIN, 4 * count, seed=2, repeats=3), 4)
    for host in range(count):
        own = train_loader(Noise(20), TRAIN, 4, seed=2, shard=Shard(host, count), repeats=3)
        for found, batch in zip(batches(own, 4), whole, strict=True):
            piece = slice(4 * host, 4 * (host + 1))
            np.testing.assert_array_equal(found["label"], batch["label"][piece])
            np.testing.assert_array_equal(found["image"], batch["image"][piece])


def test_repeats_are_continued_bit_for_bit():
    """Within the copies of a picture: 3 batches of 4 are 12 pictures, or two and two fifths."""
    loader = train_loader(Noise(10), TRAIN, 4, seed=1, repeats=5)
    batches(loader, 3)
    state = json.loads(json.dumps(loader.get_state()))
    restored = train_loader(Noise(10), TRAIN, 4, seed=1, repeats=5)
    restored.set_state(state)
    assert_same(batches(restored, 6), batches(loader, 6))


@pytest.mark.parametrize("repeats", [1, 2])
def test_pictures_can_grow_in_mid_run(repeats: int):
    """A loader with another transform goes on where the first one stood, with the batches it would have had itself."""
    small, large = TRAIN, TrainTransform(12, policy="rand-m5")
    loader = train_loader(Noise(10), small, 4, seed=1, repeats=repeats)
    assert batches(loader, 7)[0]["image"].shape == (4, 8, 8, 3)
    grown = train_loader(Noise(10), large, 4, seed=1, repeats=repeats)
    grown.set_state(loader.get_state())
    loader.close()
    assert_same(batches(grown, 5), batches(train_loader(Noise(10), large, 4, seed=1, repeats=repeats), 12)[7:])


def test_several_views_of_a_picture_are_an_axis_of_the_batch():
    (batch,) = batches(train_loader(Noise(10), TrainTransform(8, policy="augmix", splits=3), 4, seed=0), 1)
    assert batch["image"].shape == (4, 3, 8, 8, 3) and batch["label"].shape == (4,)


class Damaged(Noise):
    """Some of the pictures cannot be decoded. All are of their label's colour."""

    def __init__(self, length: int, bad: set[int]) -> None:
        super().__init__(length)
        self.pixels[:] = np.arange(length)[:, None, None, None]
        self.bad = bad

    def __getitem__(self, index: int) -> Example:
        if index in self.bad:
            raise (ImageError, DatasetError)[index % 2](f"{self.name(index)} is broken")
        return super().__getitem__(index)


@pytest.mark.parametrize("threads", [0, 3])
def test_the_next_picture_stands_in_for_a_damaged_one(threads: int, caplog: pytest.LogCaptureFixture):
    """For 3 and 4 that is 5; for 9, the last, it is 0. All others are as they would be; each is named once."""
    bad, stand_in = {3, 4, 9}, {3: 5, 4: 5, 9: 0}
    with caplog.at_level("WARNING", "jeffnet.data"):
        loader = train_loader(Damaged(10, bad), TRAIN, 4, 1, threads, repeats=2, on_bad_image="skip")
        found = batches(loader, 20)
    whole = batches(train_loader(Damaged(10, set()), TRAIN, 4, 1, repeats=2), 20)
    for ours, theirs in zip(found, whole, strict=True):
        expected = [stand_in.get(label, label) for label in map(int, theirs["label"])]
        assert ours["label"].tolist() == expected
        np.testing.assert_array_equal(ours["image"], np.broadcast_to(expected, (3, 8, 8, 4)).T)
    loader.close()
    messages = sorted(record.getMessage() for record in caplog.records)
    assert [message.split(" is broken; the next")[0] for message in messages] == [
        f"noise {label}" for label in (3, 4, 9)
    ]


def test_where_everything_is_damaged_skipping_ends():
    loader = train_loader(Damaged(150, set(range(150))), TRAIN, 4, 1, threads=0, on_bad_image="skip")
    with pytest.raises((ImageError, DatasetError), match=r"^noise \d+ is broken"):
        next(loader)


def test_worker_processes_skip_the_same_pictures(damaged: ImageFolder):
    threads, workers = (
        train_loader(damaged, TRAIN, 4, seed=1, workers=workers, repeats=2, on_bad_image="skip") for workers in (0, 2)
    )
    assert_same(batches(workers, 7), batches(threads, 7))
    workers.close()
    threads.close()


def test_a_shard_outside_the_hosts_is_an_error():
    with pytest.raises(ConfigError, match="shard 2 of 2"):
        Shard(2, 2)


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Ten pictures of noise, which worker processes can open too."""
    for number in range(10):
        (tmp_path / "train" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(Noise(10).pixels[number]).save(tmp_path / "train" / "ab"[number % 2] / f"{number}.png")
    return ImageFolder(tmp_path)


def test_worker_processes_give_what_threads_give(folder: ImageFolder):
    """In order, in training and evaluation, and from a saved state on."""
    expected = list(eval_loader(folder, EVALUATE, 4))
    for ours, theirs in zip(eval_loader(folder, EVALUATE, 4, workers=2), expected, strict=True):
        for key in theirs:
            np.testing.assert_array_equal(ours[key], theirs[key])
    threads, workers = (train_loader(folder, TRAIN, 4, seed=1, workers=workers) for workers in (0, 2))
    assert_same(batches(workers, 6), batches(threads, 6))
    state = workers.get_state()
    assert state["seed"] == 1
    rest = batches(workers, 4)
    assert_same(rest, batches(threads, 4))
    workers.set_state(json.loads(json.dumps(state)))
    assert_same(batches(workers, 4), rest)
    workers.close()


def test_worker_processes_outlive_the_signal_that_stops_the_run():
    """A scheduler sends it to all processes of a job; the run still needs pictures until it has saved."""
    before = set(multiprocessing.active_children())
    loader = train_loader(Noise(20), TRAIN, 4, seed=1, workers=1)
    found = batches(loader, 1)
    for child in set(multiprocessing.active_children()) - before:
        os.kill(child.pid, signal.SIGTERM)
    found += batches(loader, 12)
    assert_same(found, batches(train_loader(Noise(20), TRAIN, 4, seed=1), 13))
    loader.close()


# Reads two batches with workers of the loader that it is told, says so and is killed.
KILLED = """
import os, signal, sys
from importlib import import_module
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.data.preprocess import EvalTransform
from jeffnet.data.sources import ImageFolder

if __name__ == "__main__":
    loader = import_module(sys.argv[1]).eval_loader(
        ImageFolder(sys.argv[2]), EvalTransform(Preprocessing(8, crop_pct=1.0)), 2, workers=2
    )
    batches = iter(loader)
    next(batches), next(batches)
    print("read", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("module", ["jeffnet.data.loaders", "jeffnet.data.pytorch"])
def test_worker_processes_end_with_a_caller_that_is_killed(module: str, folder: ImageFolder, tmp_path: Path):
    if module == "jeffnet.data.pytorch":
        pytest.importorskip("torch")
    (tmp_path / "program.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "program.py"), module, str(tmp_path)]
    # Its output ends when all have that inherited it.
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "read\n")


def test_a_state_is_good_for_another_number_of_hosts_and_another_batch_size():
    loader = train_loader(Noise(20), TRAIN, 6, seed=1)
    batches(loader, 5)
    state = loader.get_state()
    expected = batches(loader, 2)
    hosts = [train_loader(Noise(20), TRAIN, 2, seed=1, shard=Shard(host, 3)) for host in range(3)]
    for host, other in enumerate(hosts):
        other.set_state(state)
        for found, batch in zip(batches(other, 2), expected, strict=True):
            np.testing.assert_array_equal(found["image"], batch["image"][2 * host : 2 * host + 2])
    larger = train_loader(Noise(20), TRAIN, 12, seed=1)
    larger.set_state(state)
    np.testing.assert_array_equal(
        batches(larger, 1)[0]["image"], np.concatenate([batch["image"] for batch in expected])
    )


def test_a_damaged_picture_in_a_worker_reaches_the_caller_by_name(damaged: ImageFolder):
    with pytest.raises(ImageError, match=r"^image '.*3\.png' .*truncated"):
        list(eval_loader(damaged, EVALUATE, 4, workers=2))


def test_a_closed_loader_leaves_no_thread_behind():
    before = set(threading.enumerate())
    loader = train_loader(Noise(10), TRAIN, 4, seed=0, threads=3)
    next(loader)
    list(eval_loader(Noise(10), EVALUATE, 4, threads=3))
    assert set(threading.enumerate()) - before
    loader.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize(
    ("length", "batch_size", "steps"), [(10, 5, 2), (10, 4, 3), (10, 10, 1), (11, 4, 3), (13, 4, 3)]
)
def test_steps_of_an_epoch_are_the_nearest_whole_number(length: int, batch_size: int, steps: int):
    assert steps_per_epoch(Noise(length), batch_size) == steps


def test_a_batch_of_more_than_all_pictures_is_an_error_naming_both_numbers():
    with pytest.raises(DatasetError, match=r"^batch_size 11 exceeds the 10 pictures .*10 or less, or min_epoch_steps"):
        steps_per_epoch(Noise(10), 11)


@pytest.mark.parametrize(("length", "batch_size", "at_least", "steps"), [(10, 4, 2, 3), (10, 4, 7, 7), (10, 32, 5, 5)])
def test_small_sets_are_passed_over_several_times_in_an_epoch(length, batch_size, at_least, steps):
    assert steps_per_epoch(Noise(length), batch_size, at_least) == steps


def test_a_batch_may_have_more_rows_than_there_are_pictures():
    """Each as often as the others, but for the last pass, and augmented anew."""
    loader = train_loader(Noise(10), TRAIN, 25, seed=0)
    try:
        assert loader.steps_per_epoch == 1
        first, second = next(loader), next(loader)
    finally:
        loader.close()
    seen = np.concatenate([first["label"], second["label"]])
    assert len(first["label"]) == 25
    assert np.bincount(seen, minlength=10).tolist() == [5] * 10
    rows = [image.tobytes() for image in first["image"]]
    assert len(set(rows)) > 10


@pytest.mark.parametrize(
    ("batch_size", "seed", "threads", "fault"),
    [(0, 0, 1, "batch_size 0"), (4, -1, 1, "seed -1"), (4, 2**32, 1, "seed 4294967296"), (4, 0, -1, "threads -1")],
)
def test_a_setting_out_of_range_is_an_error_naming_it(batch_size: int, seed: int, threads: int, fault: str):
    with pytest.raises(ConfigError, match=f"^{fault} "):
        train_loader(Noise(10), TRAIN, batch_size, seed, threads)


def test_repeats_and_the_way_with_bad_pictures_are_checked():
    with pytest.raises(ConfigError, match=r"^repeats 0 "):
        train_loader(Noise(10), TRAIN, 4, 0, repeats=0)
    with pytest.raises(ConfigError, match=r"^on_bad_image 'ignore' "):
        train_loader(Noise(10), TRAIN, 4, 0, on_bad_image="ignore")  # pyright: ignore[reportArgumentType]


def test_evaluation_checks_its_settings_too():
    with pytest.raises(ConfigError, match=r"^batch_size 0 "):
        eval_loader(Noise(10), EVALUATE, 0)
