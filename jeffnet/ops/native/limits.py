"""When the C++ kernels may be used, and for which shapes. They refuse others, which JAX's operations compute.

Every function about shapes needs kernels that are available. Windows are those of `jeffnet.ops.depthwise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jeffnet._jax_compat import is_exported, is_partitioned
from jeffnet.errors import ConfigError
from jeffnet.ops import native

if TYPE_CHECKING:
    from jeffnet.ops.depthwise import Window

_MOST_CHANNELS = 1 << 28


def calls_fit(ctx: Any, lowering: str) -> bool:
    """Whether a lowering, with its context, may use a foreign call: C++ is wanted ('auto' or 'native') and available.

    The partitioner, which splits work between devices, cannot look inside a call; and whoever receives an exported
    program does not have the kernels.

    Raises:
      ConfigError: 'native', but the C++ kernels cannot be built.
    """
    if lowering == "shifted" or is_exported(ctx) or is_partitioned(ctx):
        return False
    if lowering == "native" and (reason := native.failure()):
        raise ConfigError(f"lowering 'native': {reason}; choose 'auto' or 'shifted' to do without")
    return native.available()


def depthwise(kernel: Sequence[int], window: Window, itemsize: int = 4) -> bool:
    """A depthwise convolution, or its gradient by the kernel, which is shaped `(height, width, 1, C)`.

    `itemsize` is the number of bytes of one value in the arithmetic.
    """
    library = native.load()
    rows, channels = library.jeffnet_most_rows(), library.jeffnet_least_channels(itemsize)
    return kernel[0] <= rows and kernel[3] >= channels and _fits(kernel[:2], window)


def depthwise_input_gradient(kernel: Sequence[int], window: Window, itemsize: int = 4) -> bool:
    """The gradient of a depthwise convolution by the pictures; arguments as for `depthwise`."""
    both = max(window.strides) > 1 and max(window.dilation) > 1
    return depthwise(kernel, window, itemsize) and not both


def dense(kernel: Sequence[int], window: Window) -> bool:
    """A convolution of all channels by a kernel of shape `(height, width, C, features)`."""
    undilated = all(taps == 1 or step == 1 for taps, step in zip(kernel[:2], window.dilation, strict=True))
    return undilated and 1 <= kernel[2] <= _MOST_CHANNELS and kernel[3] >= 1 and _fits(kernel[:2], window)


def full(kernel: Sequence[int], window: Window) -> bool:
    """A convolution like `dense`, and its two gradients: the sums of the one by the kernel fit the threads' memory."""
    library = native.load()
    lanes = library.jeffnet_vector_floats()
    padded = kernel[3] + -kernel[3] % lanes
    sums = 4 * kernel[0] * kernel[1] * kernel[2] * padded
    return (
        window.dilation == (1, 1)
        and kernel[3] >= lanes
        and sums <= library.jeffnet_most_sums()
        and dense(kernel, window)
    )


def inverted(images: Sequence[int], kernel: Sequence[int], window: Window) -> bool:
    """A 1x1 convolution and a depthwise one together: the rows under the depthwise kernel fit a thread's scratch space.

    `images` and `kernel` are shapes, `(N, H, W, C)` and `(height, width, 1, E)`; the window is the depthwise kernel's.
    """
    taps, stride = kernel[0], window.strides[0]
    square = kernel[1] == taps and window.strides[1] == stride and window.dilation == (1, 1)
    _, out_width = window.out_size(images[1:3], kernel[:2])
    library = native.load()
    padded = kernel[3] + -kernel[3] % library.jeffnet_vector_floats()
    row = max((out_width - 1) * stride + taps, window.pads[1][0] + images[2]) * padded
    small = 4 * row * (taps + 1) <= library.jeffnet_most_scratch()
    return square and stride <= taps and small and images[3] >= 1 and depthwise(kernel, window)


def norm(channels: int) -> bool:
    """BatchNorm of `(..., channels)`."""
    return channels >= native.load().jeffnet_vector_floats()


def outer_product(rows: int, columns: int) -> bool:
    """A product of two matrices, the first transposed, whose result is `(rows, columns)`."""
    return rows >= 1 and columns >= native.load().jeffnet_vector_floats()


def _fits(kernel_size: Sequence[int], window: Window) -> bool:
    most = native.load().jeffnet_most_step()
    steps = (*kernel_size, *window.strides, *window.dilation)
    return all(1 <= step <= most for step in steps) and all(0 <= before <= most**2 for before, _ in window.pads)
