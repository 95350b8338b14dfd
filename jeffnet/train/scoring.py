"""Validation during a run, and the models that the run keeps."""

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from safetensors.numpy import load_file

from jeffnet.arch.summary import array_specs
from jeffnet.data.loaders import LoaderState
from jeffnet.errors import ImageError
from jeffnet.ops.average import average_arrays
from jeffnet.parallel.distributed import is_primary, wait_for_all
from jeffnet.text.names import listed
from jeffnet.train.estimate import make_estimate
from jeffnet.train.reports.journal import Journal
from jeffnet.train.reports.scores import (
    AVERAGED,
    EMA,
    MODEL,
    EpochScores,
    Rows,
    best_rows,
    score_entries,
    scored_rows,
    summarize,
)
from jeffnet.train.run import Run
from jeffnet.train.setup import Setup
from jeffnet.train.state import Arrays, TrainState
from jeffnet.validation.answers import answer
from jeffnet.validation.metrics import Scores, score_task
from jeffnet.weights.formats.safetensors import save_model

# How many batches re-estimate the running statistics of an average, where the configuration does not say.
_BATCHES_OF_AVERAGE = 50

_log = logging.getLogger("jeffnet.train")


class Scorer:
    """Validates states of a run, and keeps the best models."""

    def __init__(
        self, run: Run, setup: Setup, journal: Journal, before_batch: Callable[[TrainState, int], None]
    ) -> None:
        """Scores a run; `before_batch` is called with the state and the number of every validation batch."""
        self._run, self._setup, self._journal, self._before_batch = run, setup, journal, before_batch
        self._metric = setup.config.metric
        self._logged_skipped = False

        @jax.jit
        def forward(arrays: Arrays, pixels: Array) -> Array:
            return setup.network.evaluate(arrays, pixels).astype(jnp.float32)

        self._forward = forward
        self._estimate = make_estimate(setup.network)

    def score(self, state: TrainState, position: LoaderState | None) -> EpochScores | None:
        """Validate after an epoch: log the scores, and keep the model if it is among the best.

        `position` is that of the training batches. None where the journal has the scores already.
        """
        rows, step, per_epoch = self._journal.rows(), int(state.step), self._setup.steps_per_epoch
        if any(row["step"] == step for row in scored_rows(rows)):
            return None
        models = {MODEL: state.arrays}
        if state.average is not None:
            models[EMA] = {**state.frozen, **state.average}
        if self._setup.config.bn_batches:
            estimated = self._reestimated(list(models.values()), position, self._setup.config.bn_batches)
            models = dict(zip(models, estimated, strict=True))
        scores, thresholds = self._scores(list(models.values()), state)
        training = summarize(rows, step - per_epoch, step)
        epoch = EpochScores(step, step // per_epoch, training, dict(zip(models, scores, strict=True)))
        row = epoch.row()
        self._keep([*rows, row], models, dict(zip(models, thresholds, strict=True)))
        self._journal.write(row)
        return epoch

    def average(self, state: TrainState, position: LoaderState | None) -> None:
        """At the end of the run: average the best models, as configured, validate that and keep it."""
        wanted = self._setup.config.checkpoint.average_best
        rows = self._journal.rows()
        step = int(state.step)
        if not wanted or any(row["step"] == step for row in scored_rows(rows, AVERAGED)):
            return
        epochs = [row["epoch"] for row in best_rows(rows, wanted, self._metric)]
        wait_for_all()  # until the first process wrote them
        files = [load_file(self._best_path(epoch)) for epoch in epochs]
        batches = self._setup.config.bn_batches or _BATCHES_OF_AVERAGE
        (arrays,) = self._reestimated([self._setup.layout.place(average_arrays(files))], position, batches)
        (scores,), (thresholds,) = self._scores([arrays], state)
        self._save(self._run.path("averaged.safetensors"), arrays, thresholds)
        row = {"step": step, "epoch": self._setup.config.epochs, "averaged_epochs": len(epochs)}
        self._journal.write(row | score_entries(AVERAGED, scores))

    def _scores(self, models: list[Arrays], state: TrainState) -> tuple[list[Scores], list[tuple[float, ...]]]:
        """Scores of each model, and its thresholds of several labels."""
        task = self._setup.card.task
        pairs, before_batch = [(self._forward, arrays) for arrays in models], partial(self._before_batch, state)
        batches, layout = self._setup.val_batches, self._setup.layout
        answers = answer(pairs, batches, task=task, layout=layout, before_batch=before_batch)
        self._log_skipped(answers[0].skipped)
        scored = [score_task(task, model_answers.predictions) for model_answers in answers]
        return [scores for scores, _ in scored], [thresholds for _, thresholds in scored]

    def _log_skipped(self, skipped: list[int]) -> None:
        """Log, once, which validation pictures cannot be decoded; raises ImageError if that is all of them."""
        loader = self._setup.val_batches
        if len(skipped) == loader.num_examples:
            first = loader.name(0)
            raise ImageError(f"none of the {len(skipped)} validation pictures can be decoded, such as {first!r}")
        if skipped and not self._logged_skipped and is_primary():
            text = "%d of %d validation pictures cannot be decoded and are left out of the scores: %s"
            _log.warning(text, len(skipped), loader.num_examples, listed(list(map(loader.name, skipped))))
        self._logged_skipped |= bool(skipped)

    def _reestimated(self, models: list[Arrays], position: LoaderState | None, batches: int) -> list[Arrays]:
        """The models with running statistics of the next training batches, which the training still gets too."""
        with closing(self._setup.batches(self._setup.phases[-1], position)) as loader:
            return self._estimate(models, map(self._setup.layout.place_batch, islice(loader, batches)))

    def _keep(self, rows: Rows, models: Mapping[str, Arrays], thresholds: Mapping[str, tuple[float, ...]]) -> None:
        """Save the models of the last row if they are among the best. The journal gets that row only afterwards."""
        for name, file in ((MODEL, "model.safetensors"), (EMA, "model_ema.safetensors")):
            if name in models and best_rows(rows, 1, self._metric, name)[0] is rows[-1]:
                self._save(self._run.path(file), models[name], thresholds[name])
        most = self._setup.config.checkpoint.keep_best
        if most == 1 and not self._setup.config.checkpoint.average_best:
            return
        kept, epoch = [row["epoch"] for row in best_rows(rows, most, self._metric)], rows[-1]["epoch"]
        if epoch in kept:
            self._save(self._best_path(epoch), models[MODEL], thresholds[MODEL])
        for path in self._run.path("best").glob("epoch_*.safetensors") if is_primary() else ():
            if path not in map(self._best_path, kept):
                path.unlink()

    def _best_path(self, epoch: int) -> Path:
        return self._run.path("best") / f"epoch_{epoch:04d}.safetensors"

    def _save(self, path: Path, arrays: Arrays, thresholds: tuple[float, ...]) -> None:
        arrays = self._setup.layout.gather(arrays)
        if not is_primary():
            return
        path.parent.mkdir(exist_ok=True)
        ordered = {name: np.asarray(arrays[name]) for name in array_specs(self._setup.network.plan)}
        save_model(path, ordered, replace(self._setup.card, thresholds=thresholds))
