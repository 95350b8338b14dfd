"""Checksums of arrays: they detect an error in any one word, and add up over the parts of a split array."""

from collections.abc import Mapping

import numpy as np

from jeffnet.errors import WeightsError
from jeffnet.weights.stored import Stored

# Where the metadata of safetensors and Orbax have them.
CHECKSUMS_KEY = "jeffnet.checksums"
_BLOCK = 2**15  # words, few enough for the processor's cache


def checksum(array: np.ndarray) -> int:
    """The sum modulo 2**64 of an array's words (its elements' bits), each times an odd number for its place."""
    words = np.ascontiguousarray(array).reshape(-1)
    words = words.view(f"u{words.itemsize}")
    factors, total = 2 * np.arange(min(_BLOCK, words.size), dtype=np.uint64) + np.uint64(1), 0
    for start in range(0, words.size, _BLOCK):
        block = words[start : start + _BLOCK].astype(np.uint64)
        # NumPy's arithmetic on 64 bits is modulo 2**64, which is what is wanted.
        total += int(block @ factors[: block.size]) + 2 * start * int(block.sum())
    return total % 2**64


def checksum_of_part(values: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]) -> int:
    """What the part at an index of an array of a shape adds to the checksum of the whole, modulo 2**64."""
    if values.shape == shape:
        return checksum(values)
    words = values.view(f"u{values.itemsize}")
    places, stride = np.zeros((), np.uint64), 1
    for axis in reversed(range(values.ndim)):
        first = index[axis].start or 0
        along = np.arange(first, first + values.shape[axis], dtype=np.uint64) * np.uint64(stride)
        places = places + along.reshape(-1, *[1] * (values.ndim - axis - 1))
        stride *= shape[axis]
    return int((words.astype(np.uint64) * (2 * places + np.uint64(1))).sum(dtype=np.uint64))


def checked(arrays: Mapping[str, Stored], expected: Mapping[str, int], source: str) -> dict[str, Stored]:
    """A file's arrays, which raise a WeightsError when they are read and their checksums are not the expected ones.

    Raises:
      WeightsError: an array without a checksum, or a checksum without an array.
    """
    if different := sorted(arrays.keys() ^ expected.keys()):
        raise damaged(source, f"it lists other arrays than it has ({different[0]})")

    def read(name: str) -> np.ndarray:
        array = np.asarray(arrays[name].read())
        if checksum(array) != expected[name]:
            raise damaged(source, f"{name} is not what was written")
        return array

    return {name: Stored(array.shape, array.dtype, lambda name=name: read(name)) for name, array in arrays.items()}


def damaged(source: str, what: str) -> WeightsError:
    """The error for a file whose checksums differ."""
    return WeightsError(f"weights {source!r} are damaged: {what}, by its checksum; fetch or copy the file again")
