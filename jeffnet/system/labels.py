"""Names beside the points of a plot, clear of each other and of everything else."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

_GAP = 2  # pixels between labels
# Pixels between the edge of a point and its label, tried one after the other; from the third on a line joins the two.
_DISTANCES = (3, 6, 16, 28, 42, 58, 76)
# To the right and up. The line of the best runs from the upper left to the lower right: first away from it.
_DIRECTIONS = ((1, 1), (1, 0), (-1, -1), (-1, 0), (0, 1), (0, -1), (1, -1), (-1, 1))


def label_points(
    axes: Any, names: Sequence[str], points: np.ndarray, radii: float | np.ndarray = 4.0, size: float = 9
) -> None:
    """Write names beside their points, clear of other names, points, the legend and lines; skips those without room.

    The figure, of `new_figure`, is laid out here: nothing that takes room may be changed afterwards.

    Args:
      axes: of the points.
      names: one per point, the most important first.
      points: float64 `(N, 2)`, in the units of the axes.
      radii: of the points, in pixels; one, or `(N,)`.
      size: of the letters, in points.
    """
    figure = axes.figure
    figure.canvas.draw()  # only now it is known where everything is
    figure.set_layout_engine("none")
    renderer, room = figure.canvas.get_renderer(), axes.get_window_extent().extents
    places, radii = axes.transData.transform(points), np.broadcast_to(radii, len(points))
    lines = _along_lines(axes)
    # Rows of left, bottom, right and top in pixels; the points' come first.
    taken = np.concatenate([_boxes(places, radii[:, None]), _boxes(lines, np.ones((len(lines), 1)))])
    if legend := axes.get_legend():
        taken = np.vstack([taken, legend.get_window_extent(renderer).extents])
    for number, (name, place, radius) in enumerate(zip(names, places, radii, strict=True)):
        text = axes.annotate(
            name, points[number], (0, 0), textcoords="offset points", fontsize=size, va="bottom", ha="left"
        )
        extent, others = text.get_window_extent(renderer).size, np.delete(taken, number, axis=0)
        for distance, direction in itertools.product(_DISTANCES, np.array(_DIRECTIONS)):
            # The edge of a round point is nearer to its middle on the diagonal.
            away = (radius / np.hypot(*direction) + distance) * direction + (direction - 1) / 2 * extent
            box = np.concatenate([place + away, place + away + extent])
            if _holds(room, box) and not _overlaps(box, others):
                text.set_position(away * 72 / figure.dpi)
                taken = np.vstack([taken, box])
                if distance >= _DISTANCES[2]:
                    _join(axes, place, box)
                break
        else:
            text.remove()


def _boxes(middles: np.ndarray, radii: np.ndarray) -> np.ndarray:
    return np.concatenate([middles - radii, middles + radii], axis=1)


def _along_lines(axes: Any) -> np.ndarray:
    """Places in pixels along the plotted lines."""
    places = [np.empty((0, 2))]
    for line in axes.get_lines():
        for start, end in itertools.pairwise(axes.transData.transform(line.get_xydata())):
            places.append(np.linspace(start, end, 2 + int(np.hypot(*(end - start)) // 6)))
    return np.concatenate(places)


def _holds(room: np.ndarray, box: np.ndarray) -> bool:
    return bool((box[:2] >= room[:2]).all() and (box[2:] <= room[2:]).all())


def _overlaps(box: np.ndarray, others: np.ndarray) -> bool:
    return bool(((others[:, :2] < box[2:] + _GAP) & (others[:, 2:] > box[:2] - _GAP)).all(axis=1).any())


def _join(axes: Any, place: np.ndarray, box: np.ndarray) -> None:
    nearest = np.clip(place, box[:2], box[2:])
    x, y = axes.transData.inverted().transform([place, nearest]).T
    axes.plot(x, y, color="black", lw=0.4, alpha=0.5, zorder=1)
