"""A page of pictures of a data set: how many there are of each class and size, examples, and near duplicates."""

import math
import os
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from jeffnet.arch.imagenet import class_titles
from jeffnet.data.inspection import Duplicates, Inspection
from jeffnet.data.sources import Source, evenly_spread
from jeffnet.errors import ImageError
from jeffnet.system import figures
from jeffnet.text.names import portable, printable, wrapped

_MOST_BARS = 30  # classes with a name; more of them are a curve
_MOST_CLASSES, _EXAMPLES = 10, 8  # rows and columns of example pictures
_MOST_GROUPS, _GROUPS_A_ROW = 12, 4
_LINE = 28  # characters
_SIDE, _GAP = 150, 10  # pixels of a picture that is shown
_PAPER = (255, 255, 255)
_WIDTH = 13.0  # inches


@figures.house_style()
def draw_page(report: Inspection, path: str | os.PathLike[str]) -> None:
    """Draw a report: class counts, sizes, examples of classes, and pictures that are there twice.

    Args:
      report: of `inspect_data`.
      path: of the picture, in a folder that exists; its ending selects the format.

    Raises:
      OutputError: it cannot be written.
    """
    groups = [*report.duplicates, *report.near_duplicates]
    shown, largest = groups[:_MOST_GROUPS], max(report.sources, key=lambda split: len(report.sources[split]))
    chosen = evenly_spread(len(report.sources[largest].classes), _MOST_CLASSES)
    rows = math.ceil(len(shown) / _GROUPS_A_ROW)
    heights = [4.6, 0.4 + 1.35 * len(chosen), 0.5 + 2.3 * rows]
    figure = figures.new_figure(_WIDTH, sum(heights))
    figure.suptitle(printable(f"{portable(report.data)}: {_counts(report)}"))
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=heights)
    left, right = top.subplots(1, 2)
    _draw_classes(left, report)
    _draw_sizes(right, report)
    _draw_examples(middle.subplots(), report, largest, chosen)
    more = f", {len(shown)} of which are shown" if len(groups) > len(shown) else ""
    bottom.suptitle(f"{len(groups):,} groups of duplicates and near duplicates{more}" if groups else "no duplicates")
    if groups:
        _draw_groups(bottom.subplots(rows, _GROUPS_A_ROW, squeeze=False).reshape(-1).tolist(), report, shown)
    figures.save_figure(figure, path)


def _counts(report: Inspection) -> str:
    return ", ".join(f"{split.pictures:,} pictures in {name}" for name, split in report.splits.items())


def _draw_classes(axes: Any, report: Inspection) -> None:
    names = list(dict.fromkeys(name for split in report.splits.values() for name in split.classes))
    titles, width = class_titles(names), 0.8 / len(report.splits)
    for number, (split, counted) in enumerate(report.splits.items()):
        counts = np.array([counted.classes.get(name, 0) for name in names])
        if len(names) > _MOST_BARS:
            axes.plot(np.sort(counts)[::-1], label=printable(split))
        else:
            axes.barh(np.arange(len(names)) + number * width, counts, width, label=printable(split))
    if len(names) > _MOST_BARS:
        axes.set(xlabel="classes, the largest first", ylabel="pictures", ylim=(0, None))
        figures.whole_ticks(axes.yaxis)
    else:
        axes.set_yticks(np.arange(len(names)) + 0.4 - width / 2, [wrapped(title, _LINE, 1) for title in titles])
        axes.set(xlabel="pictures")
        axes.invert_yaxis()
        axes.margins(x=0.2)  # room for the legend
        axes.grid(axis="y", alpha=0)
    figures.whole_ticks(axes.xaxis)
    axes.set_title("pictures of each class")
    axes.legend()


def _draw_sizes(axes: Any, report: Inspection) -> None:
    """The shorter side of the pictures, which training and validation resize."""
    sides = {
        split: np.array([min(row.width, row.height) for row in rows if not row.error])
        for split, rows in report.facts.items()
    }
    known = [values for values in sides.values() if len(values)]
    axes.set(title="shorter side of the pictures", xlabel="pixels", ylabel="pictures")
    if not known:
        axes.text(0.5, 0.5, "no picture can be decoded", transform=axes.transAxes, ha="center")
        return
    least, greatest = min(values.min() for values in known), max(values.max() for values in known)
    wide = greatest > 8 * least  # on a linear axis, most would be in the first bar
    edges = np.geomspace(least, greatest + 1, 41) if wide else np.linspace(least - 0.5, greatest + 0.5, 41)
    for split, values in sides.items():
        axes.hist(values, edges, label=printable(split), histtype="stepfilled", alpha=0.6)
    if wide:
        axes.set_xscale("log")
        figures.plain_log_ticks(axes.xaxis)
    else:
        figures.whole_ticks(axes.xaxis)
    figures.whole_ticks(axes.yaxis)
    axes.legend()


def _draw_examples(axes: Any, report: Inspection, split: str, chosen: Sequence[int]) -> None:
    source, facts = report.sources[split], report.facts[split]
    labels = np.array([-1 if row.error else row.label for row in facts])
    rows = []
    for label in chosen:
        members = np.flatnonzero(labels == label)
        places = members[evenly_spread(len(members), _EXAMPLES)].tolist() if len(members) else []
        rows.append([_thumbnail(source, number) for number in places])
    titles = class_titles(source.classes)
    axes.imshow(_tiled(rows, _EXAMPLES))
    axes.set_title(printable(f"examples of {split}"), fontsize="large")
    axes.set_yticks([(row + 0.5) * _SIDE for row in range(len(rows))], [wrapped(titles[one], 14) for one in chosen])
    _bare(axes)


def _draw_groups(grid: Sequence[Any], report: Inspection, groups: Sequence[Duplicates]) -> None:
    """The first two pictures of each group, those of different splits where there are."""
    numbers = {
        split: {source.name(number): number for number in range(len(source))}
        for split, source in report.sources.items()
    }
    for axes, group in zip(grid, groups, strict=False):
        first = group.pictures[0]
        others = [one for one in group.pictures[1:] if one.split != first.split or not group.across_splits]
        pair = (first, others[0])
        axes.imshow(_tiled([[_thumbnail(report.sources[one.split], numbers[one.split][one.name]) for one in pair]], 2))
        names = [f"{printable(one.split)}: {wrapped(PurePath(one.name).name, 26, 1)}" for one in pair]
        axes.set_title("\n".join(names), fontsize="small")
        how = "same file" if group.bits is None else f"{group.bits} bits differ"
        rest = f", {len(group.pictures)} pictures" if len(group.pictures) > 2 else ""
        axes.set_xlabel(f"{how}{rest}{', classes differ' if group.across_classes else ''}", fontsize="small")
        axes.set_yticks([])
    for axes in grid:
        _bare(axes)


def _bare(axes: Any) -> None:
    """Without frame, grid and marks."""
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _thumbnail(source: Source, number: int) -> Image.Image:
    try:
        image = source[number].image.copy()  # it may belong to the source
    except ImageError:  # it was readable a moment ago
        return Image.new("RGB", (1, 1), _PAPER)
    image.thumbnail((_SIDE - _GAP, _SIDE - _GAP))
    return image


def _tiled(rows: Sequence[Sequence[Image.Image]], columns: int) -> Image.Image:
    """Pictures in the middle of square tiles, as one: hundreds of axes would take a minute to lay out."""
    canvas = Image.new("RGB", (columns * _SIDE, max(len(rows), 1) * _SIDE), _PAPER)
    for row, pictures in enumerate(rows):
        for column, image in enumerate(pictures):
            canvas.paste(
                image, (column * _SIDE + (_SIDE - image.width) // 2, row * _SIDE + (_SIDE - image.height) // 2)
            )
    return canvas
