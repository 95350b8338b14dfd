"""How a convolution is computed on each platform, under the native layers of every backend.

XLA's own convolutions are right for accelerators. On the CPU they run depthwise kernels at well under 1 GFLOP/s, so
there a depthwise convolution becomes one multiply-add per kernel position and a 1x1 convolution a matrix product.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

NHWC = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: object = None,
    feature_group_count: int = 1,
    precision: object = None,
    out_sharding: object = None,
) -> Array:
    """`jax.lax.conv_general_dilated` for NHWC pictures and HWIO kernels, in the form that suits the default backend.

    Takes the place of the convolution under `flax.linen.Conv` and `flax.nnx.Conv`, through their argument
    `conv_general_dilated`.

    Args:
      lhs: `(N, H, W, C)`.
      rhs: `(height, width, C / feature_group_count, features)`.
      window_strides: along height and width.
      padding: `'SAME'`, `'VALID'` or rows and columns before and after.
      lhs_dilation: of the input; anything but 1 is left to XLA.
      rhs_dilation: of the kernel.
      dimension_numbers: as the layers of Flax pass them; the layouts above are the only ones they use.
      feature_group_count: groups.
      precision: of products, as in `jax.lax`.
      out_sharding: as the layers of Flax pass it, and as in `jax.lax`; anything but None is left to XLA.

    Returns:
      `(N, H', W', features)`.
    """
    plain = out_sharding is None and all(step == 1 for step in lhs_dilation or ())
    if jax.default_backend() == "cpu" and plain:
        strides, dilation = tuple(window_strides), tuple(rhs_dilation or (1, 1))
        if feature_group_count == lhs.shape[-1] == rhs.shape[-1] and feature_group_count > 1:
            return depthwise_conv(lhs, rhs, strides, padding, dilation)
        if rhs.shape[:2] == strides == (1, 1) and feature_group_count == 1 and not _pads(padding):
            return lax.dot_general(lhs, rhs[0, 0], (((3,), (0,)), ((), ())), precision=precision)  # pyright: ignore[reportArgumentType]
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=NHWC if dimension_numbers is None else dimension_numbers,  # pyright: ignore[reportArgumentType]
        feature_group_count=feature_group_count,
        precision=precision,  # pyright: ignore[reportArgumentType]
        out_sharding=out_sharding,  # pyright: ignore[reportArgumentType]
    )


def depthwise_conv(
    images: Array,
    kernel: Array,
    strides: tuple[int, ...],
    padding: str | Sequence[tuple[int, int]],
    dilation: tuple[int, ...] = (1, 1),
) -> Array:
    """Depthwise convolution as shifted multiply-adds: one term per kernel position.

    Args:
      images: `(N, H, W, C)`.
      kernel: `(height, width, 1, C)`.
      strides: along height and width.
      padding: `'SAME'`, `'VALID'` or rows and columns before and after.
      dilation: of the kernel.

    Returns:
      `(N, H', W', C)`, of the inputs' dtype; half precision accumulates in float32.
    """
    height, width = kernel.shape[:2]
    reach = [(size - 1) * step + 1 for size, step in zip((height, width), dilation, strict=True)]
    pads = lax.padtype_to_pads(images.shape[1:3], reach, strides, padding) if isinstance(padding, str) else padding
    dtype = jnp.result_type(images, kernel)
    compute = jnp.promote_types(dtype, jnp.float32)
    padded = jnp.pad(images.astype(compute), ((0, 0), tuple(pads[0]), tuple(pads[1]), (0, 0)))
    taps = kernel.astype(compute)
    out_height, out_width = (
        (padded.shape[axis + 1] - reach[axis]) // strides[axis] + 1 for axis in (0, 1)
    )  # fmt: skip
    total = jnp.zeros((), compute)
    for row in range(height):
        for column in range(width):
            top, left = row * dilation[0], column * dilation[1]
            view = padded[
                :,
                top : top + (out_height - 1) * strides[0] + 1 : strides[0],
                left : left + (out_width - 1) * strides[1] + 1 : strides[1],
            ]
            total = total + view * taps[row, column, 0]
    return total.astype(dtype)


def _pads(padding: str | Sequence[tuple[int, int]]) -> bool:
    # Neither 'SAME' nor 'VALID' pads a 1x1 kernel of stride 1.
    return not isinstance(padding, str) and any(before or after for before, after in padding)
