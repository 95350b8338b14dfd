"""The metrics of training steps: read from the device, checked, and logged as means."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jeffnet.errors import TrainingError
from jeffnet.text.names import counted
from jeffnet.train.distillation import teacher_fault
from jeffnet.train.interrupt import Requests
from jeffnet.train.reports.journal import Journal
from jeffnet.train.reports.progress import Progress
from jeffnet.train.run import Run
from jeffnet.train.setup import Setup
from jeffnet.train.step import Metrics

# Of the metrics of a step, those that rows have as `train_...`.
_SHOWN = ("loss", "distillation_loss", "feature_loss", "top1", "grad_norm")


class StepMetrics:
    """Collects the metrics of steps, and passes on what processes ask for in them.

    Reading them waits for the device, which is why it is done for many at once.

    Attributes:
      pending: metrics that were read but not logged yet, which checkpoints keep.
    """

    def __init__(self, run: Run, setup: Setup, journal: Journal, requests: Requests, progress: Progress) -> None:
        self._run, self._setup, self._journal = run, setup, journal
        self._requests, self._progress = requests, progress
        self.pending: list[dict[str, float]] = []
        self._unread: list[Metrics] = []
        self._skipped_in_a_row = 0
        self._speed = 0.0
        self._since = time.monotonic(), 0

    def start(self, step: int, pending: Iterable[dict[str, float]] | None = None) -> None:
        """Measure speed from a step on; `pending` are those of the checkpoint from which the run goes on."""
        self._since = time.monotonic(), step
        if pending is not None:
            self.pending = list(pending)

    def add(self, metrics: Metrics) -> None:
        """Take the metrics of a step, which may still be computed."""
        self._unread.append(metrics)

    def read(self, step: int) -> None:
        """Bring the metrics of all steps so far; raises TrainingError if a loss or gradient is not a finite number."""
        fetched = jax.device_get(self._unread)
        self._unread.clear()
        for metrics in fetched:
            self._requests.note(metrics)
        rows = [{name: float(value) for name, value in row.items() if name != "requests"} for row in fetched]
        for number, row in enumerate(rows, step - len(rows) + 1):
            self._check(row, number)
        self.pending += rows

    def log(self, step: int) -> dict[str, Any]:
        """Write the means since the last time to the journal, after this step; returns what was written."""
        self.read(step)
        rows, self.pending = self.pending, []
        seconds, steps = time.monotonic() - self._since[0], step - self._since[1]
        if steps:
            self._speed = round(steps * self._setup.config.batch_size / seconds, 1)
        good = [row for row in rows if not row["skipped"]] or rows
        means = {name: float(np.mean([row[name] for row in good])) for name in good[0]}
        skipped = int(sum(row["skipped"] for row in rows))
        per_epoch, epochs = self._setup.steps_per_epoch, self._setup.config.epochs
        row: dict[str, Any] = {"step": step, "epoch": step / per_epoch}
        row |= {f"train_{name}": means[name] for name in _SHOWN if name in means}
        row |= {name: means[name] for name in ("loss_scale",) if name in means}
        row |= {"skipped": skipped} if skipped else {}
        row |= {"learning_rate": float(np.asarray(self._setup.schedule(step - 1))), "images_per_second": self._speed}
        self._journal.write(row)
        self._progress.describe(f"{-(-step // per_epoch)}/{epochs}", row["train_loss"], self._speed)
        self.start(step)
        return row

    def _check(self, row: Mapping[str, float], step: int) -> None:
        config = self._setup.config
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if row["skipped"] else 0
        most = config.max_skipped if config.on_nan == "skip" or config.model.dtype == "float16" else 0
        if self._skipped_in_a_row > most:
            kept, repeated = self._run.checkpoints.steps, f", {counted(most, 'step')} in a row" if most else ""
            raise TrainingError(
                f"loss {row['loss']:g} with gradients of norm {row['grad_norm']:g} at step {step}"
                f"{repeated}: {self._cause(row, step)}; {self._run.folder} keeps "
                + (f"the checkpoint of step {kept[0]}" if kept else "no checkpoint: none was due yet")
            )

    def _cause(self, row: Mapping[str, float], step: int) -> str:
        """What may have made the loss or the gradients of a step something else than finite, and what to do."""
        if fault := teacher_fault(self._setup.lesson, row):
            return fault
        if step == 1 and not np.isfinite(row["loss"]):
            start = self._setup.config.model.pretrained
            weights = f"the weights {start!r}, " if start else ""
            return (
                f"nothing was learnt before, so that no learning rate is to blame: check {weights}labels and pictures"
            )
        return (
            "lower optimizer.learning_rate, lengthen schedule.warmup, clip by optimizer.clip_norm, or set on_nan to "
            "skip"
        )
