"""What all sources of labelled pictures check alike."""

from collections.abc import Callable, Sequence

import numpy as np

from jeffnet.errors import DatasetError


def checked_labels(
    labels: Sequence[int] | np.ndarray, classes: Sequence[str] | None, data: str, name: Callable[[int], str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels that all have a class, and the names of the classes.

    Args:
      labels: integers `(N,)`.
      classes: names; None names them by their numbers, '0' to the greatest label.
      data: what errors call the data set.
      name: of the example of that number, for errors.

    Returns:
      int32 `(N,)`, and the names.

    Raises:
      DatasetError: no labels at all, a negative one, or one that has no name.
    """
    numbers = np.asarray(labels, np.int64)
    if not numbers.size:
        raise DatasetError(f"data set {data!r} has no pictures: check its path and split")
    least, greatest = int(numbers.argmin()), int(numbers.argmax())
    if numbers[least] < 0:
        raise DatasetError(
            f"picture {name(least)!r} has the label {numbers[least]}: this part of the data set has no labels; give "
            "another split"
        )
    if classes is None:
        classes = [str(number) for number in range(int(numbers[greatest]) + 1)]
    elif numbers[greatest] >= len(classes):
        raise DatasetError(
            f"picture {name(greatest)!r} has the label {numbers[greatest]}, but there are {len(classes)} classes: give "
            "the names of all"
        )
    return numbers.astype(np.int32), tuple(map(str, classes))


def checked_index(index: int, length: int) -> int:
    """The index, counted from the end if negative; an IndexError outside the length."""
    if not -length <= index < length:
        raise IndexError(f"{index} of {length} pictures")
    return int(index) % length


def listed(names: Sequence[str], most: int = 5) -> str:
    """The names in one line, the first few of them if there are many."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
