"""Files of results, from which an interrupted series of validations continues, and tables of predictions."""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.errors import EndingError, OutputError
from jeffnet.system.extras import install
from jeffnet.system.files import locked, write_file
from jeffnet.system.reading import parse_json, read_text
from jeffnet.text.names import utf8
from jeffnet.validation.metrics import Predictions

# Settings that do not change scores.
_INDIFFERENT = frozenset({"batch_size", "workers", "mistakes", "jit"})
# Entries that a row must have: those that are compared and those that are shown.
_NUMBER, _MAYBE_NUMBER = (int, float), (int, float, type(None))
_KINDS: dict[str, Any] = {
    **{"model": str, "weights": (str, type(None)), "data": str, "split": str, "settings": {}},
    **dict.fromkeys(("top1", "top5", "loss", "num_examples", "images_per_second"), _NUMBER),
    **dict.fromkeys(("published_top1", "top1_difference"), _MAYBE_NUMBER),
    "preprocessing": {
        **{"image_size": (int, list), "crop_pct": _NUMBER, "crop_mode": str, "interpolation": str},
        **{"mean": list, "std": list},
    },
}
_MISSING: Any = object()
_BEYOND = 2**63
_SECONDS_TO_WAIT = 60  # for other processes that add rows


class ResultsFile:
    """Rows of results in a `.csv` or `.json` file. The file is complete after every row, and processes may share it.

    Attributes:
      rows: rows of the file when it was last read or written.

    Raises:
      OutputError: the name has another ending, or the file has other content.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Read the file, if it exists.

        Args:
          path: of the file; its folder must exist.
        """
        self.path = Path(path)
        if self.path.suffix not in (".csv", ".json"):
            raise EndingError(f"results {str(path)!r}: give a name that ends in .csv or .json")
        if not self.path.parent.is_dir():
            raise OutputError(f"results {str(path)!r}: folder {str(self.path.parent)!r} does not exist, make it")
        self.rows = self._read()

    def find(self, model: str | None, weights: str | None, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row of a model with the same settings, ignoring those that do not change scores; None if there is none.

        Args:
          model: its name; None if the weights name their model.
          weights: their source; None for the published weights.
          settings: `jeffnet.validation.validate.Settings` as a dictionary.
        """
        # JSON turns tuples into lists, as in the file.
        wanted = _decisive(json.loads(json.dumps(settings)))
        for row in self.rows:
            if model in (None, row["model"]) and row["weights"] == weights and _decisive(row["settings"]) == wanted:
                return row
        return None

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row, or replace the row of the same model, weights and settings, and write the file.

        Raises:
          OutputError: the file cannot be read or written; it is unchanged.
        """
        row = dict(json.loads(json.dumps(row)))
        with locked(self.path.with_name(f".{self.path.name}.lock"), _SECONDS_TO_WAIT):
            self.rows = self._read()  # other processes may have added rows
            before = self.find(row["model"], row["weights"], row["settings"])
            rows = [row if each is before else each for each in self.rows] if before else [*self.rows, row]
            write_file(self.path, self._format(rows))
            self.rows = rows

    def _read(self) -> list[dict[str, Any]]:
        try:
            return self._parse(read_text(self.path))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, csv.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise OutputError(f"{str(self.path)!r} has no results of jeffnet ({reason}): give another name") from error

    def _parse(self, text: str) -> list[dict[str, Any]]:
        if self.path.suffix == ".json":
            rows = parse_json(text)
        else:
            table = csv.DictReader(io.StringIO(text, newline=""), restkey="")
            rows = [{key: _value(cell) for key, cell in row.items()} for row in table]
        if not isinstance(rows, list):
            raise ValueError("it is not a list of rows")
        for number, row in enumerate(rows, 1):
            _check_row(row, f"row {number}")
            if (row["published_top1"] is None) != (row["top1_difference"] is None):
                raise ValueError(f"row {number} has one of 'published_top1' and 'top1_difference' only")
        return rows

    def _format(self, rows: Sequence[Mapping[str, Any]]) -> str:
        if self.path.suffix == ".json":
            return json.dumps(rows, indent=1) + "\n"
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), restval="null")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
        return text.getvalue()


def save_predictions(
    path: str | os.PathLike, predictions: Predictions, classes: Sequence[str], name: Callable[[int], str]
) -> None:
    r"""Write a table of predictions, with a row for every picture.

    Args:
      path: ends in `.csv` or `.parquet`.
      predictions: of the model.
      classes: names in the order of the logits.
      name: returns the name of a picture, given its number. Bytes that are not UTF-8 are written as `\xff`.

    Raises:
      OutputError: the name has another ending, the file cannot be written, or parquet lacks pyarrow.
    """
    names = np.array([utf8(name) for name in classes], dtype=object)
    columns: dict[str, list] = {
        "name": [utf8(name(index)) for index in predictions.index.tolist()],
        "index": predictions.index.tolist(),
        "label": names[predictions.label].tolist(),
        "right1": predictions.right1.tolist(),
        "right5": predictions.right5.tolist(),
        "loss": predictions.loss.tolist(),
    }
    for place in range(predictions.classes.shape[1]):
        columns[f"class{place + 1}"] = names[predictions.classes[:, place]].tolist()
        columns[f"probability{place + 1}"] = predictions.probabilities[:, place].tolist()
    write_file(path, _table(path, columns))


def check_predictions_path(path: str | os.PathLike) -> None:
    """Raises OutputError if `save_predictions` cannot write: better before a long pass than after it."""
    suffix = Path(path).suffix
    if suffix not in (".csv", ".parquet"):
        raise EndingError(f"predictions {os.fspath(path)!r}: give a name that ends in .csv or .parquet")
    if suffix == ".parquet":
        _parquet()
    if not Path(path).parent.is_dir():
        raise OutputError(f"predictions {os.fspath(path)!r}: its folder does not exist, make it")


def _table(path: str | os.PathLike, columns: Mapping[str, list]) -> bytes:
    check_predictions_path(path)
    if Path(path).suffix == ".parquet":
        pyarrow, parquet = _parquet()
        sink = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.table(dict(columns)), sink)
        return sink.getvalue().to_pybytes()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise OutputError(f"parquet needs pyarrow: {install('datasets')}, or write .csv") from None
    return pyarrow, pyarrow.parquet


def _check_row(row: Any, name: str, kinds: Mapping[str, Any] = _KINDS) -> None:
    """Raises ValueError if an entry of a row is missing or of the wrong type."""
    if not isinstance(row, dict):
        raise ValueError(f"{name} is {str(row)[:50]!r}")
    for key, kind in kinds.items():
        value = row.get(key, _MISSING)
        if isinstance(kind, dict):
            _check_row(value, f"{key!r} of {name}", kind)
        elif not isinstance(value, kind) or isinstance(value, bool) or (type(value) is int and abs(value) >= _BEYOND):
            shown = f"says {str(value)[:30]!r} as" if value is not _MISSING else "lacks"
            raise ValueError(f"{name} {shown} {key!r}")


def _cell(value: Any) -> str:
    """JSON, the inverse of `_value`; but plain text, if it is UTF-8 and cannot be mistaken for JSON."""
    if isinstance(value, str) and _value(value) == value == utf8(value):
        return value
    return json.dumps(value)


def _value(cell: Any) -> Any:
    try:
        return parse_json(cell) if isinstance(cell, str) else cell
    except ValueError:
        return cell


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _INDIFFERENT}
