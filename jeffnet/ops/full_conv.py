"""Convolution of all channels by kernels larger than 1x1, for CPUs, as JAX primitives.

XLA takes two to five times as long for the forward pass and for the gradients as the C++ kernels do. As in
`jeffnet.ops.depthwise`, the convolution and its two gradients are each other's derivatives, so that they exist to any
order. What the C++ kernels do not compute is XLA's convolution.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jeffnet._jax_compat import Primitive, define_primitive, foreign_call
from jeffnet.ops.conv_primitives import bind, define_derivatives, unless_empty
from jeffnet.ops.dense import pack_kernel
from jeffnet.ops.depthwise import Window
from jeffnet.ops.native import limits


def full_conv(images: Array, kernel: Array, window: Window, precision: Any = None, lowering: str = "auto") -> Array:
    """A convolution of `images`, `(N, H, W, C)`, by a `kernel`, `(height, width, C, features)`, of the same dtype.

    Args:
      images: of a floating dtype.
      kernel: likewise.
      window: pads are not negative, the dilation is 1.
      precision: of XLA's convolution.
      lowering: 'auto' or 'native' use C++ on CPUs for float32, where it is available; 'shifted' does not.

    Returns:
      `(N, H', W', features)`.

    Raises:
      ConfigError: 'native' where the C++ kernels cannot be built; when it is compiled.
    """
    return bind(_forward_p, images, kernel, window=window, size=None, precision=precision, lowering=lowering)


# -------------------------------------------------------------------------------------------------------------- shapes


def _out_shape(images: Any, kernel: Any, window: Window, size: Any) -> tuple[int, ...]:
    return images.shape[0], *window.out_size(images.shape[1:3], kernel.shape[:2]), kernel.shape[3]


def _images_shape(g: Any, kernel: Any, window: Window, size: Any) -> tuple[int, ...]:
    return g.shape[0], *size, kernel.shape[2]


def _kernel_shape(images: Any, g: Any, window: Window, size: Any) -> tuple[int, ...]:
    return *size, images.shape[3], g.shape[3]


# ---------------------------------------------------------------------------------------------------- XLA's convolution


def _xla(images: Array, kernel: Array, window: Window, size: Any, precision: Any) -> Array:
    return lax.conv_general_dilated(
        images,
        kernel,
        window.strides,
        window.pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _xla_input_gradient(g: Array, kernel: Array, window: Window, size: Any, precision: Any) -> Array:
    images = jax.ShapeDtypeStruct(_images_shape(g, kernel, window, size), g.dtype)
    return jax.linear_transpose(lambda images: _xla(images, kernel, window, None, precision), images)(g)[0]


def _xla_kernel_gradient(images: Array, g: Array, window: Window, size: Any, precision: Any) -> Array:
    kernel = jax.ShapeDtypeStruct(_kernel_shape(images, g, window, size), images.dtype)
    return jax.linear_transpose(lambda kernel: _xla(images, kernel, window, None, precision), kernel)(g)[0]


# ----------------------------------------------------------------------------------------------------------------- C++


def _native(images: Array, kernel: Array, window: Window, size: Any, precision: Any) -> Array:
    before = (window.pads[0][0], window.pads[1][0])
    return _dense(images, kernel, _out_shape(images, kernel, window, size)[1:3], window.strides, before)


def _dense(
    images: Array, kernel: Array, out_size: Sequence[int], strides: Sequence[int], before: Sequence[int]
) -> Array:
    """Outputs of a given height and width, from rows and columns of zeros before the picture on."""
    shape = (images.shape[0], *out_size, kernel.shape[3])
    packed = pack_kernel(kernel)
    bias = jnp.zeros(packed.size // (kernel.size // kernel.shape[3]), jnp.float32)
    numbers = (*kernel.shape[:2], *strides, *before, *kernel.shape[2:])
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    return foreign_call(
        "jeffnet_dense", result, images, packed, bias, window=numbers, act=0, gated=False, shortcut=False
    )


def _native_input_gradient(g: Array, kernel: Array, window: Window, size: Any, precision: Any) -> Array:
    """A convolution of the gradient for every phase: the pixels that the same positions of the kernel meet.

    Along one axis output `o` meets pixel `o * stride + tap - pad`. Pixels `stride * j + phase` meet the taps
    `first + stride * m` alone, at the outputs `j + shift - m`.
    """
    counts = [-(-side // stride) for side, stride in zip(size, window.strides, strict=True)]
    turned = kernel.swapaxes(2, 3)
    rows = []
    for phases in itertools.product(*map(range, window.strides)):
        part, values, before = turned, g, []
        for axis, (phase, stride, (pad, _)) in enumerate(zip(phases, window.strides, window.pads, strict=True)):
            first = (phase + pad) % stride
            taps = lax.slice_in_dim(part, min(first, part.shape[axis]), None, stride, axis)
            part = lax.rev(taps, (axis,))
            start = part.shape[axis] - 1 - (phase + pad - first) // stride
            values = lax.slice_in_dim(values, min(max(0, -start), values.shape[axis + 1]), None, 1, axis + 1)
            before.append(max(0, start))
        empty = 0 in (*part.shape, *values.shape)
        shape = (g.shape[0], *counts, kernel.shape[2])
        rows.append(jnp.zeros(shape, g.dtype) if empty else _dense(values, part, counts, (1, 1), before))
    if len(rows) == 1:
        return rows[0]
    grid = jnp.stack(rows).reshape(*window.strides, g.shape[0], *counts, kernel.shape[2])
    whole = grid.transpose(2, 3, 0, 4, 1, 5).reshape(
        g.shape[0], *(count * stride for count, stride in zip(counts, window.strides, strict=True)), kernel.shape[2]
    )
    return whole[:, : size[0], : size[1]]


def _native_kernel_gradient(images: Array, g: Array, window: Window, size: Any, precision: Any) -> Array:
    result = jax.ShapeDtypeStruct(_kernel_shape(images, g, window, size), images.dtype)
    numbers = (*window.strides, window.pads[0][0], window.pads[1][0])
    return foreign_call("jeffnet_dense_kernel_gradient", result, images, g, window=numbers)


# ------------------------------------------------------------------------------------------------------- the primitives


def _define(name: str, shape: Callable[..., Any], xla: Callable[..., Array], native: Callable[..., Array]) -> Primitive:
    def on_cpu(ctx: Any, a: Any, b: Any, *, window: Window, size: Any, precision: Any, lowering: str) -> Any:
        kernel = shape(a, b, window, size) if shape is _kernel_shape else b.shape
        # One rule for all three, so that a model's convolution and its derivatives take the same form.
        suits = a.dtype == jnp.float32 and limits.calls_fit(ctx, lowering) and limits.full(kernel, window)
        return unless_empty(native if suits else xla, shape)

    return define_primitive(
        name,
        unless_empty(xla, shape),
        on_cpu=on_cpu,
        shape=lambda a, b, *, window, size, precision, lowering: shape(a, b, window, size),
    )


# `size` is the height and width of the picture, or of the kernel, which the operands do not tell.
_forward_p = _define("full_conv", _out_shape, _xla, _native)
_input_p = _define("full_conv_input_gradient", _images_shape, _xla_input_gradient, _native_input_gradient)
_kernel_p = _define("full_conv_kernel_gradient", _kernel_shape, _xla_kernel_gradient, _native_kernel_gradient)

define_derivatives(_forward_p, _input_p, _kernel_p)
