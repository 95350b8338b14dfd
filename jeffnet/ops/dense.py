"""Convolutions fused with bias, activation, gate and shortcut, for inference on CPUs in C++.

For pictures `(N, H, W, C)` of float32 or bfloat16. Of bfloat16 are then pictures, packed kernels, shortcuts and
outputs; biases, gates, means, kernels of depthwise convolutions and all sums are float32. Processors with AVX512-BF16
multiply pairs of bfloat16 numbers, others compute with them as float32. There is no derivative: these are for
`jeffnet.inference.fused`.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jeffnet._jax_compat import foreign_call
from jeffnet.ops import native
from jeffnet.ops.depthwise import Window

ArrayT = TypeVar("ArrayT", np.ndarray, Array)
# Numbered as in `Act` of native/common.h.
_ORDER = (None, "relu", "relu6", "silu", "hard_swish", "sigmoid", "hard_sigmoid")
ACTS: dict[str | None, int] = {name: number for number, name in enumerate(_ORDER)}


def pack_kernel(kernel: ArrayT) -> ArrayT:
    """A kernel `(height, width, C, features)` in the order in which `dense_conv` reads it on this processor.

    Args:
      kernel: float32, or bfloat16 with an even product of width and C.

    Returns:
      One axis, of the same dtype: panels of columns, the last one narrower, each `(height * width * C, columns)`, or in
      bfloat16 `(height * width * C / 2, columns, 2)`; features are padded with zeros to whole vectors.
    """
    library = native.load()
    lanes, panel = library.jeffnet_vector_floats(), library.jeffnet_panel_floats()
    numpy: Any = jnp if isinstance(kernel, Array) else np
    matrix = kernel.reshape(-1, kernel.shape[-1])
    matrix = numpy.pad(matrix, ((0, 0), (0, -matrix.shape[1] % lanes)))
    if kernel.dtype == jnp.bfloat16:
        matrix = matrix.reshape(-1, 2, matrix.shape[1]).swapaxes(1, 2)
    return numpy.concatenate([matrix[:, first : first + panel].ravel() for first in range(0, matrix.shape[1], panel)])


def pack_bias(bias: np.ndarray) -> np.ndarray:
    """A bias `(features,)`, padded with zeros to whole vectors."""
    return np.pad(bias, (0, -bias.size % native.load().jeffnet_vector_floats()))


def dense_conv(
    images: Array,
    kernel: Array,
    bias: Array,
    kernel_size: tuple[int, int],
    features: int,
    window: Window,
    act: str | None = None,
    gate: Array | None = None,
    shortcut: Array | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Array:
    """`act(conv(images * gate) + bias) + shortcut`, over all channels.

    Args:
      images: `(N, H, W, C)`, of the kernel's dtype.
      kernel: from `pack_kernel`.
      bias: from `pack_bias`.
      kernel_size: height and width.
      features: channels of the outputs.
      window: of dilation 1.
      act: one of `ACTS`.
      gate: `(N, 1, 1, C)`.
      shortcut: like the outputs.
      dtype: of the outputs, float32 or bfloat16.

    Returns:
      `(N, H', W', features)`.
    """
    shares = [(kernel, bias, images.shape[3], features)]
    return grouped_dense_conv(images, shares, kernel_size, window, act, gate, shortcut, dtype)


def grouped_dense_conv(
    images: Array,
    shares: Sequence[tuple[Array, Array, int, int]],
    kernel_size: tuple[int, int],
    window: Window,
    act: str | None = None,
    gate: Array | None = None,
    shortcut: Array | None = None,
    dtype: DTypeLike = jnp.float32,
) -> Array:
    """`dense_conv` by groups of channels, which need not be of one size, without copies of them.

    Args:
      images: `(N, H, W, C)`, of the kernels' dtype.
      shares: packed kernel, packed bias, channels of the images and features of each group, in order.
      kernel_size: height and width; with several groups the width is 1.
      window: of dilation 1.
      act: one of `ACTS`.
      gate: `(N, 1, 1, C)`.
      shortcut: like the outputs.
      dtype: of the outputs, float32 or bfloat16.

    Returns:
      `(N, H', W', features of all groups)`.
    """
    features = sum(share[3] for share in shares)
    shape = (images.shape[0], *window.out_size(images.shape[1:3], kernel_size), features)
    more = [array for kernel, bias, _, _ in shares for array in (kernel, bias)]
    more += [array for array in (gate, shortcut) if array is not None]
    numbers = (*kernel_size, *window.strides, window.pads[0][0], window.pads[1][0])
    numbers += tuple(count for share in shares for count in share[2:])
    numbered = {"window": numbers, "act": ACTS[act], "gated": gate is not None, "shortcut": shortcut is not None}
    return foreign_call("jeffnet_dense", jax.ShapeDtypeStruct(shape, dtype), images, *more, **numbered)


def depthwise_act(
    images: Array, kernel: Array, bias: Array, window: Window, act: str | None = None
) -> tuple[Array, Array]:
    """`act(depthwise_conv(images, kernel) + bias)`, for at least as many channels as a vector holds.

    Returns:
      Outputs `(N, H', W', C)`, of the images' dtype, and their means over each picture `(N, 1, 1, C)`, float32.
    """
    return mixed_depthwise_act(images, [(kernel, bias, window)], act)


def mixed_depthwise_act(
    images: Array, parts: Sequence[tuple[Array, Array, Window]], act: str | None = None
) -> tuple[Array, Array]:
    """`depthwise_act` whose channels have kernels of several sizes (arXiv:1907.09595), without copies of the shares.

    Args:
      images: `(N, H, W, C)`, float32 or bfloat16.
      parts: kernel, bias and window of each share of the channels, in order; of at least as many as a vector holds.
        All give outputs of one size.
      act: one of `ACTS`.

    Returns:
      Outputs `(N, H', W', C)`, of the images' dtype, and their means over each picture `(N, 1, 1, C)`, float32.
    """
    batch, channels = images.shape[0], images.shape[3]
    (size,) = {window.out_size(images.shape[1:3], kernel.shape[:2]) for kernel, _, window in parts}
    shapes = [
        jax.ShapeDtypeStruct((batch, *size, channels), images.dtype),
        jax.ShapeDtypeStruct((batch, 1, 1, channels), jnp.float32),
    ]
    numbers: tuple[int, ...] = ()
    for _, _, window in parts:
        numbers += (*window.strides, window.pads[0][0], window.pads[1][0], *window.dilation)
    arrays = [array for kernel, bias, _ in parts for array in (kernel, bias)]
    return tuple(foreign_call("jeffnet_depthwise_act", shapes, images, *arrays, window=numbers, act=ACTS[act]))


def inverted_residual(
    x: Array,
    expand: tuple[Array, Array],
    depthwise: tuple[Array, Array],
    window: Window,
    acts: tuple[str | None, str | None],
    parts: int,
    project: tuple[Array, Array] | None = None,
    features: int = 0,
    shortcut: Array | None = None,
) -> tuple[Array, Array]:
    """A 1x1 convolution to more channels and a depthwise one, without the array between them; or the whole block.

    Args:
      x: `(N, H, W, C)`, of the packed kernels' dtype.
      expand: packed kernel and bias of the 1x1 convolution.
      depthwise: kernel `(size, size, 1, E)` and bias `(E,)`.
      window: of the depthwise convolution, square, of dilation 1 and a stride not above its size.
      acts: after the two convolutions.
      parts: into which the work of each picture is cut, to be computed at the same time: with `project` bands of rows,
        whose neighbours both compute the rows at their border, otherwise shares of the channels.
      project: packed kernel and bias of the last 1x1 convolution.
      features: channels of the outputs of `project`.
      shortcut: added to its outputs.

    Returns:
      Without `project`, outputs of the depthwise convolution `(N, H', W', E)` and their means `(N, 1, 1, E)`; with it,
      its outputs `(N, H', W', features)`, and nothing of use. Outputs are of the dtype of `x`.
    """
    kernel, bias = depthwise
    size = window.out_size(x.shape[1:3], kernel.shape[:2])
    channels = kernel.shape[3] if project is None else features
    means = (x.shape[0], 1, 1, channels) if project is None else (1,)
    shapes = [
        jax.ShapeDtypeStruct((x.shape[0], *size, channels), x.dtype),
        jax.ShapeDtypeStruct(means, jnp.float32),
    ]
    more = () if project is None else (*project, *(() if shortcut is None else (shortcut,)))
    numbers = (window.strides[0], window.pads[0][0], window.pads[1][0])
    numbered = {"window": numbers, "expand_act": ACTS[acts[0]], "act": ACTS[acts[1]], "parts": parts}
    return tuple(foreign_call("jeffnet_inverted", shapes, x, *expand, kernel, bias, *more, **numbered))
