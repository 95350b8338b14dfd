"""Scores of predictions equal scikit-learn's."""

import numpy as np
import pytest

from jeffnet.validation.metrics import Predictions, score


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
