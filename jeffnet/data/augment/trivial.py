"""TrivialAugment: one operation, at any strength."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from jeffnet.data.augment import operations
from jeffnet.data.augment.magnitudes import CANVAS, FULL, Canvas, Operation, either_way

_MAGNITUDES = 31


def _factor(magnitude: float, draw: float) -> float:
    """Up to 0.99 from 1, either way."""
    return 1 + either_way(0.99)(magnitude, draw)


_CHANGES = (operations.brightness, operations.color, operations.contrast, operations.sharpness)
# The paper's wide ranges; 'identity' is among its operations.
WIDE: dict[str, Operation] = {
    "identity": Operation(lambda image: image),
    "shear_x": Operation(operations.shear_x, either_way(0.99), moves=True),
    "shear_y": Operation(operations.shear_y, either_way(0.99), moves=True),
    "translate_x": Operation(operations.translate_x, lambda *draw: int(either_way(32)(*draw)), moves=True),
    "translate_y": Operation(operations.translate_y, lambda *draw: int(either_way(32)(*draw)), moves=True),
    "rotate": Operation(operations.rotate, either_way(135), moves=True),
    **{change.__name__: Operation(change, _factor) for change in _CHANGES},
    "posterize": Operation(operations.posterize, lambda magnitude, draw: 8 - round(magnitude / FULL * 6)),
    "solarize": Operation(operations.solarize, lambda magnitude, draw: 255 - magnitude / FULL * 255),
    "auto_contrast": Operation(ImageOps.autocontrast),
    "equalize": Operation(ImageOps.equalize),
}


@dataclass(frozen=True)
class TrivialAugment:
    """Applies one operation of `WIDE`, at one of 31 magnitudes, each drawn uniformly.

    Attributes:
      canvas: for pixels from outside the picture.

    Source: Müller and Hutter, "TrivialAugment", arXiv:2103.10158.
    """

    canvas: Canvas = CANVAS

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The picture, changed at random; mode 'RGB' or 'L'."""
        operation = tuple(WIDE.values())[rng.integers(len(WIDE))]
        return operation(image, FULL * int(rng.integers(_MAGNITUDES)) / (_MAGNITUDES - 1), rng, self.canvas)
