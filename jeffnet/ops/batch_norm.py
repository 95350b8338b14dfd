"""BatchNorm in training with the activation after it, for CPUs: four passes over the activations, and one array kept.

Left to itself, XLA keeps the centred input, the activation's gate and more for the backward pass, and makes a pass over
memory for each. Here only the input is kept; the backward pass computes the rest again while it is in registers. The
reference is `normalize_train` in JAX's operations, from which derivatives of higher order are taken.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType

from jeffnet._jax_compat import (
    Primitive,
    define_primitive,
    foreign_call,
    instantiate_zeros,
    is_undefined_primal,
    primitive_jvps,
    primitive_transposes,
    same_axes,
)
from jeffnet.ops import native
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.dense import ACTS
from jeffnet.ops.native import limits

_OPERANDS = 3  # x, scale, bias


def norm_act_train(
    x: Array, scale: Array, bias: Array, epsilon: float, act: str | None, lowering: str = "auto"
) -> tuple[Array, Array, Array]:
    """Normalise `x`, `(..., C)` in float32, by the batch's statistics, then activate; `scale` and `bias` are `(C,)`.

    Returns:
      Outputs like `x`; the batch's mean `(C,)` and biased variance `(C,)`.
    """
    return tuple(_forward_p.bind(*same_axes(x, scale, bias), epsilon=epsilon, act=act, lowering=lowering))  # pyright: ignore[reportReturnType]


def fits(x: Array, scale: Array, bias: Array, act: str | None) -> bool:
    """Whether `norm_act_train` would use C++ for these on one CPU."""
    return (
        jax.default_backend() == "cpu"
        and act in ACTS
        and all(array.dtype == jnp.float32 for array in (x, scale, bias))
        and 0 not in x.shape
        and AxisType.Explicit not in jax.typeof(x).sharding.mesh.axis_types
        and native.available()
        and limits.norm(x.shape[-1])
    )


# ---------------------------------------------------------------------------------------------- in JAX's operations


def _reference(x: Array, scale: Array, bias: Array, *, epsilon: float, act: str | None, lowering: str = "") -> tuple:
    del lowering
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    centred = x - over_channels(mean, x)
    var = jnp.square(centred).mean(axes)
    y = centred * over_channels(lax.rsqrt(var + epsilon) * scale, x) + over_channels(bias, x)
    return ACTIVATIONS[act](y) if act else y, mean, var


def _tangents(*operands: Array, **how: Any) -> tuple:
    """Of the outputs, for x, scale, bias, the mean and variance (not used), and the tangents of the first three."""
    return jax.jvp(functools.partial(_reference, **how), operands[:_OPERANDS], operands[_OPERANDS + 2 :])[1]


def _cotangents(*operands: Array, **how: Any) -> tuple:
    """Of x, scale and bias, for these, the mean and variance (not used), and the cotangents of the outputs."""
    return jax.vjp(functools.partial(_reference, **how), *operands[:_OPERANDS])[1](operands[_OPERANDS + 2 :])


# ------------------------------------------------------------------------------------------------------------ in C++


def _native_forward(x: Array, scale: Array, bias: Array, *, epsilon: float, act: str | None, lowering: str) -> tuple:
    del lowering
    mean, var = foreign_call("jeffnet_statistics", [scale, scale], x)
    factor = lax.rsqrt(var + epsilon) * scale
    return foreign_call("jeffnet_normalize", x, x, mean, factor, bias, act=ACTS[act]), mean, var


def _native_cotangents(*operands: Array, epsilon: float, act: str | None, lowering: str) -> tuple:
    del lowering
    x, scale, bias, mean, var, y_bar, mean_bar, var_bar = operands
    deviation = lax.rsqrt(var + epsilon)
    factor, count, number = deviation * scale, x.size // x.shape[-1], ACTS[act]
    sums, products = foreign_call("jeffnet_normalize_sums", [scale, scale], x, mean, factor, bias, y_bar, act=number)
    # What flows through the mean and the variance is the same for all pixels of a channel, or in proportion to their
    # deviation from the mean.
    by_apart = (2 * var_bar - factor * deviation**2 * products) / count
    constant = (mean_bar - factor * sums) / count
    by_pixel = (x, mean, factor, bias, y_bar, by_apart, constant)
    x_bar = foreign_call("jeffnet_normalize_gradient", x, *by_pixel, act=number)
    return x_bar, products * deviation, sums


# ----------------------------------------------------------------------------------------------------- the primitives


def _define(name: str, function: Callable[..., tuple], native_function: Callable[..., tuple] | None) -> Primitive:
    def on_cpu(ctx: Any, *operands: Any, lowering: str, **how: Any) -> Callable[..., tuple]:
        del operands, how
        return native_function if native_function and limits.calls_fit(ctx, lowering) else function

    # Outputs, mean and variance are shaped like x, scale and bias, and so are their tangents and cotangents.
    def shapes(*operands: Any, **how: Any) -> list[tuple[int, ...]]:
        del how
        return [operand.shape for operand in operands[:_OPERANDS]]

    return define_primitive(name, function, on_cpu=on_cpu, shape=shapes, multiple_results=True)


_forward_p = _define("norm_act_train", _reference, _native_forward)
_tangents_p = _define("norm_act_train_tangents", _tangents, None)
_cotangents_p = _define("norm_act_train_cotangents", _cotangents, _native_cotangents)


def _forward_jvp(primals: Any, tangents: Any, **how: Any) -> tuple[Any, Any]:
    outputs = _forward_p.bind(*primals, **how)
    operands = same_axes(*primals, *outputs[1:], *map(instantiate_zeros, tangents))
    return outputs, _tangents_p.bind(*operands, **how)


def _tangents_transpose(cotangents: Any, *operands: Any, **how: Any) -> list:
    known = operands[: _OPERANDS + 2]
    results = _cotangents_p.bind(*same_axes(*known, *map(instantiate_zeros, cotangents)), **how)
    tangents = operands[_OPERANDS + 2 :]
    return [None] * len(known) + [
        result if is_undefined_primal(tangent) else None for result, tangent in zip(results, tangents, strict=True)
    ]


def _jvp_of(function: Callable[..., tuple]) -> Callable:
    """Derivatives of derivatives are those of the reference."""

    def rule(primals: Any, tangents: Any, **how: Any) -> tuple[Any, Any]:
        return jax.jvp(functools.partial(function, **how), tuple(primals), tuple(map(instantiate_zeros, tangents)))

    return rule


def _cotangents_transpose(cotangents: Any, *operands: Any, **how: Any) -> list:
    # Linear in the last operands, the outputs' cotangents.
    known = operands[: _OPERANDS + 2]
    linear = [array.aval if is_undefined_primal(array) else array for array in operands[_OPERANDS + 2 :]]
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in linear]
    transposed = jax.linear_transpose(lambda *last: _cotangents(*known, *last, **how), *shapes)
    return [None] * len(known) + list(transposed(tuple(map(instantiate_zeros, cotangents))))


primitive_jvps[_forward_p] = _forward_jvp
primitive_jvps[_tangents_p] = _jvp_of(_tangents)
primitive_jvps[_cotangents_p] = _jvp_of(_cotangents)
primitive_transposes[_tangents_p] = _tangents_transpose
primitive_transposes[_cotangents_p] = _cotangents_transpose
