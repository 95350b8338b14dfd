"""Resizing to the very bytes that Pillow gives: in C++ where there is a compiler, several times as fast.

Only the wanted part of the result is computed, in one call without Python's lock, out of the memory in which Pillow has
decoded the picture. Without the library Pillow does the work.
"""

import contextlib
import ctypes
import functools
import logging
import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jeffnet.ops.native import NativeUnavailableError, open_library
from jeffnet.ops.native.build import PIXELS

_LOGGER = logging.getLogger("jeffnet.data")
_LOCK = threading.Lock()

Box = tuple[float, float, float, float]
Window = tuple[int, int, int, int]


def resize(
    image: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling,
    *,
    crop: Window | None = None,
    box: Box | None = None,
    window: Window | None = None,
    flips: tuple[bool, bool] = (False, False),
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Pixels of `image.crop(crop).resize(size, resample, box).crop(window)`, and then mirrored.

    Edges are left, top, right and bottom.

    Args:
      image: of mode 'RGB' or 'L'.
      size: width and height of the whole result.
      resample: any filter but 'NEAREST'.
      crop: the part of the picture that is resized as if it were all, inside it; None takes all.
      box: the part that becomes the result, though pixels around it take part at its edges; None takes all.
      window: the part of the result that is wanted, inside it; None takes all.
      flips: whether left and right, and top and bottom, change places at the end.
      out: where to write, uint8 `(H, W, C)` whose rows are contiguous; None allocates.

    Returns:
      uint8 `(H, W, C)`, of the size of `window`; `out` if it is given.

    Raises:
      ValueError: what Pillow says of a filter or box that cannot be.
    """
    left, top, right, bottom = window = window or (0, 0, *size)
    if out is None:
        out = np.empty((bottom - top, right - left, len(image.getbands())), np.uint8)
    wanted = _Wanted(image, size, resample, crop, box, window, flips)
    library = native()
    if library is None or not _natively(library.jeffnet_resize, wanted, out):
        out[:] = _by_pillow(wanted)
    return out


class _Wanted(NamedTuple):
    """The arguments of `resize`."""

    image: Image.Image
    size: tuple[int, int]
    resample: Image.Resampling
    crop: Window | None
    box: Box | None
    window: Window
    flips: tuple[bool, bool]


def native() -> ctypes.CDLL | None:
    """The C++ library of `pixels.cc`, which is compiled if needed; None where it cannot be."""
    with _LOCK:  # several threads would compile at once
        return _library()


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        return open_library(PIXELS, _declare)
    except (NativeUnavailableError, OSError) as error:
        _LOGGER.info("Pillow prepares pictures, more slowly than C++: %s", error)
        return None


def _declare(library: ctypes.CDLL) -> None:
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.jeffnet_resize.argtypes = (
        *(pointer, *[number] * 6),  # the picture and the filter
        *(pointer, number, number, pointer, number),  # box, size, window, flips
        *(pointer, number, number),  # the result
    )
    library.jeffnet_change_colours.argtypes = (pointer, *[number] * 4, pointer, pointer)


# ----------------------------------------------------------------------------------------------------------- in C++


class _Memory(NamedTuple):
    """Where pixels lie: `bytes` from `address` on, `pixel` of them for each pixel, while `owner` lives."""

    address: int
    bytes: int
    pixel: int
    owner: Any


class _ArrowArray(ctypes.Structure):
    """The beginning of the structure of that name in Arrow's C data interface."""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _memory(image: Image.Image) -> _Memory:
    """A picture's pixels: where Pillow has them, with 4 bytes for each of three channels, or a copy."""
    image.load()
    # What is mapped from a file or an array, is aligned or lies in several blocks may have gaps between rows, of which
    # Arrow knows nothing.
    if not image.readonly and Image.core.get_alignment() == 1:
        with contextlib.suppress(ValueError):
            _, capsule = image.__arrow_c_array__()
            array = _ArrowArray.from_address(_capsule_pointer(capsule, b"arrow_array"))
            pixel = 4 if array.n_children else 1
            values = array.children[0].contents if array.n_children else array
            return _Memory(values.buffers[1], values.length, pixel, capsule)
    copy = np.asarray(image)
    return _Memory(copy.ctypes.data, copy.nbytes, copy.nbytes // (image.width * image.height), copy)


def _natively(function: Callable[..., int], wanted: _Wanted, out: np.ndarray) -> bool:
    """Whether the C++ library did it; what it refuses is left to Pillow, which may know more or says why not."""
    image = wanted.image
    left, top, right, bottom = wanted.crop or (0, 0, *image.size)
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        return False
    memory = _memory(image)
    stride = image.width * memory.pixel
    start = top * stride + left * memory.pixel
    width, height = right - left, bottom - top
    status = function(
        memory.address + start,
        memory.bytes - start,
        stride,
        width,
        height,
        memory.pixel,
        wanted.resample,
        (ctypes.c_float * 4)(*(wanted.box or (0, 0, width, height))),
        *wanted.size,
        (ctypes.c_int64 * 4)(*wanted.window),
        wanted.flips[0] + 2 * wanted.flips[1],
        out.ctypes.data,
        (len(out) - 1) * out.strides[0] + out.shape[1] * out.shape[2],
        out.strides[0],
    )
    return status == 0


# -------------------------------------------------------------------------------------------------------- by Pillow


def _by_pillow(wanted: _Wanted) -> np.ndarray:
    image, size, resample, crop, box, window, flips = wanted
    image = image.crop(crop) if crop else image
    part = _part(image, size, resample, window) if box is None else image.resize(size, resample, box).crop(window)
    pixels = np.asarray(part).reshape(part.height, part.width, -1)
    return pixels[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]


def _part(image: Image.Image, size: tuple[int, int], resample: Image.Resampling, window: Window) -> Image.Image:
    """A part of the resized picture.

    Pillow resizes a part of a picture (a `box`) to the very pixels that it gives the part of the resized whole, if the
    part's edges fall on fractions that its 32-bit floats hold exactly. Otherwise the whole is resized and cut.
    """
    (width, height), (left, top, right, bottom) = size, window
    x = _exact_edges(image.width, width, left, right)
    y = _exact_edges(image.height, height, top, bottom)
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        # A thread of a picture (1 x 10,000) would take gigabytes. Only here rounding may show.
        x = x or _edges(image.width, width, left, right)
        y = y or _edges(image.height, height, top, bottom)
    elif _vertical_first(image, width, height) != _vertical_first(
        image, right - left if x else width, bottom - top if y else height
    ):
        x = y = None  # the order of the two passes would be another, and with it what is rounded in between
    if x is None and y is None:
        return image.resize(size, resample).crop(window)
    (x0, x1), (y0, y1) = x or (0, image.width), y or (0, image.height)
    part = image.resize((right - left if x else width, bottom - top if y else height), resample, box=(x0, y0, x1, y1))
    if x and y:
        return part
    # One of the sides was resized whole.
    return part.crop((left, 0, right, part.height) if y else (0, top, part.width, bottom))


def _exact_edges(side: int, new_side: int, start: int, stop: int) -> tuple[float, float] | None:
    """Where a part of a resized side lies in the original, if 32-bit floats hold everything that follows from it."""
    denominator = new_side // math.gcd(side, new_side)
    if denominator & (denominator - 1) or side * denominator >= 2**24:
        return None
    return _edges(side, new_side, start, stop)


def _edges(side: int, new_side: int, start: int, stop: int) -> tuple[float, float]:
    return start * side / new_side, min(stop * side / new_side, side)


def _vertical_first(image: Image.Image, width: int, height: int) -> bool:
    """Whether Pillow resizes the height before the width."""
    return 0 < image.height - height > 2 * (image.width - width)
