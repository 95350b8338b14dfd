"""Labelled pictures in NumPy arrays, and in `.npz` files of them."""

import hashlib
import math
import os
import zipfile
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jeffnet.data.checks import checked_labels
from jeffnet.data.images import MODES
from jeffnet.data.sources import Labelled
from jeffnet.data.splits import OF_ALL, split_names
from jeffnet.errors import DatasetError, first_line
from jeffnet.system.reading import check_file, user_path

# Names of the arrays of a split: ours, those of keras.datasets, those of MedMNIST.
_NAMES = (("images_{}", "labels_{}"), ("x_{}", "y_{}"), ("{}_images", "{}_labels"))
_WITHOUT_SPLIT = ("images", "labels")
_CLASSES = "classes"
_ONE_ARRAY = b"\x93NUMPY"
_MOST_EXPANSION = 1040  # what deflate makes of a byte at most, and more than what is stored as it is


class ArraySource(Labelled):
    """Pictures in memory, in the order of the arrays.

    Raises:
      DatasetError: arrays of another type or shape, or a label that is negative or outside the classes.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | Sequence[int],
        classes: Sequence[str] | None = None,
        channels: int | None = None,
        data: str = "arrays",
    ) -> None:
        """Keeps the arrays, without copying the pictures.

        Args:
          images: uint8 `(N, H, W)`, `(N, H, W, 1)` or `(N, H, W, 3)`.
          labels: integers `(N,)` or `(N, 1)`.
          classes: name of every label; None numbers them from '0' to the greatest.
          channels: 3 for RGB, 1 for grey; None takes that of `images`.
          data: what names of pictures begin with.
        """
        images, numbers = np.asanyarray(images), np.asarray(labels)
        if images.dtype != np.uint8 or images.shape[3:] not in ((), (1,), (3,)) or images.ndim < 3:
            raise DatasetError(
                f"images of {data!r} are {images.dtype} {images.shape}: give uint8 (N, H, W), (N, H, W, 1) or "
                "(N, H, W, 3)"
            )
        if not all(images.shape[1:3]):
            raise DatasetError(f"images of {data!r} are {images.shape}, without a pixel: give some")
        if numbers.shape == (len(images), 1):
            numbers = numbers[:, 0]
        if numbers.dtype.kind not in "iu" or numbers.shape != (len(images),):
            raise DatasetError(
                f"labels of {data!r} are {numbers.dtype} {numbers.shape}: give integers ({len(images)},), one an image"
            )
        self._images = images[..., 0] if images.shape[3:] == (1,) else images
        super().__init__(data, (3 if self._images.ndim == 4 else 1) if channels is None else channels)
        self.labels, self.classes = checked_labels(numbers, classes, data, self.name)

    def name(self, index: int) -> str:
        """The arrays' name and the picture's number."""
        return f"{self._data}/{index}"

    def _origin(self, index: int) -> str:
        return hashlib.sha256(self._images[index].tobytes()).hexdigest()

    def _picture(self, index: int, name: str) -> Image.Image:
        return Image.fromarray(self._images[index]).convert(MODES[self.channels])


def open_npz(path: str | os.PathLike[str], split: str = "train", channels: int | None = None) -> ArraySource:
    """The pictures of a split in an `.npz` file.

    Args:
      path: a file with arrays `x_train` and `y_train`, `x_val` and `y_val` ..., or `images_val` and `labels_val`, or
        `val_images` and `val_labels`; or just `images` and `labels`, which serve as 'val' only. `classes`, strings, may
        name the labels.
      split: 'train', 'val' (val, validation or test, the first there is) or any other name.
      channels: 3 for RGB, 1 for grey; None takes that of the arrays.

    Raises:
      DatasetError: the file cannot be read, holds pickled objects or no such split; or what `ArraySource` raises.
      ImageError: `channels` is neither 1 nor 3.
    """
    path = user_path(path)
    try:
        check_file(path, None)
        # Opened here, since NumPy leaves a damaged file open.
        with path.open("rb") as file:
            if file.read(len(_ONE_ARRAY)) == _ONE_ARRAY:
                raise DatasetError(f"data set {str(path)!r} is one array: save images and labels with numpy.savez")
            file.seek(0)
            with zipfile.ZipFile(file) as archive:
                present = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
                images, labels = _array_names(present, split, str(path))
                classes = _names(_array(archive, _CLASSES)) if _CLASSES in present else None
                pixels, numbers = _array(archive, images), _array(archive, labels)
    except FileNotFoundError:
        raise DatasetError(f"data set {str(path)!r} does not exist: check the path") from None
    except DatasetError:
        raise
    except Exception as error:  # damaged files make zipfile, zlib and NumPy raise almost anything
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise DatasetError(
            f"data set {str(path)!r} cannot be read ({reason}): save plain arrays with numpy.savez"
        ) from error
    return ArraySource(pixels, numbers, classes, channels, path.name)


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an npz file; the size in its header must match its contents.

    Raises anything: NumPy's and zipfile's exceptions.
    """
    member = archive.getinfo(f"{name}.npy")
    if member.file_size > _MOST_EXPANSION * member.compress_size:
        raise ValueError(f"array {name!r} says it has {member.file_size:,} bytes, in {member.compress_size:,}")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError(f"array {name!r} holds pickled objects")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"array {name!r} says it is {dtype} {shape}, in {member.file_size:,} bytes")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _names(array: np.ndarray) -> list[str]:
    if array.ndim != 1 or array.dtype.kind not in "USiu":
        raise ValueError(f"{_CLASSES!r} is {array.dtype} {array.shape}, not texts (N,)")
    return [name.decode() if isinstance(name, bytes) else str(name) for name in array.tolist()]


def _array_names(present: Sequence[str], split: str, data: str) -> tuple[str, str]:
    for name in split_names(split):
        for images, labels in _NAMES:
            if images.format(name) in present and labels.format(name) in present:
                return images.format(name), labels.format(name)
    if split in OF_ALL and set(_WITHOUT_SPLIT) <= set(present):
        return _WITHOUT_SPLIT
    raise DatasetError(
        f"data set {data!r} has no split {split!r}, only the arrays {', '.join(present)}: add x_{split} and y_{split}"
    )
