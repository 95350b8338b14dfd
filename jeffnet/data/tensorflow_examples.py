"""Data sets as tf.data reads them: files in folders, prepared data sets of TFDS, and any other source."""

import bisect
import itertools
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from jeffnet._tensorflow import tensorflow, tf
from jeffnet.data.checks import readable
from jeffnet.data.images import check_image_file, upright
from jeffnet.data.sources import ImageFolder, Source
from jeffnet.data.splits import find_split
from jeffnet.data.tfds_source import check_inside, class_names, is_prepared, open_builder, picture_and_label, undecoded
from jeffnet.errors import DatasetError
from jeffnet.system.extras import install
from jeffnet.system.reading import user_path

_THREADS = 16
_TFDS = re.compile(r"tfds:\w+(/[\w.-]+)?(:[\d.*]+)?")


class Examples(ABC):
    """A data set as tf.data reads it.

    Attributes:
      classes: name of every label.
      where: names the data set, at the beginning of a sentence.
    """

    classes: tuple[str, ...]
    where: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str: ...

    def described(self, index: int) -> str:
        """An example's name, in an error's message."""
        return repr(self.name(index))

    def check(self, index: int) -> None:  # noqa: B027
        """Raises the ImageError of an example that cannot be read, where that is known without TensorFlow."""

    def rows(self, indices: range) -> Any:
        """A `tf.data.Dataset` of pairs: the number of an example, and what `read` takes, such as this number."""
        return tf.data.Dataset.zip(_numbers(indices), _numbers(indices))

    @abstractmethod
    def read(self, stored: Any) -> tuple[Any, Any]:
        """The picture, as `Picture.pixels` takes it, and the label; runs in parallel."""


class Pictures(Examples):
    """Any source: it decodes the pictures itself, and raises its own errors."""

    def __init__(self, source: Source, exif: bool = False) -> None:
        self.classes = source.classes
        self.where = repr(source)
        self._source = source
        self._exif = exif

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def read(self, stored: Any) -> tuple[Any, Any]:
        pixels, label = tf.numpy_function(self._load, [stored], (tf.uint8, tf.int32))
        pixels.set_shape((None, None, self._source.channels))
        label.set_shape(())
        return pixels, label

    def _load(self, index: np.ndarray) -> tuple[np.ndarray, np.integer]:
        example = self._source[int(index)]
        pixels = np.asarray(upright(example.image) if self._exif else example.image)
        return np.atleast_3d(pixels), np.int32(example.label)


class _Files(Pictures):
    """Files in folders; TensorFlow reads them, but not what it would wait for, as a pipe, or could not hold."""

    _source: ImageFolder

    def described(self, index: int) -> str:
        return repr(str(self._source.path(index)))

    def check(self, index: int) -> None:
        check_image_file(self._source.path(index))

    def rows(self, indices: range) -> Any:
        # No file is called '', so that reading it fails, and `check` says why.
        paths = [b"" if index in self._refused else os.fsencode(self._source.path(index)) for index in indices]
        numbers = np.array(indices, np.int64)
        return tf.data.Dataset.from_tensor_slices((numbers, (np.array(paths, object), self._source.labels[numbers])))

    def read(self, stored: Any) -> tuple[Any, Any]:
        path, label = stored
        return tf.io.read_file(path), label

    @cached_property
    def _refused(self) -> frozenset[int]:
        """Numbers of the files that TensorFlow must not open."""
        with ThreadPoolExecutor(_THREADS) as threads:  # a look takes a while on a network's disk
            looks = [threads.submit(self.check, index) for index in range(len(self))]
        return frozenset(index for index, look in enumerate(looks) if look.exception())


class _Prepared(Examples):
    """A data set that TensorFlow Datasets prepared."""

    def __init__(self, builder: Any, split: str) -> None:
        name = builder.info.full_name
        self.where = f"data set {name!r}"
        self._builder = builder
        self._split, self._files = _split_files(builder, split, self.where)
        check_inside(builder, self._split, name)
        self._image, self._label = picture_and_label(builder, name)
        self.classes = class_names(builder, self._label, name)
        self._ends = list(itertools.accumulate(file.take for file in self._files))
        self._records: Any = None
        if builder.info.file_format.value == "array_record":
            # tf.data cannot read this format.
            self._records = builder.as_data_source(self._split, decoders=undecoded(builder))

    def __len__(self) -> int:
        return self._ends[-1]

    def name(self, index: int) -> str:
        """TFDS' id of the example: its file, and its number there."""
        number = bisect.bisect_right(self._ends, index)
        file = self._files[number]
        return f"{file.basename()}__{file.skip + index - (self._ends[number] - file.take)}"

    def described(self, index: int) -> str:
        return f"{self.name(index)!r} of {self.where}"

    def rows(self, indices: range) -> Any:
        if self._records is not None:
            return super().rows(indices)
        import tensorflow_datasets as tfds

        config = tfds.ReadConfig(
            try_autocache=False,
            skip_prefetch=True,
            interleave_cycle_length=1,  # the order of the data set, on every machine
            experimental_interleave_sort_fn=lambda files: _behind(files, indices.start),
        )
        rows = self._builder.as_dataset(split=self._split, decoders=undecoded(self._builder), read_config=config)
        rows = rows.shard(indices.step, 0).take(len(indices))
        return tf.data.Dataset.zip(_numbers(indices), rows)

    def read(self, stored: Any) -> tuple[Any, Any]:
        if self._records is None:
            return stored[self._image], stored[self._label]
        content, label = tf.numpy_function(self._load, [stored], (tf.string, tf.int64))
        content.set_shape(())
        label.set_shape(())
        return content, label

    def _load(self, index: np.ndarray) -> tuple[np.ndarray, np.integer]:
        # The reader answers damaged files with RuntimeError, with a record of nothing ...
        with readable(f"{self.where} cannot be read", "repair it or prepare it again"):
            record = self._records[int(index)]
            return np.array(record[self._image], object), np.int64(record[self._label])


def _numbers(indices: range) -> Any:
    return tf.data.Dataset.range(indices.start, indices.stop, indices.step)


def _behind(files: Sequence[Any], count: int) -> list[Any]:
    """TFDS' instructions to read the same files, but not the first so many examples."""
    rest = []
    for file in files:
        skipped = min(count, file.take)
        count -= skipped
        if skipped < file.take:
            rest.append(replace(file, skip=file.skip + skipped, take=file.take - skipped))
    return rest


def open_examples(data: str | Source, split: str, channels: int, data_dir: str | None, exif: bool = False) -> Examples:
    """The data set; see `jeffnet.data.tensorflow.eval_loader` for the arguments and errors."""
    try:
        tensorflow()
    except ImportError:
        raise DatasetError(f"reading with TensorFlow needs TensorFlow: {install('tf')}") from None
    source = data
    if isinstance(source, str):
        if source.startswith("tfds:"):
            if not _TFDS.fullmatch(source):
                raise DatasetError(
                    f"data set {source!r} is no name: give tfds:NAME, tfds:NAME/CONFIG, or either with :VERSION"
                )
            return _Prepared(open_builder(source, data_dir), split)
        if is_prepared(user_path(source)):
            return _Prepared(open_builder(source, None), split)
        from jeffnet.data.open import open_source

        source = open_source(source, split, channels, data_dir=data_dir)
    return _Files(source) if isinstance(source, ImageFolder) else Pictures(source, exif)


def _split_files(builder: Any, split: str, where: str) -> tuple[str, list[Any]]:
    """The split's name in TFDS, and its instructions which files to read; at least one example."""
    splits = builder.info.splits
    split = find_split(split, splits) or split
    files = []
    with suppress(KeyError, ValueError, AssertionError):
        files = [file for file in splits[split].file_instructions if file.take]
    if not files:
        raise DatasetError(
            f"{where} has no split {split!r} with examples: use one of {', '.join(sorted(splits))}, or a part of it"
        )
    return split, files
