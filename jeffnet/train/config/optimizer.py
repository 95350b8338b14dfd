"""Configuration of the optimizer, its learning rate, the loss and the moving average."""

import re

from jeffnet.errors import ConfigError
from jeffnet.train.config.entries import check_below_one, check_factor, check_positive, check_range, choice, part

# The tables of `jeffnet.train.optim` and `jeffnet.train.schedule` have these; they import Optax, which takes long.
OPTIMIZERS = (
    *("sgd", "momentum", "nesterov", "adam", "adamw", "nadamw", "adabelief", "lion", "rmsprop", "rmsproptf"),
    *("lamb", "lars", "adafactor", "muon"),
)
# Losses by task.
LOSSES = {
    "single_label": ("cross_entropy", "bce", "jsd"),
    "multi_label": ("bce", "focal", "asymmetric"),
    "regression": ("l1", "l2", "huber"),
}
# Of the teacher's, that are compared.
_FEATURES = ("pre_logits",)
SCHEDULES = ("constant", "step", "exponential", "cosine", "polynomial", "one_cycle")


@part("optimizer.groups")
class ParamGroup:
    """Options for some parameters. The first group that matches counts.

    Attributes:
      pattern: of canonical names, such as `classifier.*` or `*.bias`.
      learning_rate: factor on the learning rate; 0 keeps the parameters as they are.
      weight_decay: instead of the optimizer's, also for norms and biases; None for the optimizer's.
    """

    pattern: str
    learning_rate: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        where = f"optimizer.groups: {self.pattern!r} with"
        check_range(f"{where} learning_rate", self.learning_rate, 0)
        check_range(f"{where} weight_decay", self.weight_decay, 0)


@part("optimizer")
class OptimizerConfig:
    """The optimizer. Setting an option that it does not have is an error; None takes its default.

    Attributes:
      name: the algorithm, one of `OPTIMIZERS`.
      learning_rate: learning rate at the schedule's peak.
      weight_decay: weight decay of kernels.
      decoupled: decay weights beside the gradient's step (AdamW) instead of by L2 in the loss; None as the optimizer
        usually does.
      decay_all: decay norms and biases too.
      layer_decay: factor on the learning rate from a layer to the one before it, in (0, 1]; None switches it off.
      groups: parameters with another learning rate or decay, such as `[{"pattern": "*.bias", "weight_decay": 0.1}]`.
      clip_norm: largest global norm of the gradients, to which larger ones are scaled down; None for no clipping.
      clip_value: largest absolute value of a gradient's elements; None for no clipping.
      clip_adaptive: largest norm of a unit's gradients, as a share of its weights' norm, except in the classifier
        (arXiv:2102.06171); None for no clipping.
      momentum: momentum of `sgd`, `momentum`, `nesterov`, `rmsprop`, `rmsproptf`, `lars`, `adafactor`, `muon`.
      nesterov: Nesterov's momentum, of `sgd`, `lars`, `muon`.
      decay: decay of the squared gradients of `rmsprop`, `rmsproptf`, `adafactor`.
      b1: coefficient beta 1 of `adam`, `adamw`, `adabelief`, `nadamw`, `lamb`, `lion`, and of `muon` for what Adam
        moves.
      b2: coefficient beta 2 of the same.
      epsilon: added to denominators, of all but `sgd`, `momentum`, `nesterov`, `lion`.
      trust_coefficient: factor on the rate of a layer, of `lars`.
    """

    name: str = choice(OPTIMIZERS, "sgd")
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
        check_range("optimizer.weight_decay", self.weight_decay, 0)
        for name in ("learning_rate", "clip_norm", "clip_value", "clip_adaptive", "trust_coefficient"):
            way_out = "; none switches it off" if name.startswith("clip_") else ""
            check_positive(f"optimizer.{name}", getattr(self, name), way_out)
        for name in ("momentum", "decay", "b1", "b2"):
            check_below_one(f"optimizer.{name}", getattr(self, name))
        check_range("optimizer.epsilon", self.epsilon, 0)
        check_factor("optimizer.layer_decay", self.layer_decay, "; none switches it off")


@part("schedule")
class ScheduleConfig:
    """The learning rate over time, updated every step. The peak of every schedule is the base rate.

    Setting an entry that the schedule does not have is an error.

    Attributes:
      name: the form of the schedule, one of `SCHEDULES`.
      unit: unit of `warmup`, `decay_every`, `milestones` and `cycle`: 'epochs' or 'steps'.
      warmup: length of linear growth from `warmup_start` to the base rate, after which the schedule begins; not for
        `one_cycle`, which rises by itself.
      warmup_start: share of the base rate at the first step of the warm-up; 0 begins one step above 0, so that the
        first step is not lost.
      final: share of the base rate at which `cosine`, `polynomial` and `one_cycle` end.
      decay_rate: factor of `step` and `exponential` every `decay_every`.
      decay_every: time between factors, counted from the end of the warm-up unless `decay_from_start`.
      decay_from_start: count `decay_every` from the start of the run, as TensorFlow and timm do: the warm-up ends at
        the base rate, and the rate after it is what it would be without a warm-up.
      staircase: decay at once instead of smoothly; None for at once with `step`, smoothly with `exponential`.
      milestones: times at which `step` decays, from the start of the run, instead of every `decay_every`.
      power: exponent of `polynomial`.
      cycle: length of the first cycle of `cosine`, after which it restarts; None for the whole run. The end of the run
        cuts the last cycle off.
      cycle_growth: factor from the length of a cycle to the next, at least 1.
      cycle_decay: factor from the peak of a cycle to the next.
      rise: share of the run in which `one_cycle` rises.
      start: share of the base rate at which `one_cycle` begins.
    """

    name: str = choice(SCHEDULES, "cosine")
    unit: str = choice(("epochs", "steps"), "epochs")
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
        check_range("schedule.warmup", self.warmup, 0)
        for name in ("warmup_start", "final", "start"):
            check_range(f"schedule.{name}", getattr(self, name), 0, 1)
        for name in ("decay_rate", "cycle_decay"):
            check_factor(f"schedule.{name}", getattr(self, name))
        for name in ("decay_every", "power", "cycle"):
            check_positive(f"schedule.{name}", getattr(self, name))
        check_range("schedule.cycle_growth", self.cycle_growth, 1)
        check_below_one("schedule.rise", self.rise)


@part("loss")
class LossConfig:
    """The loss.

    Attributes:
      name: 'cross_entropy'; 'bce', binary cross entropy of every class, as in timm; or 'jsd', cross entropy of the
        first of `augment.splits` views plus the Jensen-Shannon divergence of all (arXiv:1912.02781). For
        `data.task` 'multi_label' 'bce', 'focal' (arXiv:1708.02002) or 'asymmetric' (arXiv:2009.14119); for 'regression'
        'l1', 'l2' or 'huber'.
      label_smoothing: share of the target spread over all classes, in [0, 1); of several labels, between having and not
        having each.
      bce_threshold: 'bce' rounds targets up to 1 above it and down to 0 below; None keeps them.
      bce_sum: 'bce', 'focal' and 'asymmetric' are the sum over classes, not the mean.
      gamma: exponent of 'focal', at least 1.
      gamma_positive: exponent of 'asymmetric' for labels that a picture has, 0 or at least 1.
      gamma_negative: exponent of 'asymmetric' for labels that it has not, 0 or at least 1.
      clip: probability by which 'asymmetric' lowers that of labels that a picture has not, in [0, 1).
      huber_delta: difference from which on 'huber' is linear.
      jsd_weight: weight of the divergence in 'jsd'.
      weighting: weight of a class in the loss, by its number n of training pictures: 'inverse', in proportion to 1 / n;
        'effective', to (1 - beta) / (1 - beta^n), by the effective number of pictures (arXiv:1901.05555). The mean
        over all pictures is 1. Of several labels 'inverse' weighs a label where a picture has it, by the number of
        pictures without it over that with it. None weighs all alike.
      effective_beta: beta of 'effective', in [0, 1): 0 is no weighting, towards 1 it becomes 'inverse'.
      class_weights: weights of the classes in their order, as they are, instead of `weighting`.
      logit_adjustment: factor on the logarithm of a class's frequency, which is added to its logit in training only
        (arXiv:2007.07314); 1 suits balanced accuracy, 0 adds nothing.
      teacher: a model to learn from: the name of a model with published weights, a path of weights, `hf:owner/name` or
        a URL; or the path of an exported file.
      teacher_model: the teacher's name, if its weights do not have it.
      distillation: share of the loss that compares logits with the teacher's, in [0, 1]; 0 leaves them out, and the
        teacher may have any classes.
      temperature: divisor of both models' logits in the comparison with the teacher.
      hard: compare with the teacher's top class (arXiv:2012.12877) instead of its probabilities (arXiv:1503.02531).
      feature_distillation: weight of the mean squared difference of features from the teacher's, which is added to the
        loss (arXiv:1412.6550); 0 switches it off.
      features: the features to compare: 'pre_logits', the classifier's input, or numbers of maps, as of the models'
        `features`: 0 to 4 at strides 2 to 32, -1 the last.
    """

    name: str = choice(dict.fromkeys(name for names in LOSSES.values() for name in names), "cross_entropy")
    label_smoothing: float = 0.0
    bce_threshold: float | None = None
    bce_sum: bool = False
    gamma: float = 2.0
    gamma_positive: float = 0.0
    gamma_negative: float = 4.0
    clip: float = 0.05
    huber_delta: float = 1.0
    jsd_weight: float = 12.0
    weighting: str | None = choice(("inverse", "effective"))
    effective_beta: float = 0.999
    class_weights: tuple[float, ...] = ()
    logit_adjustment: float = 0.0
    teacher: str | None = None
    teacher_model: str | None = None
    distillation: float = 0.5
    temperature: float = 1.0
    hard: bool = False
    feature_distillation: float = 0.0
    features: tuple[str, ...] = _FEATURES

    def __post_init__(self) -> None:
        check_below_one("loss.label_smoothing", self.label_smoothing)
        check_below_one("loss.effective_beta", self.effective_beta)
        for weight in self.class_weights:
            check_range("loss.class_weights", weight, 0)
        if self.class_weights and self.weighting:
            raise ConfigError(f"loss.class_weights and loss.weighting {self.weighting!r} exclude one another: set one")
        check_range("loss.logit_adjustment", self.logit_adjustment, 0)
        if self.logit_adjustment and self.name not in ("cross_entropy", "jsd"):
            raise ConfigError(
                f"loss.logit_adjustment is for a softmax over the classes, not for loss.name {self.name!r}"
            )
        check_range("loss.gamma", self.gamma, 1)
        for name in ("gamma_positive", "gamma_negative"):
            check_range(f"loss.{name}", getattr(self, name) or 1, 1)
        check_below_one("loss.clip", self.clip)
        check_positive("loss.huber_delta", self.huber_delta)
        check_range("loss.distillation", self.distillation, 0, 1)
        check_positive("loss.temperature", self.temperature)
        check_range("loss.feature_distillation", self.feature_distillation, 0)
        self._check_features()

    def _check_features(self) -> None:
        """Raises ConfigError where the features to compare are none, unknown, or of no effect."""
        for name in self.features:
            if name != "pre_logits" and not re.fullmatch(r"-?\d", name):
                raise ConfigError(f"loss.features {name!r} is unknown: take pre_logits, or numbers of maps such as 3")
        if not self.features:
            raise ConfigError("loss.features is empty: take pre_logits, or set loss.feature_distillation 0")
        if len(set(self.features)) < len(self.features):
            raise ConfigError(f"loss.features {', '.join(self.features)}: one is there twice, remove it")
        if self.features != _FEATURES and not self.feature_distillation:
            raise ConfigError(
                f"loss.features {', '.join(self.features)} has no effect: set its weight, loss.feature_distillation"
            )


@part("ema")
class EmaConfig:
    """A moving average of parameters and running statistics, evaluated beside the model itself.

    Attributes:
      form: 'exponential', or 'cumulative' for the plain mean over time, as in SWA (arXiv:1803.05407).
      decay: share of the old average that an 'exponential' update keeps; None for no average.
      warmup: begin with a smaller decay, `min(decay, (1 + n) / (10 + n))` at update n, to forget the initial values
        soon.
      every: steps from one update to the next.
      start_epoch: epoch before which the average is the model itself.
    """

    form: str = choice(("exponential", "cumulative"), "exponential")
    decay: float | None = None
    warmup: bool = True
    every: int = 1
    start_epoch: float = 0.0

    def __post_init__(self) -> None:
        check_below_one("ema.decay", self.decay)
        check_range("ema.every", self.every, 1)
        check_range("ema.start_epoch", self.start_epoch, 0)

    @property
    def is_on(self) -> bool:
        """Whether anything is averaged."""
        return self.decay is not None or self.form == "cumulative"
