"""What a training run does, as typed and frozen data.

A recipe is a Python file that defines `config = Config(...)`; see `jeffnet.train.recipe`. All entries have defaults but
the model's name and the path of the data.
"""

from dataclasses import field

from jeffnet.arch.quantization import KERNEL_BITS
from jeffnet.errors import ConfigError
from jeffnet.parallel.mesh import AUTO, check_mesh
from jeffnet.text.names import counted
from jeffnet.train.config.augment import AugmentConfig, ProgressiveConfig
from jeffnet.train.config.entries import check_positive, check_range, choice, part
from jeffnet.train.config.model import DataConfig, ModelConfig
from jeffnet.train.config.optimizer import (
    LOSSES,
    OPTIMIZERS,
    SCHEDULES,
    EmaConfig,
    LossConfig,
    OptimizerConfig,
    ParamGroup,
    ScheduleConfig,
)
from jeffnet.validation.metrics import METRICS, TASK_METRICS

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "AugmentConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EmaConfig",
    "LogConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParamGroup",
    "ProgressiveConfig",
    "QuantizeConfig",
    "ScheduleConfig",
]


@part("checkpoint")
class CheckpointConfig:
    """Checkpoints, one after every epoch, and the models that are kept.

    Attributes:
      every_steps: steps from one further checkpoint to the next; None switches it off.
      every_minutes: minutes from one further checkpoint to the next; None switches it off.
      keep_last: how many of the last checkpoints are kept.
      keep_best: how many of the models with the best `metric` in validation are kept.
      average_best: how many of the best models to average at the end, with running statistics estimated anew; the
        average is validated too. 0 for none.
      metric: the score in validation by which models are compared: 'top1', 'top5', 'balanced_accuracy' (the mean of the
        classes' top-1), 'macro_f1' (the mean of the classes' F1) or 'loss'; of several labels
        'mean_average_precision', 'macro_f1' or 'loss'; in regression 'mae', 'r2' or 'loss'. None takes the first.
    """

    every_steps: int | None = None
    every_minutes: float | None = None
    keep_last: int = 2
    keep_best: int = 1
    average_best: int = 0
    metric: str | None = choice(METRICS)

    def __post_init__(self) -> None:
        for name in ("keep_last", "keep_best"):
            check_range(f"checkpoint.{name}", getattr(self, name), 1)
        check_range("checkpoint.average_best", self.average_best, 0, self.keep_best)
        check_range("checkpoint.every_steps", self.every_steps, 1)
        check_positive("checkpoint.every_minutes", self.every_minutes, "; none switches it off")


@part("log")
class LogConfig:
    """Logging options.

    Attributes:
      steps: steps from one row of `metrics.jsonl` to the next.
      tensorboard: write event files for TensorBoard.
      wandb_project: project at Weights & Biases; None sends nothing there.
    """

    steps: int = 20
    tensorboard: bool = True
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        check_range("log.steps", self.steps, 1)


@part("quantize")
class QuantizeConfig:
    """Training with the rounding of 8-bit integers, for `jeffnet export --int8` (arXiv:1806.08342).

    Norms are folded before the first step, and nothing is dropped. Ranges of values are learnt from training pictures
    before the first step and stay; the model's file keeps them.

    Attributes:
      to: 'int8' rounds; None trains in floats.
      images: training pictures from which the ranges are learnt.
      kernel_bits: 7 for files that are right on every processor, or 8, see docs/export.md.
    """

    to: str | None = choice(("int8",))
    images: int = 200
    kernel_bits: int = 7

    def __post_init__(self) -> None:
        check_range("quantize.images", self.images, 1)
        check_range("quantize.kernel_bits", self.kernel_bits, *KERNEL_BITS)


@part()
class Config:
    """A whole run.

    Attributes:
      model: the model.
      data: its pictures.
      augment: augmentation of the training pictures.
      loss: the loss.
      optimizer: the optimizer.
      schedule: of the learning rate.
      ema: moving average of the parameters.
      progressive: growing pictures.
      quantize: rounding to 8-bit integers.
      checkpoint: checkpoints and the models that are kept.
      log: logging options.
      epochs: passes over the training pictures.
      min_epoch_steps: steps that an epoch has at least: a small training set is passed over several times in each.
        None takes one pass, for which there must be as many pictures as `batch_size`.
      batch_size: pictures of a training step and of a batch in validation, on all devices together.
      accumulate: parts of a step's batch, whose gradients are averaged. It saves memory and changes nothing but
        BatchNorm, which normalises every part by itself.
      sam_rho: radius of sharpness-aware minimisation (arXiv:2010.01412), two passes a step; None switches it off.
      bn_batches: training batches from which the running statistics are estimated before a model is validated; 0 keeps
        those of training.
      on_nan: at a loss or gradient that is not a finite number, 'stop', or 'skip' the step.
      max_skipped: steps in a row to skip before the run stops.
      debug_nans: stop at the operation that makes a NaN, and run it again uncompiled; slow.
      mesh: how devices share the work, see `jeffnet.parallel.mesh.make_layout`: 'auto', or for example `data=4,fsdp=2`.
      seed: random seed of initial values, data order, augmentation and dropout.
    """

    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    progressive: ProgressiveConfig = field(default_factory=ProgressiveConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    epochs: int = 100
    min_epoch_steps: int | None = None
    batch_size: int = 128
    accumulate: int = 1
    sam_rho: float | None = None
    bn_batches: int = 0
    on_nan: str = choice(("stop", "skip"), "stop")
    max_skipped: int = 20
    debug_nans: bool = False
    mesh: str = AUTO
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "max_skipped"):
            check_range(name, getattr(self, name), 1)
        check_range("min_epoch_steps", self.min_epoch_steps, 1)
        check_range("bn_batches", self.bn_batches, 0)
        check_range("seed", self.seed, 0, 2**32 - 1)
        if self.batch_size % self.accumulate:
            raise ConfigError(f"batch_size {self.batch_size} cannot be cut into accumulate {self.accumulate} parts")
        check_mesh(self.mesh)
        check_positive("sam_rho", self.sam_rho, "; none switches it off")
        if (self.loss.name == "jsd") != (self.augment.splits > 1):
            raise ConfigError("loss.name 'jsd' and augment.splits above 1 belong together: set both or none")
        if self.progressive.stages > self.epochs:
            raise ConfigError(f"progressive.stages {self.progressive.stages} exceed {counted(self.epochs, 'epoch')}")
        self._check_task()
        self._check_classes()
        if self.quantize.to:
            self._check_quantized()

    @property
    def metric(self) -> str:
        """The score by which models are compared, one of `jeffnet.validation.metrics.METRICS`."""
        return self.checkpoint.metric or TASK_METRICS[self.data.task][0]

    @property
    def shown_metric(self) -> str:
        """The score that is drawn beside the loss."""
        return TASK_METRICS[self.data.task][0] if self.metric == "loss" else self.metric

    def _check_task(self) -> None:
        """Raises ConfigError where entries are for another task."""
        task = self.data.task
        for name, value, known in (
            ("loss.name", self.loss.name, LOSSES[task]),
            ("checkpoint.metric", self.metric, TASK_METRICS[task]),
        ):
            if value not in known:
                raise ConfigError(f"{name} {value!r} is not for data.task {task!r}: take {' or '.join(known)}")
        regresses, several = task == "regression", task == "multi_label"
        unfit = {
            "data.sampling": task != "single_label" and self.data.sampling != "natural" and self.data.sampling,
            "loss.label_smoothing": regresses and self.loss.label_smoothing,
            "loss.class_weights": regresses and self.loss.class_weights,
            "loss.weighting": (regresses or (several and self.loss.weighting == "effective")) and self.loss.weighting,
        }
        for name, value in unfit.items():
            if value:
                raise ConfigError(f"{name} {value} is not for data.task {task!r}: leave it out")

    def _check_classes(self) -> None:
        """Raises ConfigError where entries on unequal classes have no meaning beside others."""
        for name in ("weighting", "logit_adjustment"):
            value = getattr(self.loss, name)
            if value and self.data.sampling == "balanced":
                raise ConfigError(f"loss.{name} {value} has no effect beside data.sampling 'balanced': set one of them")

    def _check_quantized(self) -> None:
        """Raises ConfigError where an entry has no meaning for a folded network in float32 that drops nothing."""
        entries = {
            "model.dtype": self.model.dtype != "float32" and self.model.dtype,
            "model.drop_rate": self.model.drop_rate,
            "model.drop_path_rate": self.model.drop_path_rate,
            "model.remat": self.model.remat,
            "loss.feature_distillation": self.loss.feature_distillation,
            "bn_batches": self.bn_batches,
            "checkpoint.average_best": self.checkpoint.average_best,
        }
        for name, value in entries.items():
            if value:
                raise ConfigError(f"{name} {value} is not for training with quantize.to: leave it out")
