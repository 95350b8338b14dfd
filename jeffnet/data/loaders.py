"""Batches of pictures through Grain: endless for training, one pass for evaluation.

Threads decode and transform: Python's lock is no hindrance, since it is released while they decode and resize. Or
worker processes do, where that is not enough.
"""

import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import grain.python as grain
import numpy as np
from absl import flags

from jeffnet.data.batches import WHOLE, EvalBatch, OnBadImage, Shard, check_options, load_rows
from jeffnet.data.preprocess import EvalTransform, TrainTransform
from jeffnet.data.resize import native as native_resize
from jeffnet.data.sampling import picture_order
from jeffnet.data.sources import Example, Source, label_dtype, label_shape
from jeffnet.data.workers import end_with_caller
from jeffnet.errors import ConfigError, DatasetError, ImageError
from jeffnet.system.processor import processors
from jeffnet.text.names import counted

_LOGGER = logging.getLogger("jeffnet.data")

# So many pictures are one task of a thread: what Grain does for each task would take longer than a small picture.
_CHUNK = 16
# Pictures in a row that cannot be decoded before a loader that skips them gives up: something else is wrong then.
_MOST_BAD = 100


class TrainBatch(TypedDict):
    """Batch of a training set: uint8 `(B, S, S, C)`, or `(B, splits, S, S, C)` for several views; int32 `(B,)`."""

    image: np.ndarray
    label: np.ndarray


class LoaderState(TypedDict):
    """Where a `TrainLoader` stands, for JSON or a checkpoint.

    `position` is how many examples were handed out, on all hosts together; `seed` and `length`, that of the source, say
    which order it is in.
    """

    position: int
    seed: int
    length: int


class TrainLoader:
    """Endless iterator over shuffled, augmented batches; made by `train_loader`.

    Not to be called from several threads at once, and at an end once it raised an error.

    Attributes:
      classes: name of every label.
      num_examples: of the data set.
      steps_per_epoch: how many batches are one epoch: the nearest whole number, and at least one.
    """

    def __init__(
        self,
        batches_from: Callable[[int], grain.DatasetIterator],
        step: int,
        seed: int,
        length: int,
        classes: tuple[str, ...],
    ) -> None:
        self.classes, self.num_examples, self.steps_per_epoch = classes, length, max(1, _nearest(length, step))
        self._batches_from = batches_from  # from a position on
        self._step = step  # of the position, for a batch
        self._seed, self._length = seed, length
        self._position = 0
        self._iterator = batches_from(0)

    def __iter__(self) -> "TrainLoader":
        return self

    def __next__(self) -> TrainBatch:
        try:
            batch = next(self._iterator)
        except BaseException:
            # The examples of the broken batch are gone: better no further batch than a gap in the order.
            self.close()
            raise
        self._position += self._step
        return batch

    def get_state(self) -> LoaderState:
        """The state from which `set_state` continues after the last batch returned."""
        return {"position": self._position, "seed": self._seed, "length": self._length}

    def set_state(self, state: LoaderState) -> None:
        """Continues where another loader stood that had the same source and seed.

        The rest may differ: the number of hosts, the batch size, the transform. Other `repeats` make another row of
        pictures, of which this is the same position.

        Raises:
          ConfigError: the state is of another seed, of a source of another length, or no state at all.
        """
        try:
            position, seed, length = state["position"], state["seed"], state["length"]
        except (KeyError, TypeError, IndexError):
            position = seed = length = None
        if not isinstance(position, int) or position < 0:
            raise ConfigError(f"{state!r} is not the state of a training loader: pass on what get_state() gave")
        if (seed, length) != (self._seed, self._length):
            raise ConfigError(
                f"the saved data order is of seed {seed} and {length} pictures, this run's of seed {self._seed} and "
                f"{self._length}: continue with the seed and the data of the start"
            )
        self._iterator.close()
        self._iterator = self._batches_from(position)
        self._position = position

    def close(self) -> None:
        """Ends the threads; the loader cannot be used afterwards."""
        self._iterator.close()


class GrainEvalLoader:
    """A `jeffnet.data.batches.EvalLoader`; made by `eval_loader`."""

    def __init__(self, source: Source, batches: grain.IterDataset, count: int) -> None:
        self.classes, self.num_examples, self.name = source.classes, len(source), source.name
        self._batches, self._count = batches, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[EvalBatch]:
        iterator = iter(self._batches)
        try:
            yield from iterator
        finally:
            iterator.close()


def train_loader(
    source: Source,
    transform: TrainTransform,
    batch_size: int,
    seed: int,
    threads: int | None = None,
    workers: int = 0,
    shard: Shard = WHOLE,
    repeats: int = 1,
    on_bad_image: OnBadImage = "error",
    sampling: str = "natural",
) -> TrainLoader:
    """Batches for training, without end.

    Every epoch goes through all examples once, shuffled and augmented anew, unless `sampling` prefers rare classes.
    Batches are cut from this endless row, so that one may hold the end of an epoch and the beginning of the next: no
    example is left out, and a batch of more than all examples has some several times. What comes depends on the
    source, the transform and the seed, not on `threads` and `workers`.

    With `repeats`, every example of the row stands there so many times in succession, each time augmented anew: mostly
    in one batch. An epoch is as long as without, so that it takes that many epochs to go through all examples.

    Args:
      source: the examples.
      transform: turns a picture into pixels.
      batch_size: examples in a batch, of this host.
      seed: 0 to 2**32 - 1.
      threads: how many prepare pictures; 0 prepares them in the caller's, None takes one for each processor.
      workers: processes that prepare pictures, instead of the threads. They import the caller's main module, which must
        be guarded by `if __name__ == "__main__"`.
      shard: which host this is of how many: its batches are pieces of those of a single host with a batch size of
        their sum, the first host's the first piece.
      repeats: of each example, 1 or more.
      on_bad_image: 'error' raises at a picture that cannot be read; 'skip' takes the next one of the source in its
        place, and logs a warning once for each (once in each process that meets it). 100 in a row are an error.
      sampling: how often classes are drawn, 'natural', 'square_root' or 'balanced', see
        `jeffnet.data.sampling.class_draws`. But for 'natural', an epoch has pictures of rare classes several times, and
        leaves out some of the frequent ones, which come in the next.

    Returns:
      Iterator over `TrainBatch`. It raises what the source raises, such as an ImageError naming the file.

    Raises:
      ConfigError: a setting outside its range.

    Source: Hoffer et al., "Augment your batch", arXiv:1901.09335, for `repeats`.
    """
    check_options(batch_size, on_bad_image, threads=threads or 0, workers=workers)
    if repeats < 1:
        raise ConfigError(f"repeats {repeats} of a picture are none: give 1 or more")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed {seed} is out of range: give one from 0 to {2**32 - 1}")
    order = picture_order(source, seed, sampling)
    examples = Examples(source, on_bad_image)
    chunk, whole = _chunk_size(batch_size), batch_size * shard.count
    chunks = batch_size // chunk

    def batches_from(position: int) -> grain.DatasetIterator:
        def load(number: int) -> dict[str, np.ndarray]:
            # Of each batch of all hosts, this one has a piece: laid side by side, they are what one host would read.
            batch, part = divmod(int(number), chunks)
            first = position + batch * whole + shard.index * batch_size + part * chunk
            images, labels = [], []
            for place in range(first, first + chunk):
                example = examples[int(order[place // repeats])]
                # The place in the endless row is a seed, so that no two epochs and no two copies look the same.
                images.append(transform(example.image, np.random.default_rng((seed, place))))
                labels.append(example.label)
            return {"image": np.stack(images), "label": np.array(labels, label_dtype(source))}

        rows = grain.MapDataset.range(sys.maxsize // whole * chunks).map(load)
        return iter(_assemble(rows, chunks, threads, workers))

    return TrainLoader(batches_from, whole, seed, len(source), source.classes)


def eval_loader(
    source: Source,
    transform: EvalTransform,
    batch_size: int,
    threads: int | None = None,
    workers: int = 0,
    shard: Shard = WHOLE,
    on_bad_image: OnBadImage = "error",
) -> GrainEvalLoader:
    """Batches for evaluation: every example exactly once, in the source's order, the last batch padded to full size.

    Args:
      source: the examples.
      transform: turns a picture into pixels.
      batch_size: rows in a batch, of this host; may exceed the number of examples.
      threads: how many prepare pictures; 0 prepares them in the caller's, None takes one for each processor.
      workers: processes that prepare pictures, instead of the threads; see `train_loader`.
      shard: which host this is of how many.
      on_bad_image: 'error' raises an ImageError at a picture that cannot be decoded, 'skip' masks it.

    Returns:
      Iterable over `EvalBatch`, of uint8 pixels. It raises what the source raises, such as an ImageError naming the
      file.

    Raises:
      ConfigError: a setting outside its range.
    """
    check_options(batch_size, on_bad_image, threads=threads or 0, workers=workers)
    chunk = _chunk_size(batch_size)
    count, shape = -(-shard.rows(len(source)) // batch_size), (*transform.shape, source.channels)

    label = np.zeros(label_shape(source), label_dtype(source))

    def load(index: int) -> tuple[np.ndarray, Any]:
        example = source[index]
        return transform(example.image), example.label

    def load_chunk(number: int) -> EvalBatch:
        rows = range(number * chunk, (number + 1) * chunk)
        return load_rows(load, [shard.example(row, len(source)) for row in rows], shape, on_bad_image, label=label)

    chunks = batch_size // chunk
    batches = _assemble(grain.MapDataset.range(count * chunks).map(load_chunk), chunks, threads, workers)
    return GrainEvalLoader(source, batches, count)


def steps_per_epoch(source: Source, batch_size: int, at_least: int | None = None) -> int:
    """How many batches of `train_loader` are one epoch: the nearest whole number, since batches span the borders.

    Args:
      source: the examples.
      batch_size: of all hosts.
      at_least: for fewer batches, an epoch passes over the examples several times and has this many.

    Raises:
      ConfigError: `batch_size` is not positive.
      DatasetError: fewer examples than `batch_size`, without `at_least`.
    """
    check_options(batch_size)
    if at_least is None and batch_size > len(source):
        raise DatasetError(
            f"batch_size {batch_size} exceeds the {counted(len(source), 'picture')} of the training set: "
            f"give a batch_size of {len(source)} or less, or min_epoch_steps, which repeats them"
        )
    return max(_nearest(len(source), batch_size), at_least or 0)


def _nearest(examples: int, batch_size: int) -> int:
    return (2 * examples + batch_size) // (2 * batch_size)


def _chunk_size(batch_size: int) -> int:
    return max(size for size in range(1, _CHUNK + 1) if batch_size % size == 0)


def _assemble(rows: grain.MapDataset, chunks: int, threads: int | None, workers: int) -> grain.IterDataset:
    """Batches of so many chunks. While a step runs, the next one is read, and something to begin with after it."""
    threads = len(processors()) if threads is None else threads
    if workers:
        native_resize()  # compiled here, if at all, and not by every worker
        read = rows.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        # Grain hands absl's flags to its processes, which fails in a program that never parsed any.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=-(-(chunks + workers) // workers))
        read = read.mp_prefetch(processes, worker_init_fn=_start_worker)
    else:
        ahead = chunks + threads if threads else 0
        read = rows.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
    return read.batch(chunks, drop_remainder=True, batch_fn=_concatenate)


def _start_worker(worker: int, count: int) -> None:
    """What asks a job to stop reaches its worker processes too; it is for the run to end them when it has saved."""
    del worker, count
    end_with_caller()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _concatenate(chunks: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if len(chunks) == 1:
        return chunks[0]
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}


class Examples:
    """A source's examples; if bad ones are skipped, the next readable one replaces them."""

    def __init__(self, source: Source, on_bad_image: OnBadImage) -> None:
        """Of a source; `on_bad_image` as `train_loader` takes it."""
        self._source = source
        self._skips = on_bad_image == "skip"
        self._reported: dict[int, Exception] = {}

    def __getitem__(self, index: int) -> Example:
        if not self._skips:
            return self._source[index]
        # Which one stands in must not depend on what was read before, or by whom.
        for further in range(_MOST_BAD):
            number = (index + further) % len(self._source)
            try:
                return self._source[number]
            except (ImageError, DatasetError) as error:
                # setdefault() is one step for all threads: of two that meet the picture at once one reports it.
                if self._reported.setdefault(number, error) is error:
                    _LOGGER.warning("%s; the next picture is taken in its place", error)
        raise self._reported[index]
