"""What rows of metrics add up to: an epoch, and the result of a run."""

import math
from dataclasses import asdict

import pytest

from jeffnet.train.reports.scores import AVERAGED, EMA, MODEL, EpochScores, Result, score_entries, summarize
from jeffnet.validation.metrics import Scores


def test_a_summary_is_the_mean_of_the_steps():
    """A row is a mean since the row before it, without the steps that were skipped."""
    rows = [
        {"step": 4, "train_loss": 100.0, "train_top1": 100.0, "images_per_second": 1.0},  # of the epoch before
        {"step": 4, "val_loss": 100.0},
        {"step": 7, "train_loss": 2.0, "train_top1": 10.0, "images_per_second": 30.0},
        {"step": 9, "train_loss": 4.0, "train_top1": 20.0, "images_per_second": 10.0, "skipped": 1},
        {"step": 10, "train_loss": math.nan, "train_top1": 50.0, "images_per_second": 0.0, "skipped": 1},
        {"step": 12, "train_loss": 100.0, "train_top1": 100.0, "images_per_second": 1.0},
    ]
    summary = summarize(rows, 4, 10)
    assert (summary.loss, summary.top1) == ((3 * 2.0 + 4.0) / 4, (3 * 10.0 + 20.0) / 4)
    assert summary.images_per_second == pytest.approx(5 / (3 / 30 + 2 / 10))
    assert math.isnan(summarize(rows, 9, 10).loss) and summarize([], 0, 4).images_per_second == 0


def epoch_row(epoch, top1, ema=None):
    models = {MODEL: Scores(9, 1.0 / epoch, top1, 99.0)} | ({} if ema is None else {EMA: Scores(9, 0.5, ema, 98.0)})
    return EpochScores(4 * epoch, epoch, summarize([], 0, 4), models).row()


def test_an_epochs_row_and_line_have_its_scores():
    training = summarize([{"step": 4, "train_loss": 2.0, "train_top1": 25.0, "images_per_second": 90.4}], 0, 4)
    models = {MODEL: Scores(9, 1.25, 50.0, 99.0), EMA: Scores(9, 1.0, 60.0, 98.0)}
    scores = EpochScores(4, 1, training, models)
    row = {"step": 4, "epoch": 1, "train_epoch_loss": 2.0, "train_epoch_top1": 25.0}
    row |= {"val_examples": 9, "val_loss": 1.25, "val_top1": 50.0, "val_top5": 99.0}
    row |= {"ema_val_examples": 9, "ema_val_loss": 1.0, "ema_val_top1": 60.0, "ema_val_top5": 98.0}
    assert scores.row() == row
    assert scores.line(12) == (
        "epoch   1/12  loss 2.0000  top-1  25.0 %  |  validation loss 1.2500  top-1  50.0 %  EMA  60.0 %"
        "  |  90 images/s"
    )


def test_of_equal_scores_the_one_of_the_lowest_loss_is_the_best():
    rows = [epoch_row(1, 40.0), {"step": 6, "train_loss": 1.0}, epoch_row(2, 60.0), epoch_row(3, 60.0)]
    result = Result.from_rows(rows)
    assert (result.steps, result.best_epoch, result.best.top1, result.last.loss) == (12, 3, 60.0, 1.0 / 3)
    assert result.best_ema_epoch is result.best_ema is result.last_ema is result.averaged is None


def test_moving_and_final_averages_have_scores_of_their_own():
    averaged = Scores(9, 0.25, 75.0, 99.0)
    rows = [epoch_row(1, 40.0, 50.0), epoch_row(2, 60.0, 45.0)]
    rows.append({"step": 8, "epoch": 2, "averaged_epochs": 2} | score_entries(AVERAGED, averaged))
    result = Result.from_rows(rows)
    assert (result.best_epoch, result.best_ema_epoch, result.best_ema.top1, result.last_ema.top1) == (2, 1, 50.0, 45.0)
    assert result.averaged == averaged and asdict(result)["averaged"]["top1"] == 75.0
