"""Colour jitter."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from jeffnet.data.augment import operations

_CHANGES = (operations.brightness, operations.contrast, operations.color)


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast and saturation by random factors, in random order.

    Attributes:
      strength: factors are uniform within this distance of 1, but not below 0.
    """

    strength: float

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The picture, changed at random; mode 'RGB' or 'L', whose saturation does not change."""
        for number in rng.permutation(len(_CHANGES)):
            image = _CHANGES[number](image, rng.uniform(max(0.0, 1 - self.strength), 1 + self.strength))
        return image
