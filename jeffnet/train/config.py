"""What a training run does, as typed and frozen data.

A recipe is a Python file that defines `config = Config(...)`. `--optimizer.learning_rate 0.1` on the command line
overrides one entry of it.
"""

import dataclasses
import difflib
import json
import runpy
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jeffnet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model; see `jeffnet.linen.create_model`.

    Attributes:
      name: in the zoo.
      in_chans: channels of the pictures, 3 or 1.
      drop_rate: dropout before the classifier; None takes the paper's.
      drop_path_rate: stochastic depth; None takes the paper's.
      output_stride: 32, 16 or 8.
      bn_momentum: share of the old running statistics that a step keeps; None takes the paper's, which suits long runs.
      dtype: in which layers compute: 'float32', 'bfloat16' or 'float16'.
      remat: compute blocks again in the backward pass instead of keeping their values.
      pretrained: weights to start from: a model's name for its published ones, a path, `hf:owner/name` or a URL; the
        classifier starts anew where its classes differ.
    """

    name: str
    in_chans: int = 3
    drop_rate: float | None = None
    drop_path_rate: float | None = None
    output_stride: int = 32
    bn_momentum: float | None = None
    dtype: str = "float32"
    remat: bool = False
    pretrained: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The pictures and what is done to them.

    Attributes:
      path: an image folder with `train/<class>/` and `val/<class>/`, or `digits`.
      image_size: of training and validation; None takes the model's.
      crop_pct: of validation; None takes the model's.
      interpolation: 'bicubic' or 'bilinear'; None takes the model's.
      scale: shares of a picture's area from which the random crop is drawn.
      ratio: aspect ratios (width by height) from which it is drawn.
      flip: probability of a horizontal flip; 0 where left and right differ in meaning.
      threads: that decode pictures.
    """

    path: str
    image_size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    threads: int = 4


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer; an option that it does not have is an error. None takes the optimizer's own value.

    Attributes:
      name: one of `jeffnet.train.optim.OPTIMIZERS`.
      learning_rate: at the schedule's peak.
      weight_decay: of kernels; never of biases and norms.
      momentum: of `sgd` and `rmsprop`.
      nesterov: of `sgd`.
      decay: of `rmsprop`'s squared gradients.
      b1: of `adamw`.
      b2: of `adamw`.
      epsilon: of `adamw` and `rmsprop`.
      clip_norm: gradients of a larger global norm are scaled down to it; None leaves them.
    """

    name: str = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    momentum: float | None = None
    nesterov: bool | None = None
    decay: float | None = None
    b1: float | None = None
    b2: float | None = None
    epsilon: float | None = None
    clip_norm: float | None = None


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over time, updated every step.

    Attributes:
      name: one of `jeffnet.train.schedule.SCHEDULES`.
      warmup_epochs: of linear growth from 0 to the base rate, before the schedule proper begins.
      final: share of the base rate at which `cosine` ends.
      decay_rate: by which `exponential` multiplies every `decay_epochs`.
      decay_epochs: see `decay_rate`.
    """

    name: str = "cosine"
    warmup_epochs: float = 0.0
    final: float = 0.0
    decay_rate: float = 0.97
    decay_epochs: float = 2.4


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run.

    Attributes:
      model: what is trained.
      data: on what.
      optimizer: how.
      schedule: of the learning rate.
      epochs: passes over the training pictures.
      batch_size: of a training step and of validation.
      label_smoothing: share of the target spread over all classes, in [0, 1).
      seed: of initial values, data order, augmentation and dropout.
      log_steps: steps from one line of `metrics.jsonl` to the next.
      keep_checkpoints: how many of the last checkpoints stay.
    """

    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    epochs: int = 100
    batch_size: int = 128
    label_smoothing: float = 0.0
    seed: int = 0
    log_steps: int = 20
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "log_steps", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing {self.label_smoothing} is outside [0, 1)")
        if self.model.dtype not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"model.dtype {self.model.dtype!r} is not float32, bfloat16 or float16")
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed} is negative")


def load_recipe(path: str | Path) -> Config:
    """The `config` that a recipe file defines.

    Raises:
      ConfigError: the file is missing, fails, or defines no `config`.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config {str(path)!r} does not exist; recipes are Python files such as those in configs/")
    try:
        config = runpy.run_path(str(path)).get("config")
    except ConfigError:
        raise
    except Exception as error:  # a recipe is the user's code: whatever it raises is about the recipe
        raise ConfigError(f"config {str(path)!r} fails: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"config {str(path)!r} must define `config = Config(...)`, from jeffnet.train.config")
    return config


def override(config: Config, overrides: Sequence[tuple[str, str]]) -> Config:
    """`config` with entries replaced, as on the command line.

    Args:
      config: where to start.
      overrides: dotted names and texts, such as `('optimizer.learning_rate', '0.1')`; `none` stands for None, and
        sequences are joined by commas.

    Raises:
      ConfigError: an unknown name (the message has the nearest) or a text that is not of the entry's type.
    """
    for name, text in overrides:
        config = _replace(config, name.split("."), text, name)
    return config


def to_json(config: Config) -> str:
    """The whole configuration as JSON; `from_json` is the inverse."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, source: str) -> Config:
    """The configuration in JSON text.

    Raises:
      ConfigError: it is malformed or does not have exactly the entries of this version.
    """
    try:
        return _build(Config, json.loads(text), "")
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"config {source!r} cannot be read: {error}") from error


def _build(kind: type, entries: Any, prefix: str) -> Any:
    if not isinstance(entries, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or 'the configuration'} is no object but {entries!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(entries) - set(hints))
    if unknown:
        raise ConfigError(f"unknown entry {prefix}{unknown[0]}")
    values = {}
    for name, value in entries.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            values[name] = _build(typing.cast(type, hint), value, f"{prefix}{name}.")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _replace(node: Any, path: list[str], text: str, full_name: str) -> Any:
    hints = typing.get_type_hints(type(node))
    if path[0] not in hints:
        names = entry_names()
        near = difflib.get_close_matches(full_name, names, n=1, cutoff=0.0)
        raise ConfigError(f"unknown option --{full_name}; the nearest is --{near[0]}")
    hint, current = hints[path[0]], getattr(node, path[0])
    if dataclasses.is_dataclass(hint) != (len(path) > 1):
        raise ConfigError(f"option --{full_name} is no single entry; entries are {', '.join(entry_names(path[0]))}")
    value = _replace(current, path[1:], text, full_name) if len(path) > 1 else _parse(text, hint, full_name)
    return dataclasses.replace(node, **{path[0]: value})


def entry_names(within: str = "", kind: type = Config) -> list[str]:
    """Dotted names of all entries; `within` keeps those of one part."""
    names = []
    for name, hint in typing.get_type_hints(kind).items():
        part = entry_names("", typing.cast(type, hint)) if dataclasses.is_dataclass(hint) else []
        names += [f"{name}.{entry}" for entry in part] or [name]
    return [name for name in names if name.startswith(within)]


_BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def _parse(text: str, hint: Any, name: str) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in kinds and text.lower() == "none":
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    try:
        if kind is bool:
            return _BOOLEANS[text.lower()]
        if typing.get_origin(kind) is tuple:
            parts = zip(typing.get_args(kind), text.split(","), strict=True)
            return tuple(part_kind(part) for part_kind, part in parts)
        return kind(text)
    except (ValueError, KeyError):
        count = len(typing.get_args(kind))
        expected = f"{count} numbers joined by a comma" if count else f"a value of type {kind.__name__}"
        raise ConfigError(f"option --{name} {text!r} is not {expected}") from None
