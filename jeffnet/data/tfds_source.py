"""Labelled pictures of data sets prepared by TensorFlow Datasets in the array_record format, without TensorFlow."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jeffnet.data.checks import checked_index, listed
from jeffnet.data.images import image_mode, read_image
from jeffnet.data.sources import Example
from jeffnet.data.splits import split_names
from jeffnet.errors import DatasetError

_INFO = "dataset_info.json"
_FILE_NAMES = ("file_name", "filename", "image/filename")


class TfdsSource:
    """Pictures of a prepared data set, in the order of its files. Nothing is downloaded or prepared.

    The pictures are the feature `image`, else the first of type Image; the labels `label`, else the first of type
    ClassLabel.

    Attributes:
      classes: names of the labels.

    Raises:
      DatasetError: tensorflow-datasets is not installed; the data set is not prepared, or in a format without random
        access such as TFRecord; it has no such split, pictures or labels. On access, an example without a label.
      ImageError: on construction `channels` is neither 1 nor 3; on access a picture that cannot be decoded.
    """

    def __init__(
        self, name: str, split: str = "train", channels: int = 3, data_dir: str | os.PathLike[str] | None = None
    ) -> None:
        """Reads what the data set says of itself, and its first example.

        Args:
          name: `name`, `name/config` or `name:version` of a data set, as TensorFlow Datasets has it; or the folder of a
            prepared one, with `dataset_info.json` in it or in folders of its versions, of which the greatest is taken.
          split: 'train', 'val' (val, validation or test, the first there is), or what TensorFlow Datasets takes, such
            as `train[:10%]`.
          channels: 3 for RGB, 1 for grey.
          data_dir: where data sets are prepared; by default $TFDS_DATA_DIR, or ~/tensorflow_datasets.
        """
        image_mode(channels)
        self.channels = channels
        self._data = name
        with _quiet():
            builder = _open(name, data_dir)
            split = _split(builder, split, name)
            self._image, label = _features(builder, name)
            self.classes = tuple(map(str, builder.info.features[label].names))
            self._label = label
            self._rows = _rows(builder, split, self._image, name)
        self._file_name = next((key for key in _FILE_NAMES if key in builder.info.features), None)
        self._base = f"{builder.info.full_name}/{split}"
        if not len(self):
            raise DatasetError(f"split {split!r} of data set {name!r} is empty: give another")
        self._checked_label(0, self._row(0))  # that a whole split has no labels is better known at once

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        index = checked_index(index, len(self))
        row = self._row(index)
        name = self._name(index, row)
        return Example(read_image(row[self._image], self.channels, name), self._checked_label(index, row), name)

    def name(self, index: int) -> str:
        """The data set, the split, and the picture's file name or its number where it has none."""
        index = checked_index(index, len(self))
        return self._name(index, self._row(index) if self._file_name else {})

    def __repr__(self) -> str:
        return f"TfdsSource({self._data!r}, {len(self):,} pictures of {len(self.classes)} classes)"

    def _row(self, index: int) -> dict[str, Any]:
        try:
            return self._rows[index]
        except (OSError, RuntimeError, ValueError) as error:  # what the reader of array_record raises
            raise DatasetError(
                f"example {index} of data set {self._base!r} cannot be read ({_first_line(error)}): prepare it again"
            ) from error

    def _name(self, index: int, row: dict[str, Any]) -> str:
        name = row[self._file_name] if self._file_name else index
        return f"{self._base}/{name.decode('utf-8', 'replace') if isinstance(name, bytes) else name}"

    def _checked_label(self, index: int, row: dict[str, Any]) -> int:
        label = int(row[self._label])
        if not 0 <= label < len(self.classes):
            raise DatasetError(
                f"picture {self._name(index, row)!r} has the label {label}, of {len(self.classes)} classes: this split "
                "has no labels; give another"
            )
        return label


def is_prepared(folder: Path) -> bool:
    """Whether a folder is a prepared data set, or has versions of one."""
    # What `datasets` saves has a file of the same name, and others.
    return not (folder / "state.json").exists() and _prepared_folder(folder) is not None


def _prepared_folder(folder: Path) -> Path | None:
    if (folder / _INFO).is_file():
        return folder
    versions = [path.parent for path in folder.glob(f"*/{_INFO}") if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)]
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def _open(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """The data set's builder, from files only: neither the code that prepares it nor the network is touched."""
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.read_only_builder import builder_from_files
        from tensorflow_datasets.core.utils import file_utils
    except ImportError as error:
        raise DatasetError(
            f"data set {name!r} needs tensorflow-datasets ({_first_line(error)}): pip install 'jeffnet[tfds]'"
        ) from None
    folder = Path(name).expanduser()
    place = None if data_dir is None else os.path.expanduser(data_dir)
    try:
        if folder.is_dir() and (prepared := _prepared_folder(folder)):
            return tfds.builder_from_directory(str(prepared))
        return builder_from_files(name, data_dir=place)
    except tfds.core.DatasetNotFoundError:
        places = [os.fspath(path) for path in file_utils.list_data_dirs(given_data_dir=place)]
        raise DatasetError(
            f"data set {name!r} is not prepared in {listed(places)}: prepare it there with tensorflow_datasets and "
            "file_format='array_record', name its config, or give the data_dir where it is"
        ) from None
    except Exception as error:  # of protocol buffers, of JSON, of the library's own
        raise DatasetError(
            f"data set {name!r} cannot be opened ({_first_line(error)}): check its name and {_INFO}"
        ) from error


def _split(builder: Any, split: str, name: str) -> str:
    if split not in ("train", "val"):
        return split
    present = list(builder.info.splits)
    if found := next((candidate for candidate in split_names(split) if candidate in present), None):
        return found
    raise DatasetError(f"data set {name!r} has no split {split!r}: only {listed(present)}")


def _features(builder: Any, name: str) -> tuple[str, str]:
    """The features of pictures and labels."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    kinds = {
        kind: [key for key, feature in features.items() if isinstance(feature, kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    }
    images, labels = kinds.values()
    if not images or not labels:
        raise DatasetError(
            f"data set {name!r} has the features {listed(list(features))}: it needs one of type Image and one of type "
            "ClassLabel"
        )
    image = "image" if "image" in images else images[0]
    if features[image].np_dtype.kind == "f":
        raise DatasetError(f"pictures of data set {name!r} are floating point numbers: prepare it with uint8")
    return image, "label" if "label" in labels else labels[0]


def _rows(builder: Any, split: str, image: str, name: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})
    except NotImplementedError:
        formats = listed(sorted(kind.value for kind in builder.info.available_file_formats()))
        raise DatasetError(
            f"data set {name!r} in {os.fspath(builder.data_dir)!r} is prepared as {formats}, without random access: "
            "use `--loader tf`, or prepare it with file_format='array_record'"
        ) from None
    except (ValueError, OSError, RuntimeError) as error:
        raise DatasetError(f"split {split!r} of data set {name!r} cannot be read: {_first_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Within it the library's remarks, all of them through absl's logger, are dropped."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
