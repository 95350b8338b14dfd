"""Arrays that still lie in a file: shape and dtype are known, the values are read when they are wanted.

So a file's names and shapes are checked before anything large is read, and a model is loaded array by array, without a
second copy of it in memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
from safetensors import SafetensorError, safe_open

from jeffnet.errors import WeightsError, first_line

# A safetensors file is mapped into memory, and what was read of it counts as this process's until it is closed.
_MAPPED_BYTES = 2**25
_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """One array of a file.

    Attributes:
      shape: of the array.
      dtype: of the array.
      read: gives the array; may be called again.
    """

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
        # What comes of the shape is asked of the change itself, on an array that takes no memory.
        shape = change(np.broadcast_to(np.zeros((), np.int8), self.shape)).shape
        return Stored(shape, self.dtype, lambda: change(self.read()))


Arrays = Mapping[str, Stored]


def stored(array: object) -> Stored:
    """An array that is in memory, as one of a file."""
    if isinstance(array, Stored):
        return array
    values = np.asarray(array)
    return Stored(values.shape, values.dtype, lambda: values)


def read_safetensors(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Arrays and metadata of a safetensors file.

    Raises:
      WeightsError: it is truncated, or none.
    """
    reader = _Safetensors(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            arrays = {
                name: Stored(
                    tuple(part.get_shape()),
                    np.dtype(_SAFETENSORS_DTYPES[part.get_dtype()]),
                    lambda name=name: reader.read(name),
                )
                for name, part in slices.items()
            }
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise WeightsError(
            f"weights {str(path)!r} are not a whole safetensors file, nor a checkpoint of another kind: {reason}"
        ) from error
    except KeyError as error:
        raise WeightsError(f"weights {str(path)!r} have an array of dtype {error}, which is none of ours") from error
    return arrays, metadata


class _Safetensors:
    """Reads a file's arrays, and closes it from time to time to give back the memory into which it is mapped."""

    def __init__(self, path: Path):
        self.path = path
        self.file = None
        self.mapped = 0

    def read(self, name: str) -> np.ndarray:
        try:
            if self.file is None or self.mapped > _MAPPED_BYTES:
                self.file, self.mapped = safe_open(self.path, framework="numpy"), 0
            array = self.file.get_tensor(name)
        except (SafetensorError, OSError, TypeError, ValueError) as error:
            raise WeightsError(f"weights {str(self.path)!r}: {name} cannot be read: {first_line(error)}") from error
        self.mapped += array.nbytes
        return array
