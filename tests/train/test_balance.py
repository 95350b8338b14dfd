"""Unequal classes: weights, logit adjustment, what is said of them, and which model is the best."""

from dataclasses import replace

import numpy as np
import pytest

from jeffnet.errors import ConfigError
from jeffnet.train.balance import Balance, counts_text, few_text, make_balance
from jeffnet.train.config import CheckpointConfig, Config, DataConfig, LossConfig, ModelConfig
from jeffnet.train.reports.scores import EMA, MODEL, EpochScores, Result, best_rows, summarize
from jeffnet.train.step import _losses
from jeffnet.validation.metrics import METRICS, Scores

DRAWS, CLASSES = np.array([60, 30, 10]), ("ash", "beech", "cedar")
RNG = np.random.default_rng(0)
LOGITS, TARGETS = RNG.normal(size=(6, 3)).astype(np.float32), RNG.dirichlet([0.3] * 3, 6).astype(np.float32)


def weights(**entries):
    return make_balance(LossConfig(**entries), DRAWS, CLASSES).weights


def test_weights_are_those_of_the_papers_and_their_mean_over_pictures_is_one():
    np.testing.assert_allclose(weights(weighting="inverse"), 100 / (3 * DRAWS), rtol=1e-6)  # as scikit-learn's
    effective = (1 - 0.9**DRAWS) / (1 - 0.9)
    found = weights(weighting="effective", effective_beta=0.9)
    np.testing.assert_allclose(found * effective, found[0] * effective[0], rtol=1e-6)
    for beta in (0.0, 0.9, 0.999999, 1 - 1e-12):
        found = weights(weighting="effective", effective_beta=beta)
        assert (found * DRAWS).sum() / DRAWS.sum() == pytest.approx(1, rel=1e-6)
    np.testing.assert_allclose(found, weights(weighting="inverse"), rtol=1e-4)
    np.testing.assert_array_equal(weights(weighting="effective", effective_beta=0.0), 1)
    np.testing.assert_array_equal(weights(class_weights=(1, 2, 0.5)), [1, 2, 0.5])
    assert make_balance(LossConfig(), DRAWS, CLASSES) == Balance()
    assert np.isfinite(
        make_balance(LossConfig(weighting="inverse", logit_adjustment=1), DRAWS - 10, CLASSES).offsets
    ).all()


def test_weighted_losses_are_pytorchs():
    torch = pytest.importorskip("torch")
    functional, tensor = torch.nn.functional, torch.from_numpy
    balance = make_balance(LossConfig(weighting="inverse"), DRAWS, CLASSES)
    wanted = functional.cross_entropy(tensor(LOGITS), tensor(TARGETS), tensor(balance.weights), reduction="none")
    np.testing.assert_allclose(_losses(LossConfig(), balance, LOGITS, TARGETS), wanted, rtol=1e-5)
    plain = functional.binary_cross_entropy_with_logits(tensor(LOGITS), tensor(TARGETS), reduction="none").mean(1)
    wanted = plain.numpy() * (TARGETS @ balance.weights)
    np.testing.assert_allclose(_losses(LossConfig(name="bce"), balance, LOGITS, TARGETS), wanted, rtol=1e-5)


def test_adjusted_logits_are_those_of_menon_et_al():
    """Equation 10: the logarithm of the prior, times tau, is added to the logits in the loss."""
    balance = make_balance(LossConfig(logit_adjustment=1.5), DRAWS, CLASSES)
    adjusted = LOGITS + 1.5 * np.log(DRAWS / 100)
    wanted = -(TARGETS * (adjusted - np.log(np.exp(adjusted).sum(1, keepdims=True)))).sum(1)
    np.testing.assert_allclose(_losses(LossConfig(), balance, LOGITS, TARGETS), wanted, rtol=1e-5)


def test_contradictory_entries_are_errors():
    base = Config(model=ModelConfig(name="-"), data=DataConfig(path="-", sampling="balanced"))
    for entries in ({"weighting": "inverse"}, {"logit_adjustment": 1.0}):
        with pytest.raises(ConfigError, match=r"no effect beside data\.sampling 'balanced'"):
            replace(base, loss=LossConfig(**entries))
    for entries, message in {
        "exclude one another": {"weighting": "inverse", "class_weights": (1.0,)},
        "for a softmax": {"name": "bce", "logit_adjustment": 1.0},
        "must be at least 0": {"class_weights": (1.0, -1.0)},
        r"outside \[0, 1\)": {"effective_beta": 1.0},
    }.items():
        with pytest.raises(ConfigError, match=entries):
            LossConfig(**message)
    with pytest.raises(ConfigError, match="2 values for 3 classes: give one for each of ash, beech, cedar, in"):
        make_balance(LossConfig(class_weights=(1, 2)), DRAWS, CLASSES)


def test_the_sizes_of_classes_are_one_line_and_small_ones_a_warning():
    assert counts_text(DRAWS, CLASSES) == "training pictures by class: cedar 10, beech 30, ash 60"
    many = counts_text(np.arange(1000) + 5, [f"c{number}" for number in range(1000)])
    assert many == (
        "training pictures by class: c0 5, c1 6, c2 7, ..., median 504, ..., c997 1,002, c998 1,003, c999 1,004"
    )
    assert few_text(DRAWS, CLASSES) == ""
    assert "a class has fewer than 10 training pictures (cedar 9)" in few_text(DRAWS - 1, CLASSES)
    assert "7 classes have fewer than 10 training pictures (0 0, 1 1, 2 2, 3 3, 4 4 and 2 more)" in few_text(
        np.arange(7), "0123456"
    )


def test_any_metric_decides_which_model_is_best():
    """With the loss the lower one is; NaN never is, and rows of earlier versions without the metric are the last."""
    values = {
        "top1": (9, 5, 5),
        "macro_f1": (1, 7, 3),
        "balanced_accuracy": (2, 3, 8),
        "loss": (0.5, float("nan"), 0.4),
    }
    rows = [{"step": 1, "epoch": 0, "val_loss": 9.0, "val_top1": 0.0, "val_top5": 0.0, "val_examples": 4}]
    for epoch in range(3):
        scores = Scores(4, top5=9.0, **{name: column[epoch] for name, column in values.items()})
        rows.append(EpochScores(4, epoch + 1, summarize([], 0, 4), {MODEL: scores, EMA: scores}).row())
    for metric, best in {"top1": 1, "macro_f1": 2, "balanced_accuracy": 3, "loss": 3}.items():
        result = Result.from_rows(rows, metric)
        assert (result.best_epoch, result.best_ema_epoch) == (best, best)
        assert getattr(result.best, metric) == values[metric][best - 1] and not result.prefers_ema
        assert [row["epoch"] for row in best_rows(rows, 9, metric)][-1] == (2 if metric == "loss" else 0)
    config = Config(model=ModelConfig(name="-"), data=DataConfig(path="-"))
    assert (config.metric, replace(config, checkpoint=CheckpointConfig(metric="loss")).metric) == ("top1", "loss")
    assert METRICS["loss"].text(0.5) == "0.5000"


def test_the_line_of_an_epoch_has_the_metric():
    scores = Scores(4, 1.25, 50.0, 90.0, 40.0, 30.0)
    line = EpochScores(4, 1, summarize([], 0, 4), {MODEL: scores, EMA: scores}).line(9, "macro_f1")
    assert line.endswith("validation loss 1.2500  top-1  50.0 %  macro F1  30.0 %  EMA  30.0 %")
