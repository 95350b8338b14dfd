"""What rows of metrics add up to: training over an epoch, the scores after it, and the result of a run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from jeffnet.validation.metrics import Scores

# Scores in a row of `metrics.jsonl` have names that begin with one of these.
MODEL, EMA, AVERAGED = "val", "ema_val", "averaged_val"

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Summary:
    """Training over several steps.

    Attributes:
      loss: mean of the steps that were not skipped; NaN where all were.
      top1: likewise, per cent.
      images_per_second: while training; 0 where nothing was measured.
    """

    loss: float
    top1: float
    images_per_second: float


def summarize(rows: Rows, start: int, end: int) -> Summary:
    """Training after step `start`, up to step `end`, from rows which are means since the row before."""
    taken, losses, top1s, before = 0, 0.0, 0.0, start
    measured, seconds = 0, 0.0  # the latter in units of a step's pictures
    for row in rows:
        if "train_loss" not in row or not start < row["step"] <= end:
            continue
        steps, before = row["step"] - before, row["step"]
        if good := steps - row.get("skipped", 0):
            taken, losses, top1s = taken + good, losses + good * row["train_loss"], top1s + good * row["train_top1"]
        if speed := row.get("images_per_second"):
            measured, seconds = measured + steps, seconds + steps / speed
    speed = measured / seconds if seconds else 0.0
    return Summary(losses / taken, top1s / taken, speed) if taken else Summary(math.nan, math.nan, speed)


@dataclass(frozen=True)
class EpochScores:
    """An epoch of training, and the validation after it.

    Attributes:
      step: the epoch's last.
      epoch: its number, from 1.
      training: over the epoch.
      models: scores by `MODEL` and, with a moving average, `EMA`.
    """

    step: int
    epoch: int
    training: Summary
    models: Mapping[str, Scores]

    def row(self) -> dict[str, Any]:
        """For `metrics.jsonl`."""
        row = {"step": self.step, "epoch": self.epoch}
        row |= {"train_epoch_loss": self.training.loss, "train_epoch_top1": self.training.top1}
        for name, scores in self.models.items():
            row |= score_entries(name, scores)
        return row

    def line(self, epochs: int) -> str:
        """For a person to read; `epochs` of the run."""
        training, model = self.training, self.models[MODEL]
        text = (
            f"epoch {self.epoch:>3}/{epochs}  loss {training.loss:.4f}  top-1 {training.top1:5.1f} %  |  "
            f"validation loss {model.loss:.4f}  top-1 {model.top1:5.1f} %"
        )
        if EMA in self.models:
            text += f"  EMA {self.models[EMA].top1:5.1f} %"
        return f"{text}  |  {training.images_per_second:.0f} images/s" if training.images_per_second else text


@dataclass(frozen=True)
class Result:
    """The scores of a run.

    Attributes:
      steps: how many were taken.
      best_epoch: the epoch with the highest top-1 in validation, the first of equals.
      best: its scores.
      last: scores after the last epoch.
      best_ema_epoch: the epoch with the moving average's highest top-1; None without an average.
      best_ema: its scores.
      last_ema: the moving average's scores after the last epoch.
      averaged: scores of the average of the best models; None without one.
    """

    steps: int
    best_epoch: int
    best: Scores
    last: Scores
    best_ema_epoch: int | None = None
    best_ema: Scores | None = None
    last_ema: Scores | None = None
    averaged: Scores | None = None

    @classmethod
    def from_rows(cls, rows: Rows) -> "Result":
        """The result of a run whose rows have scores of at least one epoch."""
        scored, averaged = scored_rows(rows), scored_rows(rows, AVERAGED)
        best, last = best_rows(rows, 1)[0], scored[-1]
        best_ema = best_rows(rows, 1, EMA)[0] if f"{EMA}_top1" in last else None
        return cls(
            steps=last["step"],
            best_epoch=best["epoch"],
            best=_scores(best, MODEL),
            last=_scores(last, MODEL),
            best_ema_epoch=best_ema["epoch"] if best_ema else None,
            best_ema=_scores(best_ema, EMA) if best_ema else None,
            last_ema=_scores(last, EMA) if best_ema else None,
            averaged=_scores(averaged[-1], AVERAGED) if averaged else None,
        )


def score_entries(name: str, scores: Scores) -> dict[str, Any]:
    """Scores as entries of a row, such as `val_loss` for the name `MODEL`."""
    return {f"{name}_{metric}": value for metric, value in asdict(scores).items()}


def scored_rows(rows: Rows, name: str = MODEL) -> list[Mapping[str, Any]]:
    """The rows that have scores of this name."""
    return [row for row in rows if f"{name}_top1" in row]


def best_rows(rows: Rows, count: int, name: str = MODEL) -> list[Mapping[str, Any]]:
    """The rows of the highest top-1, the highest first; of equals the earlier one first."""
    return sorted(scored_rows(rows, name), key=lambda row: -row[f"{name}_top1"])[:count]


def _scores(row: Mapping[str, Any], name: str) -> Scores:
    return Scores(**{field.name: row[f"{name}_{field.name}"] for field in fields(Scores)})
