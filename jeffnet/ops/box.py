"""Rectangles of pixels."""

import jax.numpy as jnp
from jax import Array


def inside(box: Array, height: int, width: int) -> Array:
    """Which pixels of a picture lie within a rectangle.

    Args:
      box: `(N, 4)`, whole numbers: top, bottom, left, right. Bottom and right are the first row and column outside, so
        that a rectangle without height or width has no pixels.
      height: of the pictures.
      width: of the pictures.

    Returns:
      `(N, height, width, 1)` booleans.
    """
    top, bottom, left, right = (box[:, side, None] for side in range(4))
    rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return (in_rows[:, :, None] & in_columns[:, None, :])[..., None]
