"""Plots accuracy against throughput."""

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jeffnet.arch.zoo import MODELS
from jeffnet.backends import BACKENDS
from jeffnet.bench.results import CaseResult, Measured
from jeffnet.system.figures import plain_text, save_figure
from jeffnet.text.names import printable

# Families by what their names match, the first that does, and their colours.
_FAMILIES = (
    (r"efficientnet_lite", "EfficientNet-Lite", "tab:olive"),
    (r"efficientnet_e[sml]", "EfficientNet-EdgeTPU", "tab:brown"),
    (r"efficientnetv2", "EfficientNetV2", "tab:purple"),
    (r"efficientnet", "EfficientNet", "tab:blue"),
    (r"mobilenetv[12]", "MobileNetV1 and V2", "tab:orange"),
    (r"mobilenetv3", "MobileNetV3", "tab:red"),
    (r"mobilenetv4", "MobileNetV4", "tab:pink"),
    (r"mixnet", "MixNet", "tab:green"),
    (r"tinynet|lcnet", "TinyNet, LCNet", "tab:cyan"),
    (r"", "MNASNet, FBNet, HardCoRe-NAS and others", "tab:gray"),
)
# More models than these have short labels, and more room.
_FEW = 12
_SHORT = (("efficientnet_", ""), ("mobilenet", "mn"), ("minimal", "min"))
_GAP = 2  # pixels between labels
# Pixels between a point and its label, tried one after the other; from the third on a line joins the two.
_DISTANCES = (5, 9, 20, 32, 46, 62, 80)
# To the right and up. The line of the best runs from the upper left to the lower right: first away from it.
_DIRECTIONS = ((1, 1), (1, 0), (-1, -1), (-1, 0), (0, 1), (0, -1), (1, -1), (-1, 1))


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


@plain_text()
def draw(points: Sequence[Point], path: str | os.PathLike, title: str, machine: str) -> None:
    """Plot published top-1 against throughput on a machine, for at least one point; a line joins the Pareto front.

    Raises:
      OutputError: the picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    few = len(points) <= _FEW
    figure = Figure(figsize=(10, 6.5) if few else (16, 11), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    front = pareto(points)
    axes.plot(*_coordinates(front).T, color="black", lw=1, alpha=0.5, zorder=1, label="best trade-off")
    for pattern, family, colour in _FAMILIES:
        members = [point for point in points if _family(point.model)[0] == pattern]
        if members:
            axes.scatter(*_coordinates(members).T, s=36, color=colour, label=family, zorder=2)
    _scale(axes, points)
    axes.set_title(printable(title))
    axes.set(xlabel=f"images per second on {printable(machine)}", ylabel="published top-1 on ImageNet-1k, %")
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize="small", loc="best")
    canvas.draw()  # only now it is known where everything is
    _label(axes, canvas.get_renderer(), sorted(points, key=lambda point: point not in front), few)
    save_figure(figure, path, dpi=100)


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
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label(axes: Any, renderer: Any, points: Sequence[Point], few: bool) -> None:
    """Write names beside their points, clear of other names and points; skips those without room."""
    from matplotlib.transforms import Bbox

    size = 9 if few else 7.5
    places = axes.transData.transform(_coordinates(points))
    markers = [Bbox([place - 4, place + 4]) for place in places]
    taken = [*markers, axes.get_legend().get_window_extent(renderer)]
    room = axes.get_window_extent(renderer)
    for point, place, marker in zip(points, places, markers, strict=True):
        name = point.model if few else _short(point.model)
        text = axes.annotate(
            name, place, xycoords="figure pixels", fontsize=size, color=_family(point.model)[1], va="bottom", ha="left"
        )
        extent = text.get_window_extent(renderer)
        others = [box for box in taken if box is not marker]
        for distance, direction in itertools.product(_DISTANCES, np.array(_DIRECTIONS)):
            corner = place + distance * direction + (direction - 1) / 2 * extent.size
            box = Bbox([corner, corner + extent.size])
            if room.contains(*box.p0) and room.contains(*box.p1) and not box.padded(_GAP).count_overlaps(others):
                text.set_position(corner)
                taken.append(box)
                if distance >= _DISTANCES[2]:
                    _join(axes, place, box)
                break
        else:
            text.remove()


def _join(axes: Any, place: np.ndarray, box: Any) -> None:
    nearest = np.clip(place, box.p0, box.p1)
    x, y = axes.transData.inverted().transform([place, nearest]).T
    axes.plot(x, y, color="black", lw=0.4, alpha=0.5, zorder=1)


def _coordinates(points: Sequence[Point]) -> np.ndarray:
    return np.array([(point.images_per_second, point.top1) for point in points], np.float64).reshape(-1, 2)


def _family(model: str) -> tuple[str, str]:
    return next((pattern, colour) for pattern, _, colour in _FAMILIES if re.search(pattern, model))


def _short(model: str) -> str:
    for long, short in _SHORT:
        model = model.replace(long, short)
    return model
