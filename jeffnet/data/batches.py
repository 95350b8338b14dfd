"""What all evaluation pipelines share: batches, shards, options."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict

import numpy as np

from jeffnet.data.choices import ON_BAD_IMAGE
from jeffnet.errors import ConfigError, ImageError, check_choice

OnBadImage = Literal["error", "skip"]
_NO_LABEL = np.zeros((), np.int32)


class EvalBatch(TypedDict):
    """Batch of an evaluation set, always of full size: what `mask` leaves out does not count.

    `image` is `(B, H, W, C)`, uint8 or (from TensorFlow) float32 of the range 0 to 255, 0 where `mask` is False;
    `label` int32 `(B,)`, or float32 `(B, classes)` of several labels or numbers; `mask` bool `(B,)`, False in the
    padding and for pictures that could not be decoded; `index` int32 `(B,)`, the example's number in the data set, -1
    in the padding.
    """

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    index: np.ndarray


class EvalLoader(Protocol):
    """One pass over a data set, in its order, as often as it is iterated over; `len()` is the number of batches.

    Attributes:
      classes: name of every label.
      num_examples: of the whole data set, all shards together.
    """

    classes: tuple[str, ...]
    num_examples: int

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[EvalBatch]: ...

    def name(self, index: int) -> str:
        """The name of an example's picture, for people."""
        ...


@dataclass(frozen=True)
class Shard:
    """The part of a data set that one of several hosts reads: examples `index`, `index + count`, ...

    Every host has as many batches as the others, so that they can compute together: some may be padding.

    Attributes:
      index: of this host, from 0.
      count: of hosts.

    Raises:
      ConfigError: an index outside the count.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(f"shard {self.index} of {self.count}: give an index from 0 to {self.count - 1}")

    def rows(self, examples: int) -> int:
        """How many rows each host has, the padding included in some.

        Args:
          examples: of the whole data set.

        Returns:
          The same number on every host.
        """
        return -(-examples // self.count)

    def example(self, row: int, examples: int) -> int:
        """The example in a row of this host.

        Args:
          row: from 0.
          examples: of the whole data set.

        Returns:
          Its index in the data set; -1 past the end.
        """
        index = self.index + row * self.count
        return index if index < examples else -1


WHOLE = Shard()


def load_rows(
    load: Callable[[int], tuple[np.ndarray, Any]],
    indices: Sequence[int],
    shape: tuple[int, int, int],
    on_bad_image: OnBadImage = "error",
    out: np.ndarray | None = None,
    label: np.ndarray = _NO_LABEL,
) -> EvalBatch:
    """Rows of a batch.

    Args:
      load: the pixels and the label of an example; raises ImageError.
      indices: of the examples; -1 for padding.
      shape: height, width and channels.
      on_bad_image: whether an ImageError passes, or masks its row.
      out: zeros `(N, *shape)` that become the batch's pixels; None allocates uint8.
      label: of padding; its shape and dtype are those of all labels.
    """
    batch: EvalBatch = {
        "image": np.zeros((len(indices), *shape), np.uint8) if out is None else out,
        "label": np.repeat(label[None], len(indices), axis=0),
        "mask": np.zeros(len(indices), np.bool_),
        "index": np.asarray(indices, np.int32),
    }
    for row, index in enumerate(indices):
        if index < 0:
            continue
        try:
            batch["image"][row], batch["label"][row] = load(index)
        except ImageError:
            if on_bad_image == "error":
                raise
            continue
        batch["mask"][row] = True
    return batch


def check_options(batch_size: int, on_bad_image: str = "error", **counts: int) -> None:
    """Raises ConfigError if a loader's setting is outside its range."""
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size} is not a size: give 1 or more")
    check_choice("on_bad_image", on_bad_image, ON_BAD_IMAGE)
    for name, count in counts.items():
        if count < 0:
            raise ConfigError(f"{name} {count} is not a number of {name}: give 0 or more")
