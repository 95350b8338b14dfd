"""Files of results, from which an interrupted series of validations continues, and tables of predictions."""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jeffnet.arch.zoo import find_model, is_known, model_preprocessing, resolve_name
from jeffnet.errors import OutputError
from jeffnet.system.extras import install
from jeffnet.system.files import check_output, locked, write_file
from jeffnet.system.reading import parse_json, read_text
from jeffnet.text.names import utf8

if TYPE_CHECKING:
    from jeffnet.validation.metrics import VectorPredictions
    from jeffnet.validation.validate import Outcome

# Settings that do not change scores.
_INDIFFERENT = frozenset({"batch_size", "workers", "mistakes", "jit", "fused", "explain"})
# Entries that a row must have: those that are compared and those that are shown.
_NUMBER, _MAYBE_NUMBER = (int, float), (int, float, type(None))
_KINDS: dict[str, Any] = {
    **{"model": str, "weights": (str, type(None)), "data": str, "split": str, "settings": {}},
    **dict.fromkeys(("loss", "num_examples", "images_per_second"), _NUMBER),
    **dict.fromkeys(("top1", "top5", "published_top1", "top1_difference"), _MAYBE_NUMBER),
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
      path: of the file, which need not exist; its folder must.
      rows: rows of the file when it was last read or written.

    Raises:
      OutputError: the name has another ending, or the file has other content.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._is_json = check_output(path, (".csv", ".json")) == ".json"
        self.rows = self._read()

    def find(
        self, model: str | None, weights: str | None, settings: Mapping[str, Any], sha256: str | None = None
    ) -> dict[str, Any] | None:
        """The row of a candidate with the same settings, ignoring those that do not change scores.

        `weights` is None for the published ones, whose name a row may have, and rows of earlier versions have not. With
        a hash, which rows of exported files have, it is only a row of the same content. A row may have an earlier
        name of the model, if the model's pictures are still the same.
        """
        # JSON turns tuples into lists, as in the file.
        wanted = _decisive(json.loads(json.dumps(settings)))
        for row in self.rows:
            if sha256 not in (None, row.get("sha256")):
                continue
            same = _named(row["weights"], row["model"]) == _named(weights, model or row["model"])
            if same and _decisive(row["settings"]) == wanted and _is_of(row, model):
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
            rows = [row if other is before else other for other in self.rows] if before else [*self.rows, row]
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
        if self._is_json:
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
        if self._is_json:
            return json.dumps(rows, indent=1) + "\n"
        text = io.StringIO()
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), restval="null")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
        return text.getvalue()


def save_predictions(path: str | os.PathLike, outcome: "Outcome") -> None:
    r"""Write a table with a row for every picture. Bytes of names that are not UTF-8 are written as `\xff`.

    Args:
      path: ends in `.csv` or `.parquet`.
      outcome: of a model, with its predictions.

    Raises:
      OutputError: the name has another ending, the file cannot be written, or parquet lacks pyarrow.
    """
    from jeffnet.validation.metrics import VectorPredictions

    predictions = outcome.answers.predictions
    if isinstance(predictions, VectorPredictions):
        write_file(path, _writer(path)(_vector_columns(predictions, outcome)))
        return
    names = np.array([utf8(name) for name in outcome.classes], dtype=object)
    columns = {
        "name": [utf8(outcome.name(index)) for index in predictions.index.tolist()],
        "index": predictions.index.tolist(),
        "label": names[predictions.label].tolist(),
        "right1": predictions.right1.tolist(),
        "right5": predictions.right5.tolist(),
        "loss": predictions.loss.tolist(),
    }
    for place in range(predictions.classes.shape[1]):
        columns[f"class{place + 1}"] = names[predictions.classes[:, place]].tolist()
        columns[f"probability{place + 1}"] = predictions.probabilities[:, place].tolist()
    write_file(path, _writer(path)(columns))


def _vector_columns(predictions: "VectorPredictions", outcome: "Outcome") -> dict[str, list]:
    """Label and probability of every class, or number and what is predicted of it."""
    columns = {"name": [utf8(outcome.name(index)) for index in predictions.index.tolist()]}
    columns |= {"index": predictions.index.tolist(), "loss": predictions.loss.tolist()}
    is_numbers = outcome.row["mae"] is not None
    values = predictions.outputs if is_numbers else predictions.probabilities
    for place, name in enumerate(map(utf8, outcome.classes)):
        columns[f"label {name}"] = predictions.label[:, place].tolist()
        columns[f"{'prediction' if is_numbers else 'probability'} {name}"] = values[:, place].tolist()
    return columns


def check_predictions_path(path: str | os.PathLike) -> None:
    """Raises OutputError if `save_predictions` cannot write: better before a long pass than after it."""
    _writer(path)


def _writer(path: str | os.PathLike) -> Callable[[dict[str, list]], str | bytes]:
    """The function that makes a file's content of columns."""
    if check_output(path, (".csv", ".parquet")) == ".csv":
        return _csv
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise OutputError(f"parquet needs pyarrow: {install('datasets')}, or write .csv") from None

    def parquet(columns: dict[str, list]) -> bytes:
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.table(columns), sink)
        return sink.getvalue().to_pybytes()

    return parquet


def _csv(columns: dict[str, list]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


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


def _named(weights: str | None, model: str) -> str | None:
    """The source of weights; of the published ones of a model, None, their name with its tag."""
    return find_model(model).timm if weights is None and is_known(model) else weights


def _is_of(row: Mapping[str, Any], model: str | None) -> bool:
    """Whether a row is of a model; None for that of the weights."""
    if model in (None, row["model"]):
        return True
    if not is_known(row["model"]) or resolve_name(row["model"]) != model:
        return False
    settings, pictures = row["settings"], json.loads(json.dumps(vars(model_preprocessing(model))))
    chosen = {"image_size": "size"}
    return all(
        value == pictures[entry]
        for entry, value in row["preprocessing"].items()
        if entry in pictures and settings.get(chosen.get(entry, entry)) is None
    )


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _INDIFFERENT}
