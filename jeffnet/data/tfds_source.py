"""Labelled pictures of data sets prepared by TensorFlow Datasets in the array_record format, without TensorFlow."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jeffnet.data.checks import MOST_UNNAMED, checked_index, readable
from jeffnet.data.images import image_mode, read_image
from jeffnet.data.sources import Example
from jeffnet.data.splits import SPLITS, UNDIVIDED, require_split
from jeffnet.errors import DatasetError, ImageError, first_line
from jeffnet.system.extras import install
from jeffnet.system.reading import MOST_TEXT, check_file, user_path
from jeffnet.text.names import listed

_INFO = "dataset_info.json"
_FILE_NAMES = ("file_name", "filename", "image/filename")


class TfdsSource:
    """Pictures of a prepared data set, in the order of its files. Nothing is downloaded or prepared.

    See `picture_and_label` for which features are the pictures and the labels.

    Raises:
      DatasetError: tensorflow-datasets is not installed; the data set is not prepared, or in a format without random
        access such as TFRecord; it has no such split, pictures or labels. On access, an example without a label.
      ImageError: on construction `channels` is neither 1 nor 3; on access a picture that cannot be decoded.
    """

    def __init__(
        self, name: str, split: str = "train", channels: int = 3, data_dir: str | os.PathLike[str] | None = None
    ) -> None:
        """Reads the data set's metadata and its first example.

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
        with _opening(name):  # what the data set says of itself is parsed as it is asked for
            with _quiet():
                builder = open_builder(name, data_dir)
                split = require_split(split, builder.info.splits, name) if split in (*SPLITS, UNDIVIDED) else split
                self._image, self._label = picture_and_label(builder, name)
                self.classes = class_names(builder, self._label, name)
                check_inside(builder, split, name)
                self._rows = _rows(builder, split, name)
            self._file_name = next((key for key in _FILE_NAMES if key in builder.info.features), None)
            self._base = f"{builder.info.full_name}/{split}"
            length = len(self)
        if not length:
            raise DatasetError(f"split {split!r} of data set {name!r} is empty: give another")
        self._checked_label(0, self._row(0))  # that a whole split has no labels is better known at once

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        index = checked_index(index, len(self))
        row = self._row(index)
        name = self._name(index, row)
        if row[self._image] is None:
            raise ImageError(f"image {name!r} is missing in its data set: prepare it again")
        return Example(read_image(row[self._image], self.channels, name), self._checked_label(index, row), name)

    def name(self, index: int) -> str:
        """The data set, the split, and the picture's file name or its number where it has none."""
        index = checked_index(index, len(self))
        return self._name(index, self._row(index) if self._file_name else {})

    def __repr__(self) -> str:
        return f"TfdsSource({self._data!r}, {len(self):,} pictures of {len(self.classes)} classes)"

    def _row(self, index: int) -> dict[str, Any]:
        with readable(f"example {index} of data set {self._base!r} cannot be read", "prepare it again"):
            return self._rows[index]

    def _name(self, index: int, row: dict[str, Any]) -> str:
        name = row[self._file_name] if self._file_name else index
        return f"{self._base}/{name.decode('utf-8', 'replace') if isinstance(name, bytes) else name}"

    def _checked_label(self, index: int, row: dict[str, Any]) -> int:
        try:
            label = int(row[self._label])
        except (TypeError, ValueError):
            raise DatasetError(f"picture {self._name(index, row)!r} has no label: correct {_INFO}") from None
        if not 0 <= label < len(self.classes):
            raise DatasetError(
                f"picture {self._name(index, row)!r} has the label {label}, of {len(self.classes)} classes: this split "
                "has no labels; give another"
            )
        return label


def is_prepared(folder: Path) -> bool:
    """Whether a folder is a prepared data set, or has versions of one."""
    # What `datasets` saves has a file of the same name, and others.
    return not (folder / "state.json").exists() and prepared_folder(folder) is not None


def prepared_folder(folder: Path) -> Path | None:
    """The folder of a prepared data set: this, or its last version in this; None where there is none."""
    if (folder / _INFO).is_file():
        return folder
    versions = [path.parent for path in folder.glob(f"*/{_INFO}") if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)]
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def open_builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """The data set's builder, from files only: neither the code that prepares it nor the network is touched.

    See `TfdsSource` for the arguments; `tfds:` may stand before the name.

    Raises:
      DatasetError: tensorflow-datasets is not installed, or the data set is not prepared or damaged.
    """
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.read_only_builder import builder_from_files
        from tensorflow_datasets.core.utils import file_utils
    except ImportError as error:
        raise DatasetError(
            f"data set {name!r} needs tensorflow-datasets ({first_line(error)}): {install('tfds')}"
        ) from None
    folder = user_path(name)
    place = data_dir or os.environ.get("TFDS_DATA_DIR")
    place = place and os.path.expanduser(place)
    with _opening(name):
        if os.path.isdir(folder) and (prepared := prepared_folder(folder)):
            _check_files(prepared)
            return tfds.builder_from_directory(str(prepared))
        places = [os.fspath(path) for path in file_utils.list_data_dirs(given_data_dir=place)]
        for path in places:
            _check_files(user_path(path) / re.split("[:@]", name.removeprefix("tfds:"))[0])
        try:
            return builder_from_files(name.removeprefix("tfds:"), data_dir=place)
        except tfds.core.DatasetNotFoundError:
            raise DatasetError(
                f"data set {name!r} is not prepared in {listed(places)}: prepare it there with tensorflow_datasets and "
                "file_format='array_record', name its config, or give the data_dir where it is"
            ) from None


def _check_files(folder: Path) -> None:
    """Raises DatasetError if the library would block on a pipe, or read a device or a huge file."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_text = entry.name.endswith((".json", ".txt"))
                if entry.is_dir(follow_symlinks=False):
                    _check_files(Path(entry.path))
                # Without a look at each file, which takes long on a network's disk.
                elif (is_text or not entry.is_file()) and not entry.is_dir():
                    with contextlib.suppress(FileNotFoundError):
                        check_file(entry.path, MOST_TEXT if is_text else None)
    except (FileNotFoundError, NotADirectoryError):  # of which the library tells
        return
    except OSError as error:
        raise DatasetError(f"{error.filename!r} of a prepared data set cannot be read ({error.strerror})") from error


def _opening(name: str) -> contextlib.AbstractContextManager[None]:
    return readable(f"data set {name!r} cannot be opened", f"check its name and {_INFO}")


def picture_and_label(builder: Any, name: str) -> tuple[str, str]:
    """The features for picture and label: the supervised keys, `image` and `label`, or the first ones.

    Raises:
      DatasetError: it has not both, or pictures of other numbers than whole ones.
    """
    import tensorflow_datasets as tfds

    features = builder.info.features
    # Not subclasses of Image, such as masks.
    images = [key for key, feature in features.items() if type(feature) is tfds.features.Image]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if not images or not labels:
        raise DatasetError(
            f"data set {name!r} has the features {listed(list(features))}: it needs one of type Image and one of type "
            "ClassLabel"
        )
    preferred = (*(builder.info.supervised_keys or ()), "image", "label")
    image, label = (next(key for key in (*preferred, *found) if key in found) for found in (images, labels))
    if features[image].np_dtype.kind == "f":
        raise DatasetError(f"pictures of data set {name!r} are floating point numbers: prepare it with uint8")
    return image, label


def class_names(builder: Any, label: str, name: str) -> tuple[str, ...]:
    """The classes of a feature of type ClassLabel; a DatasetError where it says that it has more than 2**20."""
    feature = builder.info.features[label]
    # Asked first, since there is a name for each of any number.
    if (count := feature.num_classes or 0) > MOST_UNNAMED:
        raise DatasetError(
            f"data set {name!r} says it has {count:,} classes, more than {MOST_UNNAMED:,}: correct its {label!r}"
        )
    return tuple(map(str, feature.names))


def check_inside(builder: Any, split: str, name: str) -> None:
    """Raises DatasetError if the files of a split are outside of the data set's folder."""
    splits = builder.info.splits
    # Of a part of a split, or of several, TFDS makes other objects.
    infos = [splits[split]] if split in splits else list(splits.values())
    folder = os.path.normpath(os.fspath(builder.data_dir))
    for info in infos:
        file = os.path.normpath(info.filename_template.sharded_filepath(shard_index=0, num_shards=1))
        if os.path.commonpath([folder, file]) != folder:
            raise DatasetError(f"data set {name!r} says it has files outside of its folder, such as {file!r}: refused")


def undecoded(builder: Any) -> dict[str, Any]:
    """Decoders that return all pictures as file contents."""
    import tensorflow_datasets as tfds

    features = builder.info.features.items()
    return {key: tfds.decode.SkipDecoding() for key, feature in features if isinstance(feature, tfds.features.Image)}


def _rows(builder: Any, split: str, name: str) -> Any:
    try:
        return builder.as_data_source(split, decoders=undecoded(builder))
    except NotImplementedError:
        formats = listed(sorted(kind.value for kind in builder.info.available_file_formats()))
        raise DatasetError(
            f"data set {name!r} in {os.fspath(builder.data_dir)!r} is prepared as {formats}, without random access: "
            "use `--loader tf`, or prepare it with file_format='array_record'"
        ) from None
    except (ValueError, OSError, RuntimeError) as error:
        raise DatasetError(f"split {split!r} of data set {name!r} cannot be read: {first_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the library's messages, which go through absl's logger."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
