"""Losses and scores of one batch."""

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jeffnet.errors import ConfigError, check_choice
from jeffnet.ops.precision import at_least_float32

# Below it, a class's mean probability counts as this in the Jensen-Shannon divergence, as in timm.
_LEAST_MIXTURE = 1e-7
REGRESSION = ("l1", "l2", "huber")


def soft_targets(
    labels: Array, num_classes: int, label_smoothing: float = 0.0, dtype: DTypeLike = jnp.float32
) -> Array:
    """One-hot targets, smoothed: `(N, num_classes)`.

    Args:
      labels: `(N,)`, whole numbers in [0, num_classes).
      num_classes: how many there are.
      label_smoothing: share of the target spread evenly over all classes, in [0, 1).
      dtype: of the result, a float dtype; the arithmetic is at least float32.

    Raises:
      ConfigError: labels of other dimensions.
    """
    if labels.ndim != 1:
        raise ConfigError(f"labels of shape {labels.shape}: expected (N,)")
    targets = jax.nn.one_hot(labels, num_classes, dtype=at_least_float32(dtype))
    return optax.smooth_labels(targets, label_smoothing).astype(dtype)


def cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
    """Softmax cross entropy of each example: `(N,)`, at least float32.

    Args:
      logits: `(N, classes)`, any float dtype.
      labels: `(N,)`, whole numbers in [0, classes).
      label_smoothing: share of the target spread evenly over all classes, in [0, 1).

    Raises:
      ConfigError: other shapes, which would broadcast to a loss of every example against every other.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ConfigError(
            f"logits of shape {logits.shape} and labels of shape {labels.shape}: expected (N, classes), (N,)"
        )
    logits = _precise(logits)
    return soft_cross_entropy(logits, soft_targets(labels, logits.shape[-1], label_smoothing, logits.dtype))


def soft_cross_entropy(logits: Array, targets: Array) -> Array:
    """Softmax cross entropy of each example against probabilities: `(N,)`, at least float32.

    Args:
      logits: `(N, classes)`, any float dtype.
      targets: likewise; rows should sum to 1.

    Raises:
      ConfigError: other shapes.
    """
    _check_alike(logits, "targets", targets)
    return optax.softmax_cross_entropy(_precise(logits), _precise(targets))


def binary_cross_entropy(
    logits: Array, targets: Array, threshold: float | None = None, sum_classes: bool = False
) -> Array:
    """Binary cross entropy of each example, with every class independent: `(N,)`, at least float32.

    Args:
      logits: `(N, classes)`, any float dtype.
      targets: `(N, classes)`, any float dtype, in [0, 1].
      threshold: targets above it count as 1 and others as 0; None takes them as they are.
      sum_classes: add up the classes instead of taking their mean.

    Raises:
      ConfigError: other shapes.

    Source: Wightman et al., "ResNet strikes back", arXiv:2110.00476.
    """
    _check_alike(logits, "targets", targets)
    logits, targets = _precise(logits), _precise(targets)
    if threshold is not None:
        targets = (targets > threshold).astype(targets.dtype)
    losses = optax.sigmoid_binary_cross_entropy(logits, targets)
    return losses.sum(-1) if sum_classes else losses.mean(-1)


def asymmetric_loss(
    logits: Array,
    targets: Array,
    *,
    positive: float,
    negative: float,
    clip: float = 0.0,
    positive_weights: ArrayLike = 1.0,
    sum_classes: bool = False,
) -> Array:
    """Binary cross entropy of each example in which labels that are predicted well count less: `(N,)`.

    With equal exponents and no `clip` it is the focal loss, with exponents of 0 binary cross entropy.

    Args:
      logits: `(N, classes)`, any float dtype.
      targets: `(N, classes)`, any float dtype, in [0, 1].
      positive: exponent for labels that a picture has, 0 or at least 1: of 1 - p, where p is the probability.
      negative: exponent for those that it has not, of p.
      clip: by how much p is lowered for labels that a picture has not, in [0, 1): below it they do not count.
      positive_weights: `(classes,)`, or one number: factors for labels that a picture has.
      sum_classes: add up the classes instead of taking their mean.

    Returns:
      `(N,)`, at least float32.

    Raises:
      ConfigError: other shapes.

    Source: Ridnik et al., "Asymmetric Loss For Multi-Label Classification", arXiv:2009.14119; Lin et al., "Focal Loss
    for Dense Object Detection", arXiv:1708.02002.
    """
    _check_alike(logits, "targets", targets)
    logits, targets = _precise(logits), _precise(targets)
    probability = jax.nn.sigmoid(logits)
    lowered = jnp.maximum(probability - clip, 0) if clip else probability
    without = jnp.log1p(-lowered) if clip else jax.nn.log_sigmoid(-logits)
    has = _power(jax.nn.sigmoid(-logits), positive) * jax.nn.log_sigmoid(logits) * positive_weights
    losses = -(targets * has + (1 - targets) * _power(lowered, negative) * without)
    return losses.sum(-1) if sum_classes else losses.mean(-1)


def regression_loss(outputs: Array, targets: Array, name: str, delta: float = 1.0) -> Array:
    """Distance of each example's numbers from its targets, the mean over the numbers: `(N,)`, at least float32.

    Args:
      outputs: `(N, numbers)`, any float dtype.
      targets: likewise.
      name: 'l1', the absolute difference; 'l2', its square; or 'huber', half the square up to `delta` and linear beyond
        it (Huber, "Robust Estimation of a Location Parameter", 1964).
      delta: of 'huber', above 0.

    Raises:
      ConfigError: other shapes, or no such name.
    """
    check_choice("name", name, REGRESSION)
    _check_alike(outputs, "targets", targets)
    outputs, targets = _precise(outputs), _precise(targets)
    difference = jnp.abs(outputs - targets)
    losses = {"l1": difference, "l2": difference**2}
    return (losses[name] if name in losses else optax.huber_loss(outputs, targets, delta=delta)).mean(-1)


def jensen_shannon_divergence(logits: Array) -> Array:
    """Divergence between the predictions for several views of each example: their mean divergence from their mean.

    Args:
      logits: `(views, N, classes)`, any float dtype.

    Returns:
      `(N,)`, at least float32; 0 where all views agree.

    Raises:
      ConfigError: other dimensions.

    Source: Hendrycks et al., "AugMix", arXiv:1912.02781.
    """
    if logits.ndim != 3:
        raise ConfigError(f"logits of shape {logits.shape}: expected (views, N, classes)")
    log_probabilities = jax.nn.log_softmax(_precise(logits))
    probabilities = jnp.exp(log_probabilities)
    mixture = jnp.maximum(probabilities.mean(0, keepdims=True), _LEAST_MIXTURE)
    return (probabilities * (log_probabilities - jnp.log(mixture))).sum(-1).mean(0)


def distillation(logits: Array, teacher_logits: Array, temperature: float = 1.0, hard: bool = False) -> Array:
    """Distance of each example's prediction from a teacher's: `(N,)`, at least float32. The teacher gets no gradient.

    Args:
      logits: `(N, classes)`, any float dtype.
      teacher_logits: likewise.
      temperature: by which both are divided, above 0; the divergence is multiplied by its square, so that gradients
        keep their size (arXiv:1503.02531). It does not count where `hard`.
      hard: the cross entropy against the teacher's first guess (arXiv:2012.12877) instead of the divergence of its
        probabilities.

    Raises:
      ConfigError: other shapes.
    """
    _check_alike(logits, "teacher_logits", teacher_logits)
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    if hard:
        return cross_entropy(logits, teacher_logits.argmax(-1))
    student = jax.nn.log_softmax(_precise(logits) / temperature)
    teacher = jax.nn.log_softmax(_precise(teacher_logits) / temperature)
    return temperature**2 * (jnp.exp(teacher) * (teacher - student)).sum(-1)


def feature_distance(features: Array, teacher_features: Array) -> Array:
    """Mean squared difference of each example's features from a teacher's: `(N,)`, at least float32.

    The teacher gets no gradient. A map of another height or width is resized to the student's, bilinearly and, where it
    is larger, with antialiasing.

    Args:
      features: `(N, F)`, or maps `(N, H, W, C)`, any float dtype.
      teacher_features: likewise, with as many channels.

    Raises:
      ConfigError: other shapes.

    Source: Romero et al., "FitNets", arXiv:1412.6550, equation 3.
    """
    shape, other = features.shape, teacher_features.shape
    if len(shape) not in (2, 4) or len(other) != len(shape) or (shape[0], shape[-1]) != (other[0], other[-1]):
        raise ConfigError(
            f"features of shape {shape} and teacher_features of shape {other}: expected (N, F) or (N, H, W, C) twice, "
            "with as many channels"
        )
    teacher_features = jax.lax.stop_gradient(_precise(teacher_features))
    if other != shape:
        teacher_features = jax.image.resize(teacher_features, shape, "linear")
    return ((_precise(features) - teacher_features) ** 2).mean(tuple(range(1, features.ndim)))


def in_top(logits: Array, labels: Array, k: int) -> Array:
    """Whether each example's label, of `(N,)`, is among its `k` largest logits, of `(N, classes)`: `(N,)` booleans.

    Among equal logits the lower class comes first, and NaN is never right.
    """
    labels = labels[:, None]
    right = jnp.take_along_axis(logits, labels, axis=1)
    before = (logits > right) | ((logits == right) & (jnp.arange(logits.shape[-1])[None] < labels))
    return (before.sum(-1) < k) & jnp.isfinite(logits).all(-1)


def _power(base: Array, exponent: float) -> Array:
    """1 for an exponent of 0, whose derivative at 0 would be NaN."""
    return base**exponent if exponent else jnp.ones_like(base)


def _precise(x: Array) -> Array:
    return x.astype(at_least_float32(x.dtype))


def _check_alike(logits: Array, name: str, other: Array) -> None:
    if logits.ndim != 2 or other.shape != logits.shape:
        raise ConfigError(
            f"logits of shape {logits.shape} and {name} of shape {other.shape}: expected (N, classes) twice"
        )
