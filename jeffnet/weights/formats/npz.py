"""npz files that say the names of their arrays in an array of names: Objax's and those of efficientnet-jax."""

import math
import zipfile
from pathlib import Path

import numpy as np

from jeffnet.errors import WeightsError, first_line
from jeffnet.weights.archive import open_zip
from jeffnet.weights.stored import Stored

_NAMES = "names"
# What makes the difference: the release also says of which of torch's layers an array is.
RELEASE_KEYS = frozenset({_NAMES, "types"})
_LONGEST_NAMES = 2**24


def is_npz(members: list[str]) -> bool:
    """Whether a zip archive with these members is an npz file."""
    return bool(members) and all(member.endswith(".npy") for member in members)


def read_npz(path: Path) -> tuple[dict[str, Stored], bool]:
    """The arrays of an npz file, and whether it is one of the release's.

    No pickle in it is ever loaded.

    Raises:
      WeightsError: it cannot be read, or its arrays have no names.
    """
    try:
        archive = open_zip(path)  # stays open as long as one of its arrays may be read
        keys = {member.removesuffix(".npy") for member in archive.namelist()}
        if _NAMES not in keys:
            raise WeightsError(f"weights {str(path)!r} are an npz file without {_NAMES!r}: of no known source")
        if archive.getinfo(f"{_NAMES}.npy").file_size > _LONGEST_NAMES:
            raise WeightsError(f"weights {str(path)!r}: its names take more than {_LONGEST_NAMES:,} bytes")
        names = _load(archive, _NAMES)
        if names.dtype.kind not in "US" or names.ndim != 1 or len(set(names.tolist())) != len(names):
            raise WeightsError(f"weights {str(path)!r}: its names are no list of different texts")
        numbers = [str(place) for place in range(len(names))]
        absent, surplus = set(numbers) - keys, keys - set(numbers) - RELEASE_KEYS
        if absent or surplus:
            raise WeightsError(
                f"weights {str(path)!r} have {len(names)} names, but {len(absent)} of their arrays are missing and "
                f"{len(surplus)} have no name"
            )
        arrays = {
            name.decode() if isinstance(name, bytes) else name: _stored(archive, number, path)
            for name, number in zip(names.tolist(), numbers, strict=True)
        }
    except WeightsError:
        raise
    except Exception as error:  # a broken archive makes zipfile, zlib and NumPy raise almost anything
        raise _broken(path, error) from error
    return arrays, keys >= RELEASE_KEYS


def _stored(archive: zipfile.ZipFile, key: str, path: Path) -> Stored:
    shape, dtype = _header(archive, f"{key}.npy")

    def read() -> np.ndarray:
        try:
            return _load(archive, key)
        except Exception as error:
            raise _broken(path, error) from error

    return Stored(shape, dtype, read)


def _header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype]:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        start = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{member} is a pickle, which might run a program: refused")
    # Before memory is taken for it.
    if (
        any(length < 0 for length in shape)
        or math.prod(shape) * dtype.itemsize != archive.getinfo(member).file_size - start
    ):
        raise ValueError(f"{member} has another size than its header says")
    return shape, dtype


def _load(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    _header(archive, f"{key}.npy")
    with archive.open(f"{key}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _broken(path: Path, error: Exception) -> WeightsError:
    text = first_line(error)
    return WeightsError(f"weights {str(path)!r} are not a whole npz file: {text}")
