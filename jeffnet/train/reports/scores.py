"""What rows of metrics add up to: training over an epoch, the scores after it, and the result of a run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from jeffnet.validation.metrics import METRICS, Scores

# Scores in a row of `metrics.jsonl` have names that begin with one of these.
MODEL, EMA, AVERAGED = "val", "ema_val", "averaged_val"

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Summary:
    """Training over several steps.

    Attributes:
      loss: mean of the steps that were not skipped; NaN where all were.
      top1: likewise, per cent; None but for a single label.
      images_per_second: while training; 0 where nothing was measured.
    """

    loss: float
    top1: float | None
    images_per_second: float


def summarize(rows: Rows, start: int, end: int) -> Summary:
    """Training after step `start`, up to step `end`, from rows which are means since the row before."""
    taken, losses, top1s, before = 0, 0.0, 0.0, start
    has_top1 = any("train_top1" in row for row in rows) or not rows
    measured, seconds = 0, 0.0  # the latter in units of a step's pictures
    for row in rows:
        if "train_loss" not in row or not start < row["step"] <= end:
            continue
        steps, before = row["step"] - before, row["step"]
        if good := steps - row.get("skipped", 0):
            taken, losses, top1s = (
                taken + good,
                losses + good * row["train_loss"],
                top1s + good * row.get("train_top1", 0.0),
            )
        if speed := row.get("images_per_second"):
            measured, seconds = measured + steps, seconds + steps / speed
    speed = measured / seconds if seconds else 0.0
    loss, top1 = (losses / taken, top1s / taken) if taken else (math.nan, math.nan)
    return Summary(loss, top1 if has_top1 else None, speed)


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
        row |= {"train_epoch_loss": self.training.loss}
        row |= {} if self.training.top1 is None else {"train_epoch_top1": self.training.top1}
        for name, scores in self.models.items():
            row |= score_entries(name, scores)
        return row

    def line(self, epochs: int, metric: str = "top1") -> str:
        """For a person to read: `epochs` of the run, and by which `metric` its models are compared."""
        training, model = self.training, self.models[MODEL]
        text = f"epoch {self.epoch:>3}/{epochs}  loss {training.loss:.4f}"
        text += "" if training.top1 is None else f"  top-1 {training.top1:5.1f} %"
        text += f"  |  validation loss {model.loss:.4f}"
        for name in dict.fromkeys(("top1", metric)):
            if name != "loss" and getattr(model, name) is not None:
                text += f"  {METRICS[name].title} {_short(name, model)}"
        if EMA in self.models:
            text += f"  EMA {_short(metric, self.models[EMA])}"
        return f"{text}  |  {training.images_per_second:.0f} images/s" if training.images_per_second else text


@dataclass(frozen=True)
class Result:
    """The scores of a run.

    Attributes:
      steps: how many were taken.
      best_epoch: the epoch with the best `metric` in validation; of equals the lowest loss, then the first.
      best: its scores.
      last: scores after the last epoch.
      best_ema_epoch: the epoch with the moving average's best `metric`; None without an average.
      best_ema: its scores.
      last_ema: the moving average's scores after the last epoch.
      averaged: scores of the average of the best models; None without one.
      metric: the score by which models are compared, one of `jeffnet.validation.metrics.METRICS`.
    """

    steps: int
    best_epoch: int
    best: Scores
    last: Scores
    best_ema_epoch: int | None = None
    best_ema: Scores | None = None
    last_ema: Scores | None = None
    averaged: Scores | None = None
    metric: str = "top1"

    @classmethod
    def from_rows(cls, rows: Rows, metric: str = "top1") -> "Result":
        """The result of a run whose rows have scores of at least one epoch, the best one by a metric."""
        scored, averaged = scored_rows(rows), scored_rows(rows, AVERAGED)
        best, last = best_rows(rows, 1, metric)[0], scored[-1]
        best_ema = best_rows(rows, 1, metric, EMA)[0] if f"{EMA}_loss" in last else None
        return cls(
            steps=last["step"],
            best_epoch=best["epoch"],
            best=_scores(best, MODEL),
            last=_scores(last, MODEL),
            best_ema_epoch=best_ema["epoch"] if best_ema else None,
            best_ema=_scores(best_ema, EMA) if best_ema else None,
            last_ema=_scores(last, EMA) if best_ema else None,
            averaged=_scores(averaged[-1], AVERAGED) if averaged else None,
            metric=metric,
        )

    def text(self, scores: Scores) -> str:
        """The metric of some scores, such as `91.25 %`."""
        return METRICS[self.metric].text(getattr(scores, self.metric))

    @property
    def prefers_ema(self) -> bool:
        """Whether the best moving average is better than the best model."""
        rank = METRICS[self.metric].rank
        best, average = (scores and rank(getattr(scores, self.metric)) for scores in (self.best, self.best_ema))
        return average is not None and best is not None and average < best


def score_entries(name: str, scores: Scores) -> dict[str, Any]:
    """Scores as entries of a row, such as `val_loss` for the name `MODEL`."""
    return {f"{name}_{metric}": value for metric, value in asdict(scores).items() if value is not None}


def scored_rows(rows: Rows, name: str = MODEL) -> list[Mapping[str, Any]]:
    """The rows that have scores of this name."""
    return [row for row in rows if f"{name}_loss" in row]


def best_rows(rows: Rows, count: int, metric: str = "top1", name: str = MODEL) -> list[Mapping[str, Any]]:
    """The rows of the best scores, the best first; of equals the lower loss, then the earlier one.

    Args:
      rows: of `metrics.jsonl`.
      count: how many at most.
      metric: by which they are compared, one of `jeffnet.validation.metrics.METRICS`.
      name: of the model or average whose scores they are.

    Returns:
      The rows; fewer where fewer have scores of this name.
    """
    metrics = (metric, "loss")  # on few pictures scores are often equal
    return sorted(
        scored_rows(rows, name), key=lambda row: [METRICS[each].rank(row.get(f"{name}_{each}")) for each in metrics]
    )[:count]


def _scores(row: Mapping[str, Any], name: str) -> Scores:
    """The scores in a row; rows of earlier versions have fewer."""
    return Scores(**{field.name: row.get(f"{name}_{field.name}", field.default) for field in fields(Scores)})


def _short(metric: str, scores: Scores) -> str:
    value = getattr(scores, metric)
    return f"{value:5.1f} %" if METRICS[metric].unit else f"{value:.4f}"
