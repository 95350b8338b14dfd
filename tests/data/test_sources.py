"""Data sets: which pictures and labels a folder has, what of its layout is an error, and the digits' fixed split."""

import os
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jeffnet.data.sources import Digits, First, ImageFolder
from jeffnet.errors import ConfigError, DatasetError, ImageError


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (value, 0, 255)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes; the red of a picture is its number."""
    names = ["train/dog/1.jpg", "train/cat/b.PNG", "train/cat/deep/er/a.jpeg", "train/cat/c.webp", "train/dog/0.TIFF"]
    for value, name in enumerate([*names, "val/dog/x.bmp"]):
        picture(tmp_path / name, value)
    return tmp_path


def test_pictures_come_by_class_and_path_with_their_labels(root: Path):
    source = ImageFolder(root)
    assert source.classes == ("cat", "dog")
    examples = [source[index] for index in range(len(source))]
    assert [(example.name, example.label) for example in examples] == [
        ("train/cat/b.PNG", 0),
        ("train/cat/c.webp", 0),
        ("train/cat/deep/er/a.jpeg", 0),
        ("train/dog/0.TIFF", 1),
        ("train/dog/1.jpg", 1),
    ]
    assert all(type(example.label) is int for example in examples)
    np.testing.assert_array_equal(source.labels, [0, 0, 0, 1, 1])
    png, tiff = examples[0].image, examples[3].image
    assert (png.mode, png.size, png.getpixel((0, 0)), tiff.getpixel((0, 0))) == (
        "RGB",
        (5, 4),
        (1, 0, 255),
        (4, 0, 255),
    )


def test_there_is_nothing_after_the_last_picture(root: Path):
    with pytest.raises(IndexError):
        ImageFolder(root)[5]


def test_channels_decide_the_mode(root: Path):
    assert ImageFolder(root, channels=1)[0].image.mode == "L"
    with pytest.raises(ImageError, match="2 channels"):
        ImageFolder(root, channels=2)


def test_hidden_files_folders_and_other_suffixes_are_ignored(root: Path):
    for name in ("train/.hidden/1.jpg", "train/cat/.trash/1.jpg", "train/cat/._b.png"):
        picture(root / name)
    (root / "train/readme.txt").write_text("no class")
    (root / "train/cat/list.csv").write_text("no picture")
    source = ImageFolder(root)
    assert source.classes == ("cat", "dog") and len(source) == 5


def test_files_of_unknown_endings_are_counted_by_them(root: Path, caplog: pytest.LogCaptureFixture):
    ImageFolder(root, "train")
    assert not caplog.messages
    folder = root / "train" / ImageFolder(root, "train").classes[0]
    for name in ("a.HEIC", "b.heic", "notes", ".hidden.heic"):
        (folder / name).touch()
    caplog.clear()
    ImageFolder(root, "train")
    assert caplog.messages == [
        f"{str(root / 'train')!r}: 3 files of unknown endings skipped: .heic (2), without ending (1)"
    ]


def test_a_class_of_files_of_unknown_endings_only_is_an_error_that_counts_them(root: Path):
    (root / "val" / "phone").mkdir(parents=True)
    (root / "val" / "phone" / "a.heic").touch()
    with pytest.raises(DatasetError, match=r"phone.*\(1 file of unknown endings skipped: \.heic \(1\)\)"):
        ImageFolder(root, "val")


def test_a_class_that_only_looks_like_a_given_one_is_shown_with_the_difference(root: Path):
    picture(root / "val" / unicodedata.normalize("NFD", "café") / "a.png")
    with pytest.raises(DatasetError) as caught:
        ImageFolder(root, "val", classes=["café"])
    assert r"'cafe\u0301' (which only looks like 'caf\xe9')" in str(caught.value)


def test_linked_folders_are_followed_but_not_in_circles(root: Path, tmp_path_factory: pytest.TempPathFactory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    picture(elsewhere / "1.jpg")
    try:
        for link in (root / "train/fox", root / "train/cat/more", elsewhere / "loop"):
            link.symlink_to(elsewhere)
    except OSError:
        pytest.skip("no symbolic links here")
    names = ImageFolder(root).names
    assert len(names) == 7 and {"train/fox/1.jpg", "train/cat/more/1.jpg"} < set(names)


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_the_folder_of_val_has_several_names(name: str, root: Path):
    (root / "val").rename(root / name)
    assert ImageFolder(root, "val").names == (f"{name}/dog/x.bmp",)


def test_val_is_preferred_to_test(root: Path):
    picture(root / "test/cat/y.png")
    assert ImageFolder(root, "val").names == ("val/dog/x.bmp",)


def test_a_plain_folder_of_classes_serves_as_val_not_as_train(root: Path):
    plain = root / "train"
    assert ImageFolder(plain, "val").classes == ("cat", "dog")
    with pytest.raises(DatasetError, match="no folder 'train'"):
        ImageFolder(plain, "train")


def test_the_training_set_does_not_pass_for_a_class(root: Path):
    (root / "val/dog/x.bmp").unlink()
    (root / "val/dog").rmdir()
    (root / "val").rmdir()
    with pytest.raises(DatasetError, match="none to validate on"):
        ImageFolder(root, "val")


def test_given_classes_decide_the_labels(root: Path):
    source = ImageFolder(root, "val", classes=["fox", "dog", "cat"])
    assert source.classes == ("fox", "dog", "cat") and source[0].label == 1


def test_a_class_that_is_not_among_the_given_is_an_error_naming_it(root: Path):
    with pytest.raises(DatasetError, match=r"unknown classes: cat;"):
        ImageFolder(root, classes=["dog", "fox"])


def test_class_folders_without_a_picture_are_all_named(root: Path):
    for name in ("owl", "ant"):
        (root / "train" / name).mkdir()
    with pytest.raises(DatasetError, match=r"without a picture: ant, owl;"):
        ImageFolder(root)


@pytest.mark.parametrize(
    ("data", "split", "fault"),
    [
        ("missing", "val", "does not exist"),
        ("train/dog/1.jpg", "val", "is a file"),
        ("train/dog", "val", "no class folders"),
        ("nul\0", "val", "cannot be read|does not exist"),
        ("", "test", "no folder 'test'"),
    ],
)
def test_a_folder_that_is_no_data_set_is_an_error_of_one_line(data: str, split, fault: str, root: Path):
    with pytest.raises(DatasetError, match=fault) as raised:
        ImageFolder(root / data, split)
    assert "\n" not in str(raised.value)


def test_training_needs_two_classes_validation_does_not(root: Path):
    for file in (root / "train/cat").rglob("*.*"):
        file.unlink()
    os.renames(root / "train/cat/deep/er", root / "gone")
    with pytest.raises(DatasetError, match="one class, 'dog'"):
        ImageFolder(root, "train", classes=["cat", "dog"])
    assert ImageFolder(root, "val").classes == ("dog",)


def test_a_damaged_picture_is_found_when_it_is_read(root: Path):
    (root / "train/dog/1.jpg").write_bytes(b"")
    source = ImageFolder(root)
    with pytest.raises(ImageError, match=r"dog.1\.jpg' is empty"):
        source[4]


def test_any_other_folder_is_a_split_of_its_own_name(root: Path):
    picture(root / "minival/cat/y.png")
    picture(root / "test/cat/z.png")
    assert ImageFolder(root, "minival").names == ("minival/cat/y.png",)
    assert ImageFolder(root, "test").names == ("test/cat/z.png",)


def test_the_first_of_a_source_are_its_first(root: Path):
    source = ImageFolder(root)
    first = First(source, 2)
    assert (len(first), first.classes, first.channels) == (2, source.classes, source.channels)
    assert [first[index].name for index in range(2)] == [first.name(0), first.name(1)] == list(source.names[:2])
    with pytest.raises(IndexError):
        first[2]
    with pytest.raises(IndexError):
        first.name(2)
    assert len(First(source, 9)) == 5
    with pytest.raises(ConfigError, match="first 0 pictures"):
        First(source, 0)


def test_digits_are_split_into_four_fifths_and_one_alike_in_every_class():
    pytest.importorskip("sklearn")
    train, val = Digits("train"), Digits("val")
    assert (len(train), len(val)) == (1442, 355)
    assert Counter(train[i].name for i in range(1442)) + Counter(val[i].name for i in range(355)) == Counter(
        f"digits/{number}" for number in range(1797)
    )
    share = np.bincount(val.labels) / (np.bincount(train.labels) + np.bincount(val.labels))
    assert share.shape == (10,) and (share > 0.19).all() and (share <= 0.2).all()


def test_the_digits_split_never_changes():
    """A score of today must mean the same next year: the first pictures, and the sum of all numbers."""
    pytest.importorskip("sklearn")
    val = Digits("val")
    numbers = [int(val[i].name.removeprefix("digits/")) for i in range(len(val))]
    assert numbers[:5] == [3, 7, 13, 19, 36] and sum(numbers) == 307_235


def test_digits_are_scikit_learns_pixels_in_8_bits():
    datasets = pytest.importorskip("sklearn.datasets")
    images, target = datasets.load_digits().images, datasets.load_digits().target
    source = Digits("train")
    for index in range(0, len(source), 100):
        image, label, name = source[index]
        number = int(name.removeprefix("digits/"))
        assert label == target[number] and image.mode == "L"
        np.testing.assert_allclose(np.asarray(image), images[number] * 255 / 16, atol=0.5)
    assert max(np.asarray(source[index].image).max() for index in range(100)) == 255


def test_without_scikit_learn_digits_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DatasetError, match=r"pip install scikit-learn"):
        Digits()
