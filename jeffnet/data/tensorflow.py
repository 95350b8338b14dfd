"""Pictures through TensorFlow, for evaluation as the papers' authors did it; needs the extra `tf`.

TensorFlow decodes, crops and resizes. Its JPEG decoder is set to be fast, it cuts before it resizes, and it resizes
without antialiasing: the pixels are not those of the other pipelines, but those that the authors' scores belong to.

Source: tensorflow/tpu, models/official/efficientnet/preprocessing.py, `preprocess_image` for evaluation.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jeffnet._tensorflow import on_cpu
from jeffnet.data.batches import WHOLE, EvalBatch, OnBadImage, Shard, check_options
from jeffnet.data.preprocess import EvalTransform
from jeffnet.data.sources import Source
from jeffnet.data.tensorflow_examples import Examples, open_examples
from jeffnet.data.tensorflow_picture import Picture, failures, fault, reason, tensorflow
from jeffnet.errors import DatasetError, ImageError

# Batches that wait to be fetched.
_AHEAD = 2


def eval_loader(
    data: str | Source,
    split: str,
    transform: EvalTransform,
    batch_size: int,
    *,
    channels: int = 3,
    data_dir: str | None = None,
    threads: int | None = None,
    shard: Shard = WHOLE,
    on_bad_image: OnBadImage = "error",
    num_examples: int | None = None,
    resize: str = "legacy",
) -> "TensorFlowEvalLoader":
    """Batches for evaluation: every example exactly once, in the data set's order, the last batch padded to full size.

    Files may be JPEG, PNG, GIF (its first frame), BMP or WebP; an EXIF orientation is applied only where
    the transform's `exif` is True. Of a JPEG only what
    the crop needs is decoded, so that damage below it goes unnoticed.

    Args:
      data: a folder as `ImageFolder` takes it; 'tfds:NAME', 'tfds:NAME/CONFIG', either with ':VERSION', for a prepared
        data set of TensorFlow Datasets with a picture and a label; a folder with such a data set, in any of TFDS'
        formats; or another name that `open_source` knows. Also a source itself: of an `ImageFolder` TensorFlow reads
        the files, pictures of any other are decoded by the source, then cropped and resized by TensorFlow.
      split: 'val' means the first of validation, val and test that exists. For TFDS any of its splits, also a part
        such as 'train[:10%]'. Without meaning where `data` is a source.
      transform: its preprocessing's `image_size`, `crop_pct` and `interpolation`, its `size`, its `exif`, and its
        `crop_mode`: 'center' crops before it resizes, as the authors do, a centred window of the proportions of `size`,
        the largest that fits times the share to keep; 'squash' crops that share of both sides and resizes it to `size`.
        The share is the authors' `image_size / (image_size + 32)` where `crop_pct` is that ratio to three places, else
        `crop_pct`.
      batch_size: rows in a batch, of this host; may exceed the number of examples.
      channels: 3 for RGB, 1 for grey; where `data` is a source, those of the source count.
      data_dir: where data sets of TFDS are prepared; None takes $TFDS_DATA_DIR, or ~/tensorflow_datasets.
      threads: how many decode; 0 decodes one after the other, None leaves it to tf.data.
      shard: which host this is of how many.
      on_bad_image: 'error' raises an ImageError at a picture that cannot be decoded, 'skip' masks it.
      num_examples: only the first so many; None for all.
      resize: 'legacy' is TensorFlow 1's, without antialiasing and with corners as origin, which the papers' scores come
        from; 'half_pixel' is `tf.image.resize`, 'antialias' the same with antialiasing; 'pillow' has the other
        pipelines' pixels but for rounding, crop after resize included: for weights of PyTorch origin.

    Returns:
      Iterable over `EvalBatch` whose arrays are read-only, with float32 pixels of about 0 to 255: neither rounded nor
      clipped, so that bicubic interpolation overshoots. It raises ImageError, naming the picture, and DatasetError.

    Raises:
      ConfigError: a setting outside its range, or crop_mode 'border', which the authors have not.
      DatasetError: TensorFlow or the data set is missing; no such split; no picture or no label in it.
      ImageError: `channels` is neither 1 nor 3.
    """
    counts = {"threads": threads or 0, "num_examples": num_examples or 0}
    check_options(batch_size, on_bad_image, **counts)
    examples = open_examples(data, split, channels, data_dir, transform.exif)
    channels = channels if isinstance(data, str) else data.channels
    picture = Picture(transform, channels, resize)
    length = len(examples) if num_examples is None else min(num_examples, len(examples))
    return TensorFlowEvalLoader(examples, picture, length, batch_size, threads, shard, on_bad_image)


class TensorFlowEvalLoader:
    """A `jeffnet.data.batches.EvalLoader`; made by `eval_loader`."""

    def __init__(
        self,
        examples: "Examples",
        picture: "Picture",
        length: int,
        batch_size: int,
        threads: int | None,
        shard: Shard,
        on_bad_image: OnBadImage,
    ) -> None:
        self.classes = examples.classes
        self.num_examples = length
        self._examples = examples
        self._picture = picture
        self._batch_size = batch_size
        self._threads = threads
        self._shard = shard
        self._on_bad_image = on_bad_image

    def __len__(self) -> int:
        return -(-self._shard.rows(self.num_examples) // self._batch_size)

    def __iter__(self) -> Iterator[EvalBatch]:
        return self.batches()

    def name(self, index: int) -> str:
        """Path of a file, TFDS' id of an example, or the source's name of it."""
        return self._examples.name(index)

    def batches(self, start: int = 0) -> Iterator[EvalBatch]:
        """The batches from number `start` on."""
        iterator = self._read(start)
        for number in range(start, len(self)):
            count = min(self._batch_size, len(self._indices(number)))
            try:
                batch = self._padded(_next(iterator)) if count else self._padding()
            except failures() as error:
                # tf.data does not say which element failed. What was read ahead is lost, and read again.
                batch = self._one_by_one(number, error)
                iterator = self._read(number + 1)
            except StopIteration:
                batch = self._padding()
            self._check(batch, count)
            yield batch

    def _indices(self, number: int) -> range:
        """The examples of this host from a batch on."""
        first = self._shard.index + number * self._batch_size * self._shard.count
        return range(first, self.num_examples, self._shard.count)

    def _read(self, number: int) -> Iterator[dict[str, np.ndarray]]:
        """The batches from a number on, without padding."""
        tf = tensorflow()
        indices = self._indices(number)
        if not indices:
            return iter(())

        # TensorFlow would otherwise rewrite the code it meets, which takes time and needs the sources.
        @tf.autograph.experimental.do_not_convert
        def load(index: Any, stored: Any) -> dict[str, Any]:
            picture, label = self._examples.read(stored)
            return {
                "image": self._picture.pixels(picture),
                "label": tf.cast(label, tf.int32),
                "index": tf.cast(index, tf.int32),
            }

        options = tf.data.Options()
        options.deterministic = True
        parallel = tf.data.AUTOTUNE if self._threads is None else self._threads or None
        with on_cpu():
            rows = self._examples.rows(indices).map(load, num_parallel_calls=parallel)
            return iter(rows.batch(self._batch_size).prefetch(_AHEAD).with_options(options).as_numpy_iterator())

    def _one_by_one(self, number: int, error: Exception) -> EvalBatch:
        """A batch in which something failed: raises the ImageError of the picture, or masks it.

        Raises DatasetError where it was no picture that failed.
        """
        batch = self._padding()
        try:
            with on_cpu():
                rows = list(self._examples.rows(self._indices(number)[: self._batch_size]))
        except failures() as unreadable:
            rows, error = [], unreadable
        for row, (index, stored) in enumerate(rows):
            batch["index"][row] = index
            try:
                pixels, label = self._load(int(index), stored)
            except ImageError:
                if self._on_bad_image == "error":
                    raise
                continue
            batch["image"][row], batch["label"][row], batch["mask"][row] = pixels, label, True
        if batch["mask"].sum() == len(rows):
            raise DatasetError(
                f"{self._examples.where} cannot be read ({reason(error)}): repair it or prepare it again"
            )
        return batch

    def _load(self, index: int, stored: Any) -> tuple[np.ndarray, int]:
        self._examples.check(index)
        try:
            with on_cpu():
                picture, label = self._examples.read(stored)
                return self._picture.traced_pixels(picture).numpy(), int(label)
        except failures() as error:
            raise ImageError(f"image {self._examples.described(index)} {fault(error)}") from error

    def _padding(self) -> EvalBatch:
        size = self._batch_size
        return {
            "image": np.zeros((size, *self._picture.shape), np.float32),
            "label": np.zeros(size, np.int32),
            "mask": np.zeros(size, np.bool_),
            "index": np.full(size, -1, np.int32),
        }

    def _padded(self, found: dict[str, np.ndarray]) -> EvalBatch:
        """The rows that were found, not copied where they are a full batch."""
        count = len(found["index"])
        image, label, index = found["image"], found["label"], found["index"]
        if count == self._batch_size:
            return {"image": image, "label": label, "mask": np.ones(count, np.bool_), "index": index}
        batch = self._padding()
        batch["image"][:count], batch["label"][:count], batch["index"][:count] = image, label, index
        batch["mask"][:count] = True
        return batch

    def _check(self, batch: EvalBatch, count: int) -> None:
        """Raises DatasetError where fewer examples came than were promised, or some without a label."""
        if (batch["index"] >= 0).sum() != count:
            raise DatasetError(
                f"{self._examples.where} ends before its {len(self._examples)} examples: prepare it again"
            )
        if unlabelled := batch["index"][batch["label"] < 0].tolist():
            name = self._examples.described(unlabelled[0])
            raise DatasetError(
                f"{self._examples.where} has pictures without a label, such as {name}: use another split"
            )


def _next(iterator: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    with on_cpu():
        return next(iterator)
