"""Reports of models of several labels and of numbers: precision against recall, and predictions against numbers."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jeffnet.system import figures
from jeffnet.system.files import write_file
from jeffnet.text.names import utf8, wrapped
from jeffnet.validation.metrics import PrecisionRecall, VectorPredictions, precision_recall, score_numbers

# Classes whose curves can be told apart; of more, those of the lowest average precision are drawn.
_MOST_CURVES = len(figures.COLOURS)
_LEGEND_LINE = 34  # characters
_MOST_NUMBERS = 9  # panels


@figures.house_style()
def report_labels(
    folder: Path, predictions: VectorPredictions, thresholds: Sequence[float], titles: Sequence[str], title: str
) -> None:
    """Write `per_class.csv` and `precision_recall.png` into a folder.

    Args:
      folder: which exists.
      predictions: of a model of several labels, at least one.
      thresholds: of the classes.
      titles: names of the classes.
      title: of the picture.
    """
    label, probability = predictions.label > 0, predictions.probabilities
    predicted = probability > np.asarray(thresholds)
    curves = {
        number: precision_recall(label[:, number], probability[:, number])
        for number in np.flatnonzero(label.any(0)).tolist()
    }
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["class", "pictures", "average_precision", "threshold", "precision", "recall", "f1"])
    for number, name in enumerate(titles):
        right = int((label & predicted)[:, number].sum())
        counts = int(label[:, number].sum()), int(predicted[:, number].sum())
        average = f"{100 * curves[number].average_precision:.2f}" if number in curves else ""
        shares = [(right, counts[1]), (right, counts[0]), (2 * right, sum(counts))]
        cells = [f"{100 * part / whole:.2f}" if whole else "" for part, whole in shares]
        writer.writerow([utf8(name), counts[0], average, f"{thresholds[number]:.4f}", *cells])
    write_file(folder / "per_class.csv", text.getvalue())
    _draw_curves(folder / "precision_recall.png", curves, thresholds, titles, title)


def _draw_curves(
    path: Path,
    curves: dict[int, PrecisionRecall],
    thresholds: Sequence[float],
    titles: Sequence[str],
    title: str,
) -> None:
    figure = figures.new_figure(9.5, 5.5)
    figure.suptitle(title)
    axes = figure.subplots()
    ranked = sorted(curves, key=lambda number: curves[number].average_precision)
    for number, colour in zip(ranked[:_MOST_CURVES], figures.COLOURS, strict=False):
        curve = curves[number]
        recall, precision = np.append(0, curve.recall), np.append(curve.precision[0], curve.precision)
        name = f"{wrapped(titles[number], _LEGEND_LINE, 1)}: {100 * curve.average_precision:.1f} %"
        axes.plot(100 * recall, 100 * precision, color=colour, lw=1.6, label=name)
        # The last point that is still above the threshold.
        if (above := np.flatnonzero(curve.thresholds >= thresholds[number] - 1e-12)).size:
            axes.plot(100 * curve.recall[above[-1]], 100 * curve.precision[above[-1]], "o", color=colour)
    mean = 100 * np.mean([curve.average_precision for curve in curves.values()]) if curves else 0.0
    worst = f"\n({_MOST_CURVES} worst of {len(curves)} classes)" if len(curves) > _MOST_CURVES else ""
    axes.set(xlabel="recall, per cent", ylabel="precision, per cent", xlim=(0, 101), ylim=(0, 101))
    axes.set_title(f"mean average precision {mean:.1f} %; points: at the thresholds")
    if curves:
        figure.legend(title=f"average precision{worst}", loc="outside right upper")
    figures.save_figure(figure, path)


@figures.house_style()
def report_numbers(folder: Path, predictions: VectorPredictions, titles: Sequence[str], title: str) -> None:
    """Write `numbers.png` into a folder: what is predicted of every picture against what it is.

    Args:
      folder: which exists.
      predictions: of a model of numbers, at least one.
      titles: names of the numbers.
      title: of the picture.
    """
    count = min(len(titles), _MOST_NUMBERS)
    columns = min(3, count)
    rows = -(-count // columns)
    figure = figures.new_figure(4.6 * columns, 4.4 * rows + 0.5)
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for number, axes in enumerate(grid[:count]):
        part = slice(number, number + 1)
        true, found = predictions.label[:, part], predictions.outputs[:, part]
        scores = score_numbers(VectorPredictions(predictions.index, true, found, predictions.loss))
        limits = [min(true.min(), found.min()), max(true.max(), found.max())]
        axes.plot(limits, limits, "--", color=figures.GRAY, lw=1)
        axes.scatter(true, found, s=10, color=figures.BLUE, alpha=0.5, linewidths=0)
        axes.set(xlabel="is", ylabel="predicted")
        axes.set_title(f"{wrapped(titles[number], _LEGEND_LINE, 1)}: MAE {scores.mae:.4g}, R2 {scores.r2:.3f}")
    for axes in grid[count:]:
        axes.axis("off")
    figures.save_figure(figure, folder / "numbers.png")
