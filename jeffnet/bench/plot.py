"""Plots accuracy against throughput."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jeffnet.arch.zoo import MODELS
from jeffnet.backends import BACKENDS
from jeffnet.bench.results import CaseResult, Measured
from jeffnet.system import figures
from jeffnet.system.labels import label_points
from jeffnet.text.names import printable

# Families by what their names match, the first that does, with their colours and shapes.
_FAMILIES = (
    (r"efficientnet_lite", "EfficientNet-Lite", figures.GREEN, "v"),
    (r"efficientnet_e[sml]", "EfficientNet-EdgeTPU", figures.BLACK, "^"),
    (r"efficientnetv2", "EfficientNetV2", figures.PURPLE, "s"),
    (r"efficientnet", "EfficientNet", figures.BLUE, "o"),
    (r"mobilenetv[12]", "MobileNetV1 and V2", figures.ORANGE, "s"),
    (r"mobilenetv3", "MobileNetV3", figures.RED, "o"),
    (r"mobilenetv4", "MobileNetV4", figures.RED, "D"),
    (r"mixnet", "MixNet", figures.GREEN, "o"),
    (r"tinynet|lcnet", "TinyNet, LCNet", figures.SKY, "o"),
    (r"", "MNASNet, FBNet, HardCoRe-NAS and others", figures.GRAY, "o"),
)
# More models than these have short labels, and more room.
_FEW = 12
_SHORT = (("efficientnet_", ""), ("mobilenet", "mn"), ("minimal", "min"))


@dataclass(frozen=True)
class Point:
    """A model in the plot; `top1` is published, in per cent."""

    model: str
    images_per_second: float
    top1: float


def points_of(results: Sequence[CaseResult]) -> list[Point]:
    """The best throughput of jeffnet itself in inference, or else training, for each model with a published score."""
    scores = {
        name: entry.weights.top1 for name, entry in MODELS.items() if entry.weights and entry.weights.top1 is not None
    }
    best: dict[str, float] = {}
    for result in _shown(results):
        model = result.case.model
        if model in scores:
            for measured in _ours(result):
                best[model] = max(result.images_per_second(measured), best.get(model, 0.0))
    return [Point(model, speed, scores[model]) for model, speed in best.items()]


def title_of(results: Sequence[CaseResult]) -> str:
    """The axis label: what a point's throughput is the best of."""
    shown = _shown(results)
    sizes = list(dict.fromkeys(result.case.image_size for result in shown))
    parts = (
        dict.fromkeys(result.case.task for result in shown),
        dict.fromkeys(measured.contender for result in shown for measured in _ours(result)),
        [f"batch {size}" for size in dict.fromkeys(result.case.batch_size for result in shown)],
        dict.fromkeys(result.case.dtype for result in shown),
        [f"{sizes[0]} px" if len(sizes) == 1 else "each at its own size"],
    )
    return "; ".join(" or ".join(part) for part in parts)


def pareto(points: Sequence[Point]) -> list[Point]:
    """Points that no other point beats in both speed and accuracy, the fastest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.images_per_second, -point.top1)):
        if not front or point.top1 > front[-1].top1:
            front.append(point)
    return front


@figures.house_style()
def draw(points: Sequence[Point], path: str | os.PathLike, title: str, machine: str) -> None:
    """Plot published top-1 against throughput on a machine, for at least one point; a line joins the Pareto front.

    Raises:
      OutputError: the picture cannot be written.
    """
    few, front = len(points) <= _FEW, pareto(points)
    figure = figures.new_figure(10, 6.5) if few else figures.new_figure(15, 10)
    axes = figure.subplots()
    axes.plot(*_coordinates(front).T, color="black", lw=1, alpha=0.5, zorder=1, label="best trade-off")
    for pattern, family, colour, shape in _FAMILIES:
        members = [point for point in points if _family(point.model) == pattern]
        if members:
            axes.scatter(*_coordinates(members).T, s=36, color=colour, marker=shape, label=family, zorder=2)
    _scale(axes, points)
    axes.set_title(printable(title))
    axes.set(xlabel=f"images per second on {printable(machine)}", ylabel="published top-1 on ImageNet-1k, %")
    axes.legend(loc="best")
    first = sorted(points, key=lambda point: point not in front)
    names = [point.model if few else _short(point.model) for point in first]
    label_points(axes, names, _coordinates(first), radii=5, size=9 if few else 8)
    figures.save_figure(figure, path)


def _shown(results: Sequence[CaseResult]) -> list[CaseResult]:
    inference = [result for result in results if result.case.task == "inference"]
    return inference or list(results)


def _ours(result: CaseResult) -> list[Measured]:
    return [measured for measured in result.measured if measured.contender in (*BACKENDS, "fused")]


def _scale(axes: Any, points: Sequence[Point]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    speeds, scores = _coordinates(points).T
    axes.set_xscale("log")
    axes.set_xlim(speeds.min() / 1.35, speeds.max() * 1.6)
    room = max(0.06 * (scores.max() - scores.min()), 0.5)
    axes.set_ylim(scores.min() - room, scores.max() + room)
    narrow = speeds.max() < 10 * speeds.min()
    axes.xaxis.set_major_locator(LogLocator(subs=range(1, 10) if narrow else (1.0, 2.0, 5.0), numticks=30))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _coordinates(points: Sequence[Point]) -> np.ndarray:
    return np.array([(point.images_per_second, point.top1) for point in points], np.float64).reshape(-1, 2)


def _family(model: str) -> str:
    return next(pattern for pattern, *_ in _FAMILIES if re.search(pattern, model))


def _short(model: str) -> str:
    for long, short in _SHORT:
        model = model.replace(long, short)
    return model
