"""Scores of a model's predictions: accuracy, calibration and confusion."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Metric:
    """A score by which models can be compared.

    Attributes:
      title: what people call it.
      unit: '%' or none.
      digits: of its fraction that are worth showing.
      rises: whether the higher score is the better one.
    """

    title: str
    unit: str = "%"
    digits: int = 2
    rises: bool = True

    def text(self, value: float | None) -> str:
        """A value of it for people, such as `91.25 %`; `none` for None."""
        return "none" if value is None else f"{value:.{self.digits}f} {self.unit}".rstrip()

    def rank(self, value: float | None) -> float:
        """A number that is the smaller the better the value is; infinity for None and NaN."""
        if value is None or value != value:
            return np.inf
        return -value if self.rises else value


# By the names of the attributes of `Scores`.
METRICS = {
    "top1": Metric("top-1"),
    "top5": Metric("top-5"),
    "balanced_accuracy": Metric("balanced accuracy"),
    "macro_f1": Metric("macro F1"),
    "loss": Metric("loss", "", 4, rises=False),
}


@dataclass(frozen=True)
class Scores:
    """Scores over a data set.

    Attributes:
      examples: number of pictures.
      loss: cross entropy, the mean over all pictures.
      top1: per cent of pictures whose most probable class is the label.
      top5: per cent of pictures whose label is among the five most probable classes.
      balanced_accuracy: top-1 of each class that has pictures, their mean; None where a picture has several right
        classes, and for scores of earlier versions.
      macro_f1: the F1 score of each class that has pictures or is predicted, their mean, in per cent; None likewise.
    """

    examples: int
    loss: float
    top1: float
    top5: float
    balanced_accuracy: float | None = None
    macro_f1: float | None = None


@dataclass(frozen=True)
class Predictions:
    """The predictions of a model, in the order of the data set.

    Attributes:
      index: int32 `(N,)`, the example in the data set.
      label: int32 `(N,)`, its class.
      classes: int32 `(N, K)`, the K most probable classes, the most probable first; K is 5, or the number of classes
        if there are fewer.
      probabilities: float32 `(N, K)`, of `classes`.
      loss: float32 `(N,)`, cross entropy.
      right1: bool `(N,)`, whether the first is the label; False if a logit is NaN.
      right5: bool `(N,)`, whether the label is among the first five.
    """

    index: np.ndarray
    label: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    loss: np.ndarray
    right1: np.ndarray
    right5: np.ndarray


def score(predictions: Predictions, real_labels: Sequence[frozenset[int]] | None = None) -> Scores:
    """The scores of predictions.

    Args:
      predictions: of one model.
      real_labels: all right classes of each prediction; predictions without any do not count. None uses the labels.

    Returns:
      The scores; 0 where nothing counts.

    Source: the mean of the classes' F1 scores is the one that Opitz and Burst, "Macro F1 and Macro F1",
    arXiv:1911.03347, recommend, and scikit-learn's.
    """
    right1, right5, counted = predictions.right1, predictions.right5, np.ones(len(predictions.index), np.bool_)
    if real_labels is not None:
        counted = np.array([bool(right) for right in real_labels], np.bool_)
        rows = list(zip(real_labels, predictions.classes.tolist(), strict=True))
        right1 = np.array([row[0] in right for right, row in rows], np.bool_)
        right5 = np.array([not right.isdisjoint(row) for right, row in rows], np.bool_)
    if not counted.any():
        return Scores(0, 0.0, 0.0, 0.0)
    return Scores(
        int(counted.sum()),
        float(predictions.loss[counted].mean(dtype=np.float64)),
        float(100 * right1[counted].mean()),
        float(100 * right5[counted].mean()),
        *(_by_class(predictions) if real_labels is None else ()),
    )


def _by_class(predictions: Predictions) -> tuple[float, float]:
    """Balanced accuracy and macro F1, in per cent."""
    label, guess = predictions.label, predictions.classes[:, 0]
    most = int(max(label.max(), guess.max())) + 1
    labelled, guessed, right = (
        np.bincount(classes, minlength=most) for classes in (label, guess, label[predictions.right1])
    )
    present, counted = labelled > 0, labelled + guessed > 0
    recall, f1 = right[present] / labelled[present], 2 * right[counted] / (labelled + guessed)[counted]
    return float(100 * recall.mean()), float(100 * f1.mean())


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy, in bins of equal width (Guo et al., arXiv:1706.04599).

    Attributes:
      error: expected calibration error, in [0, 1]: the mean of |confidence - accuracy| over the bins, weighted by their
        pictures.
      edges: float64 `(B + 1,)`, limits of the bins; a bin includes its upper limit, the first also its lower.
      confidence: float64 `(B,)`, mean of the bin; NaN if it is empty.
      accuracy: float64 `(B,)`, mean of the bin; NaN if it is empty.
      counts: int64 `(B,)`, pictures in the bin.
    """

    error: float
    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray


def calibration(predictions: Predictions, bins: int = 15) -> Calibration:
    """How far the confidence of predictions can be trusted.

    Args:
      predictions: of one model.
      bins: intervals of equal length that the confidences are divided into.

    Returns:
      The expected calibration error, and each interval's confidence, accuracy and number of predictions.
    """
    confidence, right = predictions.probabilities[:, 0].astype(np.float64), predictions.right1.astype(np.float64)
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, values, bins) / counts for values in (confidence, right)]
    filled = counts > 0
    gaps = np.abs(means[0] - means[1])[filled]
    error = float((gaps * counts[filled]).sum() / max(counts.sum(), 1))
    return Calibration(error, edges, means[0], means[1], counts)


def confusion(predictions: Predictions, classes: int) -> np.ndarray:
    """The confusion matrix.

    Args:
      predictions: of one model.
      classes: how many there are.

    Returns:
      int64 `(classes, classes)`: number of pictures by label (rows) and predicted class (columns).
    """
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (predictions.label, predictions.classes[:, 0]), 1)
    return table
