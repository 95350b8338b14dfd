"""Learning curves and schedules as pictures."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.system.figures import plain_text, save_figure
from jeffnet.text.names import printable
from jeffnet.train.reports.scores import Rows
from jeffnet.train.schedule import Schedule

# Longer curves are averaged to this many points: single batches would fill the panel with noise.
_POINTS = 400
# Curves of fewer points have markers, without which a single point is invisible.
_MARKED = 60
# With more runs than this, the legend does not name them.
_NAMED = 8


@dataclass(frozen=True)
class _Panel:
    """A panel of a picture.

    Attributes:
      title: above the panel.
      curves: their metrics, labels and colours.
      unit: of the values.
      from_zero: begin the axis at 0.
      cuts: cut off rare values far above all others, which would flatten the rest.
    """

    title: str
    curves: tuple[tuple[str, str, str], ...]
    unit: str = ""
    from_zero: bool = False
    cuts: bool = False


def _scores(metric: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (f"train_{metric}", "training", "tab:blue"),
        (f"val_{metric}", "validation", "tab:orange"),
        (f"ema_val_{metric}", "validation, moving average", "tab:green"),
        (f"averaged_val_{metric}", "validation, average of the best", "tab:red"),
    )


_PANELS = (
    _Panel("loss", _scores("loss"), cuts=True),
    _Panel("top-1", _scores("top1"), "per cent"),
    _Panel("learning rate", (("learning_rate", "", "tab:blue"),), from_zero=True),
    _Panel("speed", (("images_per_second", "", "tab:blue"),), "images per second", from_zero=True),
)
_SEED_PANELS = (
    _Panel("training loss", (("train_loss", "", ""),), cuts=True),
    _Panel("validation loss", (("val_loss", "", ""),), cuts=True),
    _Panel("validation top-1", (("val_top1", "", ""),), "per cent"),
    _Panel("validation top-1, moving average", (("ema_val_top1", "", ""),), "per cent"),
)


@plain_text()
def draw_curves(rows: Rows, path: Path, title: str) -> None:
    """Loss, top-1, learning rate and speed of a run, as a PNG. None and NaN in rows leave gaps."""
    figure = _figure(title)
    for axes, panel in zip(figure.subplots(2, 2).reshape(-1), _PANELS, strict=True):
        drawn = []
        for name, label, colour in panel.curves:
            x, y = _curve(rows, name)
            if len(x):
                width = 1.6 if "val_" in name else 1.1
                axes.plot(*_thinned(x, y), label=label, color=colour, lw=width, **_marks(len(x), name))
                drawn.append(y)
        _finish(axes, panel, rows, drawn)
        if panel.title == "top-1":
            axes.set_title(panel.title + _best(rows))
        if len(panel.curves) > 1 and drawn:
            axes.legend(fontsize="small")
    save_figure(figure, path)


@plain_text()
def draw_seeds(runs: Mapping[str, Rows], path: Path, title: str) -> None:
    """Loss and top-1 of runs with different seeds, by name, and their mean, as a PNG."""
    figure, every = _figure(title), [row for rows in runs.values() for row in rows]
    for axes, panel in zip(figure.subplots(2, 2).reshape(-1), _SEED_PANELS, strict=True):
        metric = panel.curves[0][0]
        curves = {run: _curve(rows, metric) for run, rows in runs.items()}
        curves = {run: curve for run, curve in curves.items() if len(curve[0])}
        named = len(curves) <= _NAMED
        for number, (run, (x, y)) in enumerate(curves.items()):
            look: dict[str, Any] = {"label": printable(run), "color": f"C{number}"} if named else {"color": "silver"}
            axes.plot(*_thinned(x, y), lw=0.9, **look, **_marks(len(x), metric))
        if len(curves) > 1:
            axes.plot(*_thinned(*_mean(list(curves.values()))), label="mean", color="black", lw=1.6)
        values = [y for _, y in curves.values()]
        _finish(axes, panel, every, values)
        if metric.endswith("top1"):
            axes.set_title(panel.title + _spread(values))
        if curves:
            axes.legend(fontsize="small")
    save_figure(figure, path)


@plain_text()
def draw_schedule(
    schedule: Schedule, steps: int, steps_per_epoch: int, path: str | os.PathLike, title: str = "Learning rate"
) -> None:
    """The learning rate over a run, in epochs and steps, as a figure.

    Args:
      schedule: of `make_schedule`.
      steps: of the run.
      steps_per_epoch: length of an epoch.
      path: of the picture, in a folder that exists; its ending selects the format.
      title: of the picture.
    """
    from matplotlib.figure import Figure

    # More points than the picture has columns would not be visible.
    shown = np.unique(np.linspace(0, steps - 1, min(steps, 4000)).round().astype(np.int32))
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(shown / steps_per_epoch, np.asarray(schedule(shown)))
    axes.set(title=printable(title), xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    axes.set_xlim(0, steps / steps_per_epoch)
    to_steps: Any = (lambda epochs: epochs * steps_per_epoch, lambda steps: steps / steps_per_epoch)
    axes.secondary_xaxis("top", functions=to_steps).set_xlabel("step")
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def _figure(title: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.12, h_pad=0.08)
    figure.suptitle(printable(title))
    return figure


def _finish(axes: Any, panel: _Panel, rows: Rows, drawn: Sequence[np.ndarray]) -> None:
    """Set title, labels and limits of the axes."""
    axes.set_title(panel.title)
    if not drawn:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center", color="tab:gray")
        axes.set(xticks=[], yticks=[])
        return
    axes.set(xlabel=_abscissa(rows), ylabel=panel.unit)
    axes.grid(alpha=0.3)
    values = _finite(np.concatenate(drawn))
    highest = float(values.max())
    if panel.from_zero and highest > 0:
        axes.set_ylim(0, 1.08 * highest)
    if panel.cuts:
        low, high = np.quantile(values, [0, 0.98])
        if highest > high + 2 * (high - low) > low:
            axes.set_ylim(low - 0.05 * (high - low), high + 0.5 * (high - low))


def _abscissa(rows: Rows) -> str:
    return "epoch" if all(row.get("epoch") is not None for row in rows) else "step"


def _curve(rows: Rows, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions and values of a metric, both float64 `(N,)`; values that are not finite are NaN."""
    abscissa = _abscissa(rows)
    points = [(row[abscissa], math.nan if row[name] is None else row[name]) for row in rows if name in row]
    x, y = np.array(points, np.float64).reshape(-1, 2).T
    y = np.where(np.isfinite(y), y, np.nan)
    return (x, y) if np.isfinite(y).any() else (x[:0], y[:0])


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A long curve as means over stretches of equal length; a stretch without a number stays a gap."""
    length = -(-len(x) // _POINTS)
    if length <= 1:
        return x, y
    starts = np.arange(0, len(x) - length // 2, length)  # a short rest joins the last stretch
    known = np.isfinite(y)
    counts = np.add.reduceat(known.astype(np.float64), starts)
    sums = np.add.reduceat(np.where(known, y, 0), starts)
    means = np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)
    return np.array([part.mean() for part in np.split(x, starts[1:])]), means


def _mean(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the runs, at points that all of them have."""
    values = [dict(zip(x.tolist(), y.tolist(), strict=True)) for x, y in curves]
    x = sorted(set.intersection(*(set(points) for points in values)))
    return np.array(x), np.array([np.mean([points[place] for points in values]) for place in x])


def _marks(count: int, name: str) -> dict[str, Any]:
    marked = count == 1 or ("val_" in name and count <= _MARKED)
    return {"marker": "o", "markersize": 3.5} if marked else {}


def _best(rows: Rows) -> str:
    named = (("val_top1", "best"), ("ema_val_top1", "moving average"))
    scores = [(label, _finite(_curve(rows, name)[1])) for name, label in named]
    shown = ", ".join(f"{label} {values.max():.2f} %" for label, values in scores if len(values))
    return f": {shown}" if shown else ""


def _spread(values: Sequence[np.ndarray]) -> str:
    best = [_finite(y).max() for y in values]
    return f": best {np.mean(best):.2f} ± {np.std(best, ddof=1):.2f} %" if len(best) > 1 else ""


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]
