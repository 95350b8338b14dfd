"""Labelled pictures by number: folders of files, the handwritten digits of scikit-learn, and the first of any."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from jeffnet.data.checks import checked_index, of_unknown_endings
from jeffnet.data.images import SUFFIXES, image_mode, is_picture, read_image
from jeffnet.data.splits import OF_ALL, SPLITS, UNDIVIDED, find_split
from jeffnet.errors import ConfigError, DatasetError, check_choice
from jeffnet.system.extras import install
from jeffnet.system.reading import user_path
from jeffnet.text.names import listed

_LOGGER = logging.getLogger("jeffnet.data")


class Example(NamedTuple):
    """One labelled picture.

    Attributes:
      image: decoded, mode 'RGB' or 'L'.
      label: index into the source's `classes`; a float32 vector of them but for a single label.
      name: tells a person which picture it is.
    """

    image: Image.Image
    label: Any
    name: str


class Source(Protocol):
    """Random access to labelled pictures; safe to call from several threads.

    Attributes:
      classes: name of every label.
      channels: of the pictures, 3 or 1.
    """

    classes: tuple[str, ...]
    channels: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def name(self, index: int) -> str:
        """That of the example, without reading its picture."""
        ...


class Labelled(ABC):
    """A source whose labels are in memory: a subclass sets classes and labels, and reads pictures.

    Attributes:
      classes: name of every label.
      labels: int32 `(len(self),)`; float32 `(len(self), classes)` but for a single label.
      channels: of the pictures, 3 for RGB or 1 for grey.
      task: one of `jeffnet.arch.tasks.TASKS`.

    Raises:
      ImageError: on construction other `channels`; on access a picture that cannot be decoded.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    task = "single_label"

    def __init__(self, data: str, channels: int) -> None:
        image_mode(channels)
        self._data = data  # what `repr` calls the data set
        self.channels = channels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        index = checked_index(index, len(self))
        name = self.name(index)
        label = self.labels[index]
        return Example(self._picture(index, name), label if label.ndim else int(label), name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._data!r}, {len(self):,} pictures of {len(self.classes)} classes)"

    @abstractmethod
    def name(self, index: int) -> str:
        """Which picture an example is, for a person."""

    def file(self, index: int) -> bytes | str | os.PathLike[str] | None:
        """A picture's file or its contents, as `read_image` takes it; None where the data set has pixels alone."""
        return None

    def stamp(self, index: int) -> str:
        """Another text when a picture's label, or what it is read from, has changed: earlier work does not hold."""
        return f"{self.labels[index].tolist()} {self._origin(index)}"

    def _origin(self, index: int) -> str:
        """Another text when what a picture is read from has changed; '' where nothing can change."""
        return ""

    @abstractmethod
    def _picture(self, index: int, name: str) -> Image.Image: ...


class ImageFolder(Labelled):
    """Pictures in one folder per class: `root/<split>/<class>/**/*.jpg`, or another ending.

    Endings are those of `jeffnet.data.images.SUFFIXES` in any case.
    The folder of 'val' may also be called `validation` or `test`. Where `root` has no folder of any split, it may hold
    the class folders itself; it serves as 'val' then, but not as 'train', or one would validate on what one trained
    on. Hidden files and folders are ignored, other files counted in a warning. Symbolic links to files and folders are
    followed, also out of `root`. Pictures are ordered by class, then by path.

    Attributes:
      names: path of every picture relative to `root`, with '/'.

    Raises:
      DatasetError: a layout other than that, a class folder without a picture or, where `classes` are given, of an
        unknown name, or a training set of one class.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        channels: int = 3,
        classes: Sequence[str] | None = None,
    ) -> None:
        """Lists the pictures; opens none of them.

        Args:
          root: the data set's folder.
          split: 'train', 'val' or the name of another folder in `root`.
          channels: 3 for RGB, 1 for grey.
          classes: the order of labels, such as that of the training set; by default the sorted names of the folders.
        """
        self._root = user_path(root)
        super().__init__(str(self._root), channels)
        folder = _split_folder(self._root, split)
        present = _folders(folder)
        if not present:
            raise DatasetError(f"{str(folder)!r} has no class folders: put the pictures into one folder per class")
        if split in ("train", UNDIVIDED) and len(present) < 2:
            raise DatasetError(
                f"{str(folder)!r} has one class, {present[0]!r}: training needs a folder for each of 2 or more"
            )
        self.classes = tuple(present if classes is None else classes)
        if unknown := sorted(set(present) - set(self.classes)):
            raise DatasetError(
                f"{str(folder)!r} has folders of unknown classes: {listed(unknown, beside=self.classes)}; rename them "
                f"to one of {listed(self.classes)}, or remove them"
            )
        skipped: list[str] = []
        pictures = {name: picture_files(folder / name, skipped) for name in present}
        if empty := [name for name in present if not pictures[name]]:
            raise DatasetError(
                f"{str(folder)!r} has class folders without a picture: {listed(empty)}; remove them, or add files of "
                f"{listed(sorted(SUFFIXES), len(SUFFIXES))}" + (f" ({of_unknown_endings(skipped)})" if skipped else "")
            )
        if skipped:
            _LOGGER.warning("%r: %s", str(folder), of_unknown_endings(skipped))
        self.names = tuple(path.relative_to(self._root).as_posix() for paths in pictures.values() for path in paths)
        label = {name: index for index, name in enumerate(self.classes)}
        self.labels = np.array([label[name] for name, paths in pictures.items() for _ in paths], np.int32)

    def name(self, index: int) -> str:
        """Path of a picture relative to `root`."""
        return self.names[index]

    def path(self, index: int) -> Path:
        """Where a picture's file is."""
        return self._root / self.names[index]

    def file(self, index: int) -> Path:
        """The same."""
        return self.path(index)

    def _origin(self, index: int) -> str:
        return file_stamp(self.path(index))

    def _picture(self, index: int, name: str) -> Image.Image:
        return read_image(self.path(index), self.channels)


class Digits(Labelled):
    """Handwritten digits, 8 x 8 pixels, from the UCI repository: 1,797 pictures embedded in scikit-learn.

    A fifth of every digit's pictures, the same ones always, is 'val'; the rest is 'train'.

    Raises:
      DatasetError: an unknown split, or scikit-learn is not installed.
    """

    def __init__(self, split: str = "train", channels: int = 1) -> None:
        """Loads the split 'train' or 'val' into memory."""
        check_choice("split", "train" if split == UNDIVIDED else split, SPLITS, DatasetError)
        super().__init__("digits", channels)
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise DatasetError(f"data set 'digits' needs scikit-learn: {install('digits')}") from None
        data, labels = map(np.asarray, load_digits(return_X_y=True))
        self.classes = tuple("0123456789")
        self._indices = _stratified(labels, split)
        self._pixels = np.rint(data.reshape(-1, 8, 8)[self._indices] * (255 / 16)).astype(np.uint8)
        self.labels = labels[self._indices].astype(np.int32)

    def name(self, index: int) -> str:
        """'digits/' and the picture's number in the whole data set."""
        return f"digits/{self._indices[index]}"

    def _picture(self, index: int, name: str) -> Image.Image:
        return Image.fromarray(self._pixels[index]).convert(image_mode(self.channels))


class Part:
    """The examples of a source from number `start` up to `stop`, which is not among them."""

    def __init__(self, source: Source, start: int, stop: int) -> None:
        self.classes, self.channels, self._source = source.classes, source.channels, source
        self.task = getattr(source, "task", "single_label")
        self._rows = range(start, stop)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return self._source[self._rows[checked_index(index, len(self))]]

    def name(self, index: int) -> str:
        """The name that the source gives it."""
        return self._source.name(self._rows[checked_index(index, len(self))])

    def stamp(self, index: int) -> str:
        """The stamp that the source gives, if it does."""
        return stamp_of(self._source, self._rows[index])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._source!r}, {len(self):,})"


class First(Part):
    """The first `count` examples of a source, or all where it has fewer.

    Raises:
      ConfigError: `count` is not positive.
    """

    def __init__(self, source: Source, count: int) -> None:
        if count < 1:
            raise ConfigError(f"the first {count} pictures are none: give 1 or more")
        super().__init__(source, 0, min(count, len(source)))


class Subset(Labelled):
    """Some examples of a source that holds its labels, in the order of their numbers."""

    def __init__(self, source: Labelled, numbers: np.ndarray) -> None:
        super().__init__(repr(source), source.channels)
        self.classes, self.task, self.labels = source.classes, source.task, source.labels[numbers]
        self._source, self._numbers = source, numbers

    def name(self, index: int) -> str:
        """The name that the source gives it."""
        return self._source.name(int(self._numbers[index]))

    def file(self, index: int) -> bytes | str | os.PathLike[str] | None:
        """The file that the source gives."""
        return self._source.file(int(self._numbers[index]))

    def _origin(self, index: int) -> str:
        return self._source.stamp(int(self._numbers[index]))

    def _picture(self, index: int, name: str) -> Image.Image:
        return self._source[int(self._numbers[index])].image


def stamp_of(source: Source, index: int) -> str:
    """Another text when an example of a source has changed, see `Labelled.stamp`; '' where the source does not tell."""
    stamp = getattr(source, "stamp", None)
    return "" if stamp is None else stamp(index)


def file_stamp(path: str | os.PathLike[str]) -> str:
    """Size and time of a file, as text."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def label_shape(source: Source) -> tuple[int, ...]:
    """The shape of a source's labels: that of one number, or of a vector over its classes."""
    return () if getattr(source, "task", "single_label") == "single_label" else (len(source.classes),)


def label_dtype(source: Source) -> Any:
    """The dtype of a source's labels."""
    return np.float32 if label_shape(source) else np.int32


def _stratified(labels: np.ndarray, split: str) -> np.ndarray:
    """Sorted indices of the examples of a split: one fifth of each label's, rounded down, is 'val'."""
    # RandomState's numbers are the same in every version of NumPy, those of a Generator may change.
    random = np.random.RandomState(0)
    chosen = []
    for label in np.unique(labels):
        indices = random.permutation(np.flatnonzero(labels == label))
        held_out = len(indices) // 5
        chosen.append(indices[:held_out] if split == "val" else indices[held_out:])
    return np.sort(np.concatenate(chosen))


def _split_folder(root: Path, split: str) -> Path:
    """Where the class folders of a split are."""
    present = _folders(root)
    if name := find_split(split, present):
        return root / name
    if split == UNDIVIDED and find_split("val", present):
        split = "train"
    expected = f"{root / split}/<class>/*.jpg"
    if split not in OF_ALL:
        needs = "training expects" if split == "train" else "expected"
        raise DatasetError(f"data set {str(root)!r} has no folder {split!r}: {needs} {expected}")
    # The folders of the other split would pass for classes.
    if "train" in present:
        raise DatasetError(f"data set {str(root)!r} has a folder 'train' but none to validate on: expected {expected}")
    return root


def _folders(folder: Path) -> list[str]:
    """Sorted names of the folders in a folder, links to folders included and hidden ones not."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not _is_hidden(entry.name))
    except FileNotFoundError:
        raise DatasetError(f"data set {str(folder)!r} does not exist: check the path, or use 'digits'") from None
    except NotADirectoryError:
        raise DatasetError(f"data set {str(folder)!r} is a file: give the folder that holds the classes") from None
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"data set {str(folder)!r} cannot be read ({error}): check its path and permissions"
        ) from error


def picture_files(folder: Path, skipped: list[str] | None = None) -> list[Path]:
    """Every picture below a folder, sorted by path; hidden files and folders are left out.

    Links to folders are followed, but into no folder twice. `skipped` gets the names of other files. A folder that
    cannot be read is a DatasetError.
    """
    visited, pictures = set(), []
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in files:
            if is_picture(name):
                pictures.append(Path(parent, name))
            elif skipped is not None and not _is_hidden(name):
                skipped.append(name)
    return sorted(pictures)


def _refuse(error: OSError) -> None:
    raise DatasetError(f"{error.filename!r} cannot be read ({error.strerror}): check its permissions") from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def evenly_spread(number: int, most: int) -> list[int]:
    """Up to `most` of `number` places, evenly spread from the first to the last."""
    return np.unique(np.linspace(0, number - 1, min(number, most)).round().astype(int)).tolist()
