"""Averages of a model's arrays over time."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jeffnet.errors import ConfigError, check_choice
from jeffnet.ops.precision import at_least_float32

FORMS = ("exponential", "cumulative")


def ema_decay(updates: ArrayLike, decay: float, warmup: bool) -> Array:
    """Share of the old average that an update of an exponential moving average keeps.

    Args:
      updates: number of updates before this one, which may be traced.
      decay: the largest share, in [0, 1).
      warmup: begin with less: `min(decay, (1 + updates) / (10 + updates))`.

    Returns:
      A scalar, at least float32.
    """
    count = jnp.asarray(updates, float)
    return jnp.minimum(decay, (1 + count) / (10 + count)) if warmup else jnp.full_like(count, decay)


def update_average(
    average: Any, value: Any, updates: ArrayLike, *, form: str, decay: float = 0.0, warmup: bool = False
) -> Any:
    """The average, updated by a new value.

    Args:
      average: a pytree of arrays.
      value: a pytree like it.
      updates: number of updates before this one, which may be traced.
      form: 'exponential' keeps `ema_decay` of the old average. 'cumulative' is the plain mean of all values, in which
        the average at `updates` 0 does not count (stochastic weight averaging, arXiv:1803.05407).
      decay: of 'exponential'.
      warmup: of 'exponential'.

    Returns:
      A pytree like `average`, whose float arrays are at least float32: a small share of a value would be lost in less.
      Other arrays are those of `value`.

    Raises:
      ConfigError: another form, or trees or shapes that differ.
    """
    check_choice("form", form, FORMS)
    step = 1 - ema_decay(updates, decay, warmup) if form == "exponential" else 1 / (jnp.asarray(updates, float) + 1)

    def moved(old: Array, new: Array) -> Array:
        if old.shape != new.shape:
            raise ConfigError(
                f"an average of shape {old.shape} and a value of shape {new.shape}: they must be the same"
            )
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return new
        compute = at_least_float32(old.dtype)
        # Moving by a share of the difference leaves an average exactly where it is when the value is the same.
        return old.astype(compute) + step.astype(compute) * (new.astype(compute) - old.astype(compute))

    return jax.tree.map(moved, average, value)


def average_arrays(models: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The plain mean of several models' arrays.

    Args:
      models: at least one, all of the same names and shapes.

    Returns:
      Arrays of the last one's dtypes; the mean is taken in float64. Arrays that are not floats are the last one's.

    Raises:
      ConfigError: no models, or ones that differ in names or shapes.
    """
    if not models:
        raise ConfigError("no models to average")
    shapes = [{name: array.shape for name, array in model.items()} for model in models]
    if any(shape != shapes[0] for shape in shapes):
        raise ConfigError("models to average differ in their arrays' names or shapes")

    def mean(name: str, last: np.ndarray) -> np.ndarray:
        if not jnp.issubdtype(last.dtype, jnp.floating):
            return last.copy()
        return np.asarray(np.mean([model[name] for model in models], axis=0, dtype=np.float64), last.dtype)

    return {name: mean(name, last) for name, last in models[-1].items()}
