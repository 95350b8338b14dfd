"""Norms of each picture by itself, which need no running statistics."""

from typing import assert_never

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jeffnet.arch.operations import GroupNorm, LayerNorm
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.precision import at_least_float32


def group_norm(
    x: Array, scale: Array, bias: Array, groups: int, epsilon: float, dtype: DTypeLike, act: str | None = None
) -> Array:
    """Normalise groups of neighbouring channels over all positions of a picture (arXiv:1803.08494).

    Args:
      x: `(N, H, W, C)`.
      scale: `(C,)`.
      bias: `(C,)`.
      groups: divides C.
      epsilon: added to the variance under the root.
      dtype: of the result; statistics are at least float32.
      act: activation after it.

    Returns:
      An array shaped like `x`.
    """
    grouped = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    return _affine(_normalized(grouped, (1, 2, 4), epsilon).reshape(x.shape), scale, bias, dtype, act)


def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float, dtype: DTypeLike, act: str | None = None) -> Array:
    """Normalise the channels of every position (arXiv:1607.06450).

    Args:
      x: `(..., C)`.
      scale: `(C,)`.
      bias: `(C,)`.
      epsilon: added to the variance under the root.
      dtype: of the result; statistics are at least float32.
      act: activation after it.

    Returns:
      An array shaped like `x`.
    """
    return _affine(_normalized(x, (-1,), epsilon), scale, bias, dtype, act)


def sample_norm(
    norm: GroupNorm | LayerNorm, x: Array, scale: Array, bias: Array, dtype: DTypeLike, act: str | None = None
) -> Array:
    """The norm of a plan, see `group_norm` and `layer_norm`."""
    match norm:
        case GroupNorm():
            return group_norm(x, scale, bias, norm.groups, norm.epsilon, dtype, act)
        case LayerNorm():
            return layer_norm(x, scale, bias, norm.epsilon, dtype, act)
        case _:
            assert_never(norm)


def _normalized(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    x = x.astype(at_least_float32(x.dtype))
    centered = x - x.mean(axes, keepdims=True)
    return centered * lax.rsqrt(jnp.square(centered).mean(axes, keepdims=True) + epsilon)


def _affine(x: Array, scale: Array, bias: Array, dtype: DTypeLike, act: str | None) -> Array:
    scale, bias = (over_channels(each.astype(x.dtype), x) for each in (scale, bias))
    y = (x * scale + bias).astype(dtype)
    return ACTIVATIONS[act](y) if act else y
