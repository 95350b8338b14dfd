"""1x1 convolution for CPUs: a matrix product whose gradient by the kernel is computed in C++.

XLA transposes the whole activations before it multiplies them by the gradient. As in `jeffnet.ops.depthwise`, the
derivatives of each of the two primitives here are the other one and the product, so that they exist to any order.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from jeffnet.ops.lowerings import calls_fit, define_lowerings, run_compiled, same_axes
from jeffnet.ops.native import limits


def pointwise_conv(images: Array, kernel: Array, precision: Any = None, lowering: str = "auto") -> Array:
    """`images @ kernel`.

    Args:
      images: `(N, H, W, C)`, of a floating dtype.
      kernel: `(C, features)`, of the same dtype.
      precision: of products, as in `jax.lax`.
      lowering: 'auto', 'native' or 'shifted' (no C++).

    Returns:
      `(N, H, W, features)`.
    """
    return _forward_p.bind(*same_axes(images, kernel), precision=precision, lowering=lowering)


def _product(images: Array, kernel: Array, *, precision: Any, lowering: str) -> Array:
    del lowering
    return lax.dot_general(images, kernel, (((3,), (0,)), ((), ())), precision=precision)


def _outer(images: Array, g: Array, *, precision: Any, lowering: str) -> Array:
    del lowering
    return lax.dot_general(images, g, (((0, 1, 2), (0, 1, 2)), ((), ())), precision=precision)


def _native_outer(images: Array, g: Array, *, precision: Any, lowering: str) -> Array:
    del precision, lowering
    shape = jax.ShapeDtypeStruct((images.shape[-1], g.shape[-1]), images.dtype)
    return jax.ffi.ffi_call("jeffnet_outer_product", shape)(images, g)


def _suits_native(ctx: Any, *, precision: Any, lowering: str) -> bool:
    images, g = ctx.avals_in
    return (
        images.dtype == jnp.float32
        and 0 not in (*images.shape, *g.shape)
        and calls_fit(ctx, lowering)
        and limits.outer_product(images.shape[-1], g.shape[-1])
    )


def _primitive(name: str, function: Any) -> Primitive:
    primitive = Primitive(name)

    def abstract(a: Any, b: Any, **how: Any) -> Any:
        out = jax.eval_shape(
            functools.partial(function, **how), *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (a, b))
        )
        return a.update(shape=out.shape, weak_type=False)

    @functools.partial(jax.jit, static_argnames=("precision", "lowering"))
    def evaluate(a: Array, b: Array, *, precision: Any, lowering: str) -> Array:
        return primitive.bind(a, b, precision=precision, lowering=lowering)

    def batch(operands: Any, dims: Any, **how: Any) -> tuple[Array, int]:
        return jax.vmap(functools.partial(function, **how), tuple(dims))(*operands), 0

    primitive.def_abstract_eval(abstract)
    run_compiled(primitive, evaluate)
    batching.primitive_batchers[primitive] = batch
    return primitive


_forward_p = _primitive("pointwise_conv", _product)
_kernel_p = _primitive("pointwise_conv_kernel_gradient", _outer)


def _forward(images: Array, kernel: Array, **how: Any) -> Array:
    return _forward_p.bind(*same_axes(images, kernel), **how)


def _kernel_gradient(images: Array, g: Array, **how: Any) -> Array:
    return _kernel_p.bind(*same_axes(images, g), **how)


# The operand to differentiate by is undefined; the other one is an array.
ad.defbilinear(
    _forward_p,
    lambda g, images, kernel, **how: _forward(g, kernel.T, **how),
    lambda g, images, kernel, **how: _kernel_gradient(images, g, **how),
)
ad.defbilinear(
    _kernel_p,
    lambda kernel, images, g, **how: _forward(g, kernel.T, **how),
    lambda kernel, images, g, **how: _forward(images, kernel, **how),
)
define_lowerings(_forward_p, _product, _product, lambda ctx, **how: False, _product)
define_lowerings(_kernel_p, _outer, _outer, _suits_native, _native_outer)
