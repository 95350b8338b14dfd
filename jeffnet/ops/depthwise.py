"""Depthwise convolution for CPUs, as JAX primitives.

The convolution and its two gradients are the three partial transposes of one trilinear form, so each one's derivatives
are the others: derivatives of any order, forward or reverse, never leave these three. A primitive, unlike a function
with a custom derivative, has both modes, and its lowering is chosen when it is compiled, for the platform that it is
compiled for: the C++ kernels, shifted multiply-adds, or XLA's convolution.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.lowerings import calls_fit, is_partitioned, run_compiled, same_axes
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
    """A depthwise convolution.

    Args:
      images: `(N, H, W, C)`, of a floating dtype.
      kernel: `(height, width, 1, C)`, of the same dtype.
      window: pads are not negative.
      lowering: 'auto', 'native' or 'shifted'; where it is compiled for CPUs. Other platforms use XLA's convolution.
        What the C++ kernels cannot do, such as fewer channels than fill a vector, is shifted multiply-adds even so.

    Returns:
      `(N, H', W', C)`; half precision accumulates in float32.

    Raises:
      ConfigError: 'native' where the C++ kernels cannot be built; when it is compiled.
    """
    return _bind(_forward_p, images, kernel, window, None, lowering)


def _bind(primitive: Primitive, a: Array, b: Array, window: Window, size: Any, lowering: str) -> Array:
    return primitive.bind(*same_axes(a, b), window=window, size=size, lowering=lowering)


# ----------------------------------------------------------------------------------------------------- the primitives


def _primitive(name: str, shape: Callable[..., tuple[int, ...]]) -> Primitive:
    """A primitive of two operands whose result has `shape(a.shape, b.shape, window, size)`."""
    primitive = Primitive(name)

    def abstract(a: Any, b: Any, *, window: Window, size: Any, lowering: str) -> Any:
        del lowering
        return a.update(shape=shape(a.shape, b.shape, window, size), weak_type=False)

    @functools.partial(jax.jit, static_argnames=("window", "size", "lowering"))
    def evaluate(a: Array, b: Array, *, window: Window, size: Any, lowering: str) -> Array:
        return primitive.bind(a, b, window=window, size=size, lowering=lowering)

    primitive.def_abstract_eval(abstract)
    run_compiled(primitive, evaluate)
    return primitive


def _forward_shape(images: Any, kernel: Any, window: Window, size: Any) -> tuple[int, ...]:
    del size
    return (images[0], *window.out_size(images[1:3], kernel[:2]), images[3])


# `size` is the height and width of the picture, or of the kernel, which the operands do not tell.
_forward_p = _primitive("depthwise_conv", _forward_shape)
_input_p = _primitive("depthwise_conv_input_gradient", lambda g, kernel, window, size: (g[0], *size, g[3]))
_kernel_p = _primitive("depthwise_conv_kernel_gradient", lambda images, g, window, size: (*size, 1, images[3]))


def _define_derivatives() -> None:
    def forward(images: Array, kernel: Array, window: Window, lowering: str) -> Array:
        return _bind(_forward_p, images, kernel, window, None, lowering)

    def input_gradient(g: Array, kernel: Array, size: Any, window: Window, lowering: str) -> Array:
        return _bind(_input_p, g, kernel, window, size, lowering)

    def kernel_gradient(images: Array, g: Array, size: Any, window: Window, lowering: str) -> Array:
        return _bind(_kernel_p, images, g, window, size, lowering)

    # The operand to differentiate by is undefined: only its `aval` is there.
    ad.defbilinear(
        _forward_p,
        lambda g, images, kernel, *, size, **how: input_gradient(g, kernel, images.aval.shape[1:3], **how),
        lambda g, images, kernel, *, size, **how: kernel_gradient(images, g, kernel.aval.shape[:2], **how),
    )
    ad.defbilinear(
        _input_p,
        lambda images, g, kernel, *, size, **how: forward(images, kernel, **how),
        lambda images, g, kernel, *, size, **how: kernel_gradient(images, g, kernel.aval.shape[:2], **how),
    )
    ad.defbilinear(
        _kernel_p,
        lambda kernel, images, g, *, size, **how: input_gradient(g, kernel, images.aval.shape[1:3], **how),
        lambda kernel, images, g, *, size, **how: forward(images, kernel, **how),
    )


def _define_batching(primitive: Primitive, sums_pictures: bool) -> None:
    """`vmap`: the mapped axis joins the pictures where the kernel is shared, and otherwise the channels."""

    def rule(operands: Any, dims: Any, **how: Any) -> tuple[Array, int]:
        count = next(a.shape[d] for a, d in zip(operands, dims, strict=True) if d is not None)
        if dims[1] is None and not sums_pictures:
            pictures = jnp.moveaxis(operands[0], dims[0], 0)
            each = pictures.shape[1]
            out = primitive.bind(pictures.reshape(count * each, *pictures.shape[2:]), operands[1], **how)
            return out.reshape(count, each, *out.shape[1:]), 0
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

    batching.primitive_batchers[primitive] = rule


# --------------------------------------------------------------------------------------------------- shifted products


def _shifted(images: Array, kernel: Array, window: Window, size: Any = None) -> Array:
    """One multiply-add for each kernel position: XLA makes one loop of them."""
    del size
    compute = at_least_float32(images.dtype)
    padded = jnp.pad(images.astype(compute), ((0, 0), *window.pads, (0, 0)))
    taps = kernel.astype(compute)
    total = jnp.zeros((), compute)
    for row, column, view in _views(padded, kernel.shape[:2], window):
        total = total + view * over_channels(taps[row, column, 0], view)
    return total.astype(images.dtype)


def _views(padded: Array, kernel_size: Sequence[int], window: Window):
    """What lies under each kernel position: `(row, column, (N, H', W', C))`."""
    height, width = Window(window.strides, ((0, 0), (0, 0)), window.dilation).out_size(padded.shape[1:3], kernel_size)
    for row in range(kernel_size[0]):
        for column in range(kernel_size[1]):
            top, left = row * window.dilation[0], column * window.dilation[1]
            rows = slice(top, top + (height - 1) * window.strides[0] + 1, window.strides[0])
            columns = slice(left, left + (width - 1) * window.strides[1] + 1, window.strides[1])
            yield row, column, padded[:, rows, columns]


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
    return _shifted(spread, around, Window((1, 1), ((0, 0), (0, 0)), window.dilation)).astype(g.dtype)


def _shifted_kernel_gradient(images: Array, g: Array, window: Window, size: tuple[int, int]) -> Array:
    """Sums of products, picture by picture: over a whole batch XLA's reductions fall out of the caches.

    Not for a batch that devices share: each would gather all pictures in order to go through them.
    """
    compute = at_least_float32(images.dtype)

    def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        image, gradient = (each[None].astype(compute) for each in pair)
        padded = jnp.pad(image, ((0, 0), *window.pads, (0, 0)))
        sums = [(view * gradient).sum((0, 1, 2)) for _, _, view in _views(padded, size, window)]
        return total + jnp.stack(sums).reshape(total.shape), None

    start, _ = same_axes(jnp.zeros((*size, 1, images.shape[3]), compute), images)
    return lax.scan(add, start, (images, g))[0].astype(images.dtype)


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


def _whole_kernel_gradient(images: Array, g: Array, window: Window, size: tuple[int, int]) -> Array:
    """Sums of products over the whole batch."""
    compute = at_least_float32(images.dtype)
    padded = jnp.pad(images.astype(compute), ((0, 0), *window.pads, (0, 0)))
    gradient = g.astype(compute)
    sums = [(view * gradient).sum((0, 1, 2)) for _, _, view in _views(padded, size, window)]
    return jnp.stack(sums).reshape(*size, 1, images.shape[3]).astype(images.dtype)


def _native(target: str, a: Array, b: Array, window: Window, shape: tuple[int, ...]) -> Array:
    dtype = a.dtype
    compute = at_least_float32(dtype)
    numbers = (*window.strides, window.pads[0][0], window.pads[1][0], *window.dilation)
    call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(shape, compute))
    return call(a.astype(compute), b.astype(compute), window=np.array(numbers, np.int64)).astype(dtype)


def _define_lowerings(
    primitive: Primitive, target: str, kernel: int, xla: Any, shifted: Any, partitioned: Any = None
) -> None:
    """`kernel` is the place of the kernel, or its gradient, among the two operands and the result."""

    def lower(ctx: Any, a: Any, b: Any, function: Any) -> Any:
        (result,) = ctx.avals_out
        if any(0 in aval.shape for aval in (*ctx.avals_in, result)):  # sums of nothing
            function = lambda *_: jnp.zeros(result.shape, result.dtype)  # noqa: E731
        return mlir.lower_fun(function, multiple_results=False)(ctx, a, b)

    def plain(ctx: Any, a: Any, b: Any, *, window: Window, size: Any, lowering: str) -> Any:
        del lowering
        return lower(ctx, a, b, functools.partial(xla, window=window, size=size))

    def on_cpu(ctx: Any, a: Any, b: Any, *, window: Window, size: Any, lowering: str) -> Any:
        form = partitioned if partitioned and is_partitioned(ctx) else shifted
        function = functools.partial(form, window=window, size=size)
        taps = (*ctx.avals_in, *ctx.avals_out)[kernel]
        # One rule for all three, so that a model's convolution and its derivatives take the same form.
        if calls_fit(ctx, lowering) and limits.depthwise_input_gradient(
            taps.shape, window, max(taps.dtype.itemsize, 4)
        ):
            function = functools.partial(_native, target, window=window, shape=ctx.avals_out[0].shape)
        return lower(ctx, a, b, function)

    mlir.register_lowering(primitive, plain)
    mlir.register_lowering(primitive, on_cpu, platform="cpu")


_define_derivatives()
for _p, _sums in ((_forward_p, False), (_input_p, False), (_kernel_p, True)):
    _define_batching(_p, _sums)
_define_lowerings(_forward_p, "jeffnet_depthwise", 1, _xla, _shifted)
_define_lowerings(_input_p, "jeffnet_depthwise_input_gradient", 1, _xla_input_gradient, _shifted_input_gradient)
_define_lowerings(
    _kernel_p,
    "jeffnet_depthwise_kernel_gradient",
    2,
    _xla_kernel_gradient,
    _shifted_kernel_gradient,
    _whole_kernel_gradient,
)
