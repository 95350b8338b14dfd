"""Scores of predictions equal scikit-learn's."""

import numpy as np
import pytest

from jeffnet.validation.metrics import (
    Predictions,
    VectorPredictions,
    precision_recall,
    score,
    score_labels,
    score_task,
)


def predictions(label, guess):
    rest = np.zeros(len(label), np.float32)
    return Predictions(
        np.arange(len(label)), label, guess[:, None], rest[:, None], rest, label == guess, label == guess
    )


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(4))
def test_accuracy_over_classes_is_scikit_learns(seed):
    """Unequal classes, some of which have no picture, and some of which are never predicted."""
    metrics, rng = pytest.importorskip("sklearn.metrics"), np.random.default_rng(seed)
    label, guess = rng.choice(7, (2, 60), p=[0.5, 0.2, 0.1, 0.1, 0.06, 0.04, 0.0])
    label[label == 5], guess[guess == 4] = 0, 6
    guess = np.where(rng.random(60) < 0.4, label, guess)
    scores = score(predictions(label, guess))
    assert scores.balanced_accuracy == pytest.approx(100 * metrics.balanced_accuracy_score(label, guess), abs=1e-9)
    assert scores.macro_f1 == pytest.approx(100 * metrics.f1_score(label, guess, average="macro"), abs=1e-9)
    assert scores.balanced_accuracy != pytest.approx(scores.top1)


def test_of_several_right_classes_there_is_no_accuracy_over_classes():
    some = predictions(np.array([0, 1]), np.array([0, 0]))
    assert score(some, [frozenset({0}), frozenset({0, 1})]).balanced_accuracy is None
    assert score(some).balanced_accuracy == 50.0


def vectors(seed, count=200, classes=5):
    """Labels of unequal classes, the last without a picture, and logits that know something of them, with ties."""
    rng = np.random.default_rng(seed)
    label = (rng.random((count, classes)) < [0.5, 0.2, 0.05, 0.9, 0.0]).astype(np.float32)
    label[0, :4] = 1
    logits = np.round(rng.normal(size=(count, classes)) + 1.5 * label, 1).astype(np.float32)
    return VectorPredictions(np.arange(count), label, logits, np.ones(count, np.float32))


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_scikit_learns(seed):
    metrics, found = pytest.importorskip("sklearn.metrics"), vectors(seed)
    each = [metrics.average_precision_score(found.label[:, place], found.outputs[:, place]) for place in range(4)]
    for place, wanted in enumerate(each):
        curve = precision_recall(found.label[:, place], found.probabilities[:, place])
        assert curve.average_precision == pytest.approx(wanted, abs=1e-9)
    scores, thresholds = score_labels(found)
    assert scores.mean_average_precision == pytest.approx(100 * np.mean(each), abs=1e-9)
    assert thresholds[4] == 0.5 and scores.top1 is scores.mae is None


def test_thresholds_have_the_best_f1_and_others_can_be_given():
    metrics, found = pytest.importorskip("sklearn.metrics"), vectors(7)
    scores, thresholds = score_labels(found)
    best = []
    for place in range(4):
        label, probability = found.label[:, place], found.probabilities[:, place]
        every = [metrics.f1_score(label, probability >= cut) for cut in np.unique(probability)]
        best.append(max(every))
        assert metrics.f1_score(label, probability > thresholds[place]) == pytest.approx(max(every), abs=1e-12)
        assert np.abs(probability - thresholds[place]).min() > 1e-3  # none is a matter of rounding
    assert scores.macro_f1 == pytest.approx(100 * np.mean(best), abs=1e-9)
    given, same = score_labels(found, (0.5,) * 5)
    assert same == (0.5,) * 5 and given.macro_f1 < scores.macro_f1
    assert given.mean_average_precision == scores.mean_average_precision


def test_scores_of_numbers_are_scikit_learns():
    metrics, rng = pytest.importorskip("sklearn.metrics"), np.random.default_rng(0)
    label = rng.normal(size=(50, 3)).astype(np.float32)
    outputs = (label + rng.normal(size=(50, 3)) * [0.1, 1, 3]).astype(np.float32)
    scores, thresholds = score_task("regression", VectorPredictions(np.arange(50), label, outputs, np.ones(50)))
    assert scores.mae == pytest.approx(metrics.mean_absolute_error(label, outputs), abs=1e-6)
    assert scores.r2 == pytest.approx(metrics.r2_score(label, outputs), abs=1e-6)
    assert thresholds == () and scores.top1 is None and scores.loss == 1
