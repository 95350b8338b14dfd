"""Checks that all sources of labelled pictures share."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from jeffnet.errors import DatasetError, first_line
from jeffnet.text.names import listed

# Classes that are known by their numbers only: a greater label is no label, or would make a list as long.
MOST_UNNAMED = 2**20


def checked_labels(
    labels: Sequence[int] | np.ndarray, classes: Sequence[str] | None, data: str, name: Callable[[int], str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as int32 `(N,)` that all have a class, and the names of the classes.

    Without `classes` these are called '0' to the greatest label. `data` and `name` are for errors.

    Raises:
      DatasetError: no labels at all, a negative one, one without a name or, where there are no names, one above 2**20.
    """
    if not len(labels):
        raise DatasetError(f"data set {data!r} has no pictures: check its path and split")
    numbers = _clipped(labels)
    least, greatest = int(numbers.argmin()), int(numbers.argmax())
    if numbers[least] < 0:
        fault = "this part of the data set has no labels; give another split"
        raise DatasetError(f"picture {name(least)!r} has the label {labels[least]}: {fault}")
    most = MOST_UNNAMED if classes is None else len(classes)
    if numbers[greatest] >= most:
        fault = (
            f": labels without names go up to {most - 1:,}; correct it, or give the names of all classes"
            if classes is None
            else f", but there are {most} classes: give the names of all"
        )
        raise DatasetError(f"picture {name(greatest)!r} has the label {labels[greatest]}{fault}")
    if classes is None:
        classes = [str(number) for number in range(int(numbers[greatest]) + 1)]
    return numbers.astype(np.int32), tuple(map(str, classes))


def _clipped(labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """Labels as int64, those of more than 31 bits cut to these, so that none becomes another."""
    least, greatest = -1, 2**31 - 1
    if isinstance(labels, np.ndarray):
        if labels.dtype.kind == "u":
            labels = np.minimum(labels, np.uint64(greatest))
        return np.clip(labels.astype(np.int64), least, greatest)
    return np.array([min(max(label, least), greatest) for label in labels], np.int64)


def checked_index(index: int, length: int) -> int:
    """The index, counted from the end if negative; an IndexError outside the length."""
    if not -length <= index < length:
        raise IndexError(f"{index} of {length} pictures")
    return int(index) % length


@contextmanager
def readable(
    subject: str, remedy: str, kinds: type[Exception] | tuple[type[Exception], ...] = Exception
) -> Iterator[None]:
    """Within it what libraries raise at damaged data becomes a DatasetError, `subject (reason): remedy`."""
    try:
        yield
    except DatasetError:
        raise
    except kinds as error:
        raise DatasetError(f"{subject} ({first_line(error)}): {remedy}") from error


def of_unknown_endings(names: Sequence[str]) -> str:
    """How many files are no pictures by their endings, most frequent first: `12 files skipped: .heic (12)`."""
    counts = Counter(os.path.splitext(name)[1].lower() or "without ending" for name in names)
    kinds = [f"{ending} ({count:,})" for ending, count in counts.most_common()]
    files = "1 file" if len(names) == 1 else f"{len(names):,} files"
    return f"{files} of unknown endings skipped: {listed(kinds)}"
