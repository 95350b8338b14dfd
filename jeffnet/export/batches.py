"""What a runner is given: pictures as its file takes them, in the batches that it takes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jeffnet.errors import InputError


def check_pictures(source: str, images: Any, shape: Sequence[int | None], dtype: Any) -> None:
    """Compare an array of pictures with what a file takes.

    Args:
      source: name of the file, for messages.
      images: an array.
      shape: of the file's pictures; the first is its batch, None for any number.
      dtype: of the file's pictures. Floats of another width may be cast.

    Raises:
      InputError: the array has another shape, or floats for pixels, or pixels for floats.
    """
    floats = np.issubdtype(dtype, np.floating)
    same_kind = (floats and images.dtype.kind in "fV") or images.dtype == dtype  # bfloat16 is of kind V
    if images.ndim == len(shape) and images.shape[1:] == tuple(shape[1:]) and same_kind:
        return
    taken = ", ".join(map(str, ("N", *shape[1:])))
    raise InputError(
        f"{source!r} takes {'normalised floats' if floats else 'pixels, uint8'}, ({taken}): given are "
        f"{images.dtype} of {tuple(images.shape)}"
    )


def in_batches(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch_size: int | None) -> np.ndarray:
    """The outputs for any number of pictures, of a file that takes a fixed one: the last batch is filled with zeros.

    Args:
      run: the outputs of one batch.
      images: `(N, ...)`.
      batch_size: that `run` takes; None for any.
    """
    if batch_size in (None, len(images)):
        return run(images)
    outputs = []
    for start in range(0, max(len(images), 1), batch_size):
        batch = images[start : start + batch_size]
        full = np.zeros((batch_size, *images.shape[1:]), images.dtype)
        full[: len(batch)] = batch
        outputs.append(run(full)[: len(batch)])
    return np.concatenate(outputs)
