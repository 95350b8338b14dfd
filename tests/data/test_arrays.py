"""Arrays and npz files: which types and shapes pass, which arrays are a split, and what is refused."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jeffnet.data.arrays import ArraySource, open_npz
from jeffnet.errors import DatasetError, ImageError

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2])


@pytest.mark.parametrize("images", [COLOUR, COLOUR[..., 0], COLOUR[..., :1]], ids=["RGB", "grey", "one channel"])
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_pictures_are_the_arrays_and_labels_theirs(images: np.ndarray, dtype: type):
    source = ArraySource(images, LABELS.astype(dtype)[:, None])
    assert (len(source), source.classes) == (6, ("0", "1", "2"))
    assert source.channels == (3 if images.shape[-1] == 3 else 1)
    for index in range(6):
        image, label, name = source[index]
        assert (image.mode, image.size, label) == ("RGB" if source.channels == 3 else "L", (7, 9), LABELS[index])
        np.testing.assert_array_equal(np.asarray(image), np.squeeze(images[index]))
        assert name == source.name(index) == f"arrays/{index}" and type(label) is int
    with pytest.raises(IndexError):
        source[6]


def test_channels_decide_the_mode():
    grey = ArraySource(COLOUR, LABELS, channels=1)
    assert (grey.channels, grey[0].image.mode) == (1, "L")
    rgb = ArraySource(COLOUR[..., 1], LABELS, channels=3)
    np.testing.assert_array_equal(np.asarray(rgb[2].image), np.dstack([COLOUR[2, ..., 1]] * 3))
    with pytest.raises(ImageError, match="2 channels"):
        ArraySource(COLOUR, LABELS, channels=2)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "fault"),
    [
        (COLOUR / 255.0, LABELS, None, r"float64 \(6, 9, 7, 3\): give uint8"),
        (COLOUR[..., :2], LABELS, None, r"\(6, 9, 7, 2\): give uint8"),
        (COLOUR[0, 0], LABELS, None, "give uint8"),
        (COLOUR[:, :0], LABELS, None, "without a pixel"),
        (COLOUR, LABELS[:5], None, r"labels .* int64 \(5,\): give integers \(6,\)"),
        (COLOUR, np.eye(6), None, "labels of 'arrays' are float64"),
        (COLOUR, LABELS - 1, None, "'arrays/1' has the label -1"),
        (COLOUR, LABELS, ["a", "b"], "'arrays/0' has the label 2, but there are 2 classes"),
        (COLOUR[:0], LABELS[:0], None, "no pictures"),
    ],
)
def test_other_arrays_are_an_error_of_one_line(images, labels, classes, fault: str):
    with pytest.raises(DatasetError, match=fault) as raised:
        ArraySource(images, labels, classes)
    assert "\n" not in str(raised.value)


def test_a_source_can_be_pickled():
    copy = pickle.loads(pickle.dumps(ArraySource(COLOUR, LABELS, ["a", "b", "c"])))
    np.testing.assert_array_equal(np.asarray(copy[5].image), COLOUR[5])
    assert copy.classes == ("a", "b", "c")


@pytest.mark.parametrize("names", [("x_{}", "y_{}"), ("images_{}", "labels_{}"), ("{}_images", "{}_labels")])
def test_arrays_of_an_npz_are_named_after_their_split(names: tuple[str, str], tmp_path: Path):
    arrays = {}
    for number, split in enumerate(("train", "test", "extra")):
        arrays[names[0].format(split)] = COLOUR[number : number + 2]
        arrays[names[1].format(split)] = LABELS[number : number + 2]
    np.savez(tmp_path / "a.npz", **arrays, classes=np.array(["ant", "bee", "cat"]))
    for number, split in enumerate(("train", "val", "extra")):
        source = open_npz(tmp_path / "a.npz", split)
        np.testing.assert_array_equal(np.asarray(source[1].image), COLOUR[number + 1])
        assert source[0].label == LABELS[number] and source.name(1) == "a.npz/1"
        assert source.classes == ("ant", "bee", "cat")
    with pytest.raises(DatasetError, match="no split 'validation'"):
        open_npz(tmp_path / "a.npz", "validation")


def test_images_and_labels_serve_as_val_only(tmp_path: Path):
    np.savez_compressed(tmp_path / "a.npz", images=COLOUR, labels=LABELS, classes=np.array([b"a", b"b", b"c"]))
    assert open_npz(str(tmp_path / "a.npz"), "val", 1).classes == ("a", "b", "c")
    with pytest.raises(DatasetError, match="no split 'train', only the arrays images, labels, classes"):
        open_npz(tmp_path / "a.npz", "train")


def test_files_that_are_no_data_set_are_an_error_of_one_line(tmp_path: Path):
    np.savez(tmp_path / "pickled.npz", images=np.array([COLOUR[0], None], object), labels=LABELS[:2])
    np.save(tmp_path / "one.npy", COLOUR)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    (tmp_path / "text.npz").write_text("no arrays")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "cut.npz", images=COLOUR, labels=LABELS)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:500])
    faults = {
        "pickled": "holds pickled objects",
        "one": "is one array",
        "text": "cannot be read",
        "empty": "cannot be read",
        "cut": "cannot be read",
        "missing": "does not exist",
    }
    for name, fault in faults.items():
        with pytest.raises(DatasetError, match=fault) as raised:
            open_npz(tmp_path / f"{name}.npz", "val")
        assert "\n" not in str(raised.value) and f"{name}.npz" in str(raised.value)


def _npz(path: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def _array(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_an_array_never_takes_more_memory_than_its_contents(tmp_path: Path):
    """The header of an array, and that of its member, ask for a terabyte."""
    labels = _array(LABELS)
    images = _array(COLOUR).replace(b"(6, 9, 7, 3), }      ", b"(999999, 99, 99, 3), }")
    assert images != _array(COLOUR)
    with pytest.raises(DatasetError, match=r"cannot be read \(array 'images' says it is uint8 \(999999, 99, 99, 3\)"):
        open_npz(_npz(tmp_path / "a.npz", images=images, labels=labels), "val")
    path = _npz(tmp_path / "b.npz", images=_array(COLOUR), labels=labels)
    content, size = path.read_bytes(), len(_array(COLOUR))
    place = content.rindex(size.to_bytes(4, "little"), 0, content.rindex(b"images.npy"))
    path.write_bytes(content[:place] + (2**31).to_bytes(4, "little") + content[place + 4 :])
    with pytest.raises(DatasetError, match=r"cannot be read \(array 'images' says it has 2,147,483,648 bytes"):
        open_npz(path, "val")


def test_black_pictures_that_compress_very_well_are_read(tmp_path: Path):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((500, 64, 64, 3), np.uint8), labels=np.zeros(500, int))
    assert len(open_npz(tmp_path / "a.npz", "val")) == 500


def test_a_pipe_is_an_error_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(DatasetError, match="it is a pipe"):
        open_npz(tmp_path / "a.npz", "val")


@pytest.mark.parametrize("label", [2**20, 3 * 10**9, 2**63 + 5])
def test_a_label_that_is_none_makes_no_list_of_as_many_names(label: int):
    labels = np.array([0, label, 1, 1, 0, 2], np.uint64)
    with pytest.raises(DatasetError, match=f"'arrays/1' has the label {label}: labels without names go up to"):
        ArraySource(COLOUR, labels)
    with pytest.raises(DatasetError, match=f"has the label {label}, but there are 3 classes"):
        ArraySource(COLOUR, labels, classes=["a", "b", "c"])
