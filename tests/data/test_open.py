"""Which source reads a data set, by its name or by what its folder holds."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jeffnet.data.arrays import ArraySource
from jeffnet.data.open import open_source
from jeffnet.data.sources import Digits, ImageFolder
from jeffnet.data.tar import TarShards
from jeffnet.errors import DatasetError


def encoded(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded())


def shard(path: Path, mode: str = "w", names: tuple[str, ...] = ("cat/1.png", "dog/2.png")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(encoded())
            archive.addfile(entry, io.BytesIO(encoded()))
    return path


def table(path: Path, rows: int = 2) -> Path:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encoded(), "path": None}] * rows
    parquet.write_table(arrow.table({"image": images, "label": list(range(rows))}), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes in both splits, five pictures to train on."""
    for name in ("train/cat/1.png", "train/cat/2.png", "train/cat/3.png", "train/dog/1.png", "train/dog/2.png"):
        picture(tmp_path / "folder" / name)
    picture(tmp_path / "folder/val/dog/1.png")
    return tmp_path / "folder"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        from datasets import config
    except ImportError:
        return
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / ".cache")


def test_a_folder_of_class_folders_and_the_digits(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = open_source(str(folder), "train", 3)
    assert isinstance(source, ImageFolder) and len(source) == 5
    assert open_source(str(folder), "val", 1, classes=["dog", "cat"])[0].label == 0
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    (folder / "val").rename(tmp_path / "digits")
    digits = open_source("digits", "val", 3)
    assert isinstance(digits, Digits) and digits[0].image.mode == "RGB"
    assert isinstance(open_source("./digits", "val", 3), ImageFolder)


@pytest.mark.parametrize("name", ["a.tar", "a-{0..0}.tar", "*.tar", "", "deep"])
def test_archives_by_name_by_pattern_and_by_folder(name: str, tmp_path: Path):
    root = tmp_path / "set"
    shard(root / ("deep/val/a.tar" if name == "deep" else "a.tar" if name == "a.tar" else "a-0.tar"))
    source = open_source(str(root / name), "val", 1)
    assert isinstance(source, TarShards) and (len(source), source[0].image.mode) == (2, "L")


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz", "TAR"])
def test_a_compressed_archive_is_told_to_be_one(suffix: str, tmp_path: Path):
    path = shard(tmp_path / f"a.{suffix}", "w:gz")
    with pytest.raises(DatasetError, match="compressed with gzip"):
        open_source(str(path), "val", 3)


@pytest.mark.parametrize("name", ["a.parquet", "set", "clone"])
def test_parquet_files_and_folders_of_them(name: str, tmp_path: Path):
    from jeffnet.data.hub_dataset import HubDataset

    for path in ("a.parquet", "set/val-0.parquet", "clone/data/large/test-00000-of-00001.parquet"):
        table(tmp_path / path)
    (tmp_path / "clone/README.md").write_text("of a repository of the hub")
    source = open_source(str(tmp_path / name), "val", 1)
    assert isinstance(source, HubDataset) and (len(source), source[0].image.mode) == (2, "L")


def test_names_of_the_hub_and_of_tensorflow_datasets_are_passed_on(monkeypatch: pytest.MonkeyPatch):
    import jeffnet.data.hub_dataset
    import jeffnet.data.tfds_source

    def remember(*arguments: object) -> ArraySource:
        asked.append(arguments)
        return ArraySource(np.zeros((1, 2, 2), np.uint8), [0])

    asked: list[tuple] = []
    monkeypatch.setattr(jeffnet.data.hub_dataset, "HubDataset", remember)
    monkeypatch.setattr(jeffnet.data.tfds_source, "TfdsSource", remember)
    open_source("hf:owner/name:config@main", "val", 3)
    open_source("tfds:toy/large", "train[:10%]", 1, data_dir="/data")
    assert asked == [("hf:owner/name:config@main", "val", 3), ("toy/large", "train[:10%]", 1, "/data")]


@pytest.mark.parametrize("name", ["", "1.0.0"])
def test_a_prepared_data_set_is_known_by_its_description(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import jeffnet.data.tfds_source

    asked: list[str] = []
    source = ArraySource(np.zeros((1, 2, 2), np.uint8), [0])
    monkeypatch.setattr(jeffnet.data.tfds_source, "TfdsSource", lambda data, *_: asked.append(data) or source)
    (tmp_path / "toy/1.0.0").mkdir(parents=True)
    (tmp_path / "toy/1.0.0/dataset_info.json").write_text("{}")
    data = str(tmp_path / "toy" / name)
    assert open_source(data, "val", 3) is source and asked == [data]


def test_an_npz_file(tmp_path: Path):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.arange(3))
    source = open_source(str(tmp_path / "a.npz"), "val", 3)
    assert isinstance(source, ArraySource) and source[2].image.mode == "RGB"


def test_archives_beside_folders_of_pictures_are_left_alone(folder: Path, tmp_path: Path):
    """Those that the pictures came out of, as ImageNet's."""
    shard(folder / "ILSVRC2012_img_val.tar")
    assert isinstance(open_source(str(folder), "val", 3), ImageFolder)
    classes = tmp_path / "folder/train"
    shard(classes / "train.tar")
    assert isinstance(open_source(str(classes), "val", 3), ImageFolder)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ("missing", "does not exist"),
        ("empty", "no class folders"),
        ("flat", "no class folders"),
        ("a.txt", "is a file"),
    ],
)
def test_what_is_no_data_set_is_an_error_of_one_line(data: str, fault: str, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "flat/ILSVRC2012_val_00000001.JPEG")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DatasetError, match=fault) as raised:
        open_source(str(tmp_path / data), "val", 3)
    assert "\n" not in str(raised.value)


def test_too_few_pictures_are_an_error_naming_both_numbers(folder: Path):
    assert len(open_source(str(folder), "train", 3, min_images=5)) == 5
    with pytest.raises(DatasetError, match=r"has 5 pictures: at least 6"):
        open_source(str(folder), "train", 3, min_images=6)


def test_digits_take_no_classes_but_their_own():
    pytest.importorskip("sklearn")
    assert open_source("digits", "val", 1, classes=[str(digit) for digit in range(10)]).classes[3] == "3"
    with pytest.raises(DatasetError, match="cat, dog"):
        open_source("digits", "val", 1, classes=["cat", "dog"])


def test_other_data_sets_take_classes_that_begin_with_theirs(tmp_path: Path):
    """A part of a data set may lack the greatest labels; then its own numbers are fewer, and mean the same."""
    path = str(shard(tmp_path / "a.tar"))
    for classes in (["cat", "dog"], ["cat", "dog", "emu"]):
        assert open_source(path, "val", 3, classes=classes).classes == ("cat", "dog")
    for classes in (["dog", "cat"], ["cat"], ["ant", "cat", "dog"]):
        with pytest.raises(DatasetError, match=r"a\.tar' has the classes cat, dog, not"):
            open_source(path, "val", 3, classes=classes)


@pytest.mark.parametrize("ending", ["", ".tar", ".npz"])
def test_a_home_of_nobody_is_a_folder_that_does_not_exist(ending: str):
    with pytest.raises(DatasetError, match="does not exist"):
        open_source(f"~no such user/x{ending}", "val", 3)
