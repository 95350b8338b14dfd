"""The metrics of a run: `metrics.jsonl`, and the same for TensorBoard and Weights & Biases.

Each line is a JSON object with `step` and other numbers. JSON has no infinity and no NaN: both are `null` in the file,
and NaN in `rows()`.
"""

import json
import logging
import math
import numbers
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from jeffnet.errors import OutputError
from jeffnet.system.files import flush, write_file, writing
from jeffnet.system.reading import MOST_TEXT, parse_json, read_file
from jeffnet.train.config import LogConfig
from jeffnet.train.reports.boards import Board, TensorBoard, WeightsAndBiases

METRICS_FILE = "metrics.jsonl"

_log = logging.getLogger("jeffnet.train")


class Journal:
    """Where a run writes its metrics. Close it at the end."""

    def __init__(
        self, folder: Path, log: LogConfig, config: Mapping[str, Any], after_step: int, writes: bool = True
    ) -> None:
        """Opens the files of a new or a resumed run.

        Args:
          folder: of the run.
          log: outputs besides `metrics.jsonl`.
          config: of the run, for Weights & Biases.
          after_step: how many steps were taken: rows of later ones, which are taken again, are dropped.
          writes: write files; of several processes one does, the others keep rows in memory only.
        """
        path = folder / METRICS_FILE
        self._rows = [row for row in read_rows(folder) if row["step"] <= after_step]
        self._boards: list[Board] = []
        self._lines, self._opened = None, ExitStack()
        if not writes:
            return
        content = b"".join(map(_line, self._rows))
        if _content(path) != content:
            write_file(path, content)
        with ExitStack() as stack:
            if log.wandb_project is not None:
                self._boards.append(WeightsAndBiases(folder, log.wandb_project, config))
                stack.callback(self._boards[-1].close)
            if log.tensorboard:
                self._boards.append(TensorBoard(folder, after_step + 1))
                stack.callback(self._boards[-1].close)
            self._lines = _Lines(path)
            stack.callback(self._lines.close)
            self._opened = stack.pop_all()

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row, `step` and other numbers by name, to the file at once, and to the other outputs.

        Raises OutputError where it cannot be written; the file has all rows before it.
        """
        row = {name: _number(value) for name, value in row.items()}
        if self._lines is not None:
            self._lines.append(_line(row))
        self._rows.append(row)
        for board in self._boards:
            board.write(row)

    def flush(self) -> None:
        """Flush the file to the disk, or raise OutputError."""
        if self._lines is not None:
            self._lines.flush()

    def rows(self) -> list[dict[str, Any]]:
        """All rows of the run, also those before it was resumed."""
        return list(self._rows)

    def close(self) -> None:
        """Write the rest, or raise OutputError, and close the files."""
        self._opened.close()


def read_rows(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` in a run's folder; none if there is no such file.

    An unfinished last line is skipped, and so is, with a warning, any other line that is not a row. Raises
    OutputError where the file cannot be read.
    """
    path = Path(folder) / METRICS_FILE
    lines = _content(path).split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        row = _parsed(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            _log.warning("line %d of %s is not a row of metrics and is skipped", number, path)
    return rows


def _content(path: Path) -> bytes:
    try:
        return read_file(path, MOST_TEXT)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise OutputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    row = {name: math.nan if value is None else value for name, value in row.items()}
    is_row = all(isinstance(value, float) or (type(value) is int and abs(value) < 2**63) for value in row.values())
    return row if is_row else None


def _number(value: float) -> float:
    """A Python int or float; NaN for numbers that are not finite."""
    if isinstance(value, numbers.Integral):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else math.nan


def _line(row: Mapping[str, float]) -> bytes:
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(finite, allow_nan=False).encode() + b"\n"


class _Lines:
    """A file that grows by whole lines, unbuffered."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
            self._size = self._file.tell()

    def append(self, line: bytes) -> None:
        with writing(self._path):
            try:
                rest = line
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                # A full disk takes a part of a line, to which the next line would be appended.
                with suppress(OSError):
                    self._file.truncate(self._size)
                raise
        self._size += len(line)

    def flush(self) -> None:
        with writing(self._path):
            flush(self._path)

    def close(self) -> None:
        self._file.close()
