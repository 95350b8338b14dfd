"""Pixels on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jeffnet.arch.preprocessing import per_channel
from jeffnet.errors import InputError
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.precision import at_least_float32


def normalize(
    images: ArrayLike, mean: Sequence[float], std: Sequence[float], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Pixel values as a model takes them: `(images / 255 - mean) / std`.

    Args:
      images: `(N, H, W, C)`, uint8 or float, 0 to 255.
      mean: C values of the range [0, 1]. For grey pictures (C = 1) also 3 values, those of colour weights: their
        average is used.
      std: likewise, greater than 0.
      dtype: a float dtype; the arithmetic is at least float32, whatever this is.

    Returns:
      `(N, H, W, C)`, `dtype`.

    Raises:
      InputError: `images` has not 4 dimensions, or not as many channels as `mean` and `std` have values.
    """
    images = jnp.asarray(images)
    if images.ndim != 4:
        raise InputError(f"images of shape {images.shape}: give (N, H, W, C)")
    channels = images.shape[-1]
    compute = at_least_float32(dtype)
    offset = over_channels(jnp.asarray(per_channel("mean", mean, channels), compute), images)
    scale = over_channels(jnp.asarray(per_channel("std", std, channels), compute), images)
    return ((images.astype(compute) / 255 - offset) / scale).astype(dtype)
