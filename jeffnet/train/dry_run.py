"""A rehearsal of a run: some steps of each phase, validation, a checkpoint and the files; how long all will take."""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jeffnet.data.batches import EvalBatch, EvalLoader
from jeffnet.errors import ConfigError, TrainingError
from jeffnet.system.environment import memory_in_use
from jeffnet.system.files import partial_folder
from jeffnet.system.progress import progress_bar
from jeffnet.train.config import Config
from jeffnet.train.distillation import teacher_fault
from jeffnet.train.pretrained import settled
from jeffnet.train.reports.card import write_card
from jeffnet.train.reports.curves import Course, draw_curves, training_conditions
from jeffnet.train.reports.journal import Journal
from jeffnet.train.run import Run, check_no_run
from jeffnet.train.scoring import Scorer
from jeffnet.train.setup import Setup, make_setup
from jeffnet.train.state import TrainState
from jeffnet.train.teacher import Teacher

# Steps and validation batches that are timed, after one that also compiles.
_TIMED = 3


@dataclass(frozen=True)
class Part:
    """A part of a rehearsal.

    Attributes:
      name: what was done.
      seconds: how long it took, once.
      times: how often a whole run does it.
      memory: the most bytes that a device had in use until then, or on a CPU the memory of the process; None if
        unknown.
    """

    name: str
    seconds: float
    times: int
    memory: int | None


@dataclass(frozen=True)
class Rehearsal:
    """What a whole run will take.

    Attributes:
      description: of the run, in one line.
      parts: in the order in which they were done.
      bytes_of_checkpoint: on the disk.
    """

    description: str
    parts: tuple[Part, ...]
    bytes_of_checkpoint: int

    @property
    def seconds(self) -> float:
        """Estimate of the whole run."""
        return sum(part.seconds * part.times for part in self.parts)


def rehearse(
    config: Config, folder: str | Path | None = None, progress: bool = False, teacher: Teacher | None = None
) -> Rehearsal:
    """Do everything that a run will do, but briefly, and keep nothing of it.

    Args:
      config: of the run.
      folder: where the run will be; files are written beside it, on the same disk, and removed. None takes the system's
        folder for temporary files.
      progress: show what is being done on standard error.
      teacher: as for `jeffnet.train.loop.train`.

    Returns:
      Times and memory.

    Raises:
      TrainingError: the loss is not a finite number, or a checkpoint is not read as it was written.
      ConfigError: there are several processes.
      JeffnetError: as `jeffnet.train.loop.train`.
    """
    if jax.process_count() > 1:
        raise ConfigError("a rehearsal is for one process: try the configuration on one host")
    if folder is not None:
        check_no_run(folder)
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar("", bar_format="{desc} [{elapsed}]", shown=progress))
        work = _Work(bar.set_description_str)
        with work.part("data, weights and model", times=1):
            setup = make_setup(settled(config), teacher=teacher)
        with work.part("first state", times=1):
            state = jax.block_until_ready(setup.start())
            setup = setup.calibrated(state) if config.quantize.to else setup
        place = stack.enter_context(partial_folder(_beside(folder) / "rehearsal"))
        run = stack.enter_context(_closed_run(place, setup.config))
        # Their client would send the rehearsal away.
        log = replace(setup.config.log, wandb_project=None)
        journal = stack.enter_context(closing(Journal(place, log, {}, 0)))
        state = work.train(setup, state)
        work.validate(setup, run, journal, state)
        size = work.checkpoint(setup, run, state)
        with work.part("curves and model card", times=1):
            course = Course(setup.schedule, setup.steps, setup.steps_per_epoch)
            conditions, metric = training_conditions(config), config.shown_metric
            draw_curves(journal.rows(), place / "curves.png", "rehearsal", course, conditions, metric)
            write_card(place, setup.card, setup.config, journal.rows())
    description = "; ".join([setup.description, *([setup.lesson.description] if setup.lesson else [])])
    return Rehearsal(description, tuple(work.parts), size)


@contextmanager
def _closed_run(folder: Path, config: Config) -> Iterator[Run]:
    """A run in a folder, whose checkpoints are closed at the end."""
    run = Run(folder, config)
    with closing(run.checkpoints):
        yield run


def _beside(folder: str | Path | None) -> Path:
    """The nearest folder of a path that exists."""
    if folder is None:
        return Path(tempfile.gettempdir())
    return next(path for path in Path(folder).absolute().parents if path.is_dir())


class _FirstBatches:
    """The first `count` batches of a loader."""

    def __init__(self, loader: EvalLoader) -> None:
        self.count, self._loader = 1, loader
        self.classes, self.num_examples, self.name = loader.classes, loader.num_examples, loader.name

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[EvalBatch]:
        return islice(iter(self._loader), self.count)


class _Work:
    """Does the parts, and measures them."""

    def __init__(self, show: Any) -> None:
        self.parts: list[Part] = []
        self._show = show

    @contextmanager
    def part(self, name: str, times: int, of: int = 1) -> Iterator[None]:
        """Measure what is done within it, `of` times; `times` in a whole run."""
        self._show(name)
        began = time.monotonic()
        yield
        seconds = (time.monotonic() - began) / of
        self.parts.append(Part(name, seconds, times, memory_in_use()))

    def train(self, setup: Setup, state: TrainState) -> TrainState:
        """A few steps of each phase."""
        ends = [*(phase.first_epoch for phase in setup.phases[1:]), setup.config.epochs]
        for phase, end in zip(setup.phases, ends, strict=True):
            name = f"training at {phase.image_size} px" if len(setup.phases) == 1 else f"training, {phase.description}"
            step, left = setup.step(phase), (end - phase.first_epoch) * setup.steps_per_epoch
            with closing(setup.batches(phase)) as loader:

                def take(count: int, state: TrainState, step: Any = step, loader: Any = loader) -> TrainState:
                    metrics: Mapping[str, Any] = {}
                    for _ in range(count):
                        state, metrics = step(state, setup.layout.place_batch(dict(next(loader))))
                    if not np.isfinite(loss := float(metrics["loss"])) and setup.config.on_nan == "stop":
                        cause = teacher_fault(setup.lesson, metrics) or "lower optimizer.learning_rate"
                        raise TrainingError(f"the loss of the first steps is {loss}: {cause}")
                    return jax.block_until_ready(state)

                with self.part(f"{name}: first step, compiled", times=1):
                    state = take(1, state)
                with self.part(f"{name}: a step of {setup.config.batch_size} pictures", left - 1, of=_TIMED):
                    state = take(_TIMED, state)
        return state

    def validate(self, setup: Setup, run: Run, journal: Journal, state: TrainState) -> None:
        """A few batches of validation; scores and the model are written as in a run."""
        brief = _FirstBatches(setup.val_batches)
        scorer = Scorer(run, replace(setup, val_batches=brief), journal, lambda state, number: None)
        with self.part("validation: first batch, compiled; the model's file", times=1):
            scorer.score(state, None)
        brief.count = min(_TIMED, len(setup.val_batches))
        total = len(setup.val_batches) * setup.config.epochs
        with self.part(f"validation: a batch of {setup.config.batch_size} pictures", total - 1, of=brief.count):
            # Scores of the same step would not be computed again.
            scorer.score(state.replace(step=state.step + 1), None)  # pyright: ignore[reportAttributeAccessIssue]

    def checkpoint(self, setup: Setup, run: Run, state: TrainState) -> int:
        """Write a checkpoint, and read it; returns its bytes."""
        every = setup.config.checkpoint.every_steps
        times = setup.config.epochs + (setup.steps // every if every else 0)
        with self.part("checkpoint: copied, then written while training goes on", times):
            run.checkpoints.save(state, {})
        with self.part("checkpoint: on the disk", times=0):
            run.checkpoints.wait()
        with self.part("checkpoint: read and verified", times=0):
            restored = run.checkpoints.restore(setup.template())
        same = restored is not None and jax.tree.all(jax.tree.map(np.array_equal, state, restored[0]))
        if not same:
            raise TrainingError("a checkpoint was not read as it was written: check the disk and its memory")
        return sum(path.stat().st_size for path in (run.folder / "checkpoints").rglob("*") if path.is_file())
