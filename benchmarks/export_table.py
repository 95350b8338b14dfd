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
from jeffnet.system import figures
from jeffnet.system.labels import label_points
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
ROUNDS, CALLS = 15, 10
# Threads of a runtime wait actively for a while after a call, in which the next one would run more slowly.
PAUSE = 0.1
COLOURS = {"float32": figures.BLUE, "float16": figures.GREEN, "int8": figures.RED}
AREA = 12  # of a circle in the picture, in square points for a megabyte


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
    """Milliseconds of each, by the median over the rounds, in which they take turns in any order."""
    times: list[list[float]] = [[] for _ in calls]
    order = np.random.default_rng(0)
    for _ in range(ROUNDS):
        for place in order.permutation(len(calls)):
            time.sleep(PAUSE)
            calls[place]()
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


@figures.house_style()
def draw(found: list[Row], model: str, path: Path) -> None:
    """Speed and accuracy of every file; the area of a point is the file's size."""
    figure = figures.new_figure(9, 5.5)
    axes = figure.subplots()
    places = np.array([(found[0].milliseconds / row.milliseconds, row.top1) for row in found])
    areas = AREA * np.array([row.megabytes for row in found])
    kinds = [next((kind for kind in COLOURS if row.name.startswith(kind)), "float32") for row in found]
    axes.scatter(*places.T, s=areas, color=[COLOURS[kind] for kind in kinds], alpha=0.6)
    for kind, colour in COLOURS.items():
        axes.scatter([], [], s=80, color=colour, alpha=0.6, label=kind)
    axes.set(
        xlabel="speed, one picture at a time (the fused model in JAX = 1)",
        ylabel="top-1, per cent",
        title=f"{model}, exported: the area of a circle is the size of the file",
    )
    axes.margins(0.15)
    axes.legend()
    names = [f"{row.name}, {row.megabytes:.1f} MB" for row in found]
    label_points(axes, names, places, radii=np.sqrt(areas / np.pi) * figure.dpi / 72)
    figures.save_figure(figure, path)


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
