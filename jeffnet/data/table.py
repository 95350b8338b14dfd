"""Pictures listed in a table: CSV, JSON lines, parquet, or the JSON of COCO."""

import csv
import io
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jeffnet.data.columns import USUAL, Columns
from jeffnet.data.gaps import doubtful_labels, is_gap
from jeffnet.data.images import read_image
from jeffnet.data.sources import Labelled, file_stamp
from jeffnet.data.splits import KNOWN, UNDIVIDED, require_split, split_names
from jeffnet.errors import DatasetError
from jeffnet.system.extras import install
from jeffnet.system.reading import parse_json, read_file, user_path
from jeffnet.text.names import counted, listed

ENDINGS = (".csv", ".tsv", ".jsonl", ".json")
# Names of columns that are found without being told, the first there is.
_PATHS, _LABELS, _SPLITS = ("path", "file_name", "filename", "file", "image"), ("label", "labels", "class"), ("split",)
_MOST_BYTES = 2**31  # COCO's annotations of 118,000 pictures have a fifth of that
_NUMBERS = {"0": 0, "1": 1, "false": 0, "true": 1}
_LARGEST = float(np.finfo(np.float32).max)
_LONGEST = 1000  # characters of a label; Python refuses to convert numbers of 4,300 digits

_LOGGER = logging.getLogger("jeffnet.data")

Row = dict[str, Any]


class Table(Labelled):
    """Pictures that a table lists with their labels, in its order.

    A CSV file has a header; JSON lines and parquet have an object or row for each picture, whose label may be a list;
    COCO's JSON has `images`, `categories` and `annotations`, of which only the categories count.

    Attributes:
      names: path of every picture, as in the table.
      groups: of every picture, as `columns.group` says; None without such a column.
      labels: int32 `(N,)` for one label; for several float32 `(N, classes)` of 0 and 1; float32 `(N, numbers)` in
        regression.

    Raises:
      DatasetError: the table, a column, a picture's file or a label is missing, a label is not one of `classes`, or a
        picture is listed twice.
    """

    def __init__(
        self,
        data: str,
        split: str = "train",
        channels: int = 3,
        classes: Sequence[str] | None = None,
        columns: Columns = USUAL,
    ) -> None:
        """Reads the table, and looks for the files of the split; opens none of them.

        Args:
          data: path of the table; `{split}` in it stands for the split, if every split has a table of its own.
          split: 'train', 'val' or another one; a table without splits is 'val'.
          channels: 3 for RGB, 1 for grey.
          classes: the order of labels, such as that of the training set; by default the sorted labels.
          columns: what the columns say.
        """
        super().__init__(data, channels)
        self.task = columns.task
        path, name = _of_split(data, split)
        rows, categories = _read(path)
        if not rows:
            raise DatasetError(f"table {data!r} has no rows: give one that lists pictures")
        key = _column(rows, columns.path, _PATHS, data, "path_column")
        assert key is not None
        is_own = "{split}" in data
        column = _column(rows, columns.split, _SPLITS, data, "split_column") if columns.split or not is_own else None
        splits = [name] * len(rows) if is_own or column is None else [_text(row.get(column)) for row in rows]
        files = _files(rows, key, splits, str(path.parent) if columns.folder is None else columns.folder, data)
        folders = _Folders()
        _check_once(files, folders, data)
        rows = _rows_of_split(rows, column, split, data, is_own)
        self.groups = _groups(rows, columns.group, data)
        self.names = tuple(_path(row[key], number, data) for number, row in rows.items())
        self._paths = [files[number] for number in rows]
        _check_files(self._paths, folders, data)
        known = tuple(classes) if classes is not None else categories
        self.labels, self.classes = _PARSERS[columns.task](_Cells(rows, self.names, columns, data), known)
        if split in ("train", UNDIVIDED) and columns.task != "regression" and len(self.classes) < 2:
            raise DatasetError(f"table {data!r} has one class, {listed(self.classes)!r}: training needs 2 or more")

    def name(self, index: int) -> str:
        """Path of a picture as in the table."""
        return self.names[index]

    def file(self, index: int) -> str:
        """Where a picture's file is."""
        return self._paths[index]

    def check_apart(self, other: "Table") -> None:
        """Raises DatasetError if a picture is in another table too."""
        folders = _Folders()
        files = {folders.real(path): name for path, name in zip(self._paths, self.names, strict=True)}
        shared = [files[real] for real in map(folders.real, other._paths) if real in files]
        if shared:
            raise DatasetError(
                f"{len(shared)} of {len(other)} pictures of table {other._data!r} that are validated are trained on "
                f"too, such as {shared[0]!r}: list each in one split"
            )

    def _origin(self, index: int) -> str:
        return file_stamp(self._paths[index])

    def _picture(self, index: int, name: str) -> Image.Image:
        return read_image(self._paths[index], self.channels)


@dataclass(frozen=True)
class _Cells:
    """The rows of a split, by their number in the table, and what to read in them."""

    rows: Mapping[int, Row]
    names: Sequence[str]
    columns: Columns
    data: str

    def label_column(self) -> str:
        if len(self.columns.labels) > 1:
            raise DatasetError(
                f"table {self.data!r} has one label for each picture, not {len(self.columns.labels)} label_columns: "
                "give one of them, or task multi_label"
            )
        wanted = self.columns.labels[0] if self.columns.labels else None
        column = _column(list(self.rows.values()), wanted, _LABELS, self.data, "label_columns")
        assert column is not None
        return column

    def texts(self, place: int, value: Any) -> list[str]:
        """A cell or list of labels as texts, without those that are empty."""
        texts = [text for text in map(_text, value if isinstance(value, list | tuple) else [value]) if text]
        if longest := next((text for text in texts if len(text) > _LONGEST), None):
            raise self.error(place, f"has a label of {len(longest):,} characters, {longest[:50]!r}...: correct it")
        if gap := next(filter(is_gap, texts), None):
            raise self.error(place, f"has the label {gap!r}, which is a missing one: label it, or remove the row")
        return texts

    def check_doubtful(self, labels: Sequence[Sequence[str]]) -> None:
        """Raises DatasetError for 'NA', 'None' and the like among numbers; among names it warns that they are classes.

        Args:
          labels: of every picture.
        """
        doubtful, among_numbers = doubtful_labels(label for found in labels for label in found)
        if not doubtful:
            return
        places = [place for place, found in enumerate(labels) if not set(doubtful).isdisjoint(found)]
        if among_numbers:
            text = f"has the label {listed(doubtful)!r} where others are numbers: label it, or remove the row"
            raise self.error(places[0], text)
        _warn_once(
            f"table {self.data!r} has a class {listed(doubtful)!r} ({counted(len(places), 'picture')}): if that means "
            "no label, remove these rows"
        )

    def error(self, place: int, text: str) -> DatasetError:
        number = list(self.rows)[place]
        return DatasetError(f"row {number} of table {self.data!r}, {self.names[place]!r}, {text}")


def _single(cells: _Cells, known: tuple[str, ...] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    column, labels = cells.label_column(), []
    for place, row in enumerate(cells.rows.values()):
        found = cells.texts(place, row.get(column))
        if len(found) != 1:
            what = f"has {len(found)} labels ({listed(found)})" if found else f"has no label in column {column!r}"
            raise cells.error(place, f"{what}: give it one" + (", or task multi_label" if found else ""))
        labels += found
    if known is None:
        cells.check_doubtful([[label] for label in labels])
    classes = _sorted(labels) if known is None else known
    number = {name: index for index, name in enumerate(classes)}
    _check_known(labels, number, cells.data)
    return np.array([number[label] for label in labels], np.int32), classes


def _several(cells: _Cells, known: tuple[str, ...] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    if len(cells.columns.labels) > 1:
        return _flags(cells, known)
    column, separator, labels = cells.label_column(), cells.columns.separator, []
    for place, row in enumerate(cells.rows.values()):
        value = row.get(column)
        if isinstance(value, str) and separator is None:
            raise cells.error(place, f"has a text as labels, {value[:50]!r}: say how they are separated by separator")
        found = cells.texts(place, value.split(separator) if isinstance(value, str) else value)
        if not found and not isinstance(value, _Categories):
            raise cells.error(place, "has no labels: name some, or give a column of 0 and 1 for each class")
        labels.append(found)
    if known is None:
        cells.check_doubtful(labels)
    every = [label for found in labels for label in found]
    classes = _sorted(every) if known is None else known
    number = {name: index for index, name in enumerate(classes)}
    _check_known(every, number, cells.data)
    table = np.zeros((len(labels), len(classes)), np.float32)
    for place, found in enumerate(labels):
        table[place, [number[label] for label in found]] = 1
    return table, classes


def _flags(cells: _Cells, known: tuple[str, ...] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Of a column for each class, whose cells are 0 or 1."""

    def flag(value: Any) -> int | None:
        return _NUMBERS.get(_text(value).lower().removesuffix(".0"))

    return _matrix(cells, known, flag, "which is neither 0 nor 1")


def _numbers(cells: _Cells, known: tuple[str, ...] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    def number(value: Any) -> float | None:
        try:
            found = float("" if "_" in str(value) else value)
        except (TypeError, ValueError, OverflowError):
            return None
        return found if abs(found) <= _LARGEST else None

    return _matrix(cells, known, number, "which is no number that float32 can hold")


def _matrix(
    cells: _Cells, known: tuple[str, ...] | None, parse: Callable[[Any], float | None], fault: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    columns = cells.columns.labels or (cells.label_column(),)
    for column in columns:
        _column(list(cells.rows.values()), column, (), cells.data, "label_columns")
    if known is not None:
        _check_known(columns, dict.fromkeys(known), cells.data)
    table = np.zeros((len(cells.rows), len(columns)), np.float32)
    for place, row in enumerate(cells.rows.values()):
        for index, column in enumerate(columns):
            value = parse(row.get(column))
            if value is None:
                raise cells.error(place, f"has {str(row.get(column))[:50]!r} in column {column!r}, {fault}: correct it")
            table[place, index] = value
    return table, tuple(columns)


_PARSERS = {"single_label": _single, "multi_label": _several, "regression": _numbers}


class _Categories(list):
    """Names of COCO's categories, which a picture may lack: it was looked at, and there is nothing in it."""


def _of_split(data: str, split: str) -> tuple[Path, str]:
    """The table of a split, and the name that the split has in it."""
    if "{split}" not in data:
        return user_path(data), split
    paths = {name: user_path(data.replace("{split}", name)) for name in split_names(split)}
    found = next((name for name, path in paths.items() if path.exists()), None)
    if found is None:
        tried = listed([str(path) for path in paths.values()])
        raise DatasetError(f"data set {data!r} has no table for split {split!r}: expected {tried}")
    return paths[found], found


def _read(path: Path) -> tuple[list[Row], tuple[str, ...] | None]:
    """The rows of a table, and the names of all classes where it says them."""
    name = f"table {str(path)!r}"
    try:
        if path.suffix.lower() == ".parquet":
            return _parquet(path, name), None
        text = read_file(path, _MOST_BYTES).decode("utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            rows = [parse_json(line) for line in text.split("\n") if line.strip()]
        elif path.suffix.lower() == ".json":
            return _coco(parse_json(text))
        else:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
            _check_distinct(filter(None, reader.fieldnames or ()), "columns")
            rows = list(reader)
            if wrong := next((number for number, row in enumerate(rows, 1) if None in row), None):
                raise ValueError(f"row {wrong} has more cells than there are columns")
        if wrong := next((number for number, row in enumerate(rows, 1) if not isinstance(row, dict)), None):
            raise ValueError(f"row {wrong} is no object")
    except FileNotFoundError:
        raise DatasetError(f"{name} does not exist: check the path") from None
    except (OSError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DatasetError(f"{name} cannot be read ({reason}): repair it") from error
    return rows, None


def _parquet(path: Path, name: str) -> list[Row]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DatasetError(f"{name} needs pyarrow: {install('datasets')}, or give it as CSV") from None
    return pyarrow.parquet.read_table(path).to_pylist()


def _coco(content: Any) -> tuple[list[Row], tuple[str, ...]]:
    """Pictures with the names of their categories; raises ValueError where something else is there."""
    try:
        _check_distinct((entry["id"] for entry in content["images"]), "images with the id")
        _check_distinct((entry["id"] for entry in content["categories"]), "categories with the id")
        _check_distinct((str(entry["name"]) for entry in content["categories"]), "categories")
        names = {entry["id"]: str(entry["name"]) for entry in sorted(content["categories"], key=lambda one: one["id"])}
        labels: dict[Any, _Categories] = {entry["id"]: _Categories() for entry in content["images"]}
        for entry in content["annotations"]:
            name, found = names[entry["category_id"]], labels[entry["image_id"]]
            if name not in found:
                found.append(name)
        rows = [{"path": entry["file_name"], "label": labels[entry["id"]]} for entry in content["images"]]
    except KeyError as error:
        raise ValueError(f"it lacks {error}, which COCO's annotations have") from None
    except (TypeError, AttributeError):
        raise ValueError("it has not the images, categories and annotations of COCO") from None
    return rows, tuple(names.values())


def _check_distinct(values: Iterable[Any], what: str) -> None:
    """Raises ValueError where a value is there twice."""
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"it has two {what} {twice[0]!r}")


def _column(rows: Sequence[Row], wanted: str | None, usual: Sequence[str], data: str, option: str) -> str | None:
    """The column of this name, or of a usual one; None where it may be missing: for splits."""
    present = dict.fromkeys(column for row in rows[:1000] for column in row)
    found = next((name for name in ((wanted,) if wanted else usual) if name in present), None)
    if found is None and (wanted or option != "split_column"):
        what = repr(wanted) if wanted else f"called {' or '.join(usual)}"
        raise DatasetError(f"table {data!r} has no column {what}: give {option}, one of {listed(list(present), 12)}")
    return found


def _rows_of_split(rows: Sequence[Row], column: str | None, split: str, data: str, is_own: bool) -> dict[int, Row]:
    """The rows of a split by their number, from 1."""
    if column is None:
        if split == "train" and not is_own:
            raise DatasetError(
                f"table {data!r} has no column of splits, so that one would validate on what one trained on: add a "
                "column 'split' of train and val, or give a table for each as `table_{split}.csv`"
            )
        return dict(enumerate(rows, 1))
    splits = [_text(row.get(column)) for row in rows]
    counts = Counter(splits)
    name = require_split(split, {value for value in counts if value}, data)
    _check_ignored(counts, name, split_names(split), f"table {data!r} in column {column!r}")
    return {number: row for number, (row, own) in enumerate(zip(rows, splits, strict=True), 1) if own == name}


def _check_ignored(counts: Mapping[str, int], name: str, names: Sequence[str], where: str) -> None:
    """Rows whose split nobody asks for: an error if it looks like the one that is read, else a warning."""
    plain = {"".join(used.split()).casefold(): used for used in (*names, name)}
    for value, count in counts.items():
        used = plain.get("".join(value.split()).casefold(), value)
        if value not in (*names, name) and used != value:
            raise DatasetError(f"{where} has {value!r} ({count}), which would be ignored: write {used!r}")
    known = (name, *KNOWN)
    ignored = [f"{value!r} ({counts[value]})" for value in sorted(counts) if value not in known]
    if ignored and (name in KNOWN or "" in counts):
        _warn_once(f"{where} has rows of no known split, which are ignored: {listed(ignored)}")


@cache  # the table is opened for each split
def _warn_once(text: str) -> None:
    _LOGGER.warning("%s", text)


def _groups(rows: Mapping[int, Row], column: str | None, data: str) -> tuple[str, ...] | None:
    if column is None:
        return None
    _column(list(rows.values()), column, (), data, "group_column")
    groups = {number: _text(row.get(column)) for number, row in rows.items()}
    if missing := next((number for number, group in groups.items() if not group or is_gap(group)), None):
        raise DatasetError(f"row {missing} of table {data!r} has no group in column {column!r}: name one")
    return tuple(groups.values())


def _path(value: Any, number: int, data: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"row {number} of table {data!r} has no path of a picture: remove it")
    return value.strip()


def _files(rows: Sequence[Row], key: str, splits: Sequence[str], folder: str, data: str) -> dict[int, str]:
    """Where the picture of every row should be, by the number of the row, from 1."""
    roots = {split: str(user_path(folder.replace("{split}", split))) for split in set(splits)}
    return {
        number: os.path.join(roots[split], _path(row.get(key), number, data))
        for number, (row, split) in enumerate(zip(rows, splits, strict=True), 1)
    }


class _Folders(dict[str, tuple[str, frozenset[str], frozenset[str]]]):
    """Of a folder: where it really is, and the names of its files and of its links.

    To list folders is quicker than to ask for every file.
    """

    def __missing__(self, folder: str) -> tuple[str, frozenset[str], frozenset[str]]:
        self[folder] = os.path.normpath(folder), frozenset(), frozenset()
        if os.path.isdir(folder):
            with os.scandir(folder) as entries:
                files = [entry for entry in entries if entry.is_file()]
            links = frozenset(entry.name for entry in files if entry.is_symlink())
            self[folder] = os.path.realpath(folder), frozenset(entry.name for entry in files), links
        return self[folder]

    def has(self, path: str) -> bool:
        """Whether this is a file."""
        folder, name = os.path.split(path)
        return name in self[folder or "."][1]

    def real(self, path: str) -> str:
        """Path of a file without links, `.` and `..`."""
        folder, name = os.path.split(path)
        real, _, links = self[folder or "."]
        return os.path.realpath(path) if name in links else os.path.join(real, name)


def _check_once(files: Mapping[int, str], folders: _Folders, data: str) -> None:
    """Raises DatasetError where a picture has several rows, of which one may be trained on and another validated."""
    numbers: dict[str, int] = {}
    for number, path in files.items():
        if (first := numbers.setdefault(folders.real(path), number)) != number:
            raise DatasetError(
                f"rows {first} and {number} of table {data!r} are of one picture, {path!r}: give it one row, with all "
                "its labels"
            )


def _check_files(paths: Sequence[str], folders: _Folders, data: str) -> None:
    """Raises DatasetError where files are missing."""
    missing = [path for path in paths if not folders.has(path)]
    if missing:
        raise DatasetError(
            f"table {data!r} lists {len(missing)} of {len(paths)} pictures that do not exist, such as {missing[0]!r}: "
            "paths are relative to the table, or to image_folder if it is given"
        )


def _text(value: Any) -> str:
    """A cell as text: empty for None and NaN, and 1.0, as which tables with gaps have whole numbers, is '1'."""
    if value is None or value != value:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _sorted(labels: Sequence[str]) -> tuple[str, ...]:
    """All labels once: whole numbers by their size, then others by their letters."""
    return tuple(
        sorted(set(labels), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    )


def _check_known(labels: Sequence[str], known: Mapping[str, Any], data: str) -> None:
    if unknown := Counter(label for label in labels if label not in known):
        raise DatasetError(
            f"table {data!r} has labels that are not among the classes: {listed(sorted(unknown), beside=known)}; they "
            f"are {listed(list(known))}"
        )
