"""The model card of a run, the README.md in its folder: the model, its training and its scores."""

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jeffnet.publish import readme
from jeffnet.system.files import write_file
from jeffnet.text.names import markdown, portable, shell_word
from jeffnet.train.config import Config, ParamGroup
from jeffnet.train.reports.environment import read_environments
from jeffnet.train.reports.scores import Result, Rows, scored_rows
from jeffnet.validation.metrics import METRICS
from jeffnet.weights.card import ModelCard

CARD_FILE = "README.md"

_CURVES = "curves.png"
_LOSS_TITLES = {"single_label": "cross entropy", "multi_label": "cross entropy", "regression": "squared error"}
# With so few classes top-5 counts every guess.
_FEW_CLASSES = 5
# Entries of the configuration that other rows of the table show, and parts that say nothing about the model.
_SHOWN = (
    *("model", "data", "augment", "optimizer", "schedule", "loss", "progressive", "quantize", "ema"),
    *("epochs", "batch_size", "accumulate", "seed", "checkpoint", "log"),
)


def write_card(folder: Path, card: ModelCard, config: Config, rows: Rows) -> None:
    """Write the card, with metadata for the model hub; the same run always gets the same card.

    Args:
      folder: of the run. The card shows its `environment.json` and `curves.png` where there are any.
      card: of the trained model.
      config: of the run.
      rows: of `metrics.jsonl`, with scores of at least one epoch.
    """
    source = portable(str(folder if folder.name not in ("", "..") else folder.resolve()))
    result = Result.from_rows(rows, config.metric)
    names = _shown_metrics(card, result) if card.task != "single_label" else ("top1", "top5")
    scores = {METRICS[name].title: round(float(getattr(result.best, name)), 2) for name in names}
    if card.num_classes <= _FEW_CLASSES:
        scores.pop("top-5", None)
    parts = [
        readme(card, source, scores, portable(config.data.path)).rstrip("\n"),
        "## Scores",
        _scores(card, rows, result),
        *([f"![Learning curves]({_CURVES})"] if (folder / _CURVES).exists() else []),
        "## Training",
        _table(("", ""), [(name, markdown(value)) for name, value in _training(config, rows)]),
        *_environment(folder),
        "To train it again:",
        f"```sh\njeffnet train --config {shell_word(f'{source}/config.json')} --output RUN\n```",
    ]
    write_file(folder / CARD_FILE, "\n\n".join(parts) + "\n")


def _scores(card: ModelCard, rows: Rows, result: Result) -> str:
    last = f"after epoch {scored_rows(rows)[-1]['epoch']}"
    count = next((row["averaged_epochs"] for row in reversed(rows) if "averaged_epochs" in row), None)
    shown = (
        (result.best, f"best, after epoch {result.best_epoch}", "model.safetensors"),
        (result.last, f"last, {last}", ""),
        (result.best_ema, f"best moving average, after epoch {result.best_ema_epoch}", "model_ema.safetensors"),
        (result.last_ema, f"last moving average, {last}", ""),
        (result.averaged, f"average of the best {count}", "averaged.safetensors"),
    )
    names = _shown_metrics(card, result)
    table = []
    for scores, label, file in shown:
        if scores is not None:
            values = (METRICS[name].text(getattr(scores, name)) for name in names)
            table.append((label, *values, f"{scores.loss:.4f}", f"`{file}`" if file else ""))
    header = ("model", *(METRICS[name].title for name in names), _LOSS_TITLES[card.task], "file")
    return (
        f"On {result.best.examples:,} validation pictures, by which the best were chosen too, by "
        f"{METRICS[result.metric].title}:\n\n{_table(header, table)}"
    )


def _shown_metrics(card: ModelCard, result: Result) -> list[str]:
    names = [name for name in METRICS if name != "loss" and getattr(result.best, name) is not None]
    return [name for name in names if name != "top5" or card.num_classes > _FEW_CLASSES]


def _training(config: Config, rows: Rows) -> Iterator[tuple[str, str]]:
    """Rows of the table: the choices of the configuration, and the speed."""
    data, augment = config.data, config.augment
    drawn = "" if data.sampling == "natural" else f", {data.sampling.replace('_', ' ')} sampling of classes"
    yield "data", f"{portable(data.path)}, split {data.train_split}{drawn}; validated on split {data.val_split}"
    start = config.model.pretrained
    yield "start", "random weights" if start is None else f"weights of {portable(start)}"
    yield "model", ", ".join(_changed(config.model, "name", "spec", "pretrained")) or "as published"
    yield "epochs", f"{config.epochs}, in {rows[-1]['step']:,} steps"
    yield "batch size", f"{config.batch_size}" + (f", in {config.accumulate} parts" if config.accumulate > 1 else "")
    optimizer = config.optimizer
    rate = f"learning rate {optimizer.learning_rate:g}"
    yield "optimizer", ", ".join([optimizer.name, rate, *_changed(optimizer, "name", "learning_rate")])
    yield "schedule", ", ".join([config.schedule.name, *_changed(config.schedule, "name")])
    yield "loss", ", ".join([config.loss.name.replace("_", " "), *_changed(config.loss, "name")])
    crop = f"random crops of {100 * augment.scale[0]:g} to {100 * augment.scale[1]:g} % of the area"
    flip = f"horizontal flip {augment.hflip:g}"
    yield "augmentation", ", ".join([crop, flip, *_changed(augment, "scale", "hflip")])
    if config.progressive.stages > 1:
        yield "progressive", ", ".join(_changed(config.progressive))
    if config.quantize.to:
        yield "rounding", ", ".join([f"that of {config.quantize.to} integers", *_changed(config.quantize, "to")])
    if config.ema.is_on:
        yield "moving average", ", ".join([config.ema.form, *_changed(config.ema, "form")])
    if others := _changed(config, *_SHOWN):
        yield "besides", ", ".join(others)
    yield "seed", f"{config.seed}"
    speeds = [row["images_per_second"] for row in rows if row.get("images_per_second")]
    if speeds:
        yield "speed", f"{statistics.median(speeds):,.0f} images per second"


def _changed(part: Any, *without: str) -> list[str]:
    """Entries that differ from their defaults, as `name value`."""
    changed = []
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name not in without and value != field.default:
            name = field.name.replace("_", " ")
            changed.append(name if value is True else f"{name} {_value(value)}")
    return changed


def _value(value: Any) -> str:
    if isinstance(value, ParamGroup):
        return f"{value.pattern} ({', '.join(_changed(value, 'pattern'))})"
    if isinstance(value, tuple):
        return " ".join(map(_value, value))
    if isinstance(value, float):
        return f"{value:g}"
    return portable(value) if isinstance(value, str) else str(value).lower()


def _environment(folder: Path) -> list[str]:
    entries = read_environments(folder)
    if not entries:
        return []
    try:
        last = entries[-1]
        versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items() if version)
        devices = " and ".join(f"{device['count']} {device['kind']}" for device in last["devices"])
    except (KeyError, TypeError, AttributeError):  # somebody edited it
        return []
    return [f"Trained on {markdown(devices)}, with {markdown(versions)}."]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
