"""safetensors: jeffnet's own files, and state dicts of timm, torchvision and `efficientnet_pytorch`.

In jeffnet's own files arrays have canonical names and layouts (`jeffnet.arch.summary.ArraySpec`), and the metadata has
the model's card under `jeffnet`. Every file that jeffnet writes has checksums of the arrays and of the other metadata
under `jeffnet.checksums`.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from jeffnet.errors import WeightsError
from jeffnet.system.files import written_atomically
from jeffnet.weights.card import METADATA_KEY, ModelCard, card_json, parse_card
from jeffnet.weights.checksum import CHECKSUMS_KEY, checked, checksum, damaged
from jeffnet.weights.formats.interface import OF_ARRAYS, Contents, Probe, WeightsFile, reading
from jeffnet.weights.formats.state_dicts import state_dict_file
from jeffnet.weights.state_dict import find_state_dict
from jeffnet.weights.stored import Stored
from jeffnet.weights.timm import state_dict

# The file is mapped into memory, and what was read of it counts as this process's memory until it is closed.
_MAPPED_BYTES = 2**25
_LONGEST_HEADER = 2**27  # bytes, more than the library reads
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip


def sniff(probe: Probe) -> bool:
    """The length of a header in JSON, and its beginning."""
    return int.from_bytes(probe.start[:8], "little") < _LONGEST_HEADER and probe.start[8:9] == b"{"


def read(path: Path) -> WeightsFile:
    """See `jeffnet.weights.formats.FormatModule`."""
    arrays, metadata = _read(path)
    checksums = ""
    if CHECKSUMS_KEY in metadata:
        arrays, checksums = _checked(arrays, metadata, str(path)), OF_ARRAYS
    if METADATA_KEY in metadata:
        return WeightsFile(str(path), arrays, card=parse_card(metadata[METADATA_KEY], str(path)), checksums=checksums)
    return state_dict_file(str(path), find_state_dict(arrays, str(path)), checksums)


def write(path: Path, contents: Contents) -> None:
    """See `jeffnet.weights.formats.FormatModule`."""
    if contents.form == "jeffnet":
        _write(path, contents.arrays, {METADATA_KEY: card_json(contents.card)})
    else:
        _write(path, state_dict(contents), {"format": "pt"})


def save_model(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], card: ModelCard) -> None:
    """Write arrays by canonical name and their model's card in jeffnet's own format, in place of a file that exists.

    Raises:
      OutputError: the file cannot be written.
    """
    with written_atomically(path) as partial:
        _write(partial, arrays, {METADATA_KEY: card_json(card)})


def _read(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    reader, arrays = _Reader(path), {}
    with (
        reading(path, "are not a whole safetensors file, nor a checkpoint of another kind"),
        safe_open(path, framework="numpy") as file,
    ):
        metadata = file.metadata() or {}
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        shapes = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    for name, (shape, dtype) in shapes.items():
        if dtype not in _DTYPES:
            raise WeightsError(f"weights {str(path)!r} have an array of dtype {dtype!r}, which jeffnet cannot read")
        arrays[name] = Stored(shape, np.dtype(_DTYPES[dtype]), lambda name=name: reader.read(name))
    return arrays, metadata


class _Reader:
    """Reads a file's arrays, and closes it from time to time to give back the memory into which it is mapped."""

    def __init__(self, path: Path):
        self.path = path
        self.file = None
        self.mapped = 0

    def read(self, name: str) -> np.ndarray:
        with reading(self.path, f"are damaged at {name}"):
            if self.file is None or self.mapped > _MAPPED_BYTES:
                self.file, self.mapped = safe_open(self.path, framework="numpy"), 0
            array = self.file.get_tensor(name)
        self.mapped += array.nbytes
        return array


def _write(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    sums = {name: f"{checksum(array):016x}" for name, array in arrays.items()}
    checksums = json.dumps({"metadata": _checksum_of_texts(metadata), "arrays": sums})
    save_file(arrays, path, {**metadata, CHECKSUMS_KEY: checksums})
    _sort_metadata(path)


def _sort_metadata(path: str | Path) -> None:
    """Make equal models equal files: the library writes the metadata in an order that differs from file to file."""
    with open(path, "r+b") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        entries = json.loads(header)
        entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
        ordered = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode().ljust(len(header))
        if len(ordered) == len(header):  # as both write JSON
            file.seek(8)
            file.write(ordered)


def _checked(arrays: Mapping[str, Stored], metadata: Mapping[str, str], source: str) -> dict[str, Stored]:
    """Arrays that compare their checksums when they are read, after the metadata were compared with theirs."""
    others = {key: text for key, text in metadata.items() if key != CHECKSUMS_KEY}
    try:
        entry = json.loads(metadata[CHECKSUMS_KEY])
        expected = {name: int(digits, 16) for name, digits in entry["arrays"].items()}
        is_whole = entry["metadata"] == _checksum_of_texts(others)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(source, f"its list of checksums cannot be read ({type(error).__name__})") from error
    if not is_whole:
        raise damaged(source, "the description of its model is not what was written")
    return checked(arrays, expected, source)


def _checksum_of_texts(metadata: Mapping[str, str]) -> str:
    return f"{zlib.crc32(json.dumps(sorted(metadata.items())).encode()):08x}"
