"""Pooling over the whole picture, or over windows of it."""

import jax.numpy as jnp
from jax import Array, lax

from jeffnet.errors import InputError


def global_pool(x: Array, kind: str) -> Array:
    """One value per channel.

    Args:
      x: `(N, H, W, C)`.
      kind: 'avg', 'max', 'avgmax' (the mean of both) or 'none'.

    Returns:
      `(N, 1, 1, C)`; for 'none' `x` itself.
    """
    if kind == "none":
        return x
    if kind == "avgmax":
        return jnp.asarray(0.5, x.dtype) * (global_pool(x, "avg") + global_pool(x, "max"))
    return (x.max if kind == "max" else x.mean)((1, 2), keepdims=True)


def pool_windows(x: Array, side: int) -> Array:
    """The average of every window of `side` x `side` positions.

    Args:
      x: `(N, H, W, C)`.
      side: 1 to H and W.

    Returns:
      `(N, H - side + 1, W - side + 1, C)`.

    Raises:
      InputError: the map is smaller than a window.
    """
    if min(x.shape[1:3]) < side:
        raise InputError(
            f"the last map is {x.shape[1]} x {x.shape[2]}, the windows of test-time pooling {side} x {side}: give "
            "larger pictures than those of the training"
        )
    sums = lax.reduce_window(x, jnp.zeros((), x.dtype), lax.add, (1, side, side, 1), (1, 1, 1, 1), "VALID")
    return sums / side**2


def downsample(x: Array, taps: tuple[float, ...], padding: int) -> Array:
    """Every channel filtered by the same fixed window, at every second position (arXiv:1904.11486).

    Args:
      x: `(N, H, W, C)`.
      taps: the window along one side; the window is its product with itself.
      padding: rows and columns of zeros on every side.

    Returns:
      `(N, H', W', C)`, with `H' = (H + 2 * padding - len(taps)) // 2 + 1`.

    Raises:
      InputError: the map is smaller than the window.
    """
    if min(x.shape[1:3]) + 2 * padding < len(taps):
        raise InputError(
            f"a map of {x.shape[1]} x {x.shape[2]} cannot be halved by a filter of {len(taps)} x {len(taps)}: give "
            "larger images"
        )
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for axis in (1, 2):
        count = (x.shape[axis] - len(taps)) // 2 + 1
        shifted = (lax.slice_in_dim(x, start, start + 2 * count - 1, 2, axis) for start in range(len(taps)))
        x = sum(jnp.asarray(tap, x.dtype) * part for tap, part in zip(taps, shifted, strict=True))  # pyright: ignore
    return x
