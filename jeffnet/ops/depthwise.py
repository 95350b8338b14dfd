"""Depthwise convolution for CPUs, as JAX primitives.

Derivatives of any order, forward or reverse, never leave the three (`jeffnet.ops.conv_primitives`). A primitive,
unlike a function with a custom derivative, has both modes, and its lowering is chosen when it is compiled, for the
platform that it is compiled for: the C++ kernels, shifted multiply-adds, or XLA's convolution.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jeffnet._jax_compat import Primitive, define_primitive, foreign_call, is_partitioned, same_axes
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.conv_primitives import bind, define_derivatives, unless_empty
from jeffnet.ops.native import limits
from jeffnet.ops.precision import at_least_float32

Pads = tuple[tuple[int, int], tuple[int, int]]


class Window(NamedTuple):
    """How a kernel moves over a picture; each entry is along height and width."""

    strides: tuple[int, int]
    pads: Pads
    dilation: tuple[int, int]

    def out_size(self, image: Sequence[int], kernel: Sequence[int]) -> tuple[int, int]:
        """Height and width of the outputs; 0 where the kernel is larger than the padded picture."""
        return tuple(  # pyright: ignore[reportReturnType]
            max(0, (size + sum(pad) - (taps - 1) * step - 1) // stride + 1)
            for size, taps, stride, pad, step in zip(image, kernel, *self, strict=True)
        )


def depthwise_conv(images: Array, kernel: Array, window: Window, lowering: str = "auto") -> Array:
    """A depthwise convolution of `images`, `(N, H, W, C)`, by a `kernel`, `(height, width, 1, C)`, of the same dtype.

    Args:
      images: of a floating dtype.
      kernel: likewise.
      window: pads are not negative.
      lowering: on CPUs 'auto', 'native' or 'shifted'; other platforms use XLA's convolution. What the C++ kernels
        cannot do, such as fewer channels than fill a vector, is always computed by shifted multiply-adds.

    Returns:
      `(N, H', W', C)`; half precision accumulates in float32.

    Raises:
      ConfigError: 'native' where the C++ kernels cannot be built; when it is compiled.
    """
    return bind(_forward_p, images, kernel, window=window, size=None, lowering=lowering)


# --------------------------------------------------------------------------------------------------- shifted products


def shifted_conv(images: Array, kernel: Array, window: Window, size: Any = None) -> Array:
    """What `depthwise_conv` computes, by one multiply-add for each kernel position: XLA makes one loop of them.

    Args:
      images: as for `depthwise_conv`.
      kernel: likewise.
      window: likewise.
      size: not used; the primitives' functions take it.

    Returns:
      `(N, H', W', C)`, on any platform.
    """
    del size
    compute = at_least_float32(images.dtype)
    padded = jnp.pad(images.astype(compute), ((0, 0), *window.pads, (0, 0)))
    taps = kernel.astype(compute)
    total = jnp.zeros((), compute)
    for row, column, view in _views(padded, kernel.shape[:2], window):
        total = total + view * over_channels(taps[row, column, 0], view)
    return total.astype(images.dtype)


def _views(padded: Array, kernel_size: Sequence[int], window: Window):
    """The pixels under each kernel position: `(row, column, (N, H', W', C))`."""
    sizes = Window(window.strides, ((0, 0), (0, 0)), window.dilation).out_size(padded.shape[1:3], kernel_size)
    for position in itertools.product(*map(range, kernel_size)):
        view = padded
        # Not by indexing, which gathers where the number of pictures is a symbol.
        for axis, tap, dilation, size, stride in zip(
            (1, 2), position, window.dilation, sizes, window.strides, strict=True
        ):
            start = tap * dilation
            view = lax.slice_in_dim(view, start, start + (size - 1) * stride + 1, stride, axis)
        yield *position, view


def _shifted_input_gradient(g: Array, kernel: Array, window: Window, size: tuple[int, int]) -> Array:
    """A convolution of the gradient, spread by the strides, with the kernel turned around."""
    compute = at_least_float32(g.dtype)
    reach = [(taps - 1) * step for taps, step in zip(kernel.shape[:2], window.dilation, strict=True)]
    pads = []
    for axis in (0, 1):
        before = reach[axis] - window.pads[axis][0]
        spread = (g.shape[axis + 1] - 1) * window.strides[axis] + 1
        pads.append((before, size[axis] + reach[axis] - before - spread, window.strides[axis] - 1))
    zero = jnp.zeros((), compute)
    spread = lax.pad(g.astype(compute), zero, ((0, 0, 0), *pads, (0, 0, 0)))
    around = kernel[::-1, ::-1].astype(compute)
    return shifted_conv(spread, around, Window((1, 1), ((0, 0), (0, 0)), window.dilation)).astype(g.dtype)


def _shifted_kernel_gradient(images: Array, g: Array, window: Window, size: tuple[int, int]) -> Array:
    """Sums of products, picture by picture: over a whole batch XLA's reductions fall out of the caches.

    Not for a batch that devices share: each would gather all pictures in order to go through them.
    """
    compute = at_least_float32(images.dtype)

    def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        image, gradient = (array[None].astype(compute) for array in pair)
        return total + _whole_kernel_gradient(image, gradient, window, size), None

    start, _ = same_axes(jnp.zeros((*size, 1, images.shape[3]), compute), images)
    return lax.scan(add, start, (images, g))[0].astype(images.dtype)


def _whole_kernel_gradient(images: Array, g: Array, window: Window, size: tuple[int, int]) -> Array:
    """Sums of products over the whole batch."""
    compute = at_least_float32(images.dtype)
    padded = jnp.pad(images.astype(compute), ((0, 0), *window.pads, (0, 0)))
    gradient = g.astype(compute)
    sums = [(view * gradient).sum((0, 1, 2)) for _, _, view in _views(padded, size, window)]
    return jnp.stack(sums).reshape(*size, 1, images.shape[3]).astype(images.dtype)


# ---------------------------------------------------------------------------------------------------------- lowerings


def _xla(images: Array, kernel: Array, window: Window, size: Any = None) -> Array:
    del size
    return lax.conv_general_dilated(
        images,
        kernel,
        window.strides,
        window.pads,
        rhs_dilation=window.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[3],
    )


def _xla_input_gradient(g: Array, kernel: Array, window: Window, size: Any) -> Array:
    images = jax.ShapeDtypeStruct((g.shape[0], *size, g.shape[3]), g.dtype)
    return jax.linear_transpose(lambda images: _xla(images, kernel, window), images)(g)[0]


def _xla_kernel_gradient(images: Array, g: Array, window: Window, size: Any) -> Array:
    kernel = jax.ShapeDtypeStruct((*size, 1, images.shape[3]), images.dtype)
    return jax.linear_transpose(lambda kernel: _xla(images, kernel, window), kernel)(g)[0]


def _native(target: str, shape: Callable[..., Any], a: Array, b: Array, *, window: Window, size: Any) -> Array:
    compute = at_least_float32(a.dtype)
    numbers = (*window.strides, window.pads[0][0], window.pads[1][0], *window.dilation)
    result = jax.ShapeDtypeStruct(shape(a, b, window, size), compute)
    return foreign_call(target, result, a.astype(compute), b.astype(compute), window=numbers).astype(a.dtype)


# ----------------------------------------------------------------------------------------------------- the primitives


def _define(
    name: str, target: str, shape: Callable[..., Any], xla: Any, shifted: Any, partitioned: Any = None
) -> Primitive:
    """A primitive of two operands.

    Args:
      name: of the primitive.
      target: name of the C++ kernel.
      shape: of the result, from the operands, the window and `size`.
      xla: computes it by XLA's convolution.
      shifted: computes it by shifted products.
      partitioned: for a batch that devices share; only of the gradient by the kernel, which sums pictures.
    """
    sums_pictures = partitioned is not None

    def on_cpu(ctx: Any, a: Any, b: Any, *, window: Window, size: Any, lowering: str) -> Callable[..., Array]:
        kernel = shape(a, b, window, size) if sums_pictures else b.shape
        # One rule for all three, so that a model's convolution and its derivatives take the same form.
        if limits.calls_fit(ctx, lowering) and limits.depthwise_input_gradient(
            kernel, window, max(a.dtype.itemsize, 4)
        ):
            return unless_empty(functools.partial(_native, target, shape), shape)
        return unless_empty(partitioned if partitioned and is_partitioned(ctx) else shifted, shape)

    def batch(operands: Any, dims: Any, **how: Any) -> tuple[Array, int]:
        return _batch(primitive, sums_pictures, operands, dims, how)

    primitive = define_primitive(
        name,
        unless_empty(xla, shape),
        on_cpu=on_cpu,
        shape=lambda a, b, *, window, size, lowering: shape(a, b, window, size),
        batch=batch,
    )
    return primitive


def _batch(primitive: Primitive, sums_pictures: bool, operands: Any, dims: Any, how: Any) -> tuple[Array, int]:
    """`vmap`: the mapped axis joins the pictures where the kernel is shared, and otherwise the channels."""
    count = next(a.shape[d] for a, d in zip(operands, dims, strict=True) if d is not None)
    if dims[1] is None and not sums_pictures:
        pictures = jnp.moveaxis(operands[0], dims[0], 0)
        out = primitive.bind(pictures.reshape(count * pictures.shape[1], *pictures.shape[2:]), operands[1], **how)
        return out.reshape(*pictures.shape[:2], *out.shape[1:]), 0
    joined = []
    for operand, dim in zip(operands, dims, strict=True):
        mapped = (
            jnp.broadcast_to(operand[..., None, :], (*operand.shape[:-1], count, operand.shape[-1]))
            if dim is None
            else jnp.moveaxis(operand, dim, -2)
        )
        channels = mapped.shape[-1]
        joined.append(mapped.reshape(*mapped.shape[:-2], count * channels))
    out = primitive.bind(*joined, **how)
    return out.reshape(*out.shape[:-1], count, channels), out.ndim - 1


# `size` is the height and width of the picture, or of the kernel, which the operands do not tell.
_forward_p = _define(
    "depthwise_conv",
    "jeffnet_depthwise",
    lambda x, kernel, window, size: (x.shape[0], *window.out_size(x.shape[1:3], kernel.shape[:2]), x.shape[3]),
    _xla,
    shifted_conv,
)
_input_p = _define(
    "depthwise_conv_input_gradient",
    "jeffnet_depthwise_input_gradient",
    lambda g, kernel, window, size: (g.shape[0], *size, g.shape[3]),
    _xla_input_gradient,
    _shifted_input_gradient,
)
_kernel_p = _define(
    "depthwise_conv_kernel_gradient",
    "jeffnet_depthwise_kernel_gradient",
    lambda images, g, window, size: (*size, 1, images.shape[3]),
    _xla_kernel_gradient,
    _shifted_kernel_gradient,
    _whole_kernel_gradient,
)

define_derivatives(_forward_p, _input_p, _kernel_p)
