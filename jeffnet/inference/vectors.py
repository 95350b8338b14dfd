"""Files of vectors, one for each picture, with the pictures' names and labels: `.parquet`, `.npz`, or `.npy`."""

import csv
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from jeffnet.errors import DatasetError, OutputError
from jeffnet.system.extras import install
from jeffnet.system.files import check_output, written_atomically
from jeffnet.text.names import utf8

_PARQUET_KEY = b"jeffnet"  # of what a parquet file's metadata have as JSON: run and classes
_BESIDE_NPY = ".labels.csv"
_READ_ERRORS = (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile, csv.Error)


@dataclass(frozen=True)
class Vectors:
    """Vectors of labelled pictures.

    Attributes:
      vectors: float32 or float16 `(N, F)`.
      labels: int32 `(N,)`.
      index: int64 `(N,)`, the picture's number in the data set.
      names: of the pictures.
      classes: name of every label.
      run: what they were computed with, as JSON can hold it; empty where the file does not say.
    """

    vectors: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    names: tuple[str, ...]
    classes: tuple[str, ...]
    run: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.vectors)


class VectorTable(Protocol):
    """What is written: everything of `Vectors`, but the vectors themselves in blocks, which need not fit into memory.

    Attributes:
      width: numbers in a vector.
      dtype: of the vectors.
    """

    width: int
    dtype: np.dtype
    labels: np.ndarray
    index: np.ndarray
    names: tuple[str, ...]
    classes: tuple[str, ...]
    run: dict[str, Any]

    def blocks(self) -> Iterator[np.ndarray]:
        """The vectors in order, `(n, width)` at a time."""
        ...


def check_vectors_path(path: str | os.PathLike) -> None:
    """Raises OutputError if `write_vectors` cannot write this file: better before long work than after it."""
    if check_output(path, tuple(_WRITERS)) == ".parquet":
        _parquet(OutputError)


def write_vectors(path: str | os.PathLike, table: VectorTable) -> None:
    """Write a file of vectors. It is complete or absent, and its bytes depend on the table alone.

    Args:
      path: ends in `.parquet`, `.npz`, or `.npy`, which holds vectors alone: a `.labels.csv` beside it has the rest.
      table: what to write.

    Raises:
      OutputError: it cannot be written.
    """
    write = _WRITERS[check_output(path, tuple(_WRITERS))]
    with written_atomically(path) as partial:
        write(Path(partial), table)


def read_vectors(path: str | os.PathLike) -> Vectors:
    """Read a file that `write_vectors` wrote, into memory.

    Args:
      path: of the file.

    Returns:
      Its content.

    Raises:
      DatasetError: there is no such file, or it holds no vectors.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DatasetError(f"{str(path)!r} is no file of vectors: these end in {', '.join(_READERS)}")
    if not path.is_file():
        raise DatasetError(f"file of vectors {str(path)!r} does not exist: `jeffnet embed` writes one")
    try:
        vectors = reader(path)
    except _READ_ERRORS as error:
        raise _of_others(path, error) from error
    if fault := _fault(vectors):
        raise _of_others(path, fault)
    return vectors


def run_of(path: str | os.PathLike) -> Mapping[str, Any] | None:
    """What the vectors of a file were computed with; None if there is no such file, or it does not say."""
    path = Path(path)
    try:
        if path.suffix.lower() == ".npz":
            with path.open("rb") as file, np.load(file) as arrays:
                return json.loads(str(arrays["run"]))
        if path.suffix.lower() == ".parquet":
            return json.loads(_parquet(DatasetError).read_schema(path).metadata[_PARQUET_KEY])["run"]
    except (*_READ_ERRORS, TypeError):
        pass
    return None


def _of_others(path: Path, fault: object) -> DatasetError:
    return DatasetError(f"{str(path)!r} is no file of vectors that `jeffnet embed` wrote: {fault}")


def _fault(table: Vectors) -> str | None:
    """What is wrong with a table that was read."""
    rows = {len(table.vectors), len(table.labels), len(table.index), len(table.names)}
    if table.vectors.ndim != 2 or table.vectors.dtype not in (np.float32, np.float16) or len(rows) != 1:
        return f"vectors of {table.vectors.dtype} {table.vectors.shape} with {len(table.labels)} labels"
    if len(table.labels) and not 0 <= table.labels.min() <= table.labels.max() < len(table.classes):
        return f"labels outside its {len(table.classes)} classes"
    return None


def _write_npy(path: Path, table: VectorTable) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("index", "name", "label", "class"))
    for index, name, label in zip(table.index.tolist(), table.names, table.labels.tolist(), strict=True):
        writer.writerow((index, utf8(name), label, utf8(table.classes[label])))
    # It gets its final name before the vectors do, which come after it in the alphabet.
    path.with_suffix(_BESIDE_NPY).write_text(text.getvalue(), encoding="utf-8", newline="")
    with path.open("wb") as file:
        _write_rows(file, table)


def _read_npy(path: Path) -> Vectors:
    with path.with_suffix(_BESIDE_NPY).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    titles = {int(row["label"]): row["class"] for row in rows}
    classes = tuple(titles.get(label, str(label)) for label in range(max(titles, default=-1) + 1))
    labels = np.array([int(row["label"]) for row in rows], np.int32)
    index = np.array([int(row["index"]) for row in rows], np.int64)
    return Vectors(np.load(path), labels, index, tuple(row["name"] for row in rows), classes)


def _write_npz(path: Path, table: VectorTable) -> None:
    others = {
        "labels": table.labels,
        "index": table.index,
        "names": np.array([utf8(name) for name in table.names], str),
        "classes": np.array([utf8(name) for name in table.classes], str),
        "run": np.array(json.dumps(table.run)),
    }
    with zipfile.ZipFile(path, "w") as archive:
        # Members of `ZipInfo` have no time of their own, so that the same vectors are the same bytes.
        with archive.open(zipfile.ZipInfo("vectors.npy"), "w", force_zip64=True) as member:
            _write_rows(member, table)
        for name, array in others.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _read_npz(path: Path) -> Vectors:
    with path.open("rb") as file, np.load(file) as arrays:  # NumPy leaves a damaged file open
        names, classes = (tuple(map(str, arrays[name])) for name in ("names", "classes"))
        run = json.loads(str(arrays["run"]))
        return Vectors(arrays["vectors"], arrays["labels"], arrays["index"], names, classes, run)


def _write_rows(file: IO[bytes], table: VectorTable) -> None:
    """An array in NumPy's format, block by block."""
    header = {
        "descr": np.lib.format.dtype_to_descr(table.dtype),
        "fortran_order": False,
        "shape": (len(table.labels), table.width),
    }
    np.lib.format.write_array_header_1_0(file, header)
    for block in table.blocks():
        file.write(np.ascontiguousarray(block, table.dtype).data)


def _write_parquet(path: Path, table: VectorTable) -> None:
    import pyarrow

    value = pyarrow.from_numpy_dtype(table.dtype)
    schema = pyarrow.schema(
        {
            "index": pyarrow.int64(),
            "name": pyarrow.string(),
            "label": pyarrow.int32(),
            "class": pyarrow.string(),
            "vector": pyarrow.list_(value, table.width),
        },
        metadata={_PARQUET_KEY: json.dumps({"run": table.run, "classes": list(map(utf8, table.classes))}).encode()},
    )
    first = 0
    with _parquet(OutputError).ParquetWriter(path, schema) as writer:
        for block in table.blocks():
            rows = slice(first, first + len(block))
            first += len(block)
            numbers = pyarrow.array(np.ascontiguousarray(block, table.dtype).reshape(-1))
            columns = [
                pyarrow.array(table.index[rows]),
                pyarrow.array([utf8(name) for name in table.names[rows]]),
                pyarrow.array(table.labels[rows]),
                pyarrow.array([utf8(table.classes[label]) for label in table.labels[rows].tolist()]),
                pyarrow.FixedSizeListArray.from_arrays(numbers, table.width),
            ]
            writer.write_table(pyarrow.table(columns, schema=schema))


def _read_parquet(path: Path) -> Vectors:
    table = _parquet(DatasetError).read_table(path)
    about = json.loads((table.schema.metadata or {})[_PARQUET_KEY])
    vectors = table["vector"].combine_chunks()
    return Vectors(
        vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1),
        table["label"].to_numpy(),
        table["index"].to_numpy(),
        tuple(table["name"].to_pylist()),
        tuple(about["classes"]),
        about["run"],
    )


def _parquet(error: type[Exception]) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise error(f"parquet needs pyarrow: {install('embed')}, or take .npz") from None
    return pyarrow.parquet


_WRITERS: dict[str, Callable[[Path, VectorTable], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".npy": _write_npy,
}
_READERS: dict[str, Callable[[Path], Vectors]] = {".parquet": _read_parquet, ".npz": _read_npz, ".npy": _read_npy}
