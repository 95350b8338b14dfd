"""Reports of a validation, as pictures and tables: calibration, confusion, classes and confident mistakes."""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jeffnet.arch.imagenet import class_titles
from jeffnet.errors import OutputError
from jeffnet.system.figures import plain_text, save_figure
from jeffnet.system.files import write_file
from jeffnet.text.names import printable, shortened, utf8
from jeffnet.validation.answers import Mistake
from jeffnet.validation.metrics import Calibration, Predictions, calibration, confusion
from jeffnet.validation.validate import Outcome

# More labels than this would overlap.
_MOST_NAMED = 40


@plain_text()
def write_report(folder: str | os.PathLike, outcome: Outcome) -> None:
    """Write `report.json`, `per_class.csv`, `confusion.png`, `reliability.png` and `mistakes.png` into a folder.

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
    table, calibrated = confusion(predictions, len(titles)), calibration(predictions)
    present = np.flatnonzero(table.sum(1) + table.sum(0))
    title = printable(f"{row['model']}, {row['data']} ({row['split']})")
    _write_per_class(folder / "per_class.csv", predictions, table, outcome.classes, titles)
    shown = [titles[label] for label in present.tolist()]
    _draw_confusion(folder / "confusion.png", table[np.ix_(present, present)], shown, title)
    _draw_reliability(folder / "reliability.png", calibrated, title)
    if mistakes:
        _draw_mistakes(folder / "mistakes.png", mistakes, titles, outcome.name, title)
    worst = np.argwhere(table * (1 - np.eye(len(titles), dtype=int)))
    pairs = sorted(((int(table[i, j]), titles[i], titles[j]) for i, j in worst.tolist()), reverse=True)[:20]
    summary = row | {
        "expected_calibration_error": calibrated.error,
        "mean_confidence": float(predictions.probabilities[:, 0].mean()),
        "most_confused": [{"label": label, "guess": guess, "pictures": count} for count, label, guess in pairs],
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


def _draw_confusion(path: Path, table: np.ndarray, titles: Sequence[str], title: str) -> None:
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count, named = len(titles), len(titles) <= _MOST_NAMED
    side = min(14, max(5, 2.5 + 0.38 * count)) if named else 10
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    share = 100 * table / np.maximum(table.sum(1, keepdims=True), 1)
    # Not a linear scale, on which rare confusions would be white.
    drawn = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="per cent of the class's pictures")
    axes.set(xlabel="guess", ylabel="class", title=title)
    if named:
        short = [shortened(name, 22) for name in titles]
        axes.set_xticks(range(count), short, rotation=90, fontsize=8)
        axes.set_yticks(range(count), short, fontsize=8)
    if count <= 20:
        for i, j in np.argwhere(table):
            colour = "white" if share[i, j] > 40 else "black"
            axes.text(j, i, str(table[i, j]), ha="center", va="center", fontsize=7, color=colour)
    save_figure(figure, path)


def _draw_reliability(path: Path, calibrated: Calibration, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, height_ratios=[3, 1], sharex=True)
    width = calibrated.edges[1] - calibrated.edges[0]
    middle = (calibrated.edges[:-1] + calibrated.edges[1:]) / 2
    filled = calibrated.counts > 0
    upper.bar(middle[filled], calibrated.accuracy[filled], width * 0.94, color="tab:blue", alpha=0.6, label="accuracy")
    upper.plot(
        calibrated.confidence[filled], calibrated.accuracy[filled], "o", color="tab:red", ms=4, label="mean confidence"
    )
    upper.plot([0, 1], [0, 1], "--", color="gray", lw=1, label="perfect calibration")
    upper.set(ylabel="accuracy", ylim=(0, 1.03), title=f"{title}\nexpected calibration error {calibrated.error:.4f}")
    upper.legend(loc="upper left")
    lower.bar(middle, calibrated.counts, width * 0.94, color="tab:gray")
    lower.set(xlabel="confidence", ylabel="pictures", xlim=(0, 1))
    save_figure(figure, path)


def _draw_mistakes(
    path: Path, mistakes: Sequence[Mistake], titles: Sequence[str], name: Callable[[int], str], title: str
) -> None:
    from matplotlib.figure import Figure

    columns = min(6, len(mistakes))
    rows = -(-len(mistakes) // columns)
    figure = Figure(figsize=(2.5 * columns, 3.1 * rows + 0.5), layout="constrained")
    figure.suptitle(f"most confident mistakes: {title}", fontsize=11)
    grid = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes in grid:
        axes.axis("off")
    for axes, mistake in zip(grid, mistakes, strict=False):
        axes.imshow(mistake.pixels.squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(
            f"{mistake.confidence:.1%} {shortened(titles[mistake.guess], 22)}\n"
            f"is {shortened(titles[mistake.label], 24)}\n{shortened(Path(name(mistake.index)).name, 26)}",
            fontsize=8,
        )
    save_figure(figure, path)
