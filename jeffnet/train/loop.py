"""A training run from its configuration to its best model."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from jeffnet.arch.class_names import class_difference
from jeffnet.arch.quantization import parse_quantization
from jeffnet.arch.spec import spec_attributes
from jeffnet.errors import ConfigError, ImageError, TrainingError
from jeffnet.parallel.distributed import check_agreement, is_primary, on_primary, wait_for_all
from jeffnet.text.names import counted, shell_word
from jeffnet.train.balance import counts_text, few_text
from jeffnet.train.config import Config
from jeffnet.train.epochs import Callbacks, Epochs
from jeffnet.train.interrupt import InterruptedRunError, Requests, stop_requests
from jeffnet.train.pretrained import continued, settled
from jeffnet.train.recipe import entry_values, override
from jeffnet.train.reports.environment import record_environment
from jeffnet.train.reports.journal import Journal
from jeffnet.train.reports.progress import Progress
from jeffnet.train.reports.scores import EpochScores, Result
from jeffnet.train.run import Run, create_run, is_run, locked_run, read_config, read_division
from jeffnet.train.setup import Setup, make_setup
from jeffnet.train.state import TrainState
from jeffnet.train.teacher import Teacher
from jeffnet.validation.batch_size import is_out_of_memory

_log = logging.getLogger("jeffnet.train")


def train(
    config: Config,
    folder: str | Path,
    progress: bool = True,
    go_on: bool = False,
    *,
    teacher: Teacher | None = None,
    on_step: Callable[[Mapping[str, Any]], object] | None = None,
    on_evaluation: Callable[[EpochScores], object] | None = None,
) -> Result:
    """Train a model as configured, from the beginning.

    With several processes (`jeffnet.parallel.distributed`) all of them call this with the same arguments, and each
    calls both functions, which must decide alike.

    An exception of `on_step` or `on_evaluation` stops the run with its state saved, and is raised here; `resume`
    continues the run.

    Args:
      config: of the run.
      folder: for the run; see `jeffnet.train.run`. Several hosts need storage that they share.
      progress: report on standard error.
      go_on: continue the run where the folder holds one of this configuration already. What does not change the
        training may differ: how devices share the work, where the pictures are and how they are read, what is kept and
        logged.
      teacher: a model of your own to learn from, in place of `loss.teacher`; `resume` needs it too.
      on_step: called every `log.steps` steps with a row of `metrics.jsonl`: means since the row before.
      on_evaluation: called with the scores of every epoch; if it returns a true value, the run ends with this epoch.

    Returns:
      The scores of the run.

    Raises:
      JeffnetError: the configuration, the data or the folder cannot be used, another process trains in the folder, or
        the loss is not a finite number.
      InterruptedRunError: SIGTERM or SIGINT asked the run to stop; its state is saved.

    Example:
      from jeffnet.train.config import Config, DataConfig, ModelConfig

      model = ModelConfig(name="mobilenetv3_small_100")
      config = Config(model=model, data=DataConfig(path="pictures"), batch_size=16, epochs=2)
      result = train(config, "runs/first")
      print(result.best.top1)
    """
    begun = go_on and bool(on_primary(lambda: is_run(folder)))
    config = continued(config, read_config(folder)) if begun else settled(config)
    # Before anything is written, so that a mistake leaves no folder behind.
    setup = make_setup(config, division=read_division(folder, config) if begun else None, teacher=teacher)
    _check_agreement(setup, folder, begun)
    if begun:
        _check_same(read_config(folder), config, folder)
    state = None if begun else setup.start()
    with locked_run(folder, waits=go_on):
        if not begun:
            create_run(folder, config, setup.division)
        return _run(Run(folder, config), setup, state, progress, Callbacks(on_step, on_evaluation))


def resume(
    folder: str | Path,
    overrides: Sequence[tuple[str, str]] = (),
    progress: bool = True,
    *,
    teacher: Teacher | None = None,
    on_step: Callable[[Mapping[str, Any]], object] | None = None,
    on_evaluation: Callable[[EpochScores], object] | None = None,
) -> Result:
    """Continue a run from its last checkpoint, as if it had not been interrupted.

    Args:
      folder: of the run.
      overrides: entries of its configuration to change from here on, as `jeffnet.train.recipe.override` takes them.
      progress: report on standard error.
      teacher: as for `train`.
      on_step: as for `train`.
      on_evaluation: as for `train`; not called for epochs that have scores already.

    Returns:
      The scores of the whole run.

    Raises:
      ConfigError: the folder holds no run, or its checkpoint does not fit the configuration.
      JeffnetError, InterruptedRunError: as `train`.
    """
    config = override(read_config(folder), overrides)
    with locked_run(folder):
        setup = make_setup(config, division=read_division(folder, config), teacher=teacher)
        _check_agreement(setup, folder, True)
        return _run(Run(folder, config), setup, None, progress, Callbacks(on_step, on_evaluation))


def _check_agreement(setup: Setup, folder: str | Path, begun: bool) -> None:
    """Raises ConfigError where processes would not do the same."""
    facts = {
        "training pictures": len(setup.train_set),
        "validation pictures": setup.val_batches.num_examples,
        "classes": list(setup.train_set.classes),
        "mesh of devices": str(setup.layout),
        "run folder": str(folder),
        "run begun": begun,
    }
    check_agreement(entry_values(setup.config) | facts)


def _check_same(begun: Config, config: Config, folder: str | Path) -> None:
    """Raises ConfigError where a run was begun with another configuration; its pictures may have moved."""
    free = ("mesh", "data.path", "data.image_folder", "data.threads", "data.workers", "checkpoint.", "log.")
    now = entry_values(config)
    for name, before in entry_values(begun).items():
        if before != now[name] and not name.startswith(free):
            raise ConfigError(
                f"{str(folder)!r} holds a run with {name} {before!r}, not {now[name]!r}: give another output folder, "
                f"or continue that run with `jeffnet train --resume {shell_word(str(folder))}`"
            )


def _run(run: Run, setup: Setup, state: TrainState | None, progress: bool, callbacks: Callbacks) -> Result:
    """Train from `state`, or from the last checkpoint where there is one."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_closed(run))
        values: Mapping[str, Any] = {}
        on_primary(run.checkpoints.remove_unfinished)
        restored = run.checkpoints.restore(setup.template())
        if restored is not None:
            state, values = restored
            _check_goes_on(setup, values)
            if (entries := values.get("quantization")) is not None:
                setup = setup.quantized(parse_quantization(entries))
        elif state is None:
            state = setup.start()
        if setup.config.quantize.to and setup.network.quantization is None:
            setup = setup.calibrated(state, progress and is_primary())
        run.write_config()
        on_primary(lambda: record_environment(run.folder))
        step = int(state.step)
        journal = Journal(run.folder, setup.config.log, asdict(setup.config), step, writes=is_primary())
        stack.callback(journal.close)
        stop = stack.enter_context(stop_requests())
        requests = Requests(stop, setup.layout, setup.config.checkpoint.every_minutes)
        stack.enter_context(jax.debug_nans(setup.config.debug_nans))
        stack.enter_context(_explained(setup))
        shown = Progress(progress and is_primary())
        shown.say(f"{setup.description}, {f'continuing after step {step}' if step else 'from the beginning'}")
        if setup.lesson:
            shown.say(setup.lesson.description)
        if (counts := setup.class_counts) is not None:
            shown.say(counts_text(counts, setup.train_set.classes))
            if is_primary() and (warning := few_text(counts, setup.train_set.classes)):
                _log.warning("%s", warning)
        return Epochs(run, setup, journal, requests, shown, callbacks).run(state, values)


@contextlib.contextmanager
def _explained(setup: Setup) -> Iterator[None]:
    """Turns errors of pictures and of JAX into errors that name the option to change."""
    try:
        yield
    except ImageError as error:
        if setup.config.data.on_bad_image == "skip":
            raise
        raise ImageError(f"{error}: repair it, or resume with data.on_bad_image skip") from error
    except FloatingPointError as error:
        raise TrainingError(f"debug_nans: {error}") from error
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"a batch of {setup.config.batch_size} does not fit the memory of "
            f"{counted(setup.layout.devices, 'device')}: set accumulate, model.remat, model.dtype bfloat16, or a "
            "smaller batch_size"
        ) from error


@contextlib.contextmanager
def _closed(run: Run) -> Iterator[None]:
    """Closes a run's checkpoints at the end; not after an error among several processes, since all must take part."""
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1 or isinstance(error, InterruptedRunError):
            run.checkpoints.close()
        raise
    run.checkpoints.close()
    wait_for_all()  # the first process has more to do at the end, for any time; JAX's own waiting has a limit


def _check_goes_on(setup: Setup, values: Mapping[str, Any]) -> None:
    """Raises ConfigError where the data or the configuration no longer fit a checkpoint."""
    before, now = values.get("classes"), list(setup.card.classes)
    if before is not None and before != now:
        raise ConfigError(
            f"the classes of {setup.config.data.path!r} were others when the run was saved: they are "
            f"{class_difference(now, before)}, and labels would mean something else: give them their names back, or "
            "begin a new run"
        )
    if values["steps_per_epoch"] != setup.steps_per_epoch:
        raise ConfigError(
            f"epochs had {counted(values['steps_per_epoch'], 'step')} when the run was saved, and would have "
            f"{setup.steps_per_epoch}: continue with the batch_size, min_epoch_steps and data of the start"
        )
    if values.get("has_teacher") and setup.lesson is None:
        raise ConfigError("the run was begun with a teacher of your own: continue it from Python, with teacher=")
    _check_spec(setup, values.get("spec"))
    _check_pictures(setup, values.get("preprocessing"))
    setup.batches(setup.phases[0], values["loader"]).close()


def _check_spec(setup: Setup, before: Mapping[str, Any] | None) -> None:
    """Raises ConfigError where an architecture of one's own is another than when a run was saved."""
    if before is None or setup.card.spec is None:
        return
    now = json.loads(json.dumps(spec_attributes(setup.card.spec)))
    for name, value in before.items():
        # Arrays may have the same shapes all the same. An attribute that this version does not know has no say.
        if value != now.get(name, value):
            raise ConfigError(
                f"the model's {name} was {value} when the run was saved, not {now[name]}: give it back, or begin a new "
                "run"
            )


# What the zoo said of pictures, where it was something else than now, before checkpoints said it.
_EARLIER_PICTURES: dict[str, dict[str, Any]] = {
    "efficientnet_b1": {"image_size": 240, "crop_pct": 0.875, "train_size": None},
    "efficientnet_b2": {"image_size": 260, "crop_pct": 0.875, "train_size": None},
    "efficientnet_b3": {"image_size": 300, "crop_pct": 0.904, "train_size": None},
    "efficientnet_b4": {"image_size": 380, "crop_pct": 0.922, "train_size": None},
    "efficientnet_b5": {"image_size": 456, "crop_pct": 0.934, "train_size": None, "crop_mode": "center"},
    "mobilenetv3_large_075": {"interpolation": "bicubic"},
}


def _check_pictures(setup: Setup, before: Mapping[str, Any] | None) -> None:
    """Raises ConfigError where a model's entry in the zoo has changed since a run was saved, and so its pictures.

    Args:
      setup: of the run that is to go on.
      before: the preprocessing when it was saved; None where its checkpoint is from before they said it.
    """
    if before is None:
        before = _EARLIER_PICTURES.get(setup.card.model, {})
    now = json.loads(json.dumps(asdict(setup.card.preprocessing)))
    chosen = setup.config.data
    changed = {
        name: value for name, value in before.items() if value != now.get(name) and getattr(chosen, name, None) is None
    }
    if chosen.image_size is not None:
        changed.pop("train_size", None)  # what is chosen is for training too
    if changed:
        ways = " ".join(
            f"--data.{name} {','.join(map(str, value)) if isinstance(value, list) else value}"
            for name, value in changed.items()
            if value is not None
        )
        raise ConfigError(
            f"the model's pictures were others when the run was saved: "
            f"{', '.join(f'{name} {value}, now {now.get(name)}' for name, value in changed.items())}: continue with "
            f"{ways or 'the jeffnet of the start'}"
        )
