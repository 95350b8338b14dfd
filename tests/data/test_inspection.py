"""Inspecting a data set before training."""

import errno
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from jeffnet.cli.main import main
from jeffnet.data.arrays import ArraySource
from jeffnet.data.inspection import facts as facts_module
from jeffnet.data.inspection import inspect_data
from jeffnet.data.inspection.duplicates import MOST_BITS, near_pairs, perceptual_hash
from jeffnet.data.inspection.facts import scan
from jeffnet.data.inspection.page import draw_page
from jeffnet.data.sources import First, ImageFolder, stamp_of
from jeffnet.errors import OutputError
from jeffnet.system.files import locked


def painting(seed, size=(96, 80)):
    """A picture of smooth blobs, different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five pictures of each of two classes to train on, two to validate on, and of each fault one."""
    root = tmp_path_factory.mktemp("pictures")
    for number, place in enumerate(
        f"{split}/{name}/{place}.png"
        for split, count in (("train", 5), ("val", 2))
        for name in ("bee", "owl")
        for place in range(count)
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        painting(number).save(root / place)
    shutil.copy(root / "train/bee/0.png", root / "val/bee/copy.png")
    shutil.copy(root / "train/bee/1.png", root / "train/owl/copy.png")
    painting(2).resize((48, 40)).save(root / "val/bee/smaller.jpg", quality=60)
    (root / "train/owl/broken.png").write_bytes((root / "train/owl/0.png").read_bytes()[:900])
    (root / "train/owl/empty.png").touch()
    for width, colour in ((30, 0), (30, 255), (40, 255)):  # of one colour, which is no reason to take them for copies
        Image.new("L", (width, 300), colour).save(root / f"train/owl/flat{width}_{colour}.png")
    return root


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JEFFNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def report(pictures, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JEFFNET_CACHE", str(tmp_path_factory.mktemp("cache")))
        return inspect_data(pictures)


@pytest.mark.parametrize("bits", range(MOST_BITS + 1))
def test_near_pairs_are_those_of_a_comparison_of_all_with_all(bits):
    """Of random hashes, each with neighbours in up to 10 bits; also where most of them fall into the same bucket."""
    rng = np.random.default_rng(bits)
    first = rng.integers(0, 2**64, 40, dtype=np.uint64) & np.uint64(0x00FFFFFFFFFF0000 if bits % 2 else 2**64 - 1)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, size, replace=False)) for size in rng.integers(0, 11, 200)]
    hashes = np.concatenate([first, first[rng.integers(0, 40, 200)] ^ np.array(flips, np.uint64)])
    expected = np.argwhere(np.triu(np.bitwise_count(hashes[:, None] ^ hashes) <= bits, 1))
    np.testing.assert_array_equal(near_pairs(hashes, bits), expected)
    assert len(expected)


def test_a_hash_says_which_low_frequencies_are_above_their_median():
    fft = pytest.importorskip("scipy.fft")
    grey = painting(0).convert("L")
    low = fft.dctn(np.asarray(grey.resize((32, 32), Image.Resampling.LANCZOS), np.float64))[:8, :8]
    expected = int("".join("01"[int(bit)] for bit in (low > np.median(low)).reshape(-1)), 2)
    assert perceptual_hash(grey) == expected


def test_every_fault_is_found_and_nothing_else(report):
    found = {broken.name: broken.reason for broken in report.broken}
    assert found.keys() == {"train/owl/broken.png", "train/owl/empty.png"}
    assert found["train/owl/empty.png"] == "is empty: replace or remove it"
    assert found["train/owl/broken.png"].startswith("cannot be decoded (")
    names = {tuple(picture.name for picture in group.pictures): group for group in report.duplicates}
    assert names.keys() == {
        ("train/bee/0.png", "val/bee/copy.png"),
        ("train/bee/1.png", "train/owl/copy.png"),
    }
    across, within = report.duplicates
    assert (across.across_splits, across.across_classes) == (True, False)
    assert (within.across_splits, within.across_classes) == (False, True)
    (near,) = report.near_duplicates
    assert [picture.name for picture in near.pictures] == ["train/bee/2.png", "val/bee/smaller.jpg"]
    assert near.bits is not None and near.across_splits
    train, val = report.splits["train"], report.splits["val"]
    assert train.classes == {"bee": 5, "owl": 11} and val.classes == {"bee": 4, "owl": 2}
    assert (train.pictures, train.broken) == (16, 2) and val.formats == {"PNG": 5, "JPEG": 1}
    assert train.modes == {"RGB": 11, "L": 3}
    assert train.flat == tuple(f"train/owl/flat{name}.png" for name in ("30_0", "30_255", "40_255"))
    assert (train.width["min"], train.width["max"], train.height["max"]) == (30, 96, 300)


def test_mean_and_deviation_are_those_of_the_pixels(report, pictures):
    arrays = [np.asarray(Image.open(path).convert("RGB")) / 255 for path in (pictures / "val").rglob("*.*g")]
    mean = np.mean([array.mean((0, 1)) for array in arrays], 0)
    std = np.sqrt(np.mean([((array - mean) ** 2).mean((0, 1)) for array in arrays], 0))
    assert len(arrays) == 6
    np.testing.assert_allclose(report.splits["val"].mean, mean, atol=1e-4)
    np.testing.assert_allclose(report.splits["val"].std, std, atol=1e-4)


def test_an_interrupted_scan_goes_on(pictures, cache, monkeypatch):
    source, read = ImageFolder(pictures), []
    expected = scan(source, "whole")

    def stop(count):
        read.append(count)
        if sum(read) > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(source, "stopped", advance=stop)
    (record,) = (cache / "scans").glob("*.jsonl")
    with record.open("a") as file:
        file.write('[15, "')  # as of a killed process
    changed = pictures / source.names[0]
    content = changed.read_bytes()
    painting(99).save(changed)
    numbers = []
    facts_of = facts_module._facts
    monkeypatch.setattr(
        "jeffnet.data.inspection.facts._facts",
        lambda source, number: numbers.append(number) or facts_of(source, number),
    )
    try:
        facts = scan(source, "stopped")
    finally:
        changed.write_bytes(content)
    assert sorted(numbers) == [0, *range(7, 16)] and facts[1:] == expected[1:] and facts[0] != expected[0]
    assert not list((cache / "scans").iterdir())


def test_a_record_is_not_used_for_other_pictures(pictures, cache, tmp_path):
    folder = shutil.copytree(pictures, tmp_path / "copy")

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(ImageFolder(folder), "name", advance=lambda count: count and stop(count))
    (folder / "train/bee/0.png").rename(folder / "train/bee/9.png")
    source = ImageFolder(folder)
    assert scan(source, "name") == scan(source, "another name")


@pytest.mark.parametrize("what", ["images", "labels"])
def test_a_record_is_not_used_for_other_pixels_or_labels_of_the_same_names(what, cache):
    arrays = {"images": np.arange(4 * 64 * 3, dtype=np.uint8).reshape(4, 8, 8, 3), "labels": np.array([0, 0, 1, 1])}

    def stop(count):
        if count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(ArraySource(**arrays), "name", advance=stop)
    arrays[what] = arrays[what][::-1].copy()
    assert scan(ArraySource(**arrays), "name") == scan(ArraySource(**arrays), "another name")


def test_a_part_of_a_source_tells_of_changes_too():
    images, labels = np.zeros((3, 8, 8, 3), np.uint8), np.array([0, 1, 1])
    stamps = [stamp_of(First(ArraySource(*changed), 2), 1) for changed in ((images, labels), (images + 1, labels))]
    stamps.append(stamp_of(First(ArraySource(images, np.array([0, 0, 1])), 2), 1))
    assert len({*stamps}) == 3 and stamp_of(First(ArraySource(images, labels), 2), 1) == stamps[0]


def test_a_disk_that_becomes_full_leaves_the_report(pictures, cache, monkeypatch, caplog):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    source = ImageFolder(pictures)
    expected = scan(source, "name")

    class OnFullDisk(facts_module._Record):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.close()
            self._file = Full()

    monkeypatch.setattr(facts_module, "_Record", OnFullDisk)
    assert scan(source, "name") == expected
    assert caplog.text.count("an interrupted scan will start again: ") == 1


def test_only_one_process_scans_a_data_set(pictures, cache):
    source = ImageFolder(pictures)
    with pytest.raises(KeyboardInterrupt):
        scan(source, "name", advance=lambda count: (_ for _ in ()).throw(KeyboardInterrupt))
    (record,) = (cache / "scans").glob("*.jsonl")
    with locked(record.with_suffix(".lock")), pytest.raises(OutputError, match="is held by process"):
        scan(source, "name")


def test_archives_and_arrays_are_inspected_too(pictures, cache, tmp_path, report):
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(pictures, arcname="all")
    archived = inspect_data(tmp_path / "all.tar")
    assert archived.splits == {
        name: type(split)(**(vars(split) | {"flat": archived.splits[name].flat}))
        for name, split in report.splits.items()
    }
    assert [group.bits for group in archived.duplicates] == [None, None] and len(archived.near_duplicates) == 1
    lines = [f"{path.relative_to(pictures)},{path.parts[-2]},{path.parts[-3]}" for path in pictures.glob("*/*/*.*")]
    (pictures / "all.csv").write_text("\n".join(["path,label,split", *lines]))
    listed = inspect_data(pictures / "all.csv")
    (pictures / "all.csv").unlink()
    assert listed.splits["train"].mean == report.splits["train"].mean and len(listed.broken) == 2
    assert len(listed.duplicates) == 2 and listed.splits["val"].classes == {"bee": 4, "owl": 2}
    pixels = np.stack([np.asarray(painting(seed)) for seed in (0, 1, 0)])
    np.savez(tmp_path / "all.npz", images_val=pixels, labels_val=np.array([0, 1, 1]))
    arrays = inspect_data(tmp_path / "all.npz")
    assert arrays.splits["val"].formats == {"": 3} and "train" in arrays.unopened
    (group,) = arrays.duplicates
    assert [picture.label for picture in group.pictures] == ["0", "1"] and group.across_classes


def test_the_command_prints_and_draws(pictures, cache, tmp_path, capsys, report):
    page = tmp_path / "page.png"
    assert main(["data", str(pictures), "--output", str(page)]) == 0
    out = capsys.readouterr().out
    assert "broken pictures: 2\n" in out and "train/owl/empty.png: is empty" in out
    assert "groups of the same file: 2 (1 across splits, 1 across classes)" in out
    with Image.open(page) as drawn:
        assert drawn.width > 1000
    assert main(["data", str(pictures), "--json", "--near", "0"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["duplicates"] == json.loads(json.dumps(report.entries()["duplicates"]))
    assert printed["splits"]["val"]["classes"] == {"bee": 4, "owl": 2} and printed["near_duplicates"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "error: data set 'nowhere' does not exist"),
        ([".", "--near", "8"], "error: near 8 is not from 0 to 7"),
        ([".", "--split", ","], "error: splits: give at least one"),
        ([".", "--output", "page.gif"], "error: cannot write 'page.gif': give a name that ends in .png"),
        ([".", "--threads", "0"], "not a positive whole number"),
    ],
)
def test_bad_input_is_one_line(words, message, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["data", *words])
    except SystemExit as stop:
        status = stop.code
    assert status in (1, 2)
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not any(tmp_path.iterdir())


def test_an_interrupt_says_how_to_go_on(pictures, cache, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jeffnet.data.inspection.facts._measured", interrupt)
    assert main(["data", str(pictures)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted: the same command goes on where it stopped"


def test_a_data_set_without_a_readable_picture_is_reported(cache, tmp_path):
    for name in ("bee", "owl"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "a.png").write_bytes(b"no picture")
    report = inspect_data(tmp_path, ["train"])
    assert report.splits["train"].broken == 2 and report.splits["train"].width == {} and report.duplicates == ()
    draw_page(report, tmp_path / "page.jpg")
    assert "known format" in report.broken[0].reason and (tmp_path / "page.jpg").stat().st_size > 1000
