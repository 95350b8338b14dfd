"""Reports of a validation, as pictures and tables: calibration, confusion, classes and confident mistakes."""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

import numpy as np

from jeffnet.arch.imagenet import class_titles
from jeffnet.errors import OutputError
from jeffnet.system import figures
from jeffnet.system.files import write_file
from jeffnet.text.names import portable, printable, utf8, wrapped
from jeffnet.validation.answers import Mistake
from jeffnet.validation.label_report import report_labels, report_numbers
from jeffnet.validation.metrics import Calibration, Predictions, VectorPredictions, calibration, confusion
from jeffnet.validation.validate import Outcome

# More classes than these are no readable matrix, and so many most confused pairs are listed instead.
_MOST_IN_MATRIX, _MOST_PAIRS = 40, 20
_MOST_COUNTED = 20  # classes with numbers in the cells of the matrix
# Characters in a line of a class's name: beside an axis, and above a picture.
_AXIS_LINE, _PICTURE_LINE = 32, 30

_Pair = tuple[int, int, int]  # pictures, label, guess


@figures.house_style()
def write_report(folder: str | os.PathLike, outcome: Outcome) -> None:
    """Write `report.json`, `per_class.csv`, `confusion.png`, `reliability.png` and `mistakes.jpg` into a folder.

    Of several labels it is `report.json`, `per_class.csv` and `precision_recall.png`; of numbers `report.json` and
    `numbers.png`.

    Args:
      folder: created if it does not exist.
      outcome: of a model, with at least one prediction.

    Raises:
      OutputError: it cannot be written.
    """
    folder, titles, row = Path(folder), class_titles(outcome.classes), outcome.row
    predictions, mistakes = outcome.answers.predictions, outcome.answers.mistakes
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make folder {str(folder)!r}: {error.strerror or error}") from error
    title = printable(f"{row['model']}, {portable(row['data'])} ({row['split']})")
    if isinstance(predictions, VectorPredictions):
        if outcome.thresholds:
            report_labels(folder, predictions, outcome.thresholds, titles, title)
        else:
            report_numbers(folder, predictions, titles, title)
        write_file(folder / "report.json", json.dumps(row, indent=1) + "\n")
        return
    table, calibrated = confusion(predictions, len(titles)), calibration(predictions)
    present = np.flatnonzero(table.sum(1) + table.sum(0))
    _write_per_class(folder / "per_class.csv", predictions, table, outcome.classes, titles)
    pairs = _confused(table)
    if len(present) <= _MOST_IN_MATRIX:
        shown = [titles[label] for label in present.tolist()]
        _draw_matrix(folder / "confusion.png", table[np.ix_(present, present)], shown, title)
    else:
        _draw_pairs(folder / "confusion.png", pairs, table.sum(1), titles, title)
    _draw_reliability(folder / "reliability.png", calibrated, title)
    if mistakes:
        _draw_mistakes(folder / "mistakes.jpg", mistakes, titles, outcome.name, title)
    summary = row | {
        "expected_calibration_error": calibrated.error,
        "mean_confidence": float(predictions.probabilities[:, 0].mean()),
        "most_confused": [
            {"label": titles[label], "guess": titles[guess], "pictures": count}
            for count, label, guess in pairs[:_MOST_PAIRS]
        ],
    }
    write_file(folder / "report.json", json.dumps(summary, indent=1) + "\n")


def _write_per_class(
    path: Path, predictions: Predictions, table: np.ndarray, classes: Sequence[str], titles: Sequence[str]
) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["class", "title", "pictures", "top1", "top5", "precision", "most_confused_with"])
    for label in np.flatnonzero(table.sum(1)).tolist():
        labelled = predictions.label == label
        guessed, others = table[:, label].sum(), table[label].copy()
        others[label] = 0
        writer.writerow([
            utf8(classes[label]),
            utf8(titles[label]),
            int(labelled.sum()),
            f"{100 * predictions.right1[labelled].mean():.2f}",
            f"{100 * predictions.right5[labelled].mean():.2f}",
            f"{100 * table[label, label] / guessed:.2f}" if guessed else "",
            utf8(titles[int(others.argmax())]) if others.any() else "",
        ])  # fmt: skip
    write_file(path, text.getvalue())


def _confused(table: np.ndarray) -> list[_Pair]:
    """All confusions, the most frequent first."""
    wrong = np.argwhere(table * (1 - np.eye(len(table), dtype=int))).tolist()
    return sorted(((int(table[label, guess]), label, guess) for label, guess in wrong), key=lambda pair: -pair[0])


def _draw_matrix(path: Path, table: np.ndarray, titles: Sequence[str], title: str) -> None:
    from matplotlib.colors import PowerNorm

    count = len(titles)
    side = 3.5 + 0.36 * count
    figure = figures.new_figure(side + 1, side)
    axes = figure.subplots()
    share = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
    # Not a linear scale, on which rare confusions would be white.
    drawn = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="per cent of the class's pictures")
    axes.set(xlabel="guess", ylabel="class", title=title)
    names = [wrapped(name, _AXIS_LINE, 1) for name in titles]
    axes.set_xticks(range(count), names, rotation=90)
    axes.set_yticks(range(count), names)
    axes.grid(False)
    if count <= _MOST_COUNTED:
        for i, j in np.argwhere(table):
            colour = "white" if share[i, j] > 40 else "black"
            axes.text(j, i, str(table[i, j]), ha="center", va="center", fontsize=9, color=colour)
    figures.save_figure(figure, path)


def _draw_pairs(path: Path, pairs: Sequence[_Pair], pictures: np.ndarray, titles: Sequence[str], title: str) -> None:
    """The most confused pairs as bars; `pictures` of each class."""
    shown = pairs[:_MOST_PAIRS]
    figure = figures.new_figure(9, 1.5 + 0.32 * max(len(shown), 3))
    axes = figure.subplots()
    places, counts = range(len(shown)), [count for count, *_ in shown]
    bars = axes.barh(places, counts, color=figures.BLUE)
    axes.bar_label(bars, [f"{count} of {pictures[label]}" for count, label, _ in shown], padding=4)
    lines = [[wrapped(titles[one], _AXIS_LINE, 1) for one in pair] for _, *pair in shown]
    axes.set_yticks(places, [f"{label} → {guess}" for label, guess in lines])
    axes.set(
        xlabel="pictures of the class", xlim=(0, 1.2 * max(counts, default=1)), ylim=(max(len(shown), 1) - 0.4, -0.6)
    )
    axes.set_title(f"{title}\nclass → guess: the {len(shown)} most frequent of {len(pairs)} confusions")
    axes.grid(axis="y", alpha=0)
    figures.whole_ticks(axes.xaxis)
    figures.save_figure(figure, path)


def _draw_reliability(path: Path, calibrated: Calibration, title: str) -> None:
    figure = figures.new_figure(6, 6.8)
    upper, lower = figure.subplots(2, height_ratios=[3, 1], sharex=True)
    edges, filled = 100 * calibrated.edges, calibrated.counts > 0
    width, middle = edges[1] - edges[0], (edges[:-1] + edges[1:]) / 2
    accuracy, confidence = 100 * calibrated.accuracy[filled], 100 * calibrated.confidence[filled]
    upper.bar(middle[filled], accuracy, 0.94 * width, color=figures.SKY, label="accuracy: pictures guessed right")
    upper.hlines(
        confidence,
        middle[filled] - 0.47 * width,
        middle[filled] + 0.47 * width,
        color=figures.RED,
        lw=2.5,
        label="mean confidence: should be as high as the bar",
    )
    upper.plot([0, 100], [0, 100], "--", color=figures.GRAY, lw=1, label="perfect calibration")
    upper.set(ylabel="per cent", ylim=(0, 125), yticks=range(0, 101, 20))
    upper.set_title(f"{title}\nexpected calibration error {100 * calibrated.error:.1f} %")
    upper.legend(loc="upper left")
    lower.bar(middle, calibrated.counts, 0.94 * width, color=figures.GRAY)
    lower.set(xlabel="confidence of the first guess, per cent", ylabel="pictures", xlim=(0, 100))
    figures.whole_ticks(lower.yaxis)
    figures.save_figure(figure, path)


def _draw_mistakes(
    path: Path, mistakes: Sequence[Mistake], titles: Sequence[str], name: Callable[[int], str], title: str
) -> None:
    # What the model looked at stands beside a picture.
    width = 1 + (mistakes[0].explained is not None)
    columns = min(6 // width, len(mistakes))
    rows = -(-len(mistakes) // columns)
    figure = figures.new_figure(2.5 * max(columns * width, 2), 3.15 * rows + 0.5)
    figure.suptitle(f"most confident mistakes: {title}")
    grid = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes in grid:
        axes.axis("off")
    for axes, mistake in zip(grid, mistakes, strict=False):
        pixels = mistake.pixels.squeeze()
        if mistake.explained is not None:
            colours = mistake.pixels.repeat(3 // mistake.pixels.shape[-1], axis=-1)
            pixels = np.concatenate([colours, np.full_like(colours[:, :4], 255), mistake.explained], axis=1)
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
        lines = (
            f"{mistake.confidence:.1%} {titles[mistake.guess]}",
            f"is {titles[mistake.label]}",
            PurePath(name(mistake.index)).name,
        )
        axes.set_title("\n".join(wrapped(line, _PICTURE_LINE) for line in lines), fontsize=9)
    figures.save_figure(figure, path)
