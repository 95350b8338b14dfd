"""What a training run does, as typed and frozen data.

A recipe is a Python file that defines `config = Config(...)`; see `jeffnet.train.recipe`. Every entry has a
default but the model's name and the path of the data.
"""

import math
from dataclasses import field

from jeffnet.arch.preprocessing import CROP_MODES
from jeffnet.backends import BACKENDS
from jeffnet.data.augment.policies import parse_policy
from jeffnet.data.batches import OnBadImage
from jeffnet.errors import ConfigError
from jeffnet.parallel.mesh import AUTO, check_mesh
from jeffnet.train.entries import part

DTYPES = ("float32", "bfloat16", "float16")
# What `jeffnet.train.optim` and `jeffnet.train.schedule`, which import Optax, have.
OPTIMIZERS = (
    *("sgd", "momentum", "nesterov", "adam", "adamw", "nadamw", "adabelief", "lion", "rmsprop", "rmsproptf"),
    *("lamb", "lars", "adafactor", "muon"),
)
SCHEDULES = ("constant", "step", "exponential", "cosine", "polynomial", "one_cycle")


@part("model")
class ModelConfig:
    """The model; see `jeffnet.weights.start.ModelOptions`.

    Attributes:
      name: in the zoo; None where `pretrained` says it.
      backend: whose layers are trained: 'linen', 'nnx', 'objax' or 'functional'. Files are the same for all.
      in_chans: channels of the pictures, 3 or 1.
      drop_rate: dropout before the classifier; None takes the paper's.
      drop_path_rate: stochastic depth; None takes the paper's.
      global_pool: 'avg', 'max' or 'avgmax'; None takes what `pretrained` was made with, else 'avg'.
      output_stride: 32, 16 or 8; None takes what `pretrained` was made with, else 32.
      bn_momentum: share of the old running statistics that a step keeps; None takes the paper's, which suits long runs.
      bn_devices: how many neighbouring devices normalise their shares of a batch together: 1 each its own, which takes
        no communication; None all of them, which is the batch of a single device. Running statistics move by the mean
        over the groups.
      dtype: in which layers compute: 'float32', 'bfloat16' or 'float16'. Parameters stay float32; with 'float16' the
        loss is scaled dynamically.
      remat: compute blocks again in the backward pass instead of keeping their values.
      pretrained: weights to start from: a model's name for its published ones, a path, `hf:owner/name` or a URL; the
        classifier starts anew where its classes differ, by name where the weights name them.
      freeze: patterns of canonical names (`conv_stem*`, `blocks.[0-2].*`) of what is not trained. Norms among them keep
        their running statistics and normalise by them.
    """

    name: str | None = None
    backend: str = "linen"
    in_chans: int = 3
    drop_rate: float | None = None
    drop_path_rate: float | None = None
    global_pool: str | None = None
    output_stride: int | None = None
    bn_momentum: float | None = None
    bn_devices: int | None = None
    dtype: str = "float32"
    remat: bool = False
    pretrained: str | None = None
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_choice("model.backend", self.backend, tuple(BACKENDS))
        _check_choice("model.dtype", self.dtype, DTYPES)
        if self.global_pool is not None:
            _check_choice("model.global_pool", self.global_pool, ("avg", "max", "avgmax"))
        if self.bn_devices is not None:
            _check_range("model.bn_devices", self.bn_devices, 1)

    @property
    def known_name(self) -> str:
        """The name.

        Raises:
          ConfigError: it is None.
        """
        if self.name is None:
            raise ConfigError("give --model.name NAME, or --model.pretrained WEIGHTS that say of which model they are")
        return self.name


@part("data")
class DataConfig:
    """The pictures.

    Attributes:
      path: any data set that `jeffnet validate` reads: an image folder with `train/<class>/` and `val/<class>/`,
        `tfds:name`, `hf:name`, ..., or `digits`.
      train_split: of the data set, to train on.
      val_split: to validate on.
      image_size: of training and validation; None takes what `model.pretrained` expects, else the model's.
      crop_pct: of validation; None likewise.
      interpolation: 'bicubic' or 'bilinear'; None likewise.
      mean: of the pixels in [0, 1], by channel; None likewise.
      std: likewise.
      crop_mode: of validation, 'center', 'squash' or 'border'; None likewise.
      threads: that decode and augment pictures.
      workers: processes that do, instead of the threads.
      on_bad_image: 'error' stops at a picture that cannot be decoded; 'skip' takes another in its place in training,
        leaves it out in validation, and logs which.
    """

    path: str
    train_split: str = "train"
    val_split: str = "val"
    image_size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_mode: str | None = None
    threads: int = 4
    workers: int = 0
    on_bad_image: OnBadImage = "error"

    def __post_init__(self) -> None:
        _check_choice("data.on_bad_image", self.on_bad_image, ("error", "skip"))
        if self.crop_mode is not None:
            _check_choice("data.crop_mode", self.crop_mode, CROP_MODES)
        if self.std is not None and not (self.std and min(self.std) > 0):
            raise ConfigError(f"data.std {self.std} must be positive")


@part("augment")
class AugmentConfig:
    """What is done to training pictures: up to `splits` picture by picture on the host, the rest on the device.

    Attributes:
      scale: shares of a picture's area from which the random crop is drawn.
      ratio: aspect ratios (width by height) from which it is drawn.
      interpolation: of the crop: 'bicubic', 'bilinear' or 'random' (either); None takes the model's.
      hflip: probability of a horizontal flip; 0 where left and right differ in meaning.
      vflip: probability of a vertical flip.
      color_jitter: brightness, contrast and saturation vary by up to this share; 0 leaves them.
      policy: 'v0' or 'original' (AutoAugment), 'rand-m9-mstd0.5-inc1' and the like (RandAugment), 'augmix-m3-w3',
        'trivial' (TrivialAugment) or '3a' (3-Augment); None for none. See `jeffnet.data.augment`.
      repeats: how often a picture is in a batch, each time augmented anew (arXiv:1901.09335); epochs keep their length.
      splits: views of each picture for the Jensen-Shannon loss: the first without `policy` and erasing. 1 is ordinary.
      erase_prob: probability that rectangles of a picture are erased (arXiv:1708.04896).
      erase_mode: with what: 'const' (the mean colour), 'rand' (one random colour), 'pixel' (noise).
      erase_count: at most so many rectangles.
      mixup: alpha of mixup's Beta distribution (arXiv:1710.09412); 0 for none.
      cutmix: alpha of cutmix's (arXiv:1905.04899); 0 for none. With both, each batch gets one of them.
      mix_prob: probability that a batch is mixed.
      mix_switch_prob: where both are possible, probability of cutmix.
      mix_mode: 'batch' mixes all pictures of a batch by the same share, 'elem' each by its own.
      mix_off_epoch: from this epoch on nothing is mixed; None mixes to the end.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str | None = None
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.0
    policy: str | None = None
    repeats: int = 1
    splits: int = 1
    erase_prob: float = 0.0
    erase_mode: str = "const"
    erase_count: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch_prob: float = 0.5
    mix_mode: str = "batch"
    mix_off_epoch: int | None = None

    def __post_init__(self) -> None:
        for name in ("hflip", "vflip", "erase_prob", "mix_prob", "mix_switch_prob"):
            _check_range(f"augment.{name}", getattr(self, name), 0, 1)
        for name in ("repeats", "splits", "erase_count"):
            _check_range(f"augment.{name}", getattr(self, name), 1)
        if self.mix_off_epoch is not None:
            _check_range("augment.mix_off_epoch", self.mix_off_epoch, 0)
        for name in ("color_jitter", "mixup", "cutmix"):
            _check_range(f"augment.{name}", getattr(self, name), 0)
        _check_choice("augment.erase_mode", self.erase_mode, ("const", "rand", "pixel"))
        _check_choice("augment.mix_mode", self.mix_mode, ("batch", "elem"))
        if self.policy is not None:
            parse_policy(self.policy)
        if self.splits > 1 and (self.mixup or self.cutmix):
            raise ConfigError(f"augment.splits {self.splits} cannot be combined with mixup or cutmix: set those to 0")

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed, so that their targets are soft."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_prob > 0


@part("optimizer.groups")
class ParamGroup:
    """Parameters that are trained in another way than the rest. Of several groups that match, the first counts.

    Attributes:
      pattern: of canonical names, such as `classifier.*` or `*.bias`.
      learning_rate: factor on the learning rate; 0 holds the parameters.
      weight_decay: in place of the optimizer's, also for norms and biases; None keeps what the rest has.
    """

    pattern: str
    learning_rate: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        where = f"optimizer.groups: {self.pattern!r} with"
        _check_range(f"{where} learning_rate", self.learning_rate, 0)
        if self.weight_decay is not None:
            _check_range(f"{where} weight_decay", self.weight_decay, 0)


@part("optimizer")
class OptimizerConfig:
    """The optimizer; an option that it does not have is an error. None takes the optimizer's own value.

    Attributes:
      name: one of `OPTIMIZERS`.
      learning_rate: at the schedule's peak.
      weight_decay: of kernels.
      decoupled: whether weights decay beside the gradient's step (AdamW's way) instead of by L2 in the loss; None takes
        the optimizer's own way.
      decay_all: let norms and biases decay too.
      layer_decay: factor on the learning rate from each layer to the one before it, in (0, 1]; None for none.
      groups: parameters with a learning rate or decay of their own.
      clip_norm: gradients of a larger global norm are scaled down to it; None leaves them.
      clip_value: single values of gradients are cut off at it; None leaves them.
      clip_adaptive: a unit's gradients are scaled down to this share of its weights' norm, but for the classifier's
        (arXiv:2102.06171); None leaves them.
      momentum: of `sgd`, `momentum`, `nesterov`, `rmsprop`, `rmsproptf`, `lars`, `adafactor`, `muon`.
      nesterov: of `sgd`, `lars`, `muon`.
      decay: of the squared gradients of `rmsprop`, `rmsproptf`, `adafactor`.
      b1: of `adam`, `adamw`, `adabelief`, `nadamw`, `lamb`, `lion`, and of `muon` for what Adam moves.
      b2: likewise.
      epsilon: of all but `sgd`, `momentum`, `nesterov`, `lion`.
      trust_coefficient: of `lars`.
    """

    name: str = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 0.0
    decoupled: bool | None = None
    decay_all: bool = False
    layer_decay: float | None = None
    groups: tuple[ParamGroup, ...] = ()
    clip_norm: float | None = None
    clip_value: float | None = None
    clip_adaptive: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    decay: float | None = None
    b1: float | None = None
    b2: float | None = None
    epsilon: float | None = None
    trust_coefficient: float | None = None

    def __post_init__(self) -> None:
        _check_choice("optimizer.name", self.name, OPTIMIZERS)
        _check_range("optimizer.weight_decay", self.weight_decay, 0)
        for name in ("learning_rate", "clip_norm", "clip_value", "clip_adaptive", "trust_coefficient"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                way_out = "; none switches it off" if name.startswith("clip_") else ""
                raise ConfigError(f"optimizer.{name} {value} must be positive{way_out}")
        for name in ("momentum", "decay", "b1", "b2"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"optimizer.{name} {value} is outside [0, 1)")
        if self.epsilon is not None:
            _check_range("optimizer.epsilon", self.epsilon, 0)
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optimizer.layer_decay {self.layer_decay} is outside (0, 1]; none switches it off")


@part("schedule")
class ScheduleConfig:
    """The learning rate over time, updated every step. Every schedule is at the base rate at its peak.

    An entry that another schedule than `name` has must be left as it is.

    Attributes:
      name: one of `SCHEDULES`.
      unit: 'epochs' or 'steps', in which `warmup`, `decay_every`, `milestones` and `cycle` are stated.
      warmup: length of linear growth from `warmup_start` to the base rate, before the schedule proper begins; not for
        `one_cycle`, which rises by itself.
      warmup_start: share of the base rate at the first step of the warm-up; 0 takes one part of the way up, so that the
        first step does something.
      final: share of the base rate at which `cosine`, `polynomial` and `one_cycle` end.
      decay_rate: by which `step` and `exponential` multiply every `decay_every`.
      decay_every: see `decay_rate`; counted from the end of the warm-up, unless `decay_from_start`.
      decay_from_start: count `decay_every` from the start of the run, as TensorFlow and timm do: the warm-up ends at
        the base rate, and the rate after it is what it would be without a warm-up.
      staircase: whether `step` and `exponential` drop at once, or smoothly; None takes the schedule's own way, which is
        at once for `step`, smoothly for `exponential`.
      milestones: when `step` multiplies, counted from the start of the run, instead of every `decay_every`.
      power: of `polynomial`.
      cycle: length of the first cycle of `cosine`, after which it restarts; None makes one of the whole run. The end of
        the run cuts the last one off.
      cycle_growth: factor on the length of each next cycle, at least 1.
      cycle_decay: factor on the peak of each next cycle.
      rise: share of the run in which `one_cycle` rises.
      start: share of the base rate at which `one_cycle` begins.
    """

    name: str = "cosine"
    unit: str = "epochs"
    warmup: float = 0.0
    warmup_start: float = 0.0
    final: float = 0.0
    decay_rate: float = 0.97
    decay_every: float = 2.4
    decay_from_start: bool = False
    staircase: bool | None = None
    milestones: tuple[float, ...] = ()
    power: float = 1.0
    cycle: float | None = None
    cycle_growth: float = 1.0
    cycle_decay: float = 1.0
    rise: float = 0.3
    start: float = 0.04

    def __post_init__(self) -> None:
        _check_choice("schedule.name", self.name, SCHEDULES)
        _check_choice("schedule.unit", self.unit, ("epochs", "steps"))
        _check_range("schedule.warmup", self.warmup, 0)
        for name in ("warmup_start", "final", "start"):
            _check_range(f"schedule.{name}", getattr(self, name), 0, 1)
        for name in ("decay_rate", "cycle_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"schedule.{name} {getattr(self, name)} is outside (0, 1]")
        for name in ("decay_every", "power", "cycle"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"schedule.{name} {value} must be positive")
        _check_range("schedule.cycle_growth", self.cycle_growth, 1)
        if not 0 <= self.rise < 1:
            raise ConfigError(f"schedule.rise {self.rise} is outside [0, 1)")


@part("loss")
class LossConfig:
    """What is minimised.

    Attributes:
      name: 'cross_entropy'; 'bce', binary cross entropy of every class, as in timm; or 'jsd', cross entropy of the
        first of `augment.splits` views with the Jensen-Shannon divergence of all (arXiv:1912.02781).
      label_smoothing: share of the target spread over all classes, in [0, 1).
      bce_threshold: 'bce' takes targets above it for 1 and others for 0; None takes them as they are.
      bce_sum: 'bce' is the sum over classes, not the mean.
      jsd_weight: of the divergence.
      teacher: weights of a model to learn from: a model's name for its published ones, a path, `hf:owner/name`, a URL.
      teacher_model: the teacher's name where its weights do not say it.
      distillation: share of the loss that compares with the teacher, in [0, 1].
      temperature: by which both models' logits are divided in that.
      hard: compare with the teacher's first guess (arXiv:2012.12877) instead of its probabilities (arXiv:1503.02531).
    """

    name: str = "cross_entropy"
    label_smoothing: float = 0.0
    bce_threshold: float | None = None
    bce_sum: bool = False
    jsd_weight: float = 12.0
    teacher: str | None = None
    teacher_model: str | None = None
    distillation: float = 0.5
    temperature: float = 1.0
    hard: bool = False

    def __post_init__(self) -> None:
        _check_choice("loss.name", self.name, ("cross_entropy", "bce", "jsd"))
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"loss.label_smoothing {self.label_smoothing} is outside [0, 1)")
        _check_range("loss.distillation", self.distillation, 0, 1)
        if self.temperature <= 0:
            raise ConfigError(f"loss.temperature {self.temperature} must be positive")


@part("ema")
class EmaConfig:
    """A moving average of parameters and running statistics, evaluated beside the model itself.

    Attributes:
      form: 'exponential', or 'cumulative': the plain mean of all that was averaged, as of SWA (arXiv:1803.05407).
      decay: share of the old average that an update of the 'exponential' form keeps; None switches averaging off.
      warmup: begin with a smaller decay, so that the initial values are soon forgotten: update n keeps
        `min(decay, (1 + n) / (10 + n))`.
      every: steps from one update to the next.
      start_epoch: before which the average is the model itself.
    """

    form: str = "exponential"
    decay: float | None = None
    warmup: bool = True
    every: int = 1
    start_epoch: float = 0.0

    def __post_init__(self) -> None:
        _check_choice("ema.form", self.form, ("exponential", "cumulative"))
        if self.decay is not None and not 0 <= self.decay < 1:
            raise ConfigError(f"ema.decay {self.decay} is outside [0, 1)")
        _check_range("ema.every", self.every, 1)
        _check_range("ema.start_epoch", self.start_epoch, 0)

    @property
    def is_on(self) -> bool:
        """Whether anything is averaged."""
        return self.decay is not None or self.form == "cumulative"


@part("progressive")
class ProgressiveConfig:
    """Pictures that grow during the run, and regularisation with them (arXiv:2104.00298, section 4.2).

    The run is cut into `stages` of equal length. The last one has the configured values, the first one these; between
    them they grow linearly.

    Attributes:
      stages: 1 is an ordinary run.
      image_size: of the first stage.
      drop_rate: of the first stage; None keeps the configured.
      magnitude: of RandAugment in the first stage; None keeps the configured.
      mixup: of the first stage; None keeps the configured.
    """

    stages: int = 1
    image_size: int = 128
    drop_rate: float | None = None
    magnitude: float | None = None
    mixup: float | None = None

    def __post_init__(self) -> None:
        _check_range("progressive.stages", self.stages, 1)
        _check_range("progressive.image_size", self.image_size, 1)


@part("checkpoint")
class CheckpointConfig:
    """What is kept on disk.

    Attributes:
      every_steps: steps from one checkpoint to the next, besides that of every epoch; None for that alone.
      every_minutes: likewise, minutes.
      keep_last: how many of the last checkpoints stay.
      keep_best: how many of the models with the highest top-1 in validation stay.
      average_best: at the end, average the parameters of so many of these, re-estimate the running statistics, and
        validate the result; 0 for none.
    """

    every_steps: int | None = None
    every_minutes: float | None = None
    keep_last: int = 2
    keep_best: int = 1
    average_best: int = 0

    def __post_init__(self) -> None:
        for name in ("keep_last", "keep_best"):
            _check_range(f"checkpoint.{name}", getattr(self, name), 1)
        _check_range("checkpoint.average_best", self.average_best, 0, self.keep_best)
        if self.every_steps is not None:
            _check_range("checkpoint.every_steps", self.every_steps, 1)
        if self.every_minutes is not None and not self.every_minutes > 0:
            raise ConfigError(f"checkpoint.every_minutes {self.every_minutes} must be positive; none switches it off")


@part("log")
class LogConfig:
    """Logging options.

    Attributes:
      steps: from one line of `metrics.jsonl` to the next.
      tensorboard: write event files for TensorBoard.
      wandb_project: of Weights & Biases; None sends nothing there.
    """

    steps: int = 20
    tensorboard: bool = True
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        _check_range("log.steps", self.steps, 1)


@part()
class Config:
    """A whole run.

    Attributes:
      model: what is trained.
      data: on what.
      augment: what is done to the pictures.
      loss: what is minimised.
      optimizer: how.
      schedule: of the learning rate.
      ema: average of the parameters.
      progressive: pictures that grow.
      checkpoint: what is kept.
      log: what is told.
      epochs: passes over the training pictures.
      batch_size: of a training step and of validation, on all devices together.
      accumulate: parts into which a step's batch is cut, whose gradients are averaged: less memory for the same step,
        but for BatchNorm, which normalises each part by itself.
      sam_rho: radius of sharpness-aware minimisation (arXiv:2010.01412), which takes two passes a step; None for none.
      bn_batches: training batches by which the running statistics are estimated anew before a model is validated; 0
        keeps the running ones.
      on_nan: what to do where a loss or a gradient is no longer a number: 'stop', or 'skip' that step.
      max_skipped: steps in a row that 'skip' skips before it stops.
      debug_nans: stop at the very operation that makes a NaN, and run it again uncompiled; slow.
      mesh: how devices share the work, see `jeffnet.parallel.mesh.make_layout`: 'auto', or such as `data=4,fsdp=2`.
      seed: of initial values, data order, augmentation and dropout.
    """

    model: ModelConfig
    data: DataConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    progressive: ProgressiveConfig = field(default_factory=ProgressiveConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    epochs: int = 100
    batch_size: int = 128
    accumulate: int = 1
    sam_rho: float | None = None
    bn_batches: int = 0
    on_nan: str = "stop"
    max_skipped: int = 20
    debug_nans: bool = False
    mesh: str = AUTO
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "max_skipped"):
            _check_range(name, getattr(self, name), 1)
        _check_range("bn_batches", self.bn_batches, 0)
        _check_choice("on_nan", self.on_nan, ("stop", "skip"))
        _check_range("seed", self.seed, 0, 2**32 - 1)
        if self.batch_size % self.accumulate:
            raise ConfigError(f"batch_size {self.batch_size} cannot be cut into accumulate {self.accumulate} parts")
        check_mesh(self.mesh)
        if self.sam_rho is not None and self.sam_rho <= 0:
            raise ConfigError(f"sam_rho {self.sam_rho} must be positive; none switches it off")
        if (self.loss.name == "jsd") != (self.augment.splits > 1):
            raise ConfigError("loss.name 'jsd' and augment.splits above 1 belong together: set both or none")
        if self.progressive.stages > self.epochs:
            raise ConfigError(f"progressive.stages {self.progressive.stages} exceed the {self.epochs} epochs")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} {value!r} is not one of {', '.join(choices)}")


def _check_range(name: str, value: float, least: float, most: float = math.inf) -> None:
    if not least <= value <= most:
        limits = f"at least {least}" if most == math.inf else f"within [{least}, {most}]"
        raise ConfigError(f"{name} {value} must be {limits}")
