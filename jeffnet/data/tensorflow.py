"""Pictures through TensorFlow, for evaluation as the papers' authors did it; needs the extra `tf`.

TensorFlow decodes, crops and resizes. Its JPEG decoder is set to be fast, it cuts before it resizes, and it resizes
without antialiasing: the pixels are not those of the other pipelines, but those that the authors' scores belong to.

Source: tensorflow/tpu, models/official/efficientnet/preprocessing.py, `preprocess_image` for evaluation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from jeffnet._tensorflow import on_cpu, tf
from jeffnet.data.batches import WHOLE, EvalBatch, OnBadImage, Shard, check_options, load_rows
from jeffnet.data.preprocess import EvalTransform
from jeffnet.data.sources import Source
from jeffnet.data.tensorflow_examples import Examples, open_examples
from jeffnet.data.tensorflow_picture import Picture, failures, fault, reason
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
    """Batches for evaluation, as of `jeffnet.data.loaders.eval_loader`, with these differences.

    Files may be JPEG, PNG, GIF (its first frame), BMP or WebP. Of a JPEG only what the crop needs is decoded, so that
    damage below it goes unnoticed.

    Args:
      data: a folder as `ImageFolder` takes it; 'tfds:NAME', 'tfds:NAME/CONFIG', either with ':VERSION', for a prepared
        data set of TensorFlow Datasets with a picture and a label; a folder with such a data set, in any of TFDS'
        formats; or another name that `open_source` knows. Also a source itself: of an `ImageFolder` TensorFlow reads
        the files, pictures of any other are decoded by the source, then cropped and resized by TensorFlow.
      split: 'val' means the first of validation, val and test that exists. For TFDS any of its splits, also a part
        such as 'train[:10%]'. Without meaning where `data` is a source.
      transform: 'center' crops before it resizes, as the authors do, a centred window of the proportions of the
        result, the largest that fits times the share to keep; 'squash' crops that share of both sides. The share is the
        authors' `image_size / (image_size + 32)` where `crop_pct` is that ratio to three places, else `crop_pct`.
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
    check_options(batch_size, on_bad_image, threads=threads or 0, num_examples=num_examples or 0)
    examples = open_examples(data, split, channels, data_dir, transform.exif)
    picture = Picture(transform, channels if isinstance(data, str) else data.channels, resize)
    length = len(examples) if num_examples is None else min(num_examples, len(examples))
    return TensorFlowEvalLoader(examples, picture, length, batch_size, threads, shard, on_bad_image)


@dataclass(eq=False)
class TensorFlowEvalLoader:
    """A `jeffnet.data.batches.EvalLoader`; made by `eval_loader`."""

    examples: Examples
    picture: Picture
    num_examples: int
    batch_size: int
    threads: int | None
    shard: Shard
    on_bad_image: OnBadImage

    def __post_init__(self) -> None:
        self.classes = self.examples.classes

    def __len__(self) -> int:
        return -(-self.shard.rows(self.num_examples) // self.batch_size)

    def name(self, index: int) -> str:
        """Path of a file, TFDS' id of an example, or the source's name of it."""
        return self.examples.name(index)

    def __iter__(self) -> Iterator[EvalBatch]:
        iterator = self._read(0)
        for number in range(len(self)):
            try:
                with on_cpu():
                    batch = self._padded(next(iterator))
            except StopIteration:
                batch = self._load({})
            except failures() as error:
                # tf.data does not say which element failed. What was read ahead is lost, and read again.
                batch = self._one_by_one(number, error)
                iterator = self._read(number + 1)
            self._check(batch, min(self.batch_size, len(self._indices(number))))
            yield batch

    def _indices(self, number: int) -> range:
        """The examples of this host from a batch on."""
        first = self.shard.index + number * self.batch_size * self.shard.count
        return range(first, self.num_examples, self.shard.count)

    def _read(self, number: int) -> Iterator[EvalBatch]:
        """The batches from a number on, without padding."""
        indices = self._indices(number)
        if not indices:
            return iter(())

        # TensorFlow would otherwise rewrite the code it meets, which takes time and needs the sources.
        @tf.autograph.experimental.do_not_convert
        def load(index: Any, stored: Any) -> dict[str, Any]:
            picture, label = self.examples.read(stored)
            pixels = self.picture.pixels(picture)
            return {
                "image": pixels, "label": tf.cast(label, tf.int32), "mask": True, "index": tf.cast(index, tf.int32)
            }  # fmt: skip

        options = tf.data.Options()
        options.deterministic = True
        parallel = tf.data.AUTOTUNE if self.threads is None else self.threads or None
        with on_cpu():
            rows = self.examples.rows(indices).map(load, num_parallel_calls=parallel)
            return iter(rows.batch(self.batch_size).prefetch(_AHEAD).with_options(options).as_numpy_iterator())

    def _one_by_one(self, number: int, error: Exception) -> EvalBatch:
        """A batch in which something failed: raises the ImageError of the picture, or masks it.

        Raises DatasetError where it was no picture that failed.
        """
        stored = {}
        try:
            with on_cpu():
                rows = self.examples.rows(self._indices(number)[: self.batch_size])
                stored = {int(index): example for index, example in rows}
        except failures() as unreadable:
            error = unreadable
        batch = self._load(stored)
        if batch["mask"].sum() == len(stored):
            raise DatasetError(f"{self.examples.where} cannot be read ({reason(error)}): repair it or prepare it again")
        return batch

    def _load(self, stored: dict[int, Any]) -> EvalBatch:
        """A batch of stored examples by their numbers, padded to full size."""

        def load(index: int) -> tuple[np.ndarray, int]:
            self.examples.check(index)
            try:
                with on_cpu():
                    picture, label = self.examples.read(stored[index])
                    return self.picture.traced_pixels(picture).numpy(), int(label)
            except failures() as error:
                raise ImageError(f"image {self.examples.described(index)} {fault(error)}") from error

        indices, shape = [*stored, *[-1] * (self.batch_size - len(stored))], self.picture.shape
        return load_rows(load, indices, shape, self.on_bad_image, np.zeros((len(indices), *shape), np.float32))

    def _padded(self, batch: EvalBatch) -> EvalBatch:
        """The batch at full size, not copied where it has it."""
        count = len(batch["index"])
        if count == self.batch_size:
            return batch
        padding = self._load({})
        return cast(EvalBatch, {key: np.concatenate([batch[key], padding[key][count:]]) for key in batch})

    def _check(self, batch: EvalBatch, count: int) -> None:
        """Raises DatasetError where fewer examples came than were promised, or some without a label."""
        if (batch["index"] >= 0).sum() != count:
            raise DatasetError(f"{self.examples.where} ends before its {len(self.examples)} examples: prepare it again")
        if unlabelled := batch["index"][batch["label"] < 0].tolist():
            raise DatasetError(
                f"{self.examples.where} has pictures without a label, such as "
                f"{self.examples.described(unlabelled[0])}: use another split"
            )
