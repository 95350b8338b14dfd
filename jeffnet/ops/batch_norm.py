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
import numpy as np
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jax.sharding import AxisType

from jeffnet.ops import native
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.dense import ACTS
from jeffnet.ops.lowerings import calls_fit, define_lowerings, run_compiled, same_axes
from jeffnet.ops.native import limits

_OPERANDS = 3  # x, scale, bias


def norm_act_train(
    x: Array, scale: Array, bias: Array, epsilon: float, act: str | None, lowering: str = "auto"
) -> tuple[Array, Array, Array]:
    """Normalise by the batch's own statistics, then activate.

    Args:
      x: `(..., C)`, float32.
      scale: `(C,)`, float32.
      bias: `(C,)`, float32.
      epsilon: added to the variance.
      act: name of an activation, or None.
      lowering: 'auto', 'native' or 'shifted' (no C++).

    Returns:
      Outputs like `x`; the batch's mean `(C,)` and biased variance `(C,)`.
    """
    return tuple(_forward_p.bind(*same_axes(x, scale, bias), epsilon=epsilon, act=act, lowering=lowering))  # pyright: ignore[reportReturnType]


def fits(x: Array, scale: Array, bias: Array, act: str | None) -> bool:
    """Whether `norm_act_train` would use C++ for these on one CPU."""
    return (
        jax.default_backend() == "cpu"
        and act in ACTS
        and all(each.dtype == jnp.float32 for each in (x, scale, bias))
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


def _call(name: str, results: list[Array], *operands: Array, **numbers: Any) -> list[Array]:
    shapes = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in results]
    return list(jax.ffi.ffi_call(name, shapes)(*operands, **numbers))


def _native_forward(x: Array, scale: Array, bias: Array, *, epsilon: float, act: str | None, lowering: str) -> tuple:
    del lowering
    mean, var = _call("jeffnet_statistics", [scale, scale], x)
    factor = lax.rsqrt(var + epsilon) * scale
    (y,) = _call("jeffnet_normalize", [x], x, mean, factor, bias, act=np.int64(ACTS[act]))
    return y, mean, var


def _native_cotangents(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    var: Array,
    y_bar: Array,
    mean_bar: Array,
    var_bar: Array,
    *,
    epsilon: float,
    act: str | None,
    lowering: str,
) -> tuple:
    del lowering
    deviation = lax.rsqrt(var + epsilon)
    factor, count, number = deviation * scale, x.size // x.shape[-1], np.int64(ACTS[act])
    sums, products = _call("jeffnet_normalize_sums", [scale, scale], x, mean, factor, bias, y_bar, act=number)
    # What flows through the mean and the variance is the same for all pixels of a channel, or in proportion to their
    # deviation from the mean.
    by_apart = (2 * var_bar - factor * deviation**2 * products) / count
    constant = (mean_bar - factor * sums) / count
    operands = (x, mean, factor, bias, y_bar, by_apart, constant)
    (x_bar,) = _call("jeffnet_normalize_gradient", [x], *operands, act=number)
    return x_bar, products * deviation, sums


# ----------------------------------------------------------------------------------------------------- the primitives


def _primitive(name: str, function: Callable[..., tuple]) -> Primitive:
    primitive = Primitive(name)
    primitive.multiple_results = True

    def abstract(*operands: Any, **how: Any) -> list:
        plain = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in operands]
        outputs = jax.eval_shape(functools.partial(function, **how), *plain)
        return [operands[0].update(shape=out.shape, dtype=out.dtype, weak_type=False) for out in outputs]

    @functools.partial(jax.jit, static_argnames=("epsilon", "act", "lowering"))
    def evaluate(*operands: Array, **how: Any) -> list[Array]:
        return primitive.bind(*operands, **how)

    def batch(operands: Any, dims: Any, **how: Any) -> tuple[Any, Any]:
        outputs = jax.vmap(functools.partial(function, **how), tuple(dims))(*operands)
        return outputs, [0] * len(outputs)

    primitive.def_abstract_eval(abstract)
    run_compiled(primitive, evaluate)
    batching.primitive_batchers[primitive] = batch
    return primitive


_forward_p = _primitive("norm_act_train", _reference)
_tangents_p = _primitive("norm_act_train_tangents", _tangents)
_cotangents_p = _primitive("norm_act_train_cotangents", _cotangents)


def _forward_jvp(primals: Any, tangents: Any, **how: Any) -> tuple[Any, Any]:
    outputs = _forward_p.bind(*primals, **how)
    operands = same_axes(*primals, *outputs[1:], *map(ad.instantiate_zeros, tangents))
    return outputs, _tangents_p.bind(*operands, **how)


def _tangents_transpose(cotangents: Any, *operands: Any, **how: Any) -> list:
    known = operands[: _OPERANDS + 2]
    wanted = [ad.is_undefined_primal(each) for each in operands[_OPERANDS + 2 :]]
    results = _cotangents_p.bind(*same_axes(*known, *map(ad.instantiate_zeros, cotangents)), **how)
    return [None] * len(known) + [each if want else None for each, want in zip(results, wanted, strict=True)]


def _jvp_of(function: Callable[..., tuple]) -> Callable:
    """Derivatives of derivatives are those of the reference."""

    def rule(primals: Any, tangents: Any, **how: Any) -> tuple[Any, Any]:
        return jax.jvp(functools.partial(function, **how), tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))

    return rule


def _cotangents_transpose(cotangents: Any, *operands: Any, **how: Any) -> list:
    # Linear in the last operands, the outputs' cotangents.
    known = operands[: _OPERANDS + 2]
    linear = [each.aval if ad.is_undefined_primal(each) else each for each in operands[_OPERANDS + 2 :]]
    shapes = [jax.ShapeDtypeStruct(each.shape, each.dtype) for each in linear]
    transposed = jax.linear_transpose(lambda *last: _cotangents(*known, *last, **how), *shapes)
    return [None] * len(known) + list(transposed(tuple(map(ad.instantiate_zeros, cotangents))))


def _suits_native(ctx: Any, *, epsilon: float, act: str | None, lowering: str) -> bool:
    del epsilon
    return calls_fit(ctx, lowering)


ad.primitive_jvps[_forward_p] = _forward_jvp
ad.primitive_jvps[_tangents_p] = _jvp_of(_tangents)
ad.primitive_jvps[_cotangents_p] = _jvp_of(_cotangents)
ad.primitive_transposes[_tangents_p] = _tangents_transpose
ad.primitive_transposes[_cotangents_p] = _cotangents_transpose
define_lowerings(_forward_p, _reference, _reference, _suits_native, _native_forward)
define_lowerings(_tangents_p, _tangents, _tangents, lambda ctx, **how: False, _tangents)
define_lowerings(_cotangents_p, _cotangents, _cotangents, _suits_native, _native_cotangents)
