"""Data sets prepared by TensorFlow Datasets: read without TensorFlow, whichever split, and what is not prepared."""

import io
import json
import logging
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jeffnet.data.tfds_source import TfdsSource, is_prepared
from jeffnet.errors import DatasetError, ImageError

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record", reason="the files cannot be read here")

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_info import DatasetIdentity


def write(
    folder: Path, splits: dict[str, list], features: dict[str, Any] | None = None, version: str = "1.0.0"
) -> None:
    """Writing needs no TensorFlow either, as long as pictures come encoded."""
    features = features or {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
    folder.mkdir(parents=True)
    identity = DatasetIdentity(name="toy", version=tfds.core.Version(version), data_dir=str(folder), module_name="toy")
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(info, 3, file_format="array_record")
    writer.initialize_splits(list(splits))
    writer.add_examples(splits)
    writer.close_all()


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


def red(image: Image.Image) -> int:
    pixel = image.convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def examples(first: int, count: int = 4, **others: Any) -> list[dict[str, Any]]:
    """The red of a picture is its number; its label that modulo 2."""
    return [{"image": encoded(number), "label": number % 2, **others} for number in range(first, first + count)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    write(folder / "toy/1.0.0", {"train": examples(0, 10), "validation": examples(20), "test": examples(30)})
    return folder


def test_pictures_and_labels_are_those_prepared(data_dir: Path):
    source = TfdsSource("toy", "train", data_dir=data_dir)
    assert (len(source), source.classes, source.channels) == (10, ("cat", "dog"), 3)
    for index in range(10):
        image, label, name = source[index]
        assert (image.mode, image.size, red(image), label) == ("RGB", (5, 4), index, index % 2)
        assert name == source.name(index) == f"toy/1.0.0/train/{index}" and type(label) is int
    with pytest.raises(IndexError):
        source[10]
    assert TfdsSource("toy", "train", 1, data_dir)[0].image.mode == "L"
    with pytest.raises(ImageError, match="2 channels"):
        TfdsSource("toy", "train", 2, data_dir)


@pytest.mark.parametrize(
    ("split", "numbers"),
    [
        ("val", range(20, 24)),
        ("test", range(30, 34)),
        ("train[:20%]", range(2)),
        ("train[7:]", range(7, 10)),
        ("validation+test", (20, 21, 22, 23, 30, 31, 32, 33)),
    ],
)
def test_splits_are_those_of_tensorflow_datasets_and_val(split: str, numbers, data_dir: Path):
    source = TfdsSource("toy", split, data_dir=str(data_dir))
    assert [red(source[index].image) for index in range(len(source))] == list(numbers)


def test_a_prepared_folder_may_be_named_itself(data_dir: Path, tmp_path: Path):
    assert len(TfdsSource(str(data_dir / "toy/1.0.0"), "val")) == 4
    for version, count in (("9.0.0", 1), ("10.0.0", 2)):
        write(tmp_path / "toy" / version, {"test": examples(0, count)}, None, version)
    assert len(TfdsSource(str(tmp_path / "toy"), "val")) == 2
    assert len(TfdsSource("toy:9.0.0", "val", data_dir=tmp_path)) == 1
    assert is_prepared(data_dir / "toy") and is_prepared(data_dir / "toy/1.0.0") and not is_prepared(data_dir)


def test_a_configuration_is_named_after_a_slash(tmp_path: Path):
    write(tmp_path / "toy/large/1.0.0", {"test": examples(0)})
    assert len(TfdsSource("toy/large", "val", data_dir=tmp_path)) == 4


def test_features_may_be_called_otherwise_and_tell_the_file_name(tmp_path: Path):
    features = {
        "file_name": tfds.features.Text(),
        "picture": tfds.features.Image(),
        "species": tfds.features.ClassLabel(num_classes=3),
    }
    rows = [{"file_name": f"{number}.png", "picture": encoded(number), "species": number} for number in range(3)]
    write(tmp_path / "a", {"train": rows}, features)
    source = TfdsSource(str(tmp_path / "a"))
    assert source.classes == ("0", "1", "2") and (source[2].label, red(source[2].image)) == (2, 2)
    assert source[2].name == source.name(2) == "toy/1.0.0/train/2.png"


def test_grey_pictures_are_read_like_any(tmp_path: Path):
    features = {"image": tfds.features.Image(shape=(None, None, 1)), "label": tfds.features.ClassLabel(num_classes=2)}
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    write(tmp_path / "a", {"train": [{"image": buffer.getvalue(), "label": 1}]}, features)
    np.testing.assert_array_equal(np.asarray(TfdsSource(str(tmp_path / "a"), "train", 1)[0].image), pixels)


def test_a_damaged_picture_is_named_when_it_is_read(tmp_path: Path):
    write(tmp_path / "a", {"train": [*examples(0, 1), {"image": b"no picture", "label": 1}]})
    with pytest.raises(ImageError, match=r"image 'toy/1.0.0/train/1' is not a picture"):
        TfdsSource(str(tmp_path / "a"))[1]


def test_a_split_without_labels_is_an_error_at_once(tmp_path: Path):
    write(tmp_path / "a", {"test": [{"image": encoded(1), "label": -1}] * 2})
    with pytest.raises(DatasetError, match=r"'toy/1.0.0/test/0' has the label -1, of 2 classes: this split"):
        TfdsSource(str(tmp_path / "a"), "test")


@pytest.mark.parametrize(
    ("features", "fault"),
    [
        ({"image": tfds.features.Image()}, "has the features image: it needs"),
        ({"label": tfds.features.ClassLabel(num_classes=2)}, "has the features label: it needs"),
        (
            {
                "image": tfds.features.Image(shape=(None, None, 1), dtype=np.float32),
                "label": tfds.features.ClassLabel(num_classes=2),
            },
            "floating point",
        ),
    ],
)
def test_a_data_set_without_pictures_or_labels_is_an_error(features: dict[str, Any], fault: str, tmp_path: Path):
    write(tmp_path / "a", {"train": []}, features)
    with pytest.raises(DatasetError, match=fault):
        TfdsSource(str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("name", "split", "fault"),
    [
        ("mnist", "val", r"'mnist' is not prepared in .*prepared"),
        ("toy/large", "val", "'toy/large' is not prepared"),
        ("toy:2.0.0", "val", "'toy:2.0.0' is not prepared"),
        ("no name", "val", "'no name' (is not prepared|cannot be opened)"),
        ("toy", "extra", "split 'extra' of data set 'toy' cannot be read"),
        ("toy", "train[", "cannot be read"),
    ],
)
def test_what_is_not_prepared_is_an_error_of_one_line(name: str, split: str, fault: str, data_dir: Path):
    before = sorted(data_dir.rglob("*"))
    with pytest.raises(DatasetError, match=fault) as raised:
        TfdsSource(name, split, data_dir=data_dir)
    assert "\n" not in str(raised.value)
    assert sorted(data_dir.rglob("*")) == before  # nothing was downloaded or prepared


def test_val_that_is_missing_and_a_split_that_is_empty_are_errors(tmp_path: Path):
    write(tmp_path / "a", {"train": examples(0), "minival": []})
    with pytest.raises(DatasetError, match="no split 'val': only"):
        TfdsSource(str(tmp_path / "a"), "val")
    with pytest.raises(DatasetError, match="'minival'"):
        TfdsSource(str(tmp_path / "a"), "minival")


def test_the_format_tfrecord_is_an_error_naming_the_other_loader(tmp_path: Path):
    write(tmp_path / "a", {"train": examples(0)})
    info = tmp_path / "a/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DatasetError, match=r"prepared as tfrecord, without random access: use `--loader tf`"):
        TfdsSource(str(tmp_path / "a"))


def test_a_missing_file_or_broken_description_is_an_error_of_one_line(tmp_path: Path):
    write(tmp_path / "a", {"train": examples(0)})
    for file in (tmp_path / "a").glob("*array_record*"):
        file.unlink()
    write(tmp_path / "b", {"train": examples(0)})
    (tmp_path / "b/dataset_info.json").write_text("{")
    for name in "ab":
        with pytest.raises(DatasetError, match=r"cannot be (opened|read)") as raised:
            TfdsSource(str(tmp_path / name))
        assert "\n" not in str(raised.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("file", ["features.json", "label.labels.txt", "toy-validation.array_record-00000"])
def test_pipes_and_devices_are_errors_at_once(file: str, tmp_path: Path):
    write(tmp_path / "toy/1.0.0", {"validation": examples(0)})
    path = tmp_path / "toy/1.0.0" / file
    path.unlink()
    os.mkfifo(path)
    for name, data_dir in ((str(path.parent), None), ("toy", tmp_path), ("toy:1.0.0", tmp_path)):
        with pytest.raises(DatasetError, match=f"{file}' of a prepared data set cannot be read .it is a pipe"):
            TfdsSource(name, "val", data_dir=data_dir)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(DatasetError, match="it is a device"):
        TfdsSource(str(path.parent), "val")


def test_a_picture_that_is_missing_is_named(tmp_path: Path):
    write(tmp_path / "a", {"validation": examples(0)})
    source = TfdsSource(str(tmp_path / "a"), "val")
    source._rows = [{"image": None, "label": 0}] * 4
    with pytest.raises(ImageError, match="validation/2' is missing"):
        source[2]


def test_files_outside_of_the_folder_are_refused(tmp_path: Path):
    write(tmp_path / "outside", {"validation": examples(0)})
    write(tmp_path / "a", {"validation": examples(0)})
    path = tmp_path / "a" / "dataset_info.json"
    description = json.loads(path.read_text())
    template = description["splits"][0]["filepathTemplate"]
    for folder in ("../outside", str(tmp_path / "outside")):
        description["splits"][0]["filepathTemplate"] = f"{folder}/{template}"
        path.write_text(json.dumps(description))
        for split in ("val", "validation[:50%]"):
            with pytest.raises(DatasetError, match="has files outside of its folder"):
                TfdsSource(str(tmp_path / "a"), split)


def test_a_number_of_classes_that_is_none_makes_no_list_of_as_many_names(tmp_path: Path):
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
    write(tmp_path / "a", {"validation": examples(0)}, features)
    path = tmp_path / "a" / "features.json"
    path.write_text(path.read_text().replace('"numClasses": "2"', '"numClasses": "3000000000"'))
    with pytest.raises(DatasetError, match=r"says it has 3,000,000,000 classes"):
        TfdsSource(str(tmp_path / "a"), "val")


def test_many_threads_and_a_copy_read_the_same(data_dir: Path):
    source = TfdsSource("toy", "train", data_dir=data_dir)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda index: red(source[index].image), list(range(10)) * 20)) == list(range(10)) * 20
    copy = pickle.loads(pickle.dumps(source))
    assert red(copy[9].image) == 9 and copy.classes == source.classes


def test_nothing_is_printed_and_the_logger_stays(data_dir: Path, capfd: pytest.CaptureFixture[str]):
    level = logging.getLogger("absl").level
    TfdsSource("toy", "val", data_dir=data_dir)[0]
    assert capfd.readouterr() == ("", "") and logging.getLogger("absl").level == level


def test_it_works_where_tensorflow_is_not_installed(data_dir: Path):
    """In an interpreter that finds no module of that name, whether it is installed or not."""
    script = f"""
import importlib.machinery
import importlib.util
import sys


class WithoutTensorFlow(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "tensorflow" else super().find_spec(name, path, target)


finder = importlib.machinery.PathFinder
sys.meta_path[:] = [WithoutTensorFlow if each is finder else each for each in sys.meta_path]
assert importlib.util.find_spec("tensorflow") is None

from jeffnet.data.open import open_source

source = open_source("tfds:toy", "val", 3, data_dir={str(data_dir)!r})
assert [source[index].label for index in range(4)] == [0, 1, 0, 1]
assert source[0].image.getpixel((0, 0)) == (20, 0, 255)
assert "tensorflow" not in sys.modules
"""
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, encoding="utf-8", timeout=120, check=False
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == process.stderr == ""


def test_without_tensorflow_datasets_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DatasetError, match=r"pip install tensorflow-datasets"):
        TfdsSource("toy", "val")
