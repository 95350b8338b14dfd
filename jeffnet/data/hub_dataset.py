"""Labelled pictures of Hugging Face `datasets`: parquet files here, and data sets of the hub."""

import contextlib
import glob
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from jeffnet.data.checks import MOST_UNNAMED, checked_index, checked_labels, readable
from jeffnet.data.images import read_image
from jeffnet.data.sources import Labelled
from jeffnet.data.splits import files_of_split, require_split
from jeffnet.errors import DatasetError, ImageError, first_line
from jeffnet.system.extras import install
from jeffnet.system.network import is_offline
from jeffnet.system.reading import check_file, parse_json, user_path
from jeffnet.text.names import listed

if TYPE_CHECKING:
    import datasets

_HUB = re.compile(r"hf:(?P<repository>[^/@:]+/[^/@:]+)(:(?P<config>[^@]+))?(@(?P<revision>.+))?")
_IMAGE_COLUMNS = ("image", "img", "picture")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")


class HubDataset(Labelled):
    """Pictures of a table: rows of the data set, in its order.

    The column of pictures is the first of type `datasets.Image`, preferably called image or img; where there is none,
    the first of structs of `bytes` and `path`. That of labels is called label, labels, fine_label or cls, preferably a
    `datasets.ClassLabel`, which has the names of the classes, else integers; or it is the only ClassLabel.

    A picture that is only a path must lie in the folder of the files, or for data sets of the hub in the caches of its
    libraries: tables come from others, and must not read this machine's files. Links in the folder are followed, since
    no table makes any.

    Labels without names are called '0' to the greatest.

    Raises:
      DatasetError: `datasets` is not installed; there is no such data set, configuration or split; it cannot be read or
        downloaded; it lacks one of the columns; it has rows without a label, as test sets do.
    """

    def __init__(self, data: str | os.PathLike[str], split: str = "train", channels: int = 3) -> None:
        """Reads the labels, no picture. The rows are kept in the cache of `datasets`, as Arrow files.

        Args:
          data: a parquet file; a folder of parquet files, whose names or folders tell the split (see `files_of_split`
            in `jeffnet.data.splits`); or `hf:owner/name`, `hf:owner/name:config`, either with `@revision` at the end,
            of which all splits are downloaded (to have one only, fetch its files with `hf download --include` and give
            the folder). Where JEFFNET_OFFLINE or HF_HUB_OFFLINE is set, only what is in the cache is found.
          split: 'train', 'val' (val, validation or test, the first there is) or any other name.
          channels: 3 for RGB, 1 for grey.
        """
        super().__init__(os.fspath(data), channels)
        try:
            import datasets
        except ImportError:
            raise DatasetError(f"data set {self._data!r} needs Hugging Face datasets: {install('datasets')}") from None
        if self._data.startswith("hf:"):
            self._folders = _cache_folders()
            rows, name = _of_hub(self._data, split)
            self._base = f"{self._data.removeprefix('hf:')}/{name}"
        else:
            path = user_path(data)
            folder = path if path.is_dir() else path.parent
            self._folders = [folder, folder.resolve()]
            rows, self._base = _of_files(path, split), path.name
        self._image = _image_column(rows.features, self._data)
        label = _label_column(rows.features, self._data)
        columns = f"check its columns {self._image!r} and {label!r}"
        with readable(f"data set {self._data!r} cannot be read", columns):  # their values may be of other types
            # Undecoded, since ours is the reader that knows which errors to raise.
            self._rows = rows.cast_column(self._image, datasets.Image(decode=False)).select_columns([self._image])
            labels = _labels(rows, label)
        classes = getattr(rows.features[label], "names", None)
        self.labels, self.classes = checked_labels(labels, classes, self._data, self.name)

    def _picture(self, index: int, name: str) -> Image.Image:
        return read_image(self.file(index), self.channels, name)

    def _origin(self, index: int) -> str:
        return self._rows._fingerprint

    def file(self, index: int) -> bytes | str:
        """What the picture's row holds, bytes or a path; an ImageError if that is nothing readable."""
        name = self.name(index)
        try:
            picture = self._rows[index][self._image] or {}
            content, path = picture.get("bytes"), picture.get("path")
        except Exception as error:  # of Arrow, at damaged values
            raise ImageError(f"image {name!r} cannot be read ({first_line(error)}): remove its row") from error
        if not isinstance(content, bytes):
            if not path:
                raise ImageError(f"image {name!r} has neither bytes nor a path: remove its row")
            return self._inside(path, name)
        return content

    def _inside(self, path: str, name: str) -> str:
        """Where a row's path leads, in the first of the folders that it is relative to or lies in."""
        for folder in map(os.path.abspath, self._folders):
            place = os.path.normpath(os.path.join(folder, path))
            if os.path.commonpath([folder, place]) == folder:
                return place
        raise ImageError(
            f"image {name!r} is outside of {str(self._folders[0])!r}, the folder of its data set: put it there, or a "
            "link to its folder, and a path relative to it into the row"
        )

    def name(self, index: int) -> str:
        """The data set and the picture's path in it, or its number where it has no path."""
        index = checked_index(index, len(self._rows))
        # Of the column itself, since a row would bring the picture with it.
        try:
            path = self._rows.data.column(self._image)[index]["path"].as_py()
        except UnicodeDecodeError:
            path = None
        return f"{self._base}/{path or index}"


def _cache_folders() -> list[Path]:
    """Where the libraries of the hub put files that they download and unpack."""
    from datasets import config
    from huggingface_hub import constants

    caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH)
    return [Path(folder) for folder in (*caches, constants.HF_HUB_CACHE)]


def _of_files(path: Path, split: str) -> "datasets.Dataset":
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    files = [file for file in files if file == path or not file.name.startswith(".")]
    if not files:
        raise DatasetError(f"data set {str(path)!r} does not exist or has no parquet files: check the path")
    files = files_of_split(files, path if path.is_dir() else path.parent, split)
    _check_classes(files[0], str(path))
    chosen = [glob.escape(str(file)) for file in files]
    # The name of a split within `datasets`, where these files are all there is.
    return _load(str(path), "parquet", data_files={"train": chosen}, split="train")


def _check_classes(file: Path, data: str) -> None:
    """Raises DatasetError where the file that tells the types of columns says it has very many classes.

    `datasets` would make a name for each. What else is wrong with the file, it finds.
    """
    import pyarrow.parquet

    try:
        check_file(file, None)
        metadata = pyarrow.parquet.read_schema(file).metadata or {}
        features = parse_json(metadata.get(b"huggingface", b"{}"))["info"]["features"].values()
        count = max(feature.get("num_classes") or 0 for feature in features)
    except OSError as error:
        raise DatasetError(f"data set {data!r} cannot be loaded ({first_line(error)}): check its files") from error
    except Exception:
        return
    if count > MOST_UNNAMED:
        raise DatasetError(
            f"data set {data!r} says it has {count:,} classes, more than {MOST_UNNAMED:,}: correct {file!s}"
        )


def _of_hub(data: str, split: str) -> tuple["datasets.Dataset", str]:
    if not (match := _HUB.fullmatch(data)):
        raise DatasetError(f"data set {data!r} is not hf:owner/name, hf:owner/name:config or either with @revision")
    options = {"name": match["config"], "revision": match["revision"]}
    if "[" in split or "+" in split:
        return _load(data, match["repository"], split=split, **options), split
    splits = _load(data, match["repository"], **options)
    name = require_split(split, splits, data)
    return splits[name], name


def _load(data: str, *arguments: Any, **options: Any) -> Any:
    import datasets
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    of_hub = data.startswith("hf:")
    try:
        with _quiet(of_hub):
            return datasets.load_dataset(*arguments, **options)
    # Almost anything, of its own, of Arrow, of the hub's client and of what that uses for the network.
    except Exception as error:
        cause = error
        while isinstance(cause, DatasetGenerationError) and isinstance(cause.__cause__, Exception):
            cause = cause.__cause__
        if isinstance(error, DatasetNotFoundError):
            remedy = "check the spelling; for a private or gated one, log in with `hf auth login`"
        elif isinstance(error, OSError) and of_hub:
            remedy = "check the network, or unset JEFFNET_OFFLINE and HF_HUB_OFFLINE"
        else:
            remedy = "check its name, configuration and files"
        raise DatasetError(f"data set {data!r} cannot be loaded ({first_line(cause)}): {remedy}") from error


@contextlib.contextmanager
def _quiet(of_hub: bool) -> Iterator[None]:
    """Within it progress is shown on a terminal only, and the libraries are offline where they should be.

    Of files here `datasets` would tell the hub that they are loaded, and log what it then raises.
    """
    import datasets
    import huggingface_hub.utils as hub
    from datasets import config
    from huggingface_hub import constants

    bars = () if sys.stderr.isatty() else (datasets, hub)
    shown = [module for module in bars if not module.are_progress_bars_disabled()]
    level = datasets.logging.get_verbosity()
    offline = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    for module in shown:
        module.disable_progress_bars()
    if not of_hub:
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if not of_hub or is_offline():
        # The environment variable is read when the libraries are imported only.
        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = offline
        datasets.logging.set_verbosity(level)
        for module in shown:
            module.enable_progress_bars()


def _image_column(features: "datasets.Features", data: str) -> str:
    import datasets

    columns = [name for name, feature in features.items() if isinstance(feature, datasets.Image)] or [
        name for name, feature in features.items() if isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    ]
    if not columns:
        raise DatasetError(
            f"data set {data!r} has no column of pictures, only {listed(list(features))}: it needs one of type "
            "datasets.Image, or of structs of bytes and path"
        )
    return next((name for name in _IMAGE_COLUMNS if name in columns), columns[0])


def _label_column(features: "datasets.Features", data: str) -> str:
    import datasets

    named = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    numbers = [name for name, feature in features.items() if re.match("u?int", getattr(feature, "dtype", None) or "")]
    usual = [name for columns in (named, numbers) for name in _LABEL_COLUMNS if name in columns]
    if usual or len(named) == 1:
        return (usual or named)[0]
    raise DatasetError(
        f"data set {data!r} has no column of labels, only {listed(list(features))}: it needs integers or a "
        f"datasets.ClassLabel called {', '.join(_LABEL_COLUMNS)}"
    )


def _labels(rows: "datasets.Dataset", column: str) -> np.ndarray:
    labels = rows.select_columns([column]).with_format("arrow")[:][column]
    if labels.null_count:
        # A missing one counts as unlabelled, as -1 does.
        labels = labels.cast("int64").fill_null(-1)
    return labels.to_numpy()
