"""Colour jitter."""

import ctypes
from dataclasses import dataclass

import numpy as np
from PIL import Image

from jeffnet.data.augment import operations
from jeffnet.data.resize import native

# Numbered as in `pixels.cc`.
_CHANGES = (operations.brightness, operations.contrast, operations.color)


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation by random factors, in random order.

    Attributes:
      strength: factors are uniform within this distance of 1, but not below 0.
    """

    strength: float

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Pixels, uint8 `(H, W, C)` with C of 1 or 3, changed at random: those of Pillow's `ImageEnhance`.

        Grey has no saturation to change. The result is another array.
        """
        numbers = rng.permutation(len(_CHANGES)).tolist()
        factors = [rng.uniform(max(0.0, 1 - self.strength), 1 + self.strength) for _ in numbers]
        library, changed = native(), pixels.copy()
        height, width, channels = pixels.shape
        if library is not None:
            orders, amounts = (ctypes.c_int64 * len(numbers))(*numbers), (ctypes.c_float * len(numbers))(*factors)
            size = (changed.nbytes, height * width, channels)
            if library.jeffnet_change_colours(changed.ctypes.data, *size, len(numbers), orders, amounts) == 0:
                return changed
        image = picture_of(pixels)
        for number, factor in zip(numbers, factors, strict=True):
            image = _CHANGES[number](image, factor)
        return np.asarray(image).reshape(pixels.shape)


def picture_of(pixels: np.ndarray) -> Image.Image:
    """A picture of mode 'RGB' or 'L' from uint8 `(H, W, C)`."""
    return Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0])
