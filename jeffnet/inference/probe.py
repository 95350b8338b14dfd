"""How well vectors tell classes apart: nearest neighbours, a linear probe, and pictures of both. By scikit-learn.

    from jeffnet.inference.probe import probe
    from jeffnet.inference.choices import PROJECTIONS
from jeffnet.inference.vectors import read_vectors

    scores = probe(read_vectors("train.parquet"), read_vectors("val.parquet"))
    print(scores.knn, scores.linear)
"""

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from jeffnet.arch.imagenet import class_titles
from jeffnet.data.sources import Source, evenly_spread
from jeffnet.errors import ConfigError, DatasetError, check_choice
from jeffnet.inference.choices import PROJECTIONS
from jeffnet.inference.vectors import Vectors
from jeffnet.system import figures
from jeffnet.system.extras import install
from jeffnet.text.names import counted, listed, wrapped

_MOST_POINTS = 5_000  # more hide one another, and t-SNE takes minutes
_MOST_COLOURS = 20
_SEED = 0


@dataclass(frozen=True)
class ProbeScores:
    """Per cent of pictures whose class is found by other pictures' vectors.

    Attributes:
      knn: by a vote of the nearest vectors.
      linear: by logistic regression.
      neighbours: how many vote.
    """

    knn: float
    linear: float
    neighbours: int


def check_probe() -> None:
    """Raises ConfigError if scikit-learn is not installed: better before long work than after it."""
    _sklearn("neighbors")


def probe(train: Vectors, test: Vectors, neighbours: int = 10) -> ProbeScores:
    """Train two classifiers on vectors, and score them on others.

    Args:
      train: of the pictures that are known; all of them are in memory.
      test: of the pictures to classify; classes are matched by name.
      neighbours: which vote, by the cosine of the angle between vectors; all, where there are fewer.

    Returns:
      The scores of `KNeighborsClassifier(metric="cosine")` and of `LogisticRegression` after `StandardScaler`.

    Raises:
      ConfigError: scikit-learn is not installed, `neighbours` is below 1, or the vectors are of different models.
      DatasetError: a class of the test pictures has no vector to learn from, or there is only one class.
    """
    if neighbours < 1:
        raise ConfigError(f"neighbours {neighbours}: give 1 or more")
    _check_comparable(train, test)
    labels = _as_in_training(train, test)
    known, tested = _floats(train.vectors), _floats(test.vectors)
    neighbours = min(neighbours, len(train))
    by_distance = _sklearn("neighbors").KNeighborsClassifier(neighbours, metric="cosine")
    linear = _sklearn("pipeline").make_pipeline(
        _sklearn("preprocessing").StandardScaler(), _sklearn("linear_model").LogisticRegression(max_iter=1000)
    )
    scores = [100 * float(each.fit(known, train.labels).score(tested, labels)) for each in (by_distance, linear)]
    return ProbeScores(scores[0], scores[1], neighbours)


def nearest(vectors: Vectors, queries: Sequence[int], count: int = 6) -> np.ndarray:
    """The nearest pictures of some pictures, by the cosine of the angle between their vectors.

    Args:
      vectors: of all pictures.
      queries: rows of those whose neighbours are wanted.
      count: of neighbours; fewer where there are not so many pictures.

    Returns:
      int `(len(queries), count)`: rows of the neighbours, the nearest first; a picture is not its own.

    Raises:
      ConfigError: scikit-learn is not installed.
      DatasetError: there are fewer than 2 pictures.
    """
    if len(vectors) < 2:
        raise DatasetError(f"{counted(len(vectors), 'picture')} without neighbours: give 2 or more")
    floats, count = _floats(vectors.vectors), min(count, len(vectors) - 1)
    index = _sklearn("neighbors").NearestNeighbors(n_neighbors=count + 1, metric="cosine").fit(floats)
    found = index.kneighbors(floats[list(queries)], return_distance=False)
    # Of pictures that are equal, any may come first: the last one goes where the query is not among them.
    rows = [[each for each in row if each != query][:count] for row, query in zip(found.tolist(), queries, strict=True)]
    return np.array(rows)


@figures.house_style()
def draw_neighbours(path: str | os.PathLike, vectors: Vectors, source: Source, rows: int = 8, count: int = 6) -> None:
    """Write a sheet of some pictures with their nearest ones beside them, those of the same class framed green.

    Args:
      path: of the figure; its extension is the format.
      vectors: of all pictures.
      source: the data set that they are of.
      rows: pictures to show, spread over the data set.
      count: of neighbours of each.

    Raises:
      ConfigError: scikit-learn is not installed.
      DatasetError: there are fewer than 2 pictures.
      OutputError: it cannot be written.
    """
    queries = _spread_over_classes(vectors.labels, rows)
    found = nearest(vectors, queries, count)
    titles = class_titles(vectors.classes)
    figure = figures.new_figure(1.9 * (1 + found.shape[1]), 2.2 * len(queries) + 0.4)
    figure.suptitle("pictures, and those with the nearest vectors (green: of the same class)")
    grid = figure.subplots(len(queries), 1 + found.shape[1], squeeze=False)
    for axes, query, others in zip(grid, queries, found.tolist(), strict=True):
        _draw_picture(axes[0], vectors, source, query, titles, figures.BLACK)
        for other_axes, other in zip(axes[1:], others, strict=True):
            is_same = vectors.labels[other] == vectors.labels[query]
            _draw_picture(other_axes, vectors, source, other, titles, figures.GREEN if is_same else figures.RED)
    figures.save_figure(figure, path)


def project(vectors: np.ndarray, method: str) -> np.ndarray:
    """Points in the plane for vectors, of which only the directions count, as in `nearest`.

    Args:
      vectors: `(N, F)`.
      method: 'pca' or 'tsne'.

    Returns:
      float `(N, 2)`.

    Raises:
      ConfigError: no such method, or scikit-learn is not installed.
      DatasetError: there are fewer than 3 vectors.
    """
    check_choice("plot", method, PROJECTIONS)
    if len(vectors) < 3:
        raise DatasetError(f"{counted(len(vectors), 'picture')}, too few for a plot: give 3 or more")
    floats = _floats(vectors)
    floats = floats / np.maximum(np.linalg.norm(floats, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    pca, manifold = _sklearn("decomposition").PCA, _sklearn("manifold")
    if method == "pca":
        return pca(2, svd_solver="full").fit_transform(floats)
    few = pca(min(50, *floats.shape), random_state=_SEED).fit_transform(floats)
    return manifold.TSNE(perplexity=min(30, (len(few) - 1) / 3), init="pca", random_state=_SEED).fit_transform(few)


@figures.house_style()
def draw_projection(path: str | os.PathLike, vectors: Vectors, method: str, title: str = "") -> None:
    """Write a plot of vectors in the plane, coloured by class: of up to 5,000 pictures, spread over the data set.

    Args:
      path: of the figure; its extension is the format.
      vectors: of all pictures.
      method: see `project`.
      title: of the plot.

    Raises:
      ConfigError: no such method, or scikit-learn is not installed.
      DatasetError: there are fewer than 3 pictures.
      OutputError: it cannot be written.
    """
    rows = evenly_spread(len(vectors), _MOST_POINTS)
    points, labels = project(vectors.vectors[rows], method), vectors.labels[rows]
    titles = class_titles(vectors.classes)
    counts = np.bincount(labels, minlength=len(titles))
    shown = np.sort(np.argsort(-counts, kind="stable")[: min(_MOST_COLOURS, np.count_nonzero(counts))]).tolist()
    figure = figures.new_figure(9, 6)
    axes = figure.subplots()
    size = float(np.clip(8000 / len(rows), 5, 40))
    others = ~np.isin(labels, shown)
    if others.any():
        rest = f"{np.count_nonzero(counts) - len(shown)} other classes"
        axes.scatter(*points[others].T, s=size, color=figures.GRAY, alpha=0.25, linewidths=0, label=rest)
    for place, label in enumerate(shown):
        # Colours that can be told apart are few: the next ones have another mark.
        colour, mark = figures.COLOURS[place % len(figures.COLOURS)], "o^s"[place // len(figures.COLOURS)]
        name = wrapped(titles[label], 28, 1)
        axes.scatter(*points[labels == label].T, s=size, color=colour, marker=mark, alpha=0.7, linewidths=0, label=name)
    pictures = f"{len(rows):,} pictures" if len(rows) == len(vectors) else f"{len(rows):,} of {len(vectors):,} pictures"
    axes.set_title(", ".join(filter(None, (title, f"{PROJECTIONS[method]} of {pictures}"))))
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=float(np.sqrt(40 / size)))
    figures.save_figure(figure, path)


def _draw_picture(axes: Any, vectors: Vectors, source: Source, row: int, titles: Sequence[str], colour: str) -> None:
    image = source[int(vectors.index[row])].image
    image.thumbnail((320, 320))
    axes.imshow(image, cmap="gray" if image.mode == "L" else None, vmin=0, vmax=255)
    name = PurePath(vectors.names[row]).name
    axes.set_title("\n".join(wrapped(line, 24, 1) for line in (titles[int(vectors.labels[row])], name)), fontsize=7)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set(visible=True, color=colour, linewidth=2.5)


def _spread_over_classes(labels: np.ndarray, most: int) -> list[int]:
    """Rows of up to `most` pictures, of as many classes as there are."""
    order = np.argsort(labels, kind="stable")
    turn = np.concatenate([np.arange(count) for count in np.unique(labels, return_counts=True)[1]])
    by_turn = order[np.argsort(turn, kind="stable")]  # the first picture of every class, the second of every class ...
    classes = len(np.unique(labels))
    if classes >= most:
        return [int(by_turn[place]) for place in evenly_spread(classes, most)]
    return sorted(by_turn[:most].tolist(), key=lambda row: labels[row])


def _check_comparable(train: Vectors, test: Vectors) -> None:
    if train.vectors.shape[1] != test.vectors.shape[1]:
        shapes = f"{train.vectors.shape[1]} and {test.vectors.shape[1]} numbers"
        raise ConfigError(f"vectors of {shapes} are of different models or layers: embed both with one")
    for name in ("weights_checksum", "layer"):
        one, other = train.run.get(name), test.run.get(name)
        if None not in (one, other) and one != other:
            raise ConfigError(f"vectors of {name} {one} and {other} cannot be compared: embed both with one model")


def _as_in_training(train: Vectors, test: Vectors) -> np.ndarray:
    """The labels of the test pictures as the training pictures have them."""
    present = np.unique(train.labels)
    if len(present) < 2:
        raise DatasetError(f"a probe learns from 2 classes or more, not from {len(present)}")
    label_of = {train.classes[label]: label for label in present.tolist()}
    names = {test.classes[label] for label in np.unique(test.labels).tolist()}
    if unknown := sorted(names - label_of.keys()):
        raise DatasetError(f"there are no vectors to learn these classes from: {listed(unknown)}")
    table = np.array([label_of.get(name, -1) for name in test.classes])
    return table[test.labels]


def _floats(vectors: np.ndarray) -> np.ndarray:
    return vectors.astype(np.float32, copy=False)


def _sklearn(module: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError:
        raise ConfigError(f"probes, neighbours and plots of vectors need scikit-learn: {install('embed')}") from None
