"""A training run from its configuration to its best model."""

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jeffnet.arch.class_names import class_difference
from jeffnet.data.loader import LoaderState, TrainLoader
from jeffnet.errors import ConfigError, ImageError, TrainingError
from jeffnet.parallel.distributed import (
    any_process,
    check_agreement,
    compile_together,
    is_primary,
    on_primary,
    wait_for_all,
)
from jeffnet.text.names import printable_lines, shell_word
from jeffnet.train.config import Config
from jeffnet.train.interrupt import InterruptedRunError, StopRequest, stop_requests
from jeffnet.train.phases import Phase
from jeffnet.train.pretrained import continued, settled
from jeffnet.train.recipe import entry, entry_names, override
from jeffnet.train.reports.card import write_card
from jeffnet.train.reports.curves import draw_curves, draw_seeds
from jeffnet.train.reports.environment import format_bytes, memory_in_use, record_environment
from jeffnet.train.reports.journal import Journal, read_rows, summarize
from jeffnet.train.run import Run, is_run, locked_run, read_config
from jeffnet.train.scoring import Result, Scorer
from jeffnet.train.setup import Setup, make_setup
from jeffnet.train.state import TrainState
from jeffnet.train.step import Metrics, TrainStep
from jeffnet.validation.batch_size import is_out_of_memory

# Steps that the device may have before it: enough that it never waits for the next, few enough that their batches fit
# into memory.
_IN_FLIGHT = 2
# Drawing takes half a second: not after each epoch where those are short. At the end the curves are always drawn.
_SECONDS_TO_DRAW = 30


def train(config: Config, folder: str | Path, progress: bool = True, go_on: bool = False) -> Result:
    """Train a model as configured, from the beginning.

    With several processes (`jeffnet.parallel.distributed`) all call this with the same arguments.

    Args:
      config: what to do.
      folder: of the run; see `jeffnet.train.run`. On several hosts it is on storage that they share.
      progress: tell of it on standard error.
      go_on: where the folder holds a run of this configuration already, continue that. How devices share the work,
        where the same pictures are and how they are read, what is kept and what is told may differ.

    Raises:
      JeffnetError: the configuration, the data or the folder will not do, another process trains in the folder, or the
        loss is no longer a number.
      InterruptedRunError: SIGTERM or SIGINT asked the run to stop; where it stood is saved.
    """
    # Parts first: what will not do is found before anything is written.
    begun = go_on and bool(on_primary(lambda: is_run(folder)))
    config = continued(config, read_config(folder)) if begun else settled(config)
    setup = make_setup(config)
    _check_agreement(setup, folder, begun)
    if begun:
        _check_same(read_config(folder), config, folder)
    state = None if begun else setup.start()
    with locked_run(folder, waits=go_on):
        return _run(Run.open(folder, config) if begun else Run.create(folder, config), setup, state, progress)


def resume(folder: str | Path, overrides: Sequence[tuple[str, str]] = (), progress: bool = True) -> Result:
    """Continue a run from its last checkpoint, as if it had not been interrupted.

    Args:
      folder: of the run.
      overrides: entries of its configuration to change from here on, as `jeffnet.train.recipe.override` takes them.
      progress: tell of it on standard error.

    Raises:
      ConfigError: the folder holds no run, or its checkpoint does not fit the configuration.
      JeffnetError, InterruptedRunError: as `train`.
    """
    config = override(read_config(folder), overrides)
    with locked_run(folder):
        setup = make_setup(config)
        _check_agreement(setup, folder, True)
        return _run(Run.open(folder, config), setup, None, progress)


def _check_agreement(setup: Setup, folder: str | Path, begun: bool) -> None:
    """Raises ConfigError where processes would not do the same."""
    facts: dict[str, Any] = {name: entry(setup.config, name) for name in entry_names()}
    facts |= {
        "training pictures": len(setup.train_set),
        "validation pictures": setup.val_batches.num_examples,
        "classes": list(setup.train_set.classes),
        "mesh of devices": str(setup.layout),
        "run folder": str(folder),
        "run begun": begun,
    }
    check_agreement(facts)


def _check_same(own: Config, config: Config, folder: str | Path) -> None:
    """Raises ConfigError where a run that is to go on is of another configuration; its pictures may have moved."""
    free = ("mesh", "data.path", "data.threads", "data.workers", "checkpoint.", "log.")
    for name in entry_names():
        before, now = entry(own, name), entry(config, name)
        if before != now and not name.startswith(free):
            raise ConfigError(
                f"{str(folder)!r} holds a run with {name} {before!r}, not {now!r}: give another output folder, or "
                f"continue that run with `--resume {shell_word(str(folder))}`"
            )


def _run(run: Run, setup: Setup, state: TrainState | None, progress: bool) -> Result:
    with contextlib.ExitStack() as stack:
        stack.enter_context(_closed(run))
        values: Mapping[str, Any] = {}
        on_primary(run.checkpoints.remove_unfinished)
        restored = run.checkpoints.restore(setup.template())
        if restored is not None:
            state, values = restored
            _check_goes_on(setup, values)
        elif state is None:
            state = setup.start()
        run.write_config()
        on_primary(lambda: record_environment(run.folder))
        step = int(state.step)
        journal = Journal(run.folder, setup.config.log, asdict(setup.config), step, writes=is_primary())
        stack.callback(journal.close)
        stop = stack.enter_context(stop_requests())
        stack.enter_context(jax.debug_nans(setup.config.debug_nans))
        loop = _Loop(run, setup, journal, stop, progress and is_primary())
        loop.say(f"{setup.description}, {f'continuing after step {step}' if step else 'from the beginning'}")
        try:
            return loop.run(state, values)
        except ImageError as error:
            if setup.config.data.on_bad_image == "skip":
                raise
            raise ImageError(f"{error}: repair it, or resume with --data.on_bad_image skip") from error
        except FloatingPointError as error:
            raise TrainingError(f"debug_nans found one: {error}") from error
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(
                f"a batch of {setup.config.batch_size} on {setup.layout.devices} devices does not fit their memory: "
                "set accumulate, model.remat, model.dtype bfloat16, or a smaller batch_size"
            ) from error


@contextlib.contextmanager
def _closed(run: Run) -> Iterator[None]:
    """Closes a run's checkpoints at the end; after an error not where others would have to take part."""
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1 or isinstance(error, InterruptedRunError):
            run.checkpoints.close()
        raise
    run.checkpoints.close()
    wait_for_all()  # the first has more to do at the end, for any time; JAX's own waiting has a limit


def _check_goes_on(setup: Setup, values: Mapping[str, Any]) -> None:
    """Raises ConfigError where the data or the configuration changed so that a checkpoint does not go on with them."""
    before, now = values.get("classes"), list(setup.card.classes)
    if before is not None and before != now:
        raise ConfigError(
            f"the classes of {setup.config.data.path!r} were others when the run was saved: they are "
            f"{class_difference(now, before)}, and labels would mean something else: give them their names back, or "
            "begin a new run"
        )
    if values["steps_per_epoch"] != setup.steps_per_epoch:
        raise ConfigError(
            f"epochs had {values['steps_per_epoch']} steps when the run was saved, and would have "
            f"{setup.steps_per_epoch}: continue with the batch_size and the data of the start"
        )
    setup.batches(setup.phases[0], values["loader"]).close()


@dataclass
class _Feed:
    """Training batches, one of which is on its way to the device while another is worked on."""

    loader: TrainLoader
    position: LoaderState
    place: Callable[[dict[str, Any]], Any]
    ahead: Any = None

    def next(self) -> Any:
        """The next batch; `position` is then where the loader stands after it."""
        batch = self._fetched() if self.ahead is None else self.ahead
        self.ahead, self.position = None, self.loader.get_state()
        return batch

    def prefetch(self) -> None:
        """Begin to bring the one after it."""
        self.ahead = self._fetched()

    def _fetched(self) -> Any:
        return self.place(dict(next(self.loader)))


class _Loop:
    """The epochs of a run."""

    def __init__(self, run: Run, setup: Setup, journal: Journal, stop: StopRequest, progress: bool) -> None:
        self.files, self.setup, self.journal, self.stop = run, setup, journal, stop
        self.progress = progress
        self.config = setup.config
        self.scorer = Scorer(run, setup, journal, self._interruptible)
        self.pending: list[dict[str, float]] = []
        self.unread: list[Metrics] = []
        self.position: LoaderState | None = None
        self.bar: tqdm | None = None
        self.compiled: TrainStep | None = None
        self.skipped_in_a_row = 0
        self.requested = np.zeros(2, np.bool_)
        self.saved = time.monotonic()
        self.speed = 0.0
        self.drawn = time.monotonic()

    def run(self, state: TrainState, values: Mapping[str, Any]) -> Result:
        """All epochs from where the state stands."""
        setup, per_epoch = self.setup, self.setup.steps_per_epoch
        self.pending, self.position = list(values.get("pending", [])), values.get("loader")
        step = int(state.step)
        if step and step % per_epoch == 0:
            self._score(state)  # unless that was done before the run was interrupted
        with tqdm(
            total=setup.steps, initial=step, unit="step", leave=False, disable=None if self.progress else True
        ) as self.bar:
            for number, phase in enumerate(setup.phases):
                end = self._end_of(number) * per_epoch
                if step < end:
                    state = self._run_phase(phase, state, end)
                    step = int(state.step)
        return self._finish(state)

    def say(self, text: str) -> None:
        """Tell of something, above the bar."""
        if self.progress:
            tqdm.write(printable_lines(text), file=sys.stderr)
            sys.stderr.flush()

    def _end_of(self, number: int) -> int:
        phases = self.setup.phases
        return phases[number + 1].first_epoch if number + 1 < len(phases) else self.config.epochs

    def _run_phase(self, phase: Phase, state: TrainState, end: int) -> TrainState:
        if len(self.setup.phases) > 1:
            self.say(f"from epoch {phase.first_epoch + 1}: {phase.description}")
        step, loader = self.setup.step(phase), self.setup.batches(phase, self.position)
        try:
            feed = _Feed(loader, loader.get_state(), self._place)
            while (done := int(state.step)) < end:
                epoch_end = (done // self.setup.steps_per_epoch + 1) * self.setup.steps_per_epoch
                state = self._train_epoch(step, feed, state, done, epoch_end)
                self._save(state)
                self._score(state)
        finally:
            loader.close()
        return state

    def _train_epoch(self, step: TrainStep, feed: _Feed, state: TrainState, done: int, end: int) -> TrainState:
        config, every = self.config, self.config.checkpoint.every_steps
        in_flight: deque[Metrics] = deque()
        since = time.monotonic(), done
        for count in range(done + 1, end + 1):
            batch = feed.next()
            if step is not self.compiled:
                compile_together(step, state, batch)
            state, metrics = step(state, batch)
            self.position = feed.position
            if step is not self.compiled:  # compiling it does not count as slowness
                jax.block_until_ready(metrics)
                self.compiled, since = step, (time.monotonic(), count)
            self.unread.append(metrics)
            in_flight.append(metrics)
            if count < end:
                feed.prefetch()
            if len(in_flight) > _IN_FLIGHT:
                self._note(jax.block_until_ready(in_flight.popleft()))
            if count % config.log.steps == 0 or count == end:
                # Reading metrics waits for the device: only here, so that steps queue up in between.
                self._read(count)
                self._log(count, since)
                since = time.monotonic(), count
            stops, saves = self._requests()
            if stops:
                self._save(state)
                self._leave(count)
            if count < end and (saves or (every is not None and count % every == 0)):
                self._save(state)
            assert self.bar is not None
            self.bar.update()
        return state

    def _read(self, step: int) -> None:
        """Bring the metrics of the last steps from the device.

        Raises:
          TrainingError: one is no number.
        """
        fetched = jax.device_get(self.unread)
        for row in fetched:
            self._note(row)
        rows = [{name: float(value) for name, value in row.items() if name != "requests"} for row in fetched]
        self.unread.clear()
        for row in rows:
            self._check(row, step)
        self.pending += rows

    def _check(self, row: Mapping[str, float], step: int) -> None:
        scaled = self.config.model.dtype == "float16"
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if row["skipped"] else 0
        most = self.config.max_skipped if self.config.on_nan == "skip" or scaled else 0
        if self.skipped_in_a_row > most:
            kept = self.files.checkpoints.steps
            raise TrainingError(
                f"loss {row['loss']:g} with gradients of norm {row['grad_norm']:g} at or before step {step}"
                f"{f', {most} steps in a row' if most else ''}: lower optimizer.learning_rate, lengthen "
                f"schedule.warmup, clip by optimizer.clip_norm, or set on_nan to skip; {self.files.folder} keeps "
                + (f"the checkpoint of step {kept[0]}" if kept else "no checkpoint: none was due yet")
            )

    def _log(self, step: int, since: tuple[float, int]) -> None:
        rows, self.pending = self.pending, []
        seconds = time.monotonic() - since[0]
        good = [row for row in rows if not row["skipped"]] or rows
        means = {name: float(np.mean([row[name] for row in good])) for name in good[0]}
        skipped = sum(row["skipped"] for row in rows)
        row: dict[str, Any] = {"step": step, "epoch": step / self.setup.steps_per_epoch}
        row |= {f"train_{name}": means[name] for name in ("loss", "top1", "grad_norm")}
        row |= {name: means[name] for name in ("loss_scale",) if name in means}
        row |= {"skipped": int(skipped)} if skipped else {}
        row |= {"learning_rate": float(np.asarray(self.setup.schedule(step - 1)))}
        if step > since[1]:
            self.speed = round((step - since[1]) * self.config.batch_size / seconds, 1)
        row |= {"images_per_second": self.speed}
        self.journal.write(row)
        assert self.bar is not None
        self.bar.set_description(f"epoch {-(-step // self.setup.steps_per_epoch)}/{self.config.epochs}", refresh=False)
        memory = memory_in_use()
        self.bar.set_postfix_str(
            f"loss {row['train_loss']:.3f}, {row['images_per_second']:.0f} images/s"
            + (f", {format_bytes(memory)}" if memory else ""),
            refresh=False,
        )

    def _place(self, batch: dict[str, Any]) -> Any:
        """A batch on the devices; on several hosts with what this one asks for, so that all learn of it in one step."""
        if self.setup.layout.is_shared:
            batch["requests"] = np.tile([bool(self.stop), self._is_due()], (jax.local_device_count(), 1))
        return self.setup.layout.place_batch(batch)

    def _note(self, metrics: Metrics) -> None:
        """Remember what any host asked for in a step."""
        if "requests" in metrics:
            self.requested |= np.asarray(metrics["requests"])

    def _requests(self) -> tuple[bool, bool]:
        """Whether to stop, and whether to save: the same on all hosts."""
        stops, saves = self.requested if self.setup.layout.is_shared else (bool(self.stop), self._is_due())
        return bool(stops), bool(saves)

    def _is_due(self) -> bool:
        """Whether it is time for a checkpoint; the first process's clock counts."""
        minutes = self.config.checkpoint.every_minutes
        return minutes is not None and is_primary() and time.monotonic() - self.saved > 60 * minutes

    def _save(self, state: TrainState) -> None:
        """Begin to write a checkpoint. Never of a state that is no longer numbers: those metrics are read first."""
        self._read(int(state.step))
        self.saved, self.requested[1] = time.monotonic(), False
        self.journal.flush()  # or a power cut could lose rows of steps that are not taken again
        values = {
            "loader": dict(self.position or {}),
            "pending": self.pending,
            "steps_per_epoch": self.setup.steps_per_epoch,
            "classes": list(self.setup.card.classes),
        }
        self.files.checkpoints.save(state, values)

    def _leave(self, step: int) -> None:
        self.files.checkpoints.wait()
        raise InterruptedRunError(self.stop.signal, step)

    def _interruptible(self, batches: Iterable[Any], state: TrainState) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            shared = self.setup.layout.is_shared
            # Hosts agree before any of them leaves; that takes a moment, and not before every batch.
            stops = any_process(bool(self.stop)) if shared and number % 8 == 0 else bool(self.stop) and not shared
            if stops:  # the state was saved before validation began
                self._leave(int(state.step))
            yield batch

    def _score(self, state: TrainState) -> None:
        """Validate after an epoch, unless that was done already, and tell."""
        row = self.scorer.score(state, self.position)
        if row is None:
            return
        if time.monotonic() - self.drawn > _SECONDS_TO_DRAW:
            self._draw()
        self.say(self._told(row))

    def _draw(self) -> None:
        if not is_primary():
            return
        title = f"{self.setup.card.model}, {self.config.data.path}"
        draw_curves(self.journal.rows(), self.files.path("curves.png"), title)
        self.drawn = time.monotonic()

    def _told(self, row: Mapping[str, Any]) -> str:
        text = (
            f"epoch {row['epoch']:>3}/{self.config.epochs}  loss {row['train_epoch_loss']:.4f}  "
            f"top-1 {row['train_epoch_top1']:5.1f} %  |  validation loss {row['val_loss']:.4f}  "
            f"top-1 {row['val_top1']:5.1f} %"
        )
        if "ema_val_top1" in row:
            text += f"  EMA {row['ema_val_top1']:5.1f} %"
        speed = summarize(self.journal.rows(), row["step"] - self.setup.steps_per_epoch, row["step"]).images_per_second
        return f"{text}  |  {speed:.0f} images/s" if speed else text

    def _finish(self, state: TrainState) -> Result:
        """What is done once, at the end."""
        self.scorer.average(state, self.position)
        self._draw()
        result = self.scorer.result()
        if is_primary():
            write_card(self.files.folder, self.setup.card, self.config, self.journal.rows(), result.as_dict())
        return result


def train_seeds(config: Config, folder: str | Path, seeds: Sequence[int], progress: bool = True) -> list[Result]:
    """The same run with several seeds, one after the other, each in `seed_N`; those that were begun are continued.

    Args:
      config: what to do; its own seed is not used.
      folder: of the runs' folders.
      seeds: different ones.
      progress: tell of it on standard error.

    Raises:
      ConfigError: a seed occurs twice, or none is given.
      JeffnetError, InterruptedRunError: as `train`.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds {', '.join(map(str, seeds))}: give different ones, joined by commas")
    results = []
    for seed in seeds:
        one, own = Path(folder, f"seed_{seed}"), replace(config, seed=seed)
        if on_primary(lambda one=one: is_run(one)):
            if read_config(one) != continued(own, read_config(one)):
                raise ConfigError(f"{str(one)!r} holds a run of another configuration: give another output folder")
            results.append(resume(one, progress=progress))
        else:
            results.append(train(own, one, progress))
    runs = {f"seed {seed}": read_rows(Path(folder, f"seed_{seed}")) for seed in seeds}
    if is_primary():
        name = read_config(Path(folder, f"seed_{seeds[0]}")).model.name
        draw_seeds(runs, Path(folder, "curves.png"), f"{name}, {config.data.path}")
    return results
