"""Arrays in a file: shape and dtype are known, values are read when they are used.

So names and shapes are checked before anything large is read, and a model is loaded array by array, without a second
copy of it in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np


@dataclass(frozen=True)
class Stored:
    """One array of a file; `read` may be called again."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> "Stored":
        """The array after a change of layout; `change` must work on any dtype."""
        # The new shape comes from the change itself, applied to an array that takes no memory.
        shape = change(np.broadcast_to(np.zeros((), np.int8), self.shape)).shape
        return Stored(shape, self.dtype, lambda: change(self.read()))


def stored(array: object) -> Stored:
    """An array that is in memory, as one of a file."""
    values = np.asarray(array)
    return Stored(values.shape, values.dtype, lambda: values)
