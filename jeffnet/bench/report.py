"""Results as rows: for people, for spreadsheets, for programs."""

import csv
import io
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jeffnet
from jeffnet.bench.results import CaseResult, Measured, cost_per_million, energy_per_million
from jeffnet.bench.settings import Settings
from jeffnet.system.files import write_file
from jeffnet.system.processor import model_name
from jeffnet.text.names import listed


@dataclass(frozen=True)
class Prices:
    """Prices for the report; None for unknown.

    Attributes:
      per_hour: of the machine, in any currency.
      watts: that it takes.
    """

    per_hour: float | None = None
    watts: float | None = None


# What a table shows of a row: key, head, and how the value is printed.
_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("model", "model", "{}"),
    ("task", "task", "{}"),
    ("image_size", "pixels", "{}"),
    ("dtype", "dtype", "{}"),
    ("batch_size", "batch", "{}"),
    ("device", "device", "{}"),
    ("contender", "contender", "{}"),
    ("images_per_second", "images/s", "{:.1f}"),
    ("speed", "speed", "{:.2f}"),
    ("speed_range", "(rounds)", "{}"),
    ("latency_p50_ms", "ms", "{:.2f}"),
    ("latency_p95_ms", "ms, p95", "{:.2f}"),
    ("create_seconds", "create s", "{:.1f}"),
    ("compile_seconds", "compile s", "{:.1f}"),
    ("peak_mib", "MiB", "{:.0f}"),
    ("gmacs_per_second", "GMACs/s", "{:.1f}"),
    ("share_of_peak", "% of peak", "{:.1f}"),
    ("cost_per_million", "cost/M", "{:.3g}"),
    ("kwh_per_million", "kWh/M", "{:.3g}"),
    ("difference", "difference", "{:.0e}"),
)
# Shown once, above the table, where it is the same in all rows.
_SHARED = ("model", "task", "image_size", "dtype", "batch_size", "device")


def table_of(results: Sequence[CaseResult], prices: Prices) -> tuple[str, list[str], list[list[str]]]:
    """A line with what all rows share; the table's header and cells."""
    rows = [{**row, "speed_range": _range(row)} for row in _rows(results, prices)]
    shared = [key for key in _SHARED if len({str(row[key]) for row in rows}) == 1]
    columns = [
        column
        for column in _COLUMNS
        if column[0] not in shared and any(row.get(column[0]) not in (None, "") for row in rows)
    ]
    cells = [
        ["" if row[key] is None else form.format(100 * row[key] if key == "share_of_peak" else row[key])
         for key, _, form in columns]
        for row in rows
    ]  # fmt: skip
    line = ", ".join(_labelled(key, rows[0][key]) for key in shared) if rows else ""
    return line, [head for _, head, _ in columns], cells


def notes_of(results: Sequence[CaseResult]) -> list[str]:
    """Lines below the table: the baseline of ratios, the machine's peak, and failures."""
    notes = []
    baselines = {result.baseline for result in results if len(result.measured) > 1}
    if len(baselines) == 1:
        notes.append(f"speed: times as fast as {baselines.pop()}, median over the rounds (lowest to highest)")
    for dtype in dict.fromkeys(result.case.dtype for result in results if result.peak_macs):
        macs = [value for result in results if result.case.dtype == dtype for value in result.peak_macs]
        copied = [value for result in results if result.case.dtype == dtype for value in result.peak_bytes]
        product, copy = statistics.median(macs) / 1e9, statistics.median(copied) / 1e9
        notes.append(f"peak, {dtype}: {product:.1f} GMACs/s (matrix product), {copy:.1f} GB/s (copy)")
    return notes + _failures(results)


def _failures(results: Sequence[CaseResult]) -> list[str]:
    """A line for each reason; where it is not that of all cases, with the cases that it concerns."""
    cases = [asdict(result.case) for result in results]
    differ = [key for key in _SHARED if key in cases[0] and len({case[key] for case in cases}) > 1] if cases else []
    places: dict[str, list[str]] = {}
    for case, result in zip(cases, results, strict=True):
        where = " ".join(_labelled(key, case[key]) for key in differ if case["task"])
        for failure in result.failures:
            places.setdefault(f"{failure.contender}: {failure.reason}", []).append(where)
    return [
        reason + (f" ({listed(where, 4)})" if any(where) and len(where) < len(results) else "")
        for reason, where in places.items()
    ]


def document_of(results: Sequence[CaseResult], settings: Settings, prices: Prices) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "jeffnet": jeffnet.__version__,
        "machine": {
            "system": platform.platform(),
            "python": platform.python_version(),
            "processor": model_name(),
            "processors": len(settings.processors),
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        },
        "settings": asdict(settings),
        "prices": asdict(prices),
        "results": [
            {
                "case": asdict(result.case),
                "baseline": result.baseline,
                "peak_macs_per_second": list(result.peak_macs),
                "peak_bytes_per_second": list(result.peak_bytes),
                "measured": [
                    {**_row(result, measured, prices), "versions": measured.versions, "call_seconds": measured.rounds}
                    for measured in result.measured
                ],
                "failures": [asdict(failure) for failure in result.failures],
            }
            for result in results
        ],
    }


def device_of(results: Sequence[CaseResult], settings: Settings) -> str:
    """The device's name, for people."""
    measured = [measured for result in results for measured in result.measured]
    accelerators = dict.fromkeys(contender.device for contender in measured if contender.platform != "cpu")
    number = len(settings.processors)
    return ", ".join(accelerators) or f"{model_name()}, {number} processor{'s' * (number > 1)}"


def write_csv(path: str | os.PathLike, results: Sequence[CaseResult], prices: Prices) -> None:
    """Write all rows as a table.

    Raises:
      OutputError: it cannot be written.
    """
    rows = _rows(results, prices)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue())


def _rows(results: Sequence[CaseResult], prices: Prices) -> list[dict[str, Any]]:
    return [_row(result, measured, prices) for result in results for measured in result.measured]


def _row(result: CaseResult, measured: Measured, prices: Prices) -> dict[str, Any]:
    case, speed = result.case, result.images_per_second(measured)
    ratio, share = result.speed(measured), result.share_of_peak(measured)
    return {
        **{key: getattr(case, key) for key in ("model", "task", "image_size", "dtype", "batch_size")},
        **{key: getattr(measured, key) for key in ("contender", "platform", "device")},
        "images_per_second": speed,
        "speed": ratio.median if ratio else None,
        "speed_lowest": ratio.lowest if ratio else None,
        "speed_highest": ratio.highest if ratio else None,
        "latency_p50_ms": 1e3 * measured.latency(0.5),
        "latency_p95_ms": 1e3 * measured.latency(0.95),
        **{key: getattr(measured, key) for key in ("import_seconds", "create_seconds", "compile_seconds")},
        "peak_mib": measured.peak_bytes / 2**20,
        "parameters": case.parameters,
        "macs": case.macs,
        "gmacs_per_second": result.macs_per_second(measured) / 1e9,
        "share_of_peak": share,
        "cost_per_million": None if prices.per_hour is None else cost_per_million(speed, prices.per_hour),
        "kwh_per_million": None if prices.watts is None else energy_per_million(speed, prices.watts),
        "difference": measured.difference if math.isfinite(measured.difference) else None,
        "agrees": result.agrees(measured),
    }


def _range(row: dict[str, Any]) -> str:
    if row["speed"] is None or row["speed_lowest"] == row["speed_highest"] == 1:
        return ""
    return f"({row['speed_lowest']:.2f} to {row['speed_highest']:.2f})"


def _labelled(key: str, value: Any) -> str:
    return {"image_size": f"{value} px", "batch_size": f"batch {value}"}.get(key, str(value))
