"""How a convolution is computed on each platform, under the native layers of every backend.

XLA's own convolutions are right for accelerators. On the CPU they run depthwise kernels at well under 1 GFLOP/s, so
there a depthwise convolution is one of `jeffnet.ops.depthwise`, and a 1x1 convolution a matrix product.
"""

import contextlib
import contextvars
import os
from collections.abc import Iterator, Sequence

import jax
from jax import Array, lax
from jax.sharding import AxisType

from jeffnet.errors import check_choice
from jeffnet.ops.depthwise import Window, depthwise_conv
from jeffnet.ops.full_conv import full_conv
from jeffnet.ops.pointwise import pointwise_conv

NHWC = ("NHWC", "HWIO", "NHWC")
LOWERINGS = ("auto", "native", "shifted", "xla")
_FLOATS = ("float16", "bfloat16", "float32", "float64")

_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("lowering", default=None)


@contextlib.contextmanager
def use_lowering(name: str) -> Iterator[None]:
    """Choose how convolutions traced inside the `with` statement are computed.

    What `jax.jit` has compiled already stays as it is. The environment variable `JEFFNET_CONV` says the same for a
    whole process.

    Args:
      name: 'auto': on CPUs the C++ kernels where they can be built, otherwise shifted multiply-adds; XLA's convolutions
        on other platforms. 'native': the C++ kernels. 'shifted': JAX's operations alone, for CPUs also where this
        process has another platform, as in exported programs. 'xla': XLA's convolutions.

    Yields:
      Nothing.

    Raises:
      ConfigError: no such lowering. Where the C++ kernels cannot be built 'native' is refused when a convolution is
        compiled.
    """
    check_choice("lowering", name, LOWERINGS)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def lowering() -> str:
    """The name of the lowering in use.

    Raises:
      ConfigError: `JEFFNET_CONV` has no such name.
    """
    if name := _chosen.get():
        return name
    name = os.environ.get("JEFFNET_CONV") or "auto"
    check_choice("JEFFNET_CONV", name, LOWERINGS)
    return name


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
    `conv_general_dilated`; `dimension_numbers` are there since those layers pass them, always for these layouts.
    `use_lowering` chooses the form. An `lhs_dilation` other than 1 and an `out_sharding` are left to XLA.
    """
    form = lowering()
    here = form == "shifted" or (form != "xla" and jax.default_backend() == "cpu")
    ours = here and out_sharding is None and _is_plain(lhs, rhs)
    positive = all(step > 0 for step in (*window_strides, *(rhs_dilation or ()), *rhs.shape[:2]))  # others XLA refuses
    if ours and positive and all(step == 1 for step in lhs_dilation or ()):
        window = make_window(lhs.shape[1:3], rhs.shape[:2], window_strides, padding, rhs_dilation or (1, 1))
        inside = all(pad >= 0 for pads in window.pads for pad in pads)
        if rhs.shape[2:] == (1, lhs.shape[-1]) and feature_group_count == lhs.shape[-1] > 1 and inside:
            return depthwise_conv(lhs, rhs, window, form)
        pointwise = rhs.shape[:2] == window.strides == (1, 1) and feature_group_count == 1
        if pointwise and window.pads == ((0, 0), (0, 0)):
            return pointwise_conv(lhs, rhs[0, 0], precision, form)
        if feature_group_count == 1 and rhs.shape[2] == lhs.shape[-1] and window.dilation == (1, 1) and inside:
            return full_conv(lhs, rhs, window, precision, form)
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


def _is_plain(images: Array, kernel: Array) -> bool:
    """Whether both are floats in four axes, of sizes known when traced, with no sharding in their types."""
    kind, sizes = jax.typeof(images), (*images.shape[1:], *kernel.shape)
    return (
        kind.ndim == kernel.ndim == 4
        and kind.dtype == kernel.dtype
        and kind.dtype.name in _FLOATS
        and all(isinstance(size, int) for size in sizes)
        and AxisType.Explicit not in kind.sharding.mesh.axis_types
    )


def make_window(
    image_size: Sequence[int],
    kernel_size: Sequence[int],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    dilation: Sequence[int] = (1, 1),
) -> Window:
    """A window with its padding in rows and columns; each argument is along height and width."""
    if isinstance(padding, str):
        reach = [(taps - 1) * step + 1 for taps, step in zip(kernel_size, dilation, strict=True)]
        padding = lax.padtype_to_pads(image_size, reach, strides, padding)
    pads = tuple((int(before), int(after)) for before, after in padding)
    return Window(tuple(strides), pads, tuple(dilation))  # pyright: ignore[reportArgumentType]
