"""Rectangles of pixels."""

import jax.numpy as jnp
from jax import Array


def inside(box: Array, height: int, width: int) -> Array:
    """Which pixels of pictures lie within their rectangles: `(N, height, width, 1)` booleans.

    `box` is `(N, 4)`, whole numbers: top, bottom, left, right. Bottom and right are the first row and column outside,
    so that a rectangle without height or width has no pixels.
    """
    top, bottom, left, right = (box[:, side, None] for side in range(4))
    rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    return (in_rows[:, :, None] & in_columns[:, None, :])[..., None]
