"""npz files with their arrays' names in an array of names: those of efficientnet-jax's release, and Objax's variables.

Objax's are written by `objax.io.save_var_collection`. Reading them does not need Objax, and never loads a pickle.
"""

import math
import re
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from jeffnet.arch.summary import array_specs
from jeffnet.errors import WeightsError
from jeffnet.weights.archive import open_zip
from jeffnet.weights.formats.interface import OF_MEMBERS, Contents, Probe, WeightsFile, guarded, reading
from jeffnet.weights.naming import OURS, to_source_names
from jeffnet.weights.stored import Stored
from jeffnet.weights.timm import RELEASE

_NAMES = "names"
# Only the release also states which of torch's layers an array is of.
_RELEASE_KEYS = frozenset({_NAMES, "types"})
_LONGEST_NAMES = 2**24
_FAULT = "are not a whole npz file"
_OBJAX_LEAVES = {
    "w": "kernel", "b": "bias", "beta": "bias", "gamma": "scale", "running_mean": "mean", "running_var": "var",
}  # fmt: skip


def sniff(probe: Probe) -> bool:
    """A zip archive of arrays."""
    return bool(probe.members) and all(member.endswith(".npy") for member in probe.members)


def read(path: Path) -> WeightsFile:
    """See `jeffnet.weights.formats.FormatModule`."""
    with reading(path, _FAULT):
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
        absent, surplus = set(numbers) - keys, keys - set(numbers) - _RELEASE_KEYS
        if absent or surplus:
            raise WeightsError(
                f"weights {str(path)!r} have {len(names)} names, but {len(absent)} of their arrays are missing and "
                f"{len(surplus)} have no name"
            )
        arrays = {
            name.decode() if isinstance(name, bytes) else name: guarded(
                Stored(*_header(archive, f"{number}.npy"), partial(_load, archive, number)), path, _FAULT
            )
            for name, number in zip(names.tolist(), numbers, strict=True)
        }
    if keys >= _RELEASE_KEYS:
        return WeightsFile(str(path), arrays, RELEASE, checksums=OF_MEMBERS)
    return WeightsFile(str(path), _from_objax(arrays), OURS, "npz file of Objax", checksums=OF_MEMBERS)


def write(path: Path, contents: Contents) -> None:
    """See `jeffnet.weights.formats.FormatModule`."""
    arrays = contents.arrays
    # npz would store what NumPy itself does not know as bytes without a type.
    if foreign := {str(array.dtype) for array in arrays.values() if array.dtype.kind != "f"}:
        raise WeightsError(f"npz files cannot hold {', '.join(sorted(foreign))}: write another form")
    with open(path, "wb") as file:
        if contents.form == "objax":
            variables = contents.build("objax").vars()
            import objax  # the backend has made it work with this JAX

            objax.io.save_var_collection(file, variables)  # pyright: ignore[reportArgumentType]
            return
        state = to_source_names(arrays, RELEASE, contents.card.plan())
        numbered = {str(place): array for place, array in enumerate(state.values())}
        kinds = [_torch_layer(name, arrays) for name in array_specs(contents.card.plan())]
        np.savez(file, names=np.array(list(state)), types=np.array(kinds), **numbered)  # pyright: ignore


def _torch_layer(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    module = name.rpartition(".")[0]
    if module == "classifier":
        return "Linear"
    return "Conv2d" if f"{module}.kernel" in arrays else "BatchNorm2d"


def _from_objax(variables: Mapping[str, Stored]) -> dict[str, Stored]:
    """Arrays by canonical name from Objax's; the state of random numbers is dropped.

    `(ImageClassifier).blocks(ModuleList)[2](ModuleList)[1](Block).bn1(BatchNorm).beta` is `blocks.2.1.bn1.bias`.
    """
    arrays = {}
    for name, array in variables.items():
        words = re.sub(r"\[(\d+)\]", r".\1", re.sub(r"\(\w+\)", "", name)).strip(".").split(".")
        if words[-1] != "_key":
            arrays[".".join([*words[:-1], _OBJAX_LEAVES.get(words[-1], words[-1])])] = array
    return arrays


def _header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype]:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        start = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{member} is a pickle, which might run a program: refused")
    # Before memory is taken for it.
    size = archive.getinfo(member).file_size - start
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{member} has another size than its header says")
    return shape, dtype


def _load(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    _header(archive, f"{key}.npy")
    with archive.open(f"{key}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)
