"""Results of validations in one file, from which an interrupted series goes on, and predictions in a table."""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.errors import OutputError
from jeffnet.evaluate import Predictions
from jeffnet.files import written_atomically

# Settings that change no score.
_INDIFFERENT = frozenset({"batch_size", "workers", "mistakes", "jit"})


class ResultsFile:
    """Rows of results in a `.csv` or `.json` file, which is whole after every row.

    Attributes:
      rows: all of the file, in its order.

    Raises:
      OutputError: another suffix, or the file has something else.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Read what is there.

        Args:
          path: of the file, which need not exist; its folder must.
        """
        self.path = Path(path)
        if self.path.suffix not in (".csv", ".json"):
            raise OutputError(f"results {str(path)!r}: give a name that ends in .csv or .json")
        if not self.path.parent.is_dir():
            raise OutputError(f"results {str(path)!r}: folder {str(self.path.parent)!r} does not exist, make it")
        self.rows: list[dict[str, Any]] = []
        try:
            if self.path.exists():
                self.rows = self._parse(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{str(path)!r} has no results of jeffnet ({error}): give another name") from error

    def find(self, model: str | None, weights: str | None, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row of a model with the same settings, but for those that change no score; None where there is none.

        Args:
          model: its name; None where the weights say it.
          weights: where they are; None for the published ones.
          settings: `jeffnet.validate.Settings` as a dictionary.
        """
        # Through JSON, as the file: tuples are lists there.
        wanted = _decisive(json.loads(json.dumps(settings)))
        for row in self.rows:
            if model in (None, row["model"]) and row["weights"] == weights and _decisive(row["settings"]) == wanted:
                return row
        return None

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row, or replace that of the same model, weights and settings, and write the file.

        Raises:
          OutputError: it cannot be written; it is then what it was.
        """
        before = self.find(row["model"], row["weights"], row["settings"])
        row = dict(json.loads(json.dumps(row)))
        rows = [row if each is before else each for each in self.rows] if before else [*self.rows, row]
        write_file(self.path, self._format(rows).encode())
        self.rows = rows

    def _parse(self, text: str) -> list[dict[str, Any]]:
        if self.path.suffix == ".json":
            rows = json.loads(text)
        else:
            rows = [{key: _value(cell) for key, cell in row.items()} for row in csv.DictReader(io.StringIO(text))]
        for row in rows:
            _ = row["model"], row["weights"], row["settings"].items()
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
    """A table of what a model answered, a row for each picture.

    Args:
      path: ends in `.csv` or `.parquet`.
      predictions: of the model.
      classes: names in the order of the logits.
      name: of a picture by its number.

    Raises:
      OutputError: another suffix, or it cannot be written; or for parquet pyarrow is not installed.
    """
    names = np.array(classes, dtype=object)
    columns: dict[str, list] = {
        "name": [name(index) for index in predictions.index.tolist()],
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
    """Raises OutputError where `save_predictions` could not write: better before a long pass than after it."""
    suffix = Path(path).suffix
    if suffix not in (".csv", ".parquet"):
        raise OutputError(f"predictions {os.fspath(path)!r}: give a name that ends in .csv or .parquet")
    if suffix == ".parquet":
        _parquet()
    if not Path(path).parent.is_dir():
        raise OutputError(f"predictions {os.fspath(path)!r}: its folder does not exist, make it")


def write_file(path: str | os.PathLike, content: bytes) -> None:
    """Write a file, of which there is never half a one; raises OutputError where it cannot be written."""
    with written_atomically(path) as partial:
        Path(partial).write_bytes(content)


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
        raise OutputError("parquet needs pyarrow: pip install 'jeffnet[datasets]', or write .csv") from None
    return pyarrow, pyarrow.parquet


def _cell(value: Any) -> str:
    """JSON, from which `_value` makes what it was; but text as it is, unless it would be taken for JSON."""
    if isinstance(value, str) and _value(value) == value:
        return value
    return json.dumps(value)


def _value(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _INDIFFERENT}
