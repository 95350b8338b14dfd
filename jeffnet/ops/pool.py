"""Pooling over the whole picture."""

import jax.numpy as jnp
from jax import Array


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
    average = x.mean((1, 2), keepdims=True) if kind != "max" else None
    largest = x.max((1, 2), keepdims=True) if kind != "avg" else None
    if average is None or largest is None:
        return largest if average is None else average  # pyright: ignore[reportReturnType]
    return jnp.asarray(0.5, x.dtype) * (average + largest)
