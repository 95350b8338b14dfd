"""Rounding to 8-bit integers and back, with gradients that pass the rounding (Krishnamoorthi, arXiv:1806.08342).

Values are unsigned with a zero point, one grid for all of a map; kernels are signed and symmetric, with a scale for
each output channel, of 8 bits or of 7. This is what ONNX Runtime and TensorFlow Lite have integer kernels for.
"""

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

LEVELS = 255  # of values, above 0
# The smallest scale of a channel, as a share of the kernel's largest. A bias is an integer of the scale of its input
# times that of its channel, and would not fit into 32 bits where a channel has next to no weights.
_SMALLEST_SHARE = np.float32(2.0**-20)


@jax.custom_jvp
def fake_quantize(x: Array, scale: Array, zero_point: Array) -> Array:
    """The nearest numbers of a grid of 256, as floats.

    Args:
      x: any float dtype and shape.
      scale: from one number of the grid to the next.
      zero_point: how many of the grid's numbers are below 0.

    Returns:
      As `x`. Its gradient is that of `x` within the grid's range, and 0 outside.
    """
    steps = jnp.clip(jnp.round(x / scale) + zero_point, 0, LEVELS)
    return ((steps - zero_point) * scale).astype(x.dtype)


@fake_quantize.defjvp
def _fake_quantize_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    x, scale, zero_point = primals
    lowest, highest = -zero_point * scale, (LEVELS - zero_point) * scale
    inside = (x >= lowest) & (x <= highest)
    return fake_quantize(x, scale, zero_point), jnp.where(inside, tangents[0], jnp.zeros_like(x))


def _kernel_levels(bits: int) -> int:
    """Of kernels, on either side of 0."""
    return 2 ** (bits - 1) - 1


def kernel_scales(kernel: Any, bits: int, xp: ModuleType = jnp) -> Any:
    """The scale of each output channel, `(C',)`, by its largest weight.

    Args:
      kernel: `(..., C')`, float32.
      bits: of its integers.
      xp: NumPy or `jax.numpy`; both give the same numbers.
    """
    levels = _kernel_levels(bits)
    largest = xp.abs(kernel).max(tuple(range(kernel.ndim - 1)))
    floor = xp.maximum(largest.max() * _SMALLEST_SHARE, np.float32(np.finfo(np.float32).tiny) * levels)
    # A product, since XLA makes one of a quotient by a constant.
    return xp.maximum(largest, floor) * np.float32(1 / levels)


def quantize_kernel(kernel: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """A kernel as int8 `(..., C')`, and its scales `(C',)`; the integers that `fake_quantize_kernel` stands for."""
    scales, levels = kernel_scales(kernel, bits, np), _kernel_levels(bits)
    steps = np.clip(np.round(kernel / scales), -levels, levels)
    return steps.astype(np.int8), scales


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def fake_quantize_kernel(kernel: Array, bits: int) -> Array:
    """A kernel `(..., C')` rounded to 8 bits or fewer, as floats; its gradient is that of the kernel."""
    scales, levels = kernel_scales(kernel, bits), _kernel_levels(bits)
    return jnp.clip(jnp.round(kernel / scales), -levels, levels) * scales


@fake_quantize_kernel.defjvp
def _fake_quantize_kernel_jvp(bits: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return fake_quantize_kernel(primals[0], bits), tangents[0]


@jax.custom_jvp
def fake_quantize_bias(bias: Array, scales: Array) -> Array:
    """The nearest multiples of the scales of the products that a bias is added to; its gradient is that of the bias.

    Args:
      bias: `(C',)`, float32.
      scales: `(C',)`, those of a kernel times that of the values it is applied to.
    """
    return jnp.round(bias / scales) * scales


@fake_quantize_bias.defjvp
def _fake_quantize_bias_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return fake_quantize_bias(*primals), tangents[0]
