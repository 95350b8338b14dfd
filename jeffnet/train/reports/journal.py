"""The metrics of a run: `metrics.jsonl`, and the same for TensorBoard and Weights & Biases.

Each line is one JSON object with `step`. JSON has no number for what is infinite or none: there it is `null` in the
file, and NaN in `rows()`.
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
from jeffnet.system.files import flush, write_file
from jeffnet.system.reading import MOST_TEXT, parse_json, read_file
from jeffnet.train.config import LogConfig
from jeffnet.train.reports.boards import Board, TensorBoard, WeightsAndBiases

METRICS_FILE = "metrics.jsonl"

_log = logging.getLogger("jeffnet.train")


class Journal:
    """Where a run writes its metrics. Close it at the end."""

    def __init__(
        self, folder: Path, log: LogConfig, config: Mapping[str, Any], after_step: int | None, writes: bool = True
    ) -> None:
        """Opens the files of a new run, or those of a run that goes on.

        Args:
          folder: of the run.
          log: where to write to, besides `metrics.jsonl`.
          config: all of the run's, for Weights & Biases.
          after_step: the step from which the run goes on: rows of later ones are taken back, since they come again.
            None for a new run, where every row is.
          writes: False keeps rows in memory alone: of several processes one writes.

        Raises:
          ConfigError: Weights & Biases is asked for, and is not installed or not logged in to.
          OutputError: a file cannot be read or written.
        """
        path = folder / METRICS_FILE
        self._rows = [] if after_step is None else [row for row in read_rows(folder) if row["step"] <= after_step]
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
                self._boards.append(TensorBoard(folder, None if after_step is None else after_step + 1))
                stack.callback(self._boards[-1].close)
            self._lines = _Lines(path)
            stack.callback(self._lines.close)
            self._opened = stack.pop_all()

    def write(self, row: Mapping[str, float]) -> None:
        """Add a row to the file, which has it when this returns, and to what else is configured.

        Args:
          row: `step` and other numbers by name; `train_`, `val_`, `ema_val_` and `averaged_val_` group them.

        Raises:
          OutputError: it cannot be written; all rows before it are in the file.
        """
        row = {name: _number(value) for name, value in row.items()}
        if self._lines is not None:
            self._lines.append(_line(row))
        self._rows.append(row)
        for board in self._boards:
            board.write(row)

    def flush(self) -> None:
        """Wait until the file's rows are on the disk; raises OutputError where they cannot be written."""
        if self._lines is not None:
            self._lines.flush()

    def rows(self) -> list[dict[str, Any]]:
        """All rows of the run, also those before it went on."""
        return list(self._rows)

    def close(self) -> None:
        """Write what waits to be written.

        Raises:
          OutputError: it cannot be.
        """
        self._opened.close()


def read_rows(folder: str | Path) -> list[dict[str, Any]]:
    """The rows in the `metrics.jsonl` of a run's folder; none where there is no such file.

    A last line that was only begun is left out, and so is, with a warning, any other that is no row.

    Raises:
      OutputError: the file cannot be read.
    """
    path = Path(folder) / METRICS_FILE
    lines = _content(path).split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        row = _parsed(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            _log.warning("line %d of %s is no row of metrics and is left out", number, path)
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
    """An int or a float of Python; NaN for what is not finite."""
    if isinstance(value, numbers.Integral):
        return int(value)
    value = float(value)
    return value if math.isfinite(value) else math.nan


def _line(row: Mapping[str, float]) -> bytes:
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(finite, allow_nan=False).encode() + b"\n"


class _Lines:
    """A file that grows by whole lines, each handed to the operating system at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
            self._size = self._file.tell()
        except OSError as error:
            raise self._not_written(error) from error

    def append(self, line: bytes) -> None:
        try:
            rest = line
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            # A full disk takes a part of a line, behind which the next one would be lost too.
            with suppress(OSError):
                self._file.truncate(self._size)
            raise self._not_written(error) from error
        self._size += len(line)

    def flush(self) -> None:
        try:
            flush(self._path)
        except OSError as error:
            raise self._not_written(error) from error

    def close(self) -> None:
        self._file.close()

    def _not_written(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {str(self._path)!r}: {error.strerror or error}")
