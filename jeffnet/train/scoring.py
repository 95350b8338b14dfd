"""Validation during a run, and the models that it keeps."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from safetensors.numpy import load_file

from jeffnet.arch.summary import array_specs
from jeffnet.data.batches import EvalLoader
from jeffnet.data.loader import LoaderState
from jeffnet.errors import ImageError
from jeffnet.ops.average import average_arrays
from jeffnet.parallel.distributed import is_primary, wait_for_all
from jeffnet.train.estimate import make_estimate
from jeffnet.train.reports.journal import Journal, summarize
from jeffnet.train.run import Run
from jeffnet.train.setup import Setup
from jeffnet.train.state import Arrays, TrainState
from jeffnet.validation.metrics import Scores, answer, score
from jeffnet.weights.card import save_model

_NAMED = 5  # pictures that are left out, in a message
# How many batches re-estimate the running statistics of an average, where the configuration does not say.
_BATCHES_OF_AVERAGE = 50

_log = logging.getLogger("jeffnet.train")

# The rows of `metrics.jsonl` that have scores begin their names with one of these.
MODEL, EMA, AVERAGED = "val", "ema_val", "averaged_val"


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
      steps: that were taken in all.
      best_epoch: the one with the highest top-1 in validation, the first of equals.
      best: its scores.
      last: scores after the last epoch.
      best_ema_epoch: the one with the moving average's highest top-1; None without one.
      best_ema: its scores.
      last_ema: the moving average's after the last epoch.
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

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Scorer:
    """Validates states of a run, and keeps the best models."""

    def __init__(
        self,
        run: Run,
        setup: Setup,
        journal: Journal,
        interruptible: Callable[[EvalLoader, TrainState], Iterator[Any]],
    ) -> None:
        """For one run.

        Args:
          run: its folder.
          setup: its parts.
          journal: its metrics.
          interruptible: passes batches on as long as nobody asks the run to stop.
        """
        self._run, self._setup, self._journal, self._interruptible = run, setup, journal, interruptible
        self._told_skipped = False

        @jax.jit
        def forward(arrays: Arrays, pixels: Array) -> Array:
            return setup.network.evaluate(arrays, pixels).astype(jnp.float32)

        self._forward = forward
        self._estimate = make_estimate(setup.config.model, setup.network)

    def score(self, state: TrainState, position: LoaderState | None) -> dict[str, Any] | None:
        """Validate after an epoch: log the scores, and keep the model if it is among the best.

        Args:
          state: after the epoch.
          position: where the training batches stand.

        Returns:
          The row of scores; None where there is one already.
        """
        step = int(state.step)
        if any(row["step"] == step and f"{MODEL}_top1" in row for row in self._journal.rows()):
            return None
        models = {MODEL: state.arrays} | ({} if state.average is None else {EMA: state.averaged_arrays})
        if self._setup.config.bn_batches:
            estimated = self._reestimated(list(models.values()), position, self._setup.config.bn_batches)
            models = dict(zip(models, estimated, strict=True))
        scores = self._scores(list(models.values()), state)
        trained = summarize(self._journal.rows(), step - self._setup.steps_per_epoch, step)
        row: dict[str, Any] = {"step": step, "epoch": step // self._setup.steps_per_epoch}
        row |= {"train_epoch_loss": trained.loss, "train_epoch_top1": trained.top1}
        for name, each in zip(models, scores, strict=True):
            row |= {f"{name}_{metric}": value for metric, value in asdict(each).items()}
        self._keep(row, models)
        self._journal.write(row)
        return row

    def average(self, state: TrainState, position: LoaderState | None) -> None:
        """At the end of the run: average the best models, as configured, validate that and keep it."""
        wanted = self._setup.config.checkpoint.average_best
        rows = self._journal.rows()
        step = int(state.step)
        if not wanted or any(row["step"] == step and f"{AVERAGED}_top1" in row for row in rows):
            return
        epochs = [row["epoch"] for row in _best(rows, wanted)]
        wait_for_all()  # until the first process wrote them
        files = [load_file(self._best_path(epoch)) for epoch in epochs]
        batches = self._setup.config.bn_batches or _BATCHES_OF_AVERAGE
        (arrays,) = self._reestimated([self._setup.layout.place(average_arrays(files))], position, batches)
        (scores,) = self._scores([arrays], state)
        self._save(self._run.path("averaged.safetensors"), arrays)
        row = {"step": step, "epoch": self._setup.config.epochs, "averaged_epochs": len(epochs)}
        self._journal.write(row | {f"{AVERAGED}_{metric}": value for metric, value in asdict(scores).items()})

    def result(self) -> Result:
        """What the run came to so far."""
        rows = self._journal.rows()
        scored = [row for row in rows if f"{MODEL}_top1" in row]
        best, last = _best(scored, 1)[0], scored[-1]
        with_ema = f"{EMA}_top1" in last
        best_ema = _best(scored, 1, EMA)[0] if with_ema else {}
        averaged = [row for row in rows if f"{AVERAGED}_top1" in row]
        return Result(
            steps=last["step"],
            best_epoch=best["epoch"],
            best=_read(best, MODEL),
            last=_read(last, MODEL),
            best_ema_epoch=best_ema["epoch"] if with_ema else None,
            best_ema=_read(best_ema, EMA) if with_ema else None,
            last_ema=_read(last, EMA) if with_ema else None,
            averaged=_read(averaged[-1], AVERAGED) if averaged else None,
        )

    def _scores(self, models: list[Arrays], state: TrainState) -> list[Scores]:
        batches = _Interruptible(self._setup.val_batches, lambda loader: self._interruptible(loader, state))
        pairs = [(self._forward, arrays) for arrays in models]
        answers = answer(pairs, batches, layout=self._setup.layout)  # pyright: ignore[reportArgumentType]
        self._tell_skipped(answers[0].skipped)
        return [score(each.predictions) for each in answers]

    def _tell_skipped(self, skipped: list[int]) -> None:
        """Log which validation pictures are left out, when they are first met.

        Raises:
          ImageError: all of them.
        """
        loader = self._setup.val_batches
        if len(skipped) == loader.num_examples:
            raise ImageError(
                f"none of the {len(skipped)} validation pictures can be decoded, such as {loader.name(0)!r}"
            )
        if skipped and not self._told_skipped and is_primary():
            names = ", ".join(map(loader.name, skipped[:_NAMED]))
            _log.warning(
                "%d of %d validation pictures cannot be decoded and are left out of the scores: %s%s",
                len(skipped), loader.num_examples, names, ", ..." if len(skipped) > _NAMED else "",
            )  # fmt: skip
        self._told_skipped = self._told_skipped or bool(skipped)

    def _reestimated(self, models: list[Arrays], position: LoaderState | None, batches: int) -> list[Arrays]:
        """With running statistics of the next so many training batches, which stay the next ones."""
        loader = self._setup.batches(self._setup.phases[-1], position)
        try:
            return self._estimate(models, map(self._setup.layout.place_batch, islice(loader, batches)))
        finally:
            loader.close()

    def _keep(self, row: dict[str, Any], models: dict[str, Arrays]) -> None:
        """Save the models if they are the best so far; before their row is written, which says that it was done."""
        rows = [other for other in self._journal.rows() if f"{MODEL}_top1" in other]
        for name, file in ((MODEL, "model.safetensors"), (EMA, "model_ema.safetensors")):
            if name in models and _best([*rows, row], 1, name)[0] is row:
                self._save(self._run.path(file), models[name])
        most = self._setup.config.checkpoint.keep_best
        if most == 1 and not self._setup.config.checkpoint.average_best:
            return
        kept, folder = [other["epoch"] for other in _best([*rows, row], most)], self._run.path("best")
        if row["epoch"] in kept:
            self._save(self._best_path(row["epoch"]), models[MODEL])
        for path in folder.glob("epoch_*.safetensors") if is_primary() else ():
            if path not in map(self._best_path, kept):
                path.unlink()

    def _best_path(self, epoch: int) -> Path:
        return self._run.path("best") / f"epoch_{epoch:04d}.safetensors"

    def _save(self, path: Path, arrays: Arrays) -> None:
        arrays = self._setup.layout.gather(arrays)
        if not is_primary():
            return
        path.parent.mkdir(exist_ok=True)
        ordered = {name: np.asarray(arrays[name]) for name in array_specs(self._setup.network.plan)}
        save_model(path, ordered, self._setup.card)


@dataclass(frozen=True)
class _Interruptible:
    """Validation batches that come one by one through a function."""

    loader: EvalLoader
    passed_on: Callable[[EvalLoader], Iterator[Any]]

    @property
    def num_examples(self) -> int:
        """Of the data set."""
        return self.loader.num_examples

    def __iter__(self) -> Iterator[Any]:
        return self.passed_on(self.loader)


def _best(rows: list[dict[str, Any]], count: int, name: str = MODEL) -> list[dict[str, Any]]:
    """The rows of the highest top-1, the highest first; of equals the earlier one first."""
    scored = [row for row in rows if row.get(f"{name}_top1") is not None]
    return sorted(scored, key=lambda row: -row[f"{name}_top1"])[:count]


def _read(row: dict[str, Any], name: str) -> Scores:
    return Scores(*(row[f"{name}_{metric}"] for metric in ("examples", "loss", "top1", "top5")))
