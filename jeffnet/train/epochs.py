"""The epochs of a run: step after step, checkpoints, and validation after each epoch."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import jax

from jeffnet.arch.quantization import quantization_entries
from jeffnet.arch.spec import spec_attributes
from jeffnet.data.loaders import LoaderState, TrainLoader
from jeffnet.parallel.distributed import compile_together, is_primary
from jeffnet.text.names import portable
from jeffnet.train.interrupt import InterruptedRunError, Requests
from jeffnet.train.phases import Phase
from jeffnet.train.reports.card import write_card
from jeffnet.train.reports.curves import Course, draw_curves, training_conditions
from jeffnet.train.reports.journal import Journal
from jeffnet.train.reports.progress import Progress
from jeffnet.train.reports.scores import EpochScores, Result
from jeffnet.train.reports.steps import StepMetrics
from jeffnet.train.run import Run
from jeffnet.train.scoring import Scorer
from jeffnet.train.setup import Setup
from jeffnet.train.state import TrainState
from jeffnet.train.step import Metrics, TrainStep

# Steps that may be queued on the device: enough that it never waits for the next, few enough that their batches fit
# into memory.
_IN_FLIGHT = 2
# Drawing takes half a second, too much after every short epoch. The curves are always drawn at the end.
_SECONDS_TO_DRAW = 30


@dataclass(frozen=True)
class Callbacks:
    """Functions of the caller that a run calls.

    Attributes:
      on_step: called with a row of `metrics.jsonl` every `log.steps` steps.
      on_evaluation: called with the scores of every epoch; if it returns a true value, the run ends with this epoch.
    """

    on_step: Callable[[Mapping[str, Any]], object] | None = None
    on_evaluation: Callable[[EpochScores], object] | None = None


@dataclass
class _Feed:
    """Training batches, one of which is on its way to the device while another is worked on."""

    loader: TrainLoader
    place: Callable[[dict[str, Any]], Any]
    ahead: Any = None

    def next(self) -> tuple[Any, LoaderState]:
        """The next batch, and where the loader stands after it."""
        self.prefetch()
        batch, self.ahead = self.ahead, None
        return batch, self.loader.get_state()

    def prefetch(self) -> None:
        """Begin to bring the next batch, unless it is on its way."""
        if self.ahead is None:
            self.ahead = self.place(dict(next(self.loader)))


class Epochs:
    """The epochs of a run."""

    def __init__(
        self,
        run: Run,
        setup: Setup,
        journal: Journal,
        requests: Requests,
        progress: Progress,
        callbacks: Callbacks,
    ) -> None:
        self.files, self.setup, self.journal, self.requests, self.progress = run, setup, journal, requests, progress
        self.config, self.callbacks, self.is_over = setup.config, callbacks, False
        self.metrics = StepMetrics(run, setup, journal, requests, progress)
        self.scorer = Scorer(run, setup, journal, self._stop_if_asked)
        self.position: LoaderState | None = None
        self.compiled: TrainStep | None = None
        self.drawn = time.monotonic()

    def run(self, state: TrainState, values: Mapping[str, Any]) -> Result:
        """Run all epochs that are left after a state, the first or that of a checkpoint with its values."""
        per_epoch, step = self.setup.steps_per_epoch, int(state.step)
        self.position = values.get("loader")
        self.metrics.start(step, values.get("pending", ()))
        if step and step % per_epoch == 0:
            self._score(state)  # unless that was done before the run was interrupted
        phases = self.setup.phases
        ends = [*(phase.first_epoch for phase in phases[1:]), self.config.epochs]
        with self.progress.bar(self.setup.steps, step):
            for phase, end in zip(phases, ends, strict=True):
                if int(state.step) < end * per_epoch and not self.is_over:
                    state = self._run_phase(phase, state, end * per_epoch)
        return self._finish(state)

    def _run_phase(self, phase: Phase, state: TrainState, end: int) -> TrainState:
        if len(self.setup.phases) > 1:
            self.progress.say(f"from epoch {phase.first_epoch + 1}: {phase.description}")
        step = self.setup.step(phase)
        with closing(self.setup.batches(phase, self.position)) as loader:
            feed = _Feed(loader, self.requests.place)
            while (done := int(state.step)) < end and not self.is_over:
                epoch_end = (done // self.setup.steps_per_epoch + 1) * self.setup.steps_per_epoch
                state = self._train_epoch(step, feed, state, done, epoch_end)
                self._save(state)
                self._score(state)
        return state

    def _train_epoch(self, step: TrainStep, feed: _Feed, state: TrainState, done: int, end: int) -> TrainState:
        every = self.config.checkpoint.every_steps
        in_flight: deque[Metrics] = deque()
        self.metrics.start(done)
        for count in range(done + 1, end + 1):
            batch, self.position = feed.next()
            state, metrics = self._step(step, batch, state, count)
            self.metrics.add(metrics)
            in_flight.append(metrics)
            if count < end:
                feed.prefetch()
            if len(in_flight) > _IN_FLIGHT:
                self.requests.note(jax.block_until_ready(in_flight.popleft()))
            if count % self.config.log.steps == 0 or count == end:
                self._report(self.metrics.log(count), state)
            if self.requests.stops:
                self._save(state)
                self._interrupt(count)
            if count < end and (self.requests.saves or (every is not None and count % every == 0)):
                self._save(state)
            self.progress.advance()
        return state

    def _report(self, row: Mapping[str, Any], state: TrainState) -> None:
        if self.callbacks.on_step is None:
            return
        try:
            self.callbacks.on_step(row)
        except BaseException:
            self._save(state)
            self.files.checkpoints.wait()
            raise

    def _step(self, step: TrainStep, batch: Any, state: TrainState, count: int) -> tuple[TrainState, Metrics]:
        if step is self.compiled:
            return step(state, batch)
        compile_together(step, state, batch)
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        self.compiled = step
        self.metrics.start(count)  # the time of compiling would count as slowness
        return state, metrics

    def _save(self, state: TrainState) -> None:
        """Begin to write a checkpoint, unless a loss is not a finite number: metrics are read and checked first."""
        self.metrics.read(int(state.step))
        self.requests.saved()
        self.journal.flush()  # or a power cut could lose rows of steps that are not taken again
        values = {
            "loader": dict(self.position or {}),
            "pending": self.metrics.pending,
            "steps_per_epoch": self.setup.steps_per_epoch,
            "classes": list(self.setup.card.classes),
            "preprocessing": asdict(self.setup.card.preprocessing),
            "quantization": self.setup.card.quantization and quantization_entries(self.setup.card.quantization),
            "spec": self.setup.card.spec and spec_attributes(self.setup.card.spec),
            "has_teacher": self.setup.lesson is not None,
        }
        self.files.checkpoints.save(state, values)

    def _interrupt(self, step: int) -> None:
        self.files.checkpoints.wait()
        raise InterruptedRunError(self.requests.stop.signal, step)

    def _stop_if_asked(self, state: TrainState, number: int) -> None:
        """Stop before validation batch `number` if the run is to; the state was saved before validation began."""
        if self.requests.stop_between_steps(number):
            self._interrupt(int(state.step))

    def _score(self, state: TrainState) -> None:
        """Validate after an epoch, unless that was done already, and report."""
        if (scores := self.scorer.score(state, self.position)) is not None:
            if time.monotonic() - self.drawn > _SECONDS_TO_DRAW:
                self._draw()
            self.progress.say(scores.line(self.config.epochs, self.config.metric))
            if self.callbacks.on_evaluation is not None:
                self.is_over = bool(self.callbacks.on_evaluation(scores))

    def _draw(self) -> None:
        if is_primary():
            setup = self.setup
            title = f"{setup.card.model}, {portable(self.config.data.path)}"
            course = Course(setup.schedule, setup.steps, setup.steps_per_epoch)
            path, conditions = self.files.path("curves.png"), training_conditions(self.config)
            draw_curves(self.journal.rows(), path, title, course, conditions, self.config.shown_metric)
            self.drawn = time.monotonic()

    def _finish(self, state: TrainState) -> Result:
        """Average the best models, draw the curves, and write the model card."""
        self.scorer.average(state, self.position)
        self._draw()
        rows = self.journal.rows()
        if is_primary():
            write_card(self.files.folder, self.setup.card, self.config, rows)
        return Result.from_rows(rows, self.config.metric)
