"""Losses and scores of one batch."""

import jax
import jax.numpy as jnp
import optax
from jax import Array


def cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
    """Softmax cross entropy of each example.

    Args:
      logits: `(N, classes)`, any float dtype.
      labels: `(N,)`, whole numbers in [0, classes).
      label_smoothing: share of the target spread evenly over all classes, in [0, 1).

    Returns:
      `(N,)`, at least float32.

    Raises:
      ValueError: other shapes, which would broadcast to a loss of every example against every other.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits of shape {logits.shape} and labels of shape {labels.shape}: expected (N, classes), (N,)"
        )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))


def in_top(logits: Array, labels: Array, k: int) -> Array:
    """Whether each example's label is among its `k` largest logits.

    Args:
      logits: `(N, classes)`.
      labels: `(N,)`.
      k: of as many as there are classes at most.

    Returns:
      `(N,)` booleans. Among equal logits the lower class comes first, and NaN is never right.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    classes = jnp.arange(logits.shape[-1])
    before = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    return (before.sum(-1) < k) & jnp.isfinite(logits).all(-1)
