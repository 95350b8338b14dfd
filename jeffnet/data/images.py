"""Reading pictures: any common file format in, 8-bit RGB or grey out, or one clear error."""

import errno
import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from jeffnet.errors import ImageError, first_line
from jeffnet.system.reading import check_file, read_file

# A closed list, since Pillow would hand an EPS file, whatever its suffix, to Ghostscript, which runs programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "JPEG2000", "AVIF")
# By which pictures are told from other files of a folder or archive: what Pillow registers for these formats, but for
# `.pfm`, whose pixels are floating point numbers.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif", ".avifs"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
)
MODES = {1: "L", 3: "RGB"}
# What makes a picture of an EXIF orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Of a file: more than the largest picture that is decoded takes without compression, in 16 bits.
_BYTES_PER_PIXEL = 6

_T = TypeVar("_T")

# Filters of warnings belong to the process, so that two threads that change them at once undo each other's change.
_WARNINGS_LOCK = threading.Lock()


def read_image(
    path_or_bytes: str | os.PathLike[str] | bytes, channels: int = 3, name: str | None = None
) -> Image.Image:
    """Decodes a picture completely.

    Transparency is dropped without blending and an EXIF orientation is not applied, as in timm (see `upright`); 16-bit
    grey is scaled to 8 bits. Of an animation this is the first frame. Safe to call from several threads.

    Args:
      path_or_bytes: a file's path, or the contents of a file.
      channels: 3 for mode 'RGB', 1 for mode 'L'.
      name: what errors call the picture; by default its path, or for bytes how many there are.

    Returns:
      The picture in mode 'RGB' or 'L', at its full size, no longer connected with the file.

    Raises:
      ImageError: the file is missing, unreadable, empty, a pipe or device, not a picture, damaged, truncated, or so
        large that reading or decoding it might exhaust the memory (more than `PIL.Image.MAX_IMAGE_PIXELS`, or six bytes
        for each of these); or `channels` is neither 1 nor 3.
    """
    mode = image_mode(channels)
    if isinstance(path_or_bytes, bytes):
        subject, content = repr(name) if name else f"of {len(path_or_bytes)} bytes", path_or_bytes
    else:
        subject, content = repr(name or os.fspath(path_or_bytes)), image_content(path_or_bytes, name)
    return decoded(content, lambda image: _convert(image, mode), subject)


def image_content(path: str | os.PathLike[str], name: str | None = None) -> bytes:
    """The contents of a picture's file, or the ImageError of `read_image`, which calls the picture `name`."""
    with _file_errors(name or os.fspath(path)):
        # Everything at once: opening the file in Pillow would put the wait for a slow disk under the lock.
        return read_file(path, most_bytes())


def decoded(content: bytes, use: Callable[[Image.Image], _T], subject: str) -> _T:
    """What a function makes of a picture that is decoded completely, in the mode of its file.

    Args:
      content: of the file.
      use: the function.
      subject: what errors call the picture.

    Raises:
      ImageError: the picture cannot be decoded, or the function raises an error.
    """
    if not content:
        raise ImageError(f"image {subject} is empty: replace or remove it")
    try:
        return use(_decode(content))
    except UnidentifiedImageError:
        raise ImageError(
            f"image {subject} is not a picture in a known format: convert it to one of {', '.join(FORMATS)}, or remove "
            "it"
        ) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ImageError(
            f"image {subject} has more than {Image.MAX_IMAGE_PIXELS:,} pixels: scale it down, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from None
    # Pillow's decoders answer damaged data with almost any exception: OSError, SyntaxError, struct.error, KeyError ...
    except Exception as error:
        raise ImageError(f"image {subject} cannot be decoded ({first_line(error)}): replace or remove it") from error


def converted(image: Image.Image, channels: int = 3) -> Image.Image:
    """A picture that Pillow has opened, as `read_image` gives it; the one that is given stays as it is.

    Raises:
      ImageError: it is damaged or truncated, or has a mode that cannot be converted.
    """
    mode = image_mode(channels)
    try:
        # `_convert` changes the metadata of what it is given.
        return _convert(image.copy(), mode)
    except ImageError:
        raise
    except Exception as error:  # as of damaged files
        raise ImageError(f"a picture of mode {image.mode!r} cannot be converted: {first_line(error)}") from error


def image_from_array(array: Any, channels: int = 3) -> Image.Image:
    """A picture from its pixels.

    Args:
      array: `(H, W, C)` or `(H, W)`, C from 1, 3 and 4 (the last is transparency, which is dropped); integers from 0 to
        255 or floats from 0 to 1.
      channels: 3 for mode 'RGB', 1 for mode 'L'.

    Returns:
      The picture in mode 'RGB' or 'L'.

    Raises:
      ImageError: it is no such array.
    """
    try:
        pixels = np.asarray(array)
    except Exception as error:  # whatever the object's own conversion answers
        raise ImageError(f"a {type(array).__name__} is no picture: {first_line(error)}") from error
    if pixels.dtype.kind not in "iuf":
        raise ImageError(
            f"a {type(array).__name__} is no picture: give a path, an address, bytes, a picture of Pillow, or an array"
        )
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        way_out = "give (H, W, C) or (H, W) with C from 1, 3 and 4"
        if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4):
            way_out += "; of (C, H, W), array.transpose(1, 2, 0)"
        raise ImageError(f"an array of shape {pixels.shape} is no picture: {way_out}")
    highest = 1 if pixels.dtype.kind == "f" else 255
    if not (pixels.min() >= 0 and pixels.max() <= highest):
        raise ImageError(
            f"an array of {pixels.dtype} with values from {pixels.min():g} to {pixels.max():g} is no picture: give "
            "integers from 0 to 255 or floats from 0 to 1"
        )
    if pixels.dtype.kind == "f":
        pixels = np.rint(pixels * 255)
    pixels = np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels, np.uint8)
    return converted(Image.fromarray(pixels), channels)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 to 8; 1 where it has none, or what it has is damaged."""
    try:
        with _pillow_warnings():
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
    # As of damaged pixels: almost any exception.
    except Exception:
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """A picture turned, and mirrored where needed, as its EXIF orientation says; the same one where it has none.

    What is turned has no metadata any more, so that it is not turned twice.
    """
    value = orientation(image)
    if value == 1:
        return image
    turned = image.transpose(_TURNS[value])
    turned.info.clear()
    return turned


def image_mode(channels: int) -> str:
    """Pillow's mode of pictures with `channels` channels, 'L' or 'RGB'; an ImageError where there is none."""
    if channels not in MODES:
        raise ImageError(f"{channels} channels: pictures are read with 3 (RGB) or 1 (grey)")
    return MODES[channels]


def is_picture(name: str) -> bool:
    """Whether a file of this name is taken for a picture; hidden ones are not."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def most_bytes() -> int | None:
    """How large a picture's file may be: follows `PIL.Image.MAX_IMAGE_PIXELS`, and like that may be None."""
    return Image.MAX_IMAGE_PIXELS and _BYTES_PER_PIXEL * Image.MAX_IMAGE_PIXELS


def check_image_file(path: str | os.PathLike[str]) -> None:
    """Raises the ImageError of `read_image` unless this is a regular file of a possible size, without opening it."""
    with _file_errors(os.fspath(path)):
        check_file(path, most_bytes())


@contextmanager
def _file_errors(name: str) -> Iterator[None]:
    """Within it what is wrong with a picture's file is an ImageError."""
    try:
        yield
    except FileNotFoundError:
        raise ImageError(f"image {name!r} does not exist: check the path") from None
    except IsADirectoryError:
        raise ImageError(f"image {name!r} is a folder: give a picture inside it") from None
    except OSError as error:
        remedies = {
            errno.EOVERFLOW: "scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it",
            errno.EINVAL: "replace or remove it",
        }
        remedy = remedies.get(error.errno or 0, "check the path and its permissions")
        raise ImageError(f"image {name!r} cannot be read ({error.strerror or error}): {remedy}") from error


@contextmanager
def _pillow_warnings() -> Iterator[None]:
    """Within it Pillow's remarks on odd metadata are dropped, and the warning of a decompression bomb is raised."""
    with _WARNINGS_LOCK, warnings.catch_warnings(action="ignore"):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _decode(content: bytes) -> Image.Image:
    with _pillow_warnings():
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.format == "TIFF":
            image.load()  # this decoder parses metadata again after the pixels, so it may warn once more
    image.load()  # the slow part, outside the lock
    return image


def _convert(image: Image.Image, mode: str) -> Image.Image:
    # The conversion of a palette with transparency warns, and drops the transparency anyway.
    image.info.pop("transparency", None)
    if image.mode == "I" and image.format is None:
        raise ImageError("its pixels are 32-bit integers of unknown range: convert it to mode 'L' or 'I;16'")
    if image.mode == "I" or image.mode.startswith("I;16"):
        metadata, image = image.info, _from_16_bits(image)
        image.info = metadata
    elif image.mode == "F":
        raise ImageError("its pixels are floating point numbers of unknown range")
    return image if image.mode == mode else image.convert(mode)  # convert() would copy


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, in whatever integers Pillow holds it, as mode 'L'.

    Pillow's own conversion clips at 255 instead of scaling, so that nearly every pixel would be white.
    """
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError("its pixels need more than 16 bits")
    # 65535 = 255 * 257: this is division by 257 to the nearest, which also undoes a widening from 8 bits exactly.
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
