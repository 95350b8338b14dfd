"""Rows of `benchmarks/accelerator.py`: what is to be measured, what was, and the table and JSON that say so."""

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jeffnet.errors import JeffnetError
from jeffnet.system.files import write_file
from jeffnet.system.processor import model_name
from jeffnet.system.versions import version, versions

OUT_OF_TIME = "not measured: out of time"
MEASURED = "measured"

# Bytes a second of the memory, and dense FLOPs a second in bfloat16 and in TF32, which convolutions in float32 are
# computed in: NVIDIA's data sheets (of GeForce cards: the architectures' white papers), by the names that JAX gives.
PEAKS = {
    "NVIDIA A10": (600e9, 125e12, 62.5e12),
    "NVIDIA A100-PCIE-40GB": (1555e9, 312e12, 156e12),
    "NVIDIA A100-SXM4-40GB": (1555e9, 312e12, 156e12),
    "NVIDIA A100 80GB PCIe": (1935e9, 312e12, 156e12),
    "NVIDIA A100-SXM4-80GB": (2039e9, 312e12, 156e12),
    "NVIDIA B200": (8000e9, 2250e12, 1125e12),
    "NVIDIA GeForce RTX 4090": (1008e9, 165e12, 82.6e12),
    "NVIDIA GeForce RTX 5090": (1792e9, 209.5e12, 104.8e12),
    "NVIDIA H100 80GB HBM3": (3350e9, 989e12, 494e12),
    "NVIDIA H100 NVL": (3938e9, 835e12, 417e12),
    "NVIDIA H100 PCIe": (2000e9, 756e12, 378e12),
    "NVIDIA H200": (4800e9, 989e12, 494e12),
    "NVIDIA H200 NVL": (4800e9, 835e12, 417e12),
    "NVIDIA L4": (300e9, 121e12, 60e12),
    "NVIDIA L40S": (864e9, 362e12, 183e12),
}
_PEAK_OF_DTYPE = {"bfloat16": 1, "float32": 2}
_CLOCKS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "memory.total", "persistence_mode")


@dataclass
class Row:
    """One measurement, of a model or of a layer.

    Attributes:
      kind: 'model' or 'layer'.
      what: name of the model or of the layer.
      image_size: pixels along each side of the model's images.
      task: 'inference' or 'training'; layers infer.
      by: the contender, see `jeffnet.bench.contenders`, or the layer's form.
      environment: what the process gets beside the usual variables.
      bytes: that a call reads and writes at least.
      macs: multiply-accumulates of a call.
      count: how often the model has the layer.
      outcome: `MEASURED`, `OUT_OF_TIME`, or why there is no result.
      seconds: of a call, the median; the fields after it are None where they were not measured, too.
      compile_seconds: from the weights' file to the end of the first call.
      peak_bytes: of the device's memory.
      difference: from the first row of the case: of logits, as a share of the largest; in training, of the losses.
    """

    kind: str
    what: str
    image_size: int
    task: str
    dtype: str
    batch_size: int
    by: str
    environment: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    macs: int = 0
    count: int = 1
    outcome: str = OUT_OF_TIME
    seconds: float | None = None
    compile_seconds: float | None = None
    peak_bytes: int | None = None
    difference: float | None = None

    @property
    def case(self) -> tuple[Any, ...]:
        """What is compared within: rows of one case do the same."""
        return self.kind, self.what, self.image_size, self.task, self.dtype, self.batch_size

    @property
    def key(self) -> tuple[Any, ...]:
        """Differs from row to row."""
        return *self.case, self.label

    @property
    def label(self) -> str:
        """By what it is measured: the contender or form, and its environment."""
        return " ".join([self.by, *(f"{name}={value}" for name, value in self.environment.items())])


def header(found: Mapping[str, Any], peaks: Mapping[str, Any]) -> dict[str, Any]:
    """The machine: what figures depend on.

    Args:
      found: the `device`, its `platform` and the versions of `cuda`, as `jeffnet.bench.machine` gives them.
      peaks: what it measured, by dtype.
    """
    device = found["device"]
    return {
        **{name: found[name] for name in ("device", "platform", "cuda")},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": model_name(),
        "system": platform.platform(),
        "versions": versions() | {name: version(name) for name in ("torch", "timm", "triton")},
        "nvidia_smi": _clocks(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "JEFFNET_CONV": os.environ.get("JEFFNET_CONV", ""),
        "data_sheet": dict(zip(("bytes", "bfloat16", "float32"), PEAKS[device], strict=True))
        if device in PEAKS
        else None,
        "measured_peaks": dict(peaks),
    }


def _clocks() -> dict[str, str] | None:
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    command = ["nvidia-smi", f"--query-gpu={','.join(_CLOCKS)}", "--format=csv,noheader", f"--id={device}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return dict(zip(_CLOCKS, map(str.strip, done.stdout.strip().split(",")), strict=True))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def entries(rows: Sequence[Row], device: str) -> list[dict[str, Any]]:
    """All rows for JSON, with figures that follow from the measurements; None for those that are not known."""
    first: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        first.setdefault(row.case, row)
    return [{**asdict(row), **_figures(row, first[row.case], device)} for row in rows]


def _figures(row: Row, baseline: Row, device: str) -> dict[str, float | None]:
    names = "images_per_second", "speed", "gigabytes_per_second", "teraflops_per_second", "share_of_bound"
    if row.seconds is None:
        return dict.fromkeys(names)
    share = None
    if device in PEAKS and row.dtype in _PEAK_OF_DTYPE:
        bandwidth, flops = PEAKS[device][0], PEAKS[device][_PEAK_OF_DTYPE[row.dtype]]
        share = max(row.bytes / bandwidth, 2 * row.macs / flops) / row.seconds
    speed = baseline.seconds / row.seconds if baseline.seconds is not None else None
    rates = row.bytes / row.seconds / 1e9, 2 * row.macs / row.seconds / 1e12
    return dict(zip(names, (row.batch_size / row.seconds, speed, *rates, share), strict=True))


def write(folder: Path, head: Mapping[str, Any], settings: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write `accelerator.json` and `accelerator.md`, each at once; raises OutputError."""
    found = entries(rows, head["device"])
    text = json.dumps({"header": head, "settings": settings, "rows": found}, indent=1, allow_nan=False)
    write_file(folder / "accelerator.json", text + "\n")
    write_file(folder / "accelerator.md", markdown(head, found))


def take_over(rows: Sequence[Row], path: Path, head: Mapping[str, Any]) -> None:
    """Give rows the outcome that they have in an earlier file of the same device and versions.

    Raises:
      JeffnetError: it is of others, or no file of results.
    """
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        known = [Row(**{each.name: entry[each.name] for each in fields(Row)}) for entry in earlier["rows"]]
        before = {name: earlier["header"][name] for name in ("device", "versions")}
    except (OSError, ValueError, KeyError, TypeError):
        raise JeffnetError(f"{path} cannot be continued: give an accelerator.json that this program wrote") from None
    if before != {name: head[name] for name in before}:
        raise JeffnetError(f"{path} is of another device or other versions: measure anew, without --continue")
    outcomes = {row.key: row for row in known if row.outcome != OUT_OF_TIME}
    for row in rows:
        if row.key in outcomes:
            vars(row).update(vars(outcomes[row.key]))


_COLUMNS = (
    "what", "px", "task", "dtype", "batch", "by", "ms", "images/s", "speed", "GB/s", "TFLOP/s", "% of bound", "MiB",
    "compile s", "difference", "note",
)  # fmt: skip


def markdown(head: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    """The table, below what all rows share."""
    lines = [f"# {head['device']}, {head['date']}", "", *(f"- {line}" for line in _header_lines(head))]
    lines += ["", "| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    lines += ["| " + " | ".join(_cells(entry)) + " |" for entry in found]
    done = sum(entry["outcome"] == MEASURED for entry in found)
    return "\n".join([*lines, "", f"{done} of {len(found)} rows are measured.", ""])


def _header_lines(head: Mapping[str, Any]) -> list[str]:
    def listed(values: Mapping[str, Any]) -> str:
        return ", ".join(f"{name} {value or 'not found'}" for name, value in values.items())

    lines = [f"versions: {listed(head['versions'])}"]
    if head["platform"] != "gpu":
        lines.append(f"no GPU was found: this is the {head['platform']}, {head['processor']}")
    for name in ("cuda", "nvidia_smi"):
        if head[name]:
            lines.append(f"{name.replace('_', '-')}: {listed(head[name])}")
    for name in ("XLA_FLAGS", "JEFFNET_CONV"):
        if head[name]:
            lines.append(f"{name}: `{head[name]}`")
    if sheet := head["data_sheet"]:
        flops = ", ".join(f"{sheet[dtype] / 1e12:.0f} TFLOP/s in {dtype}" for dtype in _PEAK_OF_DTYPE) + " (TF32)"
        lines.append(f"data sheet, which bounds are from: {sheet['bytes'] / 1e9:.0f} GB/s, {flops}")
    elif head["platform"] == "gpu":
        lines.append("no share of a bound: this device's peaks are not in `PEAKS` of benchmarks/accelerator_report.py")
    for dtype, peak in head["measured_peaks"].items():
        product, copy = _number(2 * peak["macs_per_second"], 1e-12), _number(peak["bytes_per_second"], 1e-9)
        lines.append(f"measured, {dtype}: {product} TFLOP/s (matrix product), {copy} GB/s (copy)")
    return lines


def _cells(entry: Mapping[str, Any]) -> list[str]:
    layer = entry["kind"] == "layer"
    name = f"{entry['what']} (x{entry['count']})" if layer else entry["what"]
    label = " ".join([entry["by"], *(f"`{name}={value}`" for name, value in entry["environment"].items())])
    numbers = (
        _number(entry["seconds"], 1e3),
        "" if layer else _number(entry["images_per_second"]),
        _number(entry["speed"]),
        _number(entry["gigabytes_per_second"]),
        _number(entry["teraflops_per_second"]),
        _number(entry["share_of_bound"], 100),
        _number(entry["peak_bytes"], 1 / 2**20),
        _number(entry["compile_seconds"]),
        _number(entry["difference"]),
    )
    case = name, str(entry["image_size"]), entry["task"], entry["dtype"], str(entry["batch_size"]), label
    note = "" if entry["outcome"] == MEASURED else entry["outcome"].replace("|", "\\|")
    return [*case, *numbers, note]


def _number(value: float | None, factor: float = 1.0) -> str:
    """Three digits, without an exponent from 0.001 on."""
    if value is None:
        return ""
    value *= factor
    if value and abs(value) < 1e-3:
        return f"{value:.2e}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, digits)}f}"
