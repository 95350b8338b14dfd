"""A stored picture to pixels in TensorFlow's operations, as the papers' authors evaluated.

Source: tensorflow/tpu, models/official/efficientnet/preprocessing.py, `_decode_and_center_crop`.
"""

import io
import math
import re
from typing import Any

import numpy as np
from PIL import Image

from jeffnet._tensorflow import tf
from jeffnet.data.choices import RESIZES
from jeffnet.data.images import FORMATS, image_mode, orientation
from jeffnet.data.preprocess import EvalTransform
from jeffnet.errors import ConfigError, check_choice

# The authors keep image_size / (image_size + 32) of the shorter side.
_PADDING = 32
# First bytes of a file.
_PNG, _GIF, _BMP, _RIFF = b"\x89PNG", b"GIF8", b"BM", b"RIFF"
# What `Assert` said; and what TensorFlow adds to a message, which is about its graph.
_ASSERTION = re.compile(r"assertion failed: \[(.*?)\]", re.DOTALL)
_NOISE = re.compile(r"\{\{.*?\}\}|\[Op:.*|\[\[.*", re.DOTALL)


class Picture:
    """From a stored picture to the pixels of an `EvalTransform`, in TensorFlow's operations.

    Attributes:
      shape: height, width and channels of the result.
    """

    def __init__(self, transform: EvalTransform, channels: int, resize: str) -> None:
        image_mode(channels)
        if transform.crop_mode == "border":
            raise ConfigError(
                "crop_mode 'border' is not what the papers' authors do: use another loader, or another mode"
            )
        check_choice("resize", resize, RESIZES)
        self.shape = (*transform.shape, channels)
        self._filter = PillowFilter(transform, channels) if resize == "pillow" else None
        self._squash = transform.crop_mode == "squash"
        self._share = _share(transform.preprocessing.image_size, transform.preprocessing.crop_pct)
        self._interpolation = transform.preprocessing.interpolation
        self._resize = resize
        # The default, as the authors: INTEGER_FAST. Pillow is accurate.
        self._jpeg_method = "INTEGER_ACCURATE" if self._filter else ""
        self._exif = transform.exif
        self._traced: Any = None

    def pixels(self, picture: Any) -> Any:
        """Float32 `(H, W, C)` of the contents of a file, or of a picture's uint8 pixels `(h, w, C)`."""
        if picture.dtype != tf.string:
            return self._from_whole(picture)
        if not self._exif:
            return self._from_file(picture)
        orientation = tf.numpy_function(_orientation, [picture], tf.int32)
        orientation.set_shape(())
        return tf.cond(
            orientation == 1,
            lambda: self._from_file(picture),
            lambda: self._from_whole(_upright(self._whole(picture), orientation)),
        )

    def _from_file(self, content: Any) -> Any:
        return tf.cond(
            tf.io.is_jpeg(content),
            lambda: self._from_jpeg(content),
            lambda: self._from_whole(self._decoded(content)),
        )

    def traced_pixels(self, picture: Any) -> Any:
        """`pixels`, by the very operations that tf.data runs."""
        if self._traced is None:
            shape = [] if picture.dtype == tf.string else [None, None, self.shape[2]]
            function = tf.function(self.pixels, autograph=False)
            self._traced = function.get_concrete_function(tf.TensorSpec(shape, picture.dtype))
        return self._traced(picture)

    def _from_jpeg(self, content: Any) -> Any:
        sides = tf.io.extract_jpeg_shape(content)[:2]
        with tf.control_dependencies([_refuse_large(sides)]):
            window = self._window(sides)
            image = tf.io.decode_and_crop_jpeg(content, window, channels=self.shape[2], dct_method=self._jpeg_method)
        return self._resized(image, sides, window)

    def _from_whole(self, image: Any) -> Any:
        sides = tf.shape(image)[:2]
        window = self._window(sides)
        image = image[window[0] : window[0] + window[2], window[1] : window[1] + window[3]]
        return self._resized(image, sides, window)

    def _whole(self, content: Any) -> Any:
        """The whole picture of any format."""

        def jpeg() -> Any:
            with tf.control_dependencies([_refuse_large(tf.io.extract_jpeg_shape(content)[:2])]):
                return tf.io.decode_jpeg(content, channels=self.shape[2], dct_method=self._jpeg_method)

        return tf.cond(tf.io.is_jpeg(content), jpeg, lambda: self._decoded(content))

    def _decoded(self, content: Any) -> Any:
        """The whole picture of any format but JPEG."""

        def in_colour() -> Any:
            image = tf.io.decode_image(content, channels=3, expand_animations=False)
            return tf.image.rgb_to_grayscale(image) if self.shape[2] == 1 else image

        with tf.control_dependencies([_refuse_large(_header_sides(content))]):
            if self.shape[2] == 3:
                return in_colour()
            # Of grey pictures only this decoder keeps every value; the others know no grey.
            return tf.cond(_starts(content, _PNG), lambda: tf.io.decode_png(content, channels=1), in_colour)

    def _window(self, sides: Any) -> Any:
        """Top, left, height and width, int32 `(4,)`, of what the result needs of a picture of this height and width."""
        if self._filter:
            return self._filter.window(sides)
        rows, columns = tf.unstack(tf.cast(sides, tf.float32))
        if not self._squash:
            proportion = self.shape[0] / self.shape[1]
            rows, columns = tf.minimum(rows, columns * proportion), tf.minimum(columns, rows / proportion)
        # Like the authors in float32, then cut to whole pixels. Of a single pixel nothing would be left.
        kept = tf.maximum(tf.cast(self._share * tf.stack([rows, columns]), tf.int32), 1)
        return tf.concat([(sides - kept + 1) // 2, kept], 0)

    def _resized(self, image: Any, sides: Any, window: Any) -> Any:
        """The result, from what `window` shows of a picture of this size."""
        if self._filter:
            return self._filter(image, sides, window)
        size = list(self.shape[:2])
        if self._resize == "legacy":
            # What tf.compat.v1.image.resize_bicubic and resize_bilinear call, which warn that they are old.
            resize = {"bicubic": tf.raw_ops.ResizeBicubic, "bilinear": tf.raw_ops.ResizeBilinear}[self._interpolation]
            image = resize(images=image[None], size=size, align_corners=False, half_pixel_centers=False)[0]
        else:
            antialias = self._resize == "antialias"
            image = tf.image.resize(image, size, method=self._interpolation, antialias=antialias)
        # A picture that has this size already may come back as it was, uint8.
        return tf.ensure_shape(tf.cast(image, tf.float32), self.shape)


class PillowFilter:
    """What `EvalTransform` does, in TensorFlow's operations: Pillow's filters, at the places where Pillow has them.

    Pixels differ by rounding: Pillow rounds after each of its two passes, this once.

    Attributes:
      shape: height, width and channels of the result.
    """

    def __init__(self, transform: EvalTransform, channels: int) -> None:
        self.shape = (*transform.shape, channels)
        self._targets = [math.floor(side / transform.preprocessing.crop_pct) for side in transform.shape]
        self._squash = transform.crop_mode == "squash"
        is_cubic = transform.preprocessing.interpolation == "bicubic"
        self._kernel, self._radius = ("keyscubic", 2) if is_cubic else ("triangle", 1)

    def window(self, sides: Any) -> Any:
        """Top, left, height and width of all that the result depends on in a picture of this size, int32 `(4,)`."""
        new_sides, starts = self._places(sides)
        step = tf.cast(sides, tf.float64) / tf.cast(new_sides, tf.float64)
        reach = self._radius * tf.maximum(step, 1) + 1
        first = tf.floor(tf.cast(starts, tf.float64) * step - reach)
        last = tf.math.ceil(tf.cast(starts + self.shape[:2], tf.float64) * step + reach)
        first, last = tf.maximum(tf.cast(first, tf.int32), 0), tf.minimum(tf.cast(last, tf.int32), sides)
        return tf.concat([first, last - first], 0)

    def __call__(self, image: Any, sides: Any, window: Any) -> Any:
        """Float32 `(H, W, C)`, whole numbers of 0 to 255, from what `window` shows of a picture, uint8 `(h, w, C)`."""
        new_sides, starts = self._places(sides)
        scale = tf.cast(new_sides, tf.float64) / tf.cast(sides, tf.float64)
        translation = scale * tf.cast(window[:2], tf.float64) - tf.cast(starts, tf.float64)
        resized = tf.raw_ops.ScaleAndTranslate(
            images=tf.cast(image, tf.float32)[None],
            size=list(self.shape[:2]),
            scale=tf.cast(scale, tf.float32),
            translation=tf.cast(translation, tf.float32),
            kernel_type=self._kernel,
            antialias=True,
        )[0]
        return tf.ensure_shape(tf.round(tf.clip_by_value(resized, 0, 255)), self.shape)

    def _places(self, sides: Any) -> tuple[Any, Any]:
        """Height and width of the resized picture, and top and left of the result in it; int32 `(2,)`."""
        if self._squash:
            new_sides = tf.constant(self._targets, tf.int32)
        elif self._targets[0] == self._targets[1]:
            # 64 bits, or the product of a very long picture would not fit.
            short, long = tf.reduce_min(tf.cast(sides, tf.int64)), tf.reduce_max(tf.cast(sides, tf.int64))
            stretched = tf.cast(self._targets[0] * long // short, tf.int32)
            new_sides = tf.where(sides > tf.reduce_min(sides), stretched, self._targets[0])
        else:
            ratios = tf.cast(sides, tf.float64) / tf.constant(self._targets, tf.float64)
            resized = tf.cast(sides, tf.float64) / tf.reduce_min(ratios)
            new_sides = tf.maximum(tf.cast(tf.round(resized), tf.int32), 1)
        margins = tf.cast(new_sides - self.shape[:2], tf.float64)
        return new_sides, tf.cast(tf.round(margins / 2), tf.int32)


def _orientation(content: bytes) -> np.int32:
    """The EXIF orientation of a file's picture; 1 where it has none, or cannot be read."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return np.int32(orientation(image))
    # TensorFlow says what is wrong with it.
    except Exception:
        return np.int32(1)


def _upright(image: Any, orientation: Any) -> Any:
    """As `jeffnet.data.images.upright`, for an orientation of 2 to 8."""
    swapped = tf.transpose(image, [1, 0, 2])
    turned = [
        (image, [1]), (image, [0, 1]), (image, [0]), (swapped, []), (swapped, [1]), (swapped, [0, 1]), (swapped, [0]),
    ]  # fmt: skip
    return tf.switch_case(
        orientation - 2, [lambda pixels=pixels, axes=axes: tf.reverse(pixels, axes) for pixels, axes in turned]
    )


def _share(image_size: int, crop_pct: float) -> float:
    """What is kept of the shorter side: the authors' ratio where `crop_pct` is this, rounded or cut to three places."""
    share = image_size / (image_size + _PADDING)
    return share if abs(share - crop_pct) < 0.001 else crop_pct


def _header_sides(content: Any) -> Any:
    """The sides that a picture has that is no JPEG, as its header says; 0 where decoding is bounded anyway.

    A BMP has no more pixels than its file bits; a WebP without an extended header (VP8X) has 16,383 x 16,383 at most.
    Raises TensorFlow's error for any other format, such as JPEG XL, whose size is not told so easily.
    """

    def integers(places: tuple[int, int], count: int, order: int) -> Any:
        """Two integers of so many bytes."""
        parts = [tf.cast(tf.io.decode_raw(tf.strings.substr(header, at, count), tf.uint8), tf.int64) for at in places]
        weights = tf.constant([256**power for power in range(count)], tf.int64)
        return tf.stack([tf.reduce_sum(part[::order] * weights) for part in parts])

    def webp() -> Any:
        extended = tf.equal(tf.strings.substr(header, 12, 4), b"VP8X")
        return tf.cond(extended, lambda: integers((24, 27), 3, 1) + 1, lambda: nothing)

    def other() -> Any:
        fault = "is not a JPEG, PNG, GIF, BMP or WebP file: convert or remove it"
        with tf.control_dependencies([tf.debugging.Assert(_starts(content, _BMP), [fault])]):
            return tf.identity(nothing)

    nothing = tf.constant([0, 0], tf.int64)
    # Zeros for what a file cut short lacks: its decoder says so more clearly.
    header = tf.strings.join([tf.strings.substr(content, 0, 30), bytes(30)])
    formats = [
        (_starts(content, _PNG), lambda: integers((16, 20), 4, -1)),
        (_starts(content, _GIF), lambda: integers((6, 8), 2, 1)),
        (_starts(content, _RIFF), webp),
    ]
    return tf.case(formats, default=other)


def _starts(content: Any, magic: bytes) -> Any:
    return tf.equal(tf.strings.substr(content, 0, len(magic)), magic)


def _refuse_large(sides: Any) -> Any:
    most = Image.MAX_IMAGE_PIXELS or np.iinfo(np.int64).max
    fault = f"has more than {most:,} pixels: scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    return tf.debugging.Assert(tf.reduce_prod(tf.cast(sides, tf.int64)) <= most, [fault])


def failures() -> tuple[type[Exception], ...]:
    """What TensorFlow's operations raise; the second where a message quotes bytes that are no text, such as a path."""
    return tf.errors.OpError, UnicodeDecodeError


def fault(error: Exception) -> str:
    """What is wrong with a picture at which one of `failures` arose, as the rest of a sentence."""
    found = _ASSERTION.search(_message(error))
    return found[1] if found else f"cannot be decoded ({reason(error)}): replace or remove it"


def reason(error: Exception) -> str:
    """The last line of the message of one of `failures`: the one about the matter."""
    lines = [line.strip() for line in _NOISE.sub("", _message(error)).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _message(error: Any) -> str:
    return error.object.decode(errors="replace") if isinstance(error, UnicodeDecodeError) else error.message
