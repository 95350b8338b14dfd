"""1x1 convolution for CPUs: a matrix product whose gradient by the kernel is computed in C++.

XLA transposes the whole activations before it multiplies them by the gradient. As in `jeffnet.ops.depthwise`, the
derivatives of each of the two primitives here are the other one and the product, so that they exist to any order.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jeffnet._jax_compat import defbilinear, define_primitive, foreign_call, same_axes
from jeffnet.ops.native import limits


def pointwise_conv(images: Array, kernel: Array, precision: Any = None, lowering: str = "auto") -> Array:
    """`images @ kernel`, `(N, H, W, C)` by `(C, features)`, of one floating dtype.

    `precision` is that of `jax.lax`; `lowering` is 'auto', 'native' or 'shifted' (no C++).
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
    return foreign_call("jeffnet_outer_product", shape, images, g)


def _outer_on_cpu(ctx: Any, images: Any, g: Any, *, precision: Any, lowering: str) -> Callable[..., Array]:
    del precision
    suits = (
        images.dtype == jnp.float32
        and 0 not in (*images.shape, *g.shape)
        and limits.calls_fit(ctx, lowering)
        and limits.outer_product(images.shape[-1], g.shape[-1])
    )
    return _native_outer if suits else _outer


_forward_p = define_primitive("pointwise_conv", _product, shape=lambda x, k, **_: (*x.shape[:-1], k.shape[-1]))
_kernel_p = define_primitive(
    "pointwise_conv_kernel_gradient",
    _outer,
    on_cpu=_outer_on_cpu,
    shape=lambda x, g, **_: (x.shape[-1], g.shape[-1]),
)


def _kernel_gradient(images: Array, g: Array, **how: Any) -> Array:
    return _kernel_p.bind(*same_axes(images, g), **how)


# The operand to differentiate by is undefined; the other one is an array.
defbilinear(
    _forward_p,
    lambda g, images, kernel, **how: pointwise_conv(g, kernel.T, **how),
    lambda g, images, kernel, **how: _kernel_gradient(images, g, **how),
)
defbilinear(
    _kernel_p,
    lambda kernel, images, g, **how: pointwise_conv(g, kernel.T, **how),
    lambda kernel, images, g, **how: pointwise_conv(images, kernel, **how),
)
