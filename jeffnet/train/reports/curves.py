"""Learning curves and schedules as pictures."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.system import figures
from jeffnet.text.names import printable
from jeffnet.train.config import Config
from jeffnet.train.range_test import RangeTest
from jeffnet.train.reports.scores import Rows
from jeffnet.train.schedule import Schedule
from jeffnet.validation.metrics import METRICS

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
        (f"train_{metric}", "training", figures.BLUE),
        (f"train_epoch_{metric}", "training, mean of the epoch", figures.BLUE),
        (f"val_{metric}", "validation", figures.RED),
        (f"ema_val_{metric}", "validation, moving average", figures.GREEN),
        (f"averaged_val_{metric}", "validation, average of the best", figures.PURPLE),
    )


_RATE = "learning_rate"
_PANELS = (
    _Panel("loss", _scores("loss"), cuts=True),
    _Panel("learning rate", ((_RATE, "", figures.BLUE),), from_zero=True),
    _Panel("speed", (("images_per_second", "", figures.BLUE),), "images per second", from_zero=True),
)
_SEED_PANELS = (
    _Panel("training loss", (("train_loss", "", ""),), cuts=True),
    _Panel("validation loss", (("val_loss", "", ""),), cuts=True),
)
# By how a metric's name begins, the first that fits: a single step is noise, behind the means of epochs.
_LOOKS: dict[str, dict[str, Any]] = {
    "train_epoch_": {"marker": "o"},
    "train_": {"lw": 0.9, "alpha": 0.5},
    "val_": {"marker": "s"},
    "ema_val_": {"marker": "^"},
    "averaged_val_": {"marker": "D"},
}


@dataclass(frozen=True)
class Course:
    """The learning rate over a whole run.

    Attributes:
      schedule: of `make_schedule`.
      steps: of the run.
      steps_per_epoch: length of an epoch.
    """

    schedule: Schedule
    steps: int
    steps_per_epoch: int

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of steps taken, and the rate of the step that follows each."""
        # More points than the picture has columns would not be visible.
        shown = np.unique(np.linspace(0, self.steps - 1, min(self.steps, 4000)).round().astype(np.int32))
        return shown, np.asarray(self.schedule(shown))


def training_conditions(config: Config) -> str:
    """Why the loss in training cannot be compared with the one in validation, for a legend."""
    loss, augment = config.loss, config.augment
    parts = (
        ("augmented pictures", True),
        ("mixed in pairs", augment.mixes),
        ("smoothed labels", loss.label_smoothing > 0),
        ("binary cross entropy", loss.name == "bce"),
        (f"{loss.name} loss", loss.name in ("focal", "asymmetric", "l1", "huber")),
        ("Jensen-Shannon divergence", loss.name == "jsd"),
        ("a teacher's answers", loss.teacher is not None),
    )
    return "training: " + ", ".join(part for part, applies in parts if applies)


@figures.house_style()
def draw_curves(rows: Rows, path: Path, title: str, course: Course, conditions: str, metric: str = "top1") -> None:
    """Loss, a score, learning rate and speed of a run, as a PNG. None and NaN in rows leave gaps.

    Args:
      rows: of `metrics.jsonl`.
      path: of the picture.
      title: of the picture.
      course: of the learning rate, drawn to the end of the run; a paler line is still to come.
      conditions: of `training_conditions`.
      metric: the score, one of `jeffnet.validation.metrics.METRICS`.
    """
    figure = _figure(title)
    loss, *others = _PANELS
    panels = (loss, _score_panel(METRICS[metric].title, _scores(metric), metric), *others)
    for axes, panel in zip(figure.subplots(2, 2).reshape(-1), panels, strict=True):
        drawn = []
        for name, label, colour in panel.curves:
            x, y = _curve(rows, name)
            if name == _RATE and len(x):
                x, y = _taken(rows, course, _abscissa(rows))
                (planned,) = axes.plot(*_planned(course, _abscissa(rows)), color=colour, alpha=0.35)
                drawn.append(planned.get_ydata())
            if len(x):
                axes.plot(*_thinned(x, y), label=label, color=colour, **_look(name, len(x)))
                drawn.append(y)
        _finish(axes, panel, rows, drawn)
        if panel.title == METRICS[metric].title:
            axes.set_title(panel.title + _best(rows, metric))
    _legend(figure, conditions)
    figures.save_figure(figure, path)


@figures.house_style()
def draw_seeds(runs: Mapping[str, Rows], path: Path, title: str, score: str = "top1") -> None:
    """Loss and a score of runs with different seeds, and their mean, as a PNG.

    Args:
      runs: the rows of `metrics.jsonl` of each, by name.
      path: of the picture.
      title: of the picture.
      score: one of `jeffnet.validation.metrics.METRICS`.
    """
    figure, every = _figure(title), [row for rows in runs.values() for row in rows]
    scores = (
        (f"validation {METRICS[score].title}", "val"),
        (f"validation {METRICS[score].title}, moving average", "ema_val"),
    )
    panels = (*_SEED_PANELS, *(_score_panel(name, ((f"{prefix}_{score}", "", ""),), score) for name, prefix in scores))
    for axes, panel in zip(figure.subplots(2, 2).reshape(-1), panels, strict=True):
        metric = panel.curves[0][0]
        curves = {run: _curve(rows, metric) for run, rows in runs.items()}
        curves = {run: curve for run, curve in curves.items() if len(curve[0])}
        named = len(curves) <= _NAMED
        for number, (run, (x, y)) in enumerate(curves.items()):
            shown: dict[str, Any] = {"label": printable(run), "color": f"C{number}"} if named else {"color": "silver"}
            axes.plot(*_thinned(x, y), **(_look(metric, len(x)) | {"lw": 0.9} | shown))
        if len(curves) > 1:
            axes.plot(*_thinned(*_mean(list(curves.values()))), label="mean", color="black", lw=1.8)
        values = [y for _, y in curves.values()]
        _finish(axes, panel, every, values)
        if metric.endswith(score):
            axes.set_title(panel.title + _spread(values, score))
    _legend(figure)
    figures.save_figure(figure, path)


@figures.house_style()
def draw_schedule(course: Course, path: str | os.PathLike, title: str = "Learning rate") -> None:
    """The learning rate over a run, in epochs and steps, as a figure.

    Args:
      course: of the run.
      path: of the picture, in a folder that exists; its ending selects the format.
      title: of the picture.
    """
    figure, length = figures.new_figure(8, 4), course.steps_per_epoch
    axes = figure.subplots()
    axes.plot(*_planned(course, "epoch"))
    axes.set(title=printable(title), xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    axes.set_xlim(0, course.steps / length)
    figures.whole_ticks(axes.xaxis)
    to_steps: Any = (lambda epochs: epochs * length, lambda steps: steps / length)
    above = axes.secondary_xaxis("top", functions=to_steps)
    above.set_xlabel("step")
    figures.whole_ticks(above.xaxis)
    figures.save_figure(figure, path)


def _score_panel(title: str, curves: tuple[tuple[str, str, str], ...], metric: str) -> _Panel:
    return _Panel(title, curves, "per cent" if METRICS[metric].unit else "")


@figures.house_style()
def draw_range_test(found: RangeTest, path: str | os.PathLike, title: str) -> None:
    """Losses over learning rates, and the suggestion, as a figure.

    Args:
      found: of `find_learning_rate`.
      path: of the picture, in a folder that exists; its ending selects the format.
      title: of the picture.
    """
    figure = figures.new_figure(8, 4.5)
    axes = figure.subplots()
    finite = np.isfinite(found.losses)
    axes.plot(found.rates[finite], found.losses[finite], ".", color=figures.SKY, label="a step")
    axes.plot(found.rates, found.smoothed, color=figures.BLUE, label="averaged over neighbours")
    for rate, name, colour in (
        (found.steepest, "falls fastest", figures.RED),
        (found.lowest, "lowest", figures.GRAY),
    ):
        if rate is not None:
            axes.axvline(rate, color=colour, ls="--", label=f"{name}: {rate:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title=printable(title))
    figures.plain_log_ticks(axes.xaxis)
    if len(shown := _finite(found.smoothed)):
        room = 0.15 * (shown[0] - shown.min()) + 0.05 * shown[0]
        axes.set_ylim(shown.min() - room, max(shown[0], shown[: int(shown.argmin()) + 1].max()) + 3 * room)
    axes.legend()
    figures.save_figure(figure, path)


def _planned(course: Course, abscissa: str) -> tuple[np.ndarray, np.ndarray]:
    steps, rates = course.points()
    return _places(steps, course, abscissa), rates


def _taken(rows: Rows, course: Course, abscissa: str) -> tuple[np.ndarray, np.ndarray]:
    """The rates of the steps so far: the schedule's, from the first step on, unless others were logged.

    They were where a run was resumed with another schedule.
    """
    logged = [(row["step"] - 1, row[_RATE]) for row in rows if row.get(_RATE) is not None]
    taken, rates = np.array(logged, np.float64).T
    expected = np.asarray(course.schedule(taken.astype(np.int32)))
    if not np.allclose(expected, rates, rtol=1e-4, atol=1e-12, equal_nan=True):
        return _places(taken, course, abscissa), rates
    steps, planned = course.points()
    done = steps <= taken[-1]
    return _places(steps[done], course, abscissa), planned[done]


def _places(steps: np.ndarray, course: Course, abscissa: str) -> np.ndarray:
    return steps / course.steps_per_epoch if abscissa == "epoch" else steps


def _figure(title: str) -> Any:
    figure = figures.new_figure(12, 7.5)
    figure.suptitle(printable(title))
    return figure


def _legend(figure: Any, title: str | None = None) -> None:
    """One for all panels, below them, where it covers no curve."""
    entries = {}
    for axes in figure.axes:
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, line)
    entries.pop("", None)
    if entries:
        figure.legend(entries.values(), entries.keys(), title=title, loc="outside lower center", ncols=len(entries))


def _finish(axes: Any, panel: _Panel, rows: Rows, drawn: Sequence[np.ndarray]) -> None:
    """Set title, labels and limits of the axes."""
    axes.set_title(panel.title)
    if not drawn:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center", color=figures.GRAY)
        axes.set(xticks=[], yticks=[])
        return
    axes.set(xlabel=_abscissa(rows), ylabel=panel.unit)
    axes.set_xlim(0, 1.01 * math.ceil(max(axes.dataLim.x1, 1)))  # markers at the end are whole
    figures.whole_ticks(axes.xaxis)
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


def _look(name: str, count: int) -> dict[str, Any]:
    look = {"markersize": 4} | next((look for begin, look in _LOOKS.items() if name.startswith(begin)), {})
    if count == 1:
        return {"marker": "o"} | look
    return look if count <= _MARKED else look | {"marker": ""}


def _best(rows: Rows, metric: str) -> str:
    named = ((f"val_{metric}", "best"), (f"ema_val_{metric}", "moving average"))
    scores = [(label, _finite(_curve(rows, name)[1])) for name, label in named]
    best = max if METRICS[metric].rises else min
    shown = ", ".join(f"{label} {METRICS[metric].text(best(values))}" for label, values in scores if len(values))
    return f": {shown}" if shown else ""


def _spread(values: Sequence[np.ndarray], metric: str) -> str:
    extreme = max if METRICS[metric].rises else min
    best, digits = [extreme(_finite(y)) for y in values], METRICS[metric].digits
    if len(best) < 2:
        return ""
    return f": best {np.mean(best):.{digits}f} ± {METRICS[metric].text(float(np.std(best, ddof=1)))}"


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]
