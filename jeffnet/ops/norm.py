"""Batch normalisation (Ioffe and Szegedy, arXiv:1502.03167), over all axes but the last."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jeffnet.errors import ArchitectureError
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.batch_norm import fits, norm_act_train
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.conv import lowering
from jeffnet.ops.precision import at_least_float32


def batch_statistics(x: Array, axis_name: str | None = None) -> tuple[Array, Array, Array]:
    """Mean and variance of each channel.

    Args:
      x: `(..., C)`.
      axis_name: a mapped axis (of `shard_map` or `pmap`) whose members form one batch together. Under `jit` with
        sharded arrays none is needed: reductions see the whole batch.

    Returns:
      Mean `(C,)`, biased variance `(C,)`, which normalises, and unbiased variance `(C,)`, which goes into the running
      statistics as in PyTorch and in TensorFlow's fused operation. At least float32.
    """
    axes = tuple(range(x.ndim - 1))
    values = x.astype(at_least_float32(x.dtype))
    count = values.size // values.shape[-1]
    mean = values.mean(axes)
    if axis_name is not None:
        mean, count = lax.pmean(mean, axis_name), count * lax.axis_size(axis_name)
    # Two passes: E[x^2] - E[x]^2 would cancel where a channel's mean is large against its deviation.
    var = jnp.square(values - over_channels(mean, values)).mean(axes)
    if axis_name is not None:
        var = lax.pmean(var, axis_name)
    return mean, var, var * (count / max(count - 1, 1))


def norm_train(
    x: Array,
    scale: Array,
    bias: Array,
    epsilon: float,
    dtype: DTypeLike,
    act: str | None = None,
    axis_name: str | None = None,
    groups: int = 1,
) -> tuple[Array, Array, Array]:
    """Normalise by the batch's statistics, and activate.

    Args:
      x: `(..., C)`.
      scale: `(C,)`.
      bias: `(C,)`.
      epsilon: keeps channels of no variance finite.
      dtype: of the result; the arithmetic is at least float32.
      act: name of the activation that follows; None for none.
      axis_name: see `batch_statistics`.
      groups: parts of equal length, along the batch's first axis, that are normalised separately. Where devices share a
        batch, as many groups as devices need no communication.

    Returns:
      Outputs `(..., C)`; the batch's mean `(C,)` and unbiased variance `(C,)`, for the running statistics; the means of
      those of the groups, which is what the groups were normalised by on average.

    Raises:
      ArchitectureError: the batch is empty, or cannot be cut into so many groups.
    """
    if 0 in x.shape:
        raise ArchitectureError(f"BatchNorm in training over an array of shape {x.shape}: it has no statistics")
    if groups > 1:
        if x.shape[0] % groups:
            raise ArchitectureError(f"a batch of {x.shape[0]} cannot be cut into {groups} groups for BatchNorm")
        each_group = jax.vmap(lambda part: norm_train(part, scale, bias, epsilon, dtype, act, axis_name))
        y, means, variances = each_group(x.reshape(groups, -1, *x.shape[1:]))
        return y.reshape(x.shape), means.mean(0), variances.mean(0)
    form = lowering()
    if form in ("auto", "native") and axis_name is None and x.dtype == dtype and fits(x, scale, bias, act):
        y, mean, var = norm_act_train(x, scale, bias, epsilon, act, form)
        count = x.size // x.shape[-1]
        return y, mean, var * (count / max(count - 1, 1))
    mean, var, unbiased = batch_statistics(x, axis_name)
    return norm_inference(x, mean, var, scale, bias, epsilon, dtype, act), mean, unbiased


def batch_norm(
    x: Array,
    arrays: Sequence[Array],
    epsilon: float,
    dtype: DTypeLike,
    act: str | None,
    keep: float | None,
    axis_name: str | None = None,
    groups: int = 1,
) -> tuple[Array, tuple[Array, Array] | None]:
    """Normalise in training or in evaluation, activate, and move the running statistics.

    `arrays` are running mean, running variance, scale and bias, each `(C,)`. `keep` is the share of the running
    statistics that training keeps; None evaluates. For the other arguments see `norm_train`.

    Returns:
      Outputs `(..., C)`; the running mean and variance after training, None after evaluation.
    """
    mean, var, scale, bias = arrays
    if keep is None:
        return norm_inference(x, mean, var, scale, bias, epsilon, dtype, act), None
    y, batch_mean, unbiased = norm_train(x, scale, bias, epsilon, dtype, act, axis_name, groups)
    return y, (_moved(mean, batch_mean, keep), _moved(var, unbiased, keep))


def _moved(running: Array, batch: Array, keep: float) -> Array:
    """Running statistics after a batch: `keep * running + (1 - keep) * batch`, of the dtype of `running`."""
    compute = at_least_float32(running.dtype, batch.dtype)
    return (keep * running.astype(compute) + (1 - keep) * batch.astype(compute)).astype(running.dtype)


def norm_inference(
    x: Array,
    mean: Array,
    var: Array,
    scale: Array,
    bias: Array,
    epsilon: float,
    dtype: DTypeLike,
    act: str | None = None,
) -> Array:
    """Normalise by given statistics, and activate: `act((x - mean) / sqrt(var + epsilon) * scale + bias)`.

    `x` is `(..., C)`, the other arrays are `(C,)`. The norm is computed in at least float32; the result and the
    activation are in `dtype`.
    """
    compute = at_least_float32(*(array.dtype for array in (x, mean, var, scale, bias)))
    values = x.astype(compute)
    mean, var, scale, bias = (over_channels(array.astype(compute), values) for array in (mean, var, scale, bias))
    factor = lax.rsqrt(var + epsilon) * scale
    y = ((values - mean) * factor + bias).astype(dtype)
    return ACTIVATIONS[act](y) if act else y
