"""A training run from its configuration to its best model."""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import model_preprocessing, resolve_name
from jeffnet.data.batches import EvalLoader
from jeffnet.data.loader import TrainLoader, eval_loader, steps_per_epoch, train_loader
from jeffnet.data.open import open_source
from jeffnet.data.preprocess import EvalTransform, TrainTransform
from jeffnet.errors import TrainingError
from jeffnet.evaluate import Forward, Scores, evaluate, make_forward
from jeffnet.linen import ImageClassifier, create_model, inference, to_canonical
from jeffnet.train.config import Config
from jeffnet.train.curves import draw_curves
from jeffnet.train.optim import make_optimizer
from jeffnet.train.run import Run
from jeffnet.train.schedule import Schedule, make_schedule
from jeffnet.train.step import Metrics, TrainState, TrainStep, initial_state, make_train_step
from jeffnet.weights.store import ModelCard, save_model


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
      steps: that were taken in all.
      best_epoch: the one with the highest top-1 in validation, the first of equals.
      best: its scores.
      last: scores after the last epoch.
    """

    steps: int
    best_epoch: int
    best: Scores
    last: Scores


@dataclass(frozen=True)
class _Parts:
    """What a run consists of; nothing of it changes during the run but the training batches' position."""

    config: Config
    model: ImageClassifier
    card: ModelCard
    start: TrainState
    train_batches: TrainLoader
    val_batches: EvalLoader
    steps_per_epoch: int
    schedule: Schedule
    step: TrainStep
    forward: Forward
    description: str


def train(config: Config, folder: str | Path, progress: bool = True) -> Result:
    """Train a model as configured, from the beginning.

    Args:
      config: what to do.
      folder: of the run; see `jeffnet.train.run`.
      progress: tell of it on standard error.

    Raises:
      JeffnetError: the configuration, the data or the folder will not do, or the loss is no longer a number.
    """
    # Parts first: what will not do is found before anything is written.
    parts = _make_parts(config)
    return _run(Run.create(folder, config), parts, progress)


def resume(folder: str | Path, progress: bool = True) -> Result:
    """Continue a run from its last checkpoint, as if it had not been interrupted.

    Args:
      folder: of the run.
      progress: tell of it on standard error.

    Raises:
      JeffnetError: the folder holds no run, or what `train` raises.
    """
    run = Run.open(folder)
    return _run(run, _make_parts(run.config), progress)


def run_preprocessing(config: Config) -> Preprocessing:
    """The model's preprocessing with what the configuration says instead."""
    own = model_preprocessing(config.model.name)
    data = config.data
    return replace(
        own,
        image_size=own.image_size if data.image_size is None else data.image_size,
        crop_pct=own.crop_pct if data.crop_pct is None else data.crop_pct,
        interpolation=data.interpolation or own.interpolation,
    )


def _run(run: Run, parts: _Parts, progress: bool) -> Result:
    try:
        state = run.restore(parts.start, parts.train_batches)
        done = int(state.step)
        _say(progress, f"{parts.description}, {f'continuing after step {done}' if done else 'from the beginning'}")
        for epoch in range(done // parts.steps_per_epoch, parts.config.epochs):
            state, means = _train_epoch(run, parts, state, epoch, progress)
            scores = evaluate(parts.forward, state.variables, parts.val_batches, progress)
            _finish_epoch(run, parts, state, epoch, means, scores, progress)
        return _result(run)
    finally:
        parts.train_batches.close()
        run.close()


def _make_parts(config: Config) -> _Parts:
    data, preprocessing = config.data, run_preprocessing(config)
    train_set = open_source(data.path, "train", config.model.in_chans, min_images=2)
    val_set = open_source(data.path, "val", config.model.in_chans, classes=train_set.classes)
    epoch_steps = steps_per_epoch(train_set, config.batch_size)
    steps = config.epochs * epoch_steps
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, steps, epoch_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    model, variables = _make_model(config, len(train_set.classes))
    card = ModelCard(
        model=resolve_name(config.model.name),
        num_classes=len(train_set.classes),
        in_chans=config.model.in_chans,
        preprocessing=preprocessing,
        classes=train_set.classes,
        output_stride=config.model.output_stride,
    )
    return _Parts(
        config=config,
        model=model,
        card=card,
        start=initial_state(variables, optimizer),
        train_batches=train_loader(
            train_set, _augmentation(config, preprocessing), config.batch_size, config.seed, data.threads
        ),
        val_batches=eval_loader(val_set, EvalTransform(preprocessing), config.batch_size, data.threads),
        steps_per_epoch=epoch_steps,
        schedule=schedule,
        step=make_train_step(model, optimizer, preprocessing, config.label_smoothing, config.seed),
        forward=make_forward(inference(model, variables)[0], preprocessing),
        description=f"{card.model} on {data.path}: {len(train_set)} training and {len(val_set)} validation pictures "
        f"of {card.num_classes} classes, {preprocessing.image_size} px, {config.epochs} epochs of {epoch_steps} steps",
    )


def _augmentation(config: Config, preprocessing: Preprocessing) -> TrainTransform:
    data = config.data
    return TrainTransform(
        preprocessing.image_size,
        scale=data.scale,
        ratio=data.ratio,
        interpolation=preprocessing.interpolation,
        flip=data.flip,
    )


def _make_model(config: Config, num_classes: int) -> tuple[ImageClassifier, Mapping[str, Any]]:
    return create_model(
        config.model.name,
        num_classes=num_classes,
        in_chans=config.model.in_chans,
        drop_rate=config.model.drop_rate,
        drop_path_rate=config.model.drop_path_rate,
        output_stride=config.model.output_stride,
        bn_momentum=config.model.bn_momentum,
        dtype=jnp.dtype(config.model.dtype),
        remat=config.model.remat,
        rng=config.seed,
        pretrained=config.model.pretrained,
        adapt=True,
    )


def _train_epoch(
    run: Run, parts: _Parts, state: TrainState, epoch: int, progress: bool
) -> tuple[TrainState, dict[str, float]]:
    """The steps of one epoch, and its mean metrics."""
    config = parts.config
    since_log: list[Metrics] = []
    means: list[tuple[int, dict[str, float]]] = []
    started, end = time.monotonic(), (epoch + 1) * parts.steps_per_epoch
    first = int(state.step)
    bar = tqdm(
        range(first, end),
        desc=f"epoch {epoch + 1}/{config.epochs}",
        unit="step",
        leave=False,
        disable=None if progress else True,
    )
    for done in bar:
        state, metrics = parts.step(state, next(parts.train_batches))
        since_log.append(metrics)
        if (done + 1) % config.log_steps == 0 or done + 1 == end:
            # Reading a metric waits for the device: only here, so that steps queue up in between.
            means.append((len(since_log), _mean(since_log)))
            since_log = []
            row = {"step": done + 1, "epoch": (done + 1) / parts.steps_per_epoch}
            row |= {f"train_{name}": value for name, value in means[-1][1].items()}
            _check_finite(row, run)
            run.log(row | {"learning_rate": float(np.asarray(parts.schedule(done)))})
            bar.set_postfix(loss=f"{row['train_loss']:.3f}", refresh=False)
    seconds = time.monotonic() - started
    total = sum(count for count, _ in means)
    summary = {name: sum(count * mean[name] for count, mean in means) / total for name in means[0][1]}
    return state, summary | {"images_per_second": (end - first) * config.batch_size / seconds}


def _mean(metrics: list[Metrics]) -> dict[str, float]:
    values = jax.device_get(metrics)
    return {name: float(np.mean([row[name] for row in values])) for name in values[0]}


def _check_finite(row: Mapping[str, float], run: Run) -> None:
    if not math.isfinite(row["train_loss"]):
        raise TrainingError(
            f"loss is {row['train_loss']} at step {row['step']}: lower optimizer.learning_rate or lengthen "
            f"schedule.warmup_epochs; {run.folder} keeps the checkpoints from before"
        )


def _finish_epoch(
    run: Run,
    parts: _Parts,
    state: TrainState,
    epoch: int,
    means: Mapping[str, float],
    scores: Scores,
    progress: bool,
) -> None:
    """Log the scores, keep the model if it is the best so far, and save where the run stands."""
    best = max((row["val_top1"] for row in run.rows() if "val_top1" in row), default=-1.0)
    speed = means["images_per_second"]
    run.log(
        {"step": int(state.step), "epoch": epoch + 1}
        | {f"val_{name}": value for name, value in asdict(scores).items()}
        | {"images_per_second": round(speed, 1)}
    )
    if scores.top1 > best:
        arrays = to_canonical(jax.device_get(state.variables), parts.model.plan)
        save_model(run.model_path, arrays, parts.card)
    run.save(state, parts.train_batches)
    draw_curves(run.rows(), run.folder / "curves.png", f"{parts.card.model}, {parts.config.data.path}")
    _say(
        progress,
        f"epoch {epoch + 1:>3}/{parts.config.epochs}  loss {means['loss']:.4f}  top-1 {means['top1']:5.1f} %  |  "
        f"validation loss {scores.loss:.4f}  top-1 {scores.top1:5.1f} %  |  {speed:.0f} images/s",
    )


def _result(run: Run) -> Result:
    rows = [row for row in run.rows() if "val_top1" in row]
    best = max(rows, key=lambda row: row["val_top1"])
    return Result(rows[-1]["step"], best["epoch"], _scores(best), _scores(rows[-1]))


def _scores(row: Mapping[str, Any]) -> Scores:
    return Scores(row["val_examples"], row["val_loss"], row["val_top1"], row["val_top5"])


def _say(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr, flush=True)
