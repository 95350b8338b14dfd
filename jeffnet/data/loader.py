"""Batches of pictures, decoded and transformed by threads (Grain): endless for training, one pass for evaluation.

Python's lock is no hindrance to threads here: Pillow releases it while it decodes and resizes.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, TypedDict

import grain.python as grain
import numpy as np

from jeffnet.data.preprocess import EvalTransform, TrainTransform
from jeffnet.data.sources import Example, Source
from jeffnet.errors import ConfigError, DatasetError

DEFAULT_THREADS = 8


class TrainBatch(TypedDict):
    """Batch of a training set: uint8 `(B, S, S, C)`, int32 `(B,)`."""

    image: np.ndarray
    label: np.ndarray


class EvalBatch(TypedDict):
    """Batch of an evaluation set, always of full size: what `mask` leaves out is padding.

    `image` is uint8 `(B, S, S, C)`, 0 in the padding; `label` int32 `(B,)`, 0 in the padding; `mask` bool `(B,)`, False
    in the padding; `index` int32 `(B,)`, the example's number in the source, -1 in the padding.
    """

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    index: np.ndarray


class LoaderState(TypedDict):
    """Where a `TrainLoader` stands, for JSON or a checkpoint.

    `position` is the state of Grain's iterator; `seed` and `length`, that of the source, say which order it is in.
    """

    position: dict[str, Any]
    seed: int
    length: int


class TrainLoader:
    """Endless iterator over shuffled, augmented batches; made by `train_loader`.

    Not to be called from several threads at once, and at an end once it raised an error.
    """

    def __init__(self, iterator: grain.DatasetIterator, seed: int, length: int) -> None:
        self._iterator = iterator
        self._seed = seed
        self._length = length
        self._position = iterator.get_state()

    def __iter__(self) -> "TrainLoader":
        return self

    def __next__(self) -> TrainBatch:
        try:
            batch = next(self._iterator)
        except BaseException:
            # The examples of the broken batch are gone: better no further batch than a gap in the order.
            self.close()
            raise
        # Taken between batches, so that it stays right even if an interrupt breaks the next one.
        self._position = self._iterator.get_state()
        return batch

    def get_state(self) -> LoaderState:
        """What `set_state` needs in order to continue after the last batch handed out."""
        return {"position": self._position, "seed": self._seed, "length": self._length}

    def set_state(self, state: LoaderState) -> None:
        """Continues where another loader stood that had the same source, transform, batch size and seed.

        Raises:
          ConfigError: the state is of another seed, of a source of another length, or no state at all.
        """
        try:
            position, seed, length = state["position"], state["seed"], state["length"]
            if (seed, length) == (self._seed, self._length):
                self._iterator.set_state(position)
                self._position = position
                return
        except (KeyError, TypeError, IndexError):
            raise ConfigError(
                f"{state!r} is not the state of a training loader: pass on what get_state() gave"
            ) from None
        raise ConfigError(
            f"the saved data order is of seed {seed} and {length} pictures, this run's of seed {self._seed} and "
            f"{self._length}: continue with the seed and the data of the start"
        )

    def close(self) -> None:
        """Lets go of the threads and of what they prepared; the loader cannot be used afterwards."""
        self._iterator.close()


class EvalLoader:
    """One pass over a source, in order, as often as it is iterated over; made by `eval_loader`.

    `len()` is the number of batches.
    """

    def __init__(self, dataset: grain.IterDataset, batches: int) -> None:
        self._dataset = dataset
        self._batches = batches

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[EvalBatch]:
        iterator = iter(self._dataset)
        try:
            yield from iterator
        finally:
            iterator.close()


def train_loader(
    source: Source, transform: TrainTransform, batch_size: int, seed: int, threads: int = DEFAULT_THREADS
) -> TrainLoader:
    """Batches for training, for ever.

    Every epoch goes through all examples once, in an order of its own and with augmentations of its own. Batches are
    cut from this endless row, so that one may hold the end of an epoch and the beginning of the next: no example is
    left out. What comes depends on the source, the transform and the seed, not on `threads`.

    Args:
      source: at least one batch of examples.
      transform: turns a picture into pixels.
      batch_size: examples in a batch.
      seed: 0 to 2**32 - 1.
      threads: how many prepare pictures; 0 prepares them in the caller's.

    Returns:
      Iterator over `TrainBatch`. It raises what the source raises, such as an ImageError naming the file.

    Raises:
      ConfigError: a setting outside its range.
      DatasetError: fewer examples than `batch_size`.
    """
    _check_options(batch_size, threads)
    _check_fits(source, batch_size)
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed {seed} is out of range: give one from 0 to {2**32 - 1}")
    dataset = (
        grain.MapDataset.source(source)
        # Grain derives a seed for each random step from this one. Given to shuffle() itself it would be increased by
        # one each epoch, and a run with the next seed would repeat the order of this one, an epoch earlier.
        .seed(seed)
        .shuffle()
        .repeat()
        # After repeat(): the generator depends on the position in the endless row, so that no two epochs look the same.
        .random_map(partial(_training_element, transform))
        .to_iter_dataset(_read_options(batch_size, threads))
        .batch(batch_size, drop_remainder=True)
    )
    return TrainLoader(iter(dataset), seed, len(source))


def eval_loader(
    source: Source, transform: EvalTransform, batch_size: int, threads: int = DEFAULT_THREADS
) -> EvalLoader:
    """Batches for evaluation: every example exactly once, in the source's order, the last batch padded to full size.

    Args:
      source: the examples.
      transform: turns a picture into pixels.
      batch_size: rows in a batch; may exceed the number of examples.
      threads: how many prepare pictures; 0 prepares them in the caller's.

    Returns:
      Iterable over `EvalBatch`. It raises what the source raises, such as an ImageError naming the file.

    Raises:
      ConfigError: a setting outside its range.
    """
    _check_options(batch_size, threads)
    dataset = (
        grain.MapDataset.source(source)
        .map_with_index(partial(_evaluation_element, transform))
        .to_iter_dataset(_read_options(batch_size, threads))
        .batch(batch_size, drop_remainder=False)
        .map(partial(_pad, batch_size))
    )
    return EvalLoader(dataset, -(-len(source) // batch_size))


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """How many batches of `train_loader` are one epoch: the nearest whole number, since batches span the borders.

    Raises:
      ConfigError: `batch_size` is not positive.
      DatasetError: fewer examples than `batch_size`.
    """
    _check_options(batch_size, threads=0)
    _check_fits(source, batch_size)
    return (2 * len(source) + batch_size) // (2 * batch_size)


def _check_options(batch_size: int, threads: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size} is not a size: give 1 or more")
    if threads < 0:
        raise ConfigError(f"threads {threads} is not a number of threads: give 0 or more")


def _check_fits(source: Source, batch_size: int) -> None:
    if batch_size > len(source):
        raise DatasetError(
            f"batch_size {batch_size} exceeds the {len(source)} pictures of the training set: "
            f"give a batch_size of {len(source)} or less"
        )


def _read_options(batch_size: int, threads: int) -> grain.ReadOptions:
    # While a step runs, the threads prepare the next batch, and have something to begin with after it.
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=batch_size + threads if threads else 0)


def _training_element(transform: TrainTransform, example: Example, rng: np.random.Generator) -> dict[str, Any]:
    return {"image": transform(example.image, rng), "label": np.int32(example.label)}


def _evaluation_element(transform: EvalTransform, index: int, example: Example) -> dict[str, Any]:
    return {
        "image": transform(example.image),
        "label": np.int32(example.label),
        "mask": np.bool_(True),
        "index": np.int32(index),
    }


def _pad(batch_size: int, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    missing = batch_size - len(batch["label"])
    if not missing:
        return batch
    fill = {"image": 0, "label": 0, "mask": False, "index": -1}
    return {
        key: np.concatenate([rows, np.full((missing, *rows.shape[1:]), fill[key], rows.dtype)])
        for key, rows in batch.items()
    }
