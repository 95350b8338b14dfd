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
    "mean_average_precision": Metric("mAP"),
    "mae": Metric("MAE", "", 4, rises=False),
    "r2": Metric("R2", "", 4),
    "loss": Metric("loss", "", 4, rises=False),
}
# By task: the metrics that it has, first the one by which models are compared unless another is chosen.
TASK_METRICS = {
    "single_label": ("top1", "top5", "balanced_accuracy", "macro_f1", "loss"),
    "multi_label": ("mean_average_precision", "macro_f1", "loss"),
    "regression": ("mae", "r2", "loss"),
}


@dataclass(frozen=True)
class Scores:
    """Scores over a data set.

    What a task does not have is None.

    Attributes:
      examples: number of pictures.
      loss: the mean over all pictures: cross entropy; of several labels the mean binary cross entropy of the classes;
        in regression the mean squared error.
      top1: per cent of pictures whose most probable class is the label.
      top5: per cent of pictures whose label is among the five most probable classes.
      balanced_accuracy: top-1 of each class that has pictures, their mean; None where a picture has several right
        classes, and for scores of earlier versions.
      macro_f1: the F1 score of each class that has pictures or is predicted, their mean, in per cent; None likewise. Of
        several labels: at each class's threshold, over the classes that have pictures.
      mean_average_precision: of several labels: average precision of each class that has pictures, their mean, in per
        cent.
      mae: in regression: mean absolute error over pictures and numbers.
      r2: in regression: coefficient of determination of each number, their mean; 1 is perfect, 0 no better than the
        mean.
    """

    examples: int
    loss: float
    top1: float | None = None
    top5: float | None = None
    balanced_accuracy: float | None = None
    macro_f1: float | None = None
    mean_average_precision: float | None = None
    mae: float | None = None
    r2: float | None = None


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


@dataclass(frozen=True)
class VectorPredictions:
    """The predictions of a model of several labels or of regression, in the order of the data set.

    Attributes:
      index: int32 `(N,)`, the example in the data set.
      label: float32 `(N, classes)`, 1 where it has the label and 0 elsewhere, or the numbers.
      outputs: float32 `(N, classes)`, logits, or the numbers.
      loss: float32 `(N,)`, as in `Scores`.
    """

    index: np.ndarray
    label: np.ndarray
    outputs: np.ndarray
    loss: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """The sigmoid of the logits, float64 `(N, classes)`."""
        return sigmoid(self.outputs)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities of labels that do not exclude one another, float64 and shaped like the logits."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64)))


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of a class at every threshold, from the highest on.

    Attributes:
      precision: float64 `(T,)`, in [0, 1].
      recall: float64 `(T,)`, likewise.
      thresholds: float64 `(T,)`, probabilities, each between those of the pictures above and below it.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray

    @property
    def average_precision(self) -> float:
        """The mean of the precision over the recall, without interpolation."""
        return float((np.diff(self.recall, prepend=0.0) * self.precision).sum())

    @property
    def best_threshold(self) -> float:
        """The highest threshold of those with the best F1 score."""
        total = np.maximum(self.precision + self.recall, 1e-300)
        return float(self.thresholds[(2 * self.precision * self.recall / total).argmax()])


def precision_recall(label: np.ndarray, probability: np.ndarray) -> PrecisionRecall:
    """Precision and recall of one class.

    Args:
      label: `(N,)`, 1 where a picture has it, at least once.
      probability: float `(N,)`, as the model predicts it.

    Returns:
      A value for each different probability.
    """
    order = np.argsort(-probability, kind="stable")
    label, probability = label[order] > 0, probability[order]
    ends = np.append(np.flatnonzero(np.diff(probability)), len(label) - 1)
    right = np.cumsum(label)[ends]
    below = np.append(probability[ends[1:]], 0.0)
    return PrecisionRecall(right / (ends + 1), right / max(int(label.sum()), 1), (probability[ends] + below) / 2)


def score_labels(
    predictions: VectorPredictions, thresholds: Sequence[float] | None = None
) -> tuple[Scores, tuple[float, ...]]:
    """The scores of predictions of several labels.

    Args:
      predictions: of one model, at least one.
      thresholds: probability of each class above which it counts as predicted; None takes those of the best F1 scores
        on these pictures, 0.5 for a class that no picture has.

    Returns:
      The scores, and the thresholds.
    """
    label, probability = predictions.label > 0, predictions.probabilities
    present = np.flatnonzero(label.any(0)).tolist()
    curves = {number: precision_recall(label[:, number], probability[:, number]) for number in present}
    if thresholds is None:
        best = {number: curve.best_threshold for number, curve in curves.items()}
        thresholds = [best.get(number, 0.5) for number in range(label.shape[1])]
    predicted = probability > np.asarray(thresholds)
    right, both = (label & predicted).sum(0)[present], (label.sum(0) + predicted.sum(0))[present]
    precision = [curve.average_precision for curve in curves.values()]
    scores = Scores(
        len(predictions.index),
        float(predictions.loss.mean(dtype=np.float64)),
        macro_f1=float(100 * (2 * right / both).mean()) if present else None,
        mean_average_precision=float(100 * np.mean(precision)) if present else None,
    )
    return scores, tuple(map(float, thresholds))


def score_numbers(predictions: VectorPredictions) -> Scores:
    """The scores of predictions of numbers.

    Args:
      predictions: of one model, at least one.

    Returns:
      The scores; R2 is 0 for a number that is the same in all pictures.
    """
    label, outputs = predictions.label.astype(np.float64), predictions.outputs.astype(np.float64)
    residual, spread = ((label - outputs) ** 2).sum(0), ((label - label.mean(0)) ** 2).sum(0)
    r2 = np.where(spread > 0, 1 - residual / np.where(spread > 0, spread, 1), 0.0)
    return Scores(
        len(predictions.index),
        float(predictions.loss.mean(dtype=np.float64)),
        mae=float(np.abs(label - outputs).mean()),
        r2=float(r2.mean()),
    )


def score_task(
    task: str, predictions: Predictions | VectorPredictions, thresholds: Sequence[float] | None = None
) -> tuple[Scores, tuple[float, ...]]:
    """The scores of predictions of any task, and the thresholds of several labels; see the functions for each."""
    if isinstance(predictions, Predictions):
        return score(predictions), ()
    if not len(predictions.index):
        return Scores(0, 0.0), ()
    return score_labels(predictions, thresholds) if task == "multi_label" else (score_numbers(predictions), ())


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
