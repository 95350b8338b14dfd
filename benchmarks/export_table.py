"""A model in every export format: size, speed beside our fused model, difference, and top-1, as a table and a picture.

python benchmarks/export_table.py tf_efficientnet_lite0 imagenette --calibrate imagenette/train --examples 1000

Every file is written by `jeffnet export`, scored by `jeffnet validate --model-file` on the same pictures (among the
classes that the data set has), and timed in its own runtime, one picture at a time, in turns with the others.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.export.run import open_exported
from jeffnet.functional import from_pretrained
from jeffnet.inference.fused import fuse
from jeffnet.system.processor import processors

# Name of the file, options of `jeffnet export`.
FILES = {
    "float32.onnx": [],
    "float16.onnx": ["--dtype", "float16"],
    "int8.onnx": ["--int8"],
    "float32.tflite": [],
    "float16.tflite": ["--dtype", "float16"],
    "int8.tflite": ["--int8"],
    "float32.stablehlo": [],
    "savedmodel": [],
}
ROUNDS, CALLS = 15, 5
COLOURS = {"float32": "tab:blue", "float16": "tab:green", "int8": "tab:orange"}


@dataclass
class Row:
    """A file, or the fused model."""

    name: str
    runtime: str
    megabytes: float
    difference: float | None
    top1: float
    milliseconds: float = 0.0


def jeffnet(*arguments: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    output = subprocess.run(
        [sys.executable, "-m", "jeffnet", *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(output.stdout.splitlines()[-1])


def measure(calls: list[Callable[[], Any]]) -> list[float]:
    """Milliseconds of each, by the median over the rounds, in which they take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for start in range(ROUNDS):
        for place in [(start + shift) % len(calls) for shift in range(len(calls))]:
            begin = time.perf_counter()
            for _ in range(CALLS):
                calls[place]()
            times[place].append((time.perf_counter() - begin) / CALLS * 1e3)
    return [statistics.median(each) for each in times]


def rows(arguments: argparse.Namespace) -> list[Row]:
    """All files, in turns with the fused model, which is the first."""
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    score = ["validate", arguments.data, "--subset", "data", "--num-examples", str(arguments.examples)]
    model, variables, card = from_pretrained(arguments.model)
    side = card.preprocessing.image_size
    fused = fuse(model, variables, batch_size=1, image_size=side)
    picture = np.random.default_rng(0).standard_normal((1, side, side, card.in_chans), np.float32)
    weights = sum(array.nbytes for array in variables["params"].values()) / 1e6
    top1 = jeffnet(*score, "--model", arguments.model)["top1"]
    found, calls = [Row("fused", "jeffnet", weights, None, top1)], [lambda: np.asarray(fused(picture))]
    for name, options in FILES.items():
        path = folder / name
        more = ["--calibrate", arguments.calibrate] if "--int8" in options else []
        report = jeffnet(
            "export", arguments.model, "--output", str(path), "--check-with", arguments.data, *options, *more
        )
        top1 = jeffnet(*score, "--model-file", str(path))["top1"]
        exported = open_exported(path, threads=len(processors()))
        found.append(Row(name, exported.runner.runtime, report["bytes"] / 1e6, report["check"]["difference"], top1))
        pixels = np.zeros((1, side, side, card.in_chans), np.uint8)
        calls.append(partial(exported.run, exported.prepare(pixels)))
    for row, milliseconds in zip(found, measure(calls), strict=True):
        row.milliseconds = milliseconds
    return found


def table(found: list[Row], examples: int) -> str:
    """As Markdown."""
    fused = found[0]
    lines = [
        f"| file | runtime | MB | speed, fused = 1 | largest difference | top-1 of {examples}, % |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in found:
        difference = "" if row.difference is None else f"{row.difference:.1e}"
        speed = fused.milliseconds / row.milliseconds
        lines.append(
            f"| {row.name} | {row.runtime} | {row.megabytes:.1f} | {speed:.2f} | {difference} | {row.top1:.1f} |"
        )
    return "\n".join(lines)


def draw(found: list[Row], model: str, path: Path) -> None:
    """Speed and accuracy of every file; the area of a point is the file's size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    fused = found[0]
    for row in found:
        kind = next((name for name in COLOURS if row.name.startswith(name)), "float32")
        speed = fused.milliseconds / row.milliseconds
        axes.scatter(speed, row.top1, s=30 * row.megabytes, color=COLOURS[kind], alpha=0.45, linewidths=0)
        axes.scatter(speed, row.top1, s=8, color="black")
    placed: list[tuple[float, float]] = []
    for row in sorted(found, key=lambda row: (row.milliseconds, row.top1)):
        speed = fused.milliseconds / row.milliseconds
        # Labels of points that lie close together are moved apart.
        near = sum(abs(speed - x) < 0.25 and abs(row.top1 - y) < 0.15 for x, y in placed)
        axes.annotate(row.name, (speed, row.top1), xytext=(14, 14 - 13 * near), textcoords="offset points", fontsize=9)
        placed.append((speed, row.top1))
    for kind, colour in COLOURS.items():
        axes.scatter([], [], s=90, color=colour, alpha=0.45, linewidths=0, label=kind)
    axes.legend(loc="lower right", frameon=False)
    axes.set(
        xlabel="speed, one picture (fused model in JAX = 1)",
        ylabel="top-1, %",
        title=f"{model} exported: the area of a circle is the size of the file",
    )
    axes.margins(0.22)
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--calibrate", required=True, metavar="DATA")
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--folder", default="exported", help="where the files go")
    parser.add_argument("--picture", default="export.png")
    arguments = parser.parse_args()
    found = rows(arguments)
    print(table(found, arguments.examples))
    draw(found, arguments.model, Path(arguments.picture))


if __name__ == "__main__":
    main()
