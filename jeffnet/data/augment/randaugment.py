"""RandAugment: operations drawn anew for each picture, all at one magnitude."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from jeffnet.data.augment.magnitudes import CANVAS, EXACT, Canvas, Noise, Step

# Some operations change a picture the less, the higher their magnitude. `INCREASING` has their opposites in the place.
PLAIN = (
    *("auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add"),
    *("color", "contrast", "brightness", "sharpness"),
    *("shear_x", "shear_y", "translate_x_rel", "translate_y_rel"),
)
_OPPOSITE = ("posterize", "solarize", "color", "contrast", "brightness", "sharpness")
INCREASING = tuple(f"{name}_increasing" if name in _OPPOSITE else name for name in PLAIN)

# Of `PLAIN` or of `INCREASING`, in their order: those of timm's first releases, `w0`.
WEIGHTS_0 = (0.025, 0.005, 0, 0.3, 0, 0.005, 0.005, 0.025, 0.005, 0.005, 0.025, 0.2, 0.2, 0.1, 0.1)

# Other sets of operations by name, with their weights or, drawn alike, without.
SETS: dict[str, tuple[str, ...] | dict[str, float]] = {
    "weights": {
        "rotate": 3,
        **dict.fromkeys(("shear_x", "shear_y"), 2),
        **dict.fromkeys(("translate_x_rel", "translate_y_rel"), 1),
        **dict.fromkeys(("color_increasing", "sharpness_increasing", "auto_contrast"), 0.25),
        **dict.fromkeys(("solarize_increasing", "solarize_add", "contrast_increasing", "brightness_increasing"), 0.05),
        **dict.fromkeys(("equalize", "posterize_increasing", "invert"), 0.05),
    },
    "3aw": {
        **dict.fromkeys(("solarize_increasing", "desaturate", "gaussian_blur"), 6),
        "rotate": 3,
        **dict.fromkeys(("shear_x", "shear_y"), 2),
        **dict.fromkeys(("posterize_increasing", "auto_contrast", "color_increasing", "sharpness_increasing"), 1),
        **dict.fromkeys(("contrast_increasing", "brightness_increasing", "equalize", "invert"), 1),
    },
    "3a": ("solarize_increasing", "desaturate", "gaussian_blur"),
}


@dataclass(frozen=True)
class RandAugment:
    """Draws `layers` operations for each picture and applies them one after the other.

    Attributes:
      operations: keys of `jeffnet.data.augment.magnitudes.OPERATIONS`.
      magnitude: of all.
      layers: how many are drawn.
      probability: that an operation drawn takes place.
      weights: of the operations in the draw, which then takes none twice; None draws all alike, and perhaps twice.
      noise: on the magnitude.
      canvas: for pixels from outside the picture.

    Source: Cubuk et al., "RandAugment", arXiv:1909.13719. The probability, the noise and the weights are timm's.
    """

    operations: tuple[str, ...]
    magnitude: float = 10.0
    layers: int = 2
    probability: float = 0.5
    weights: tuple[float, ...] | None = None
    noise: Noise = EXACT
    canvas: Canvas = CANVAS

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The picture, changed at random; mode 'RGB' or 'L'."""
        for number in self._drawn(rng):
            step = Step(self.operations[number], self.probability, self.magnitude)
            image = step(image, rng, self.noise, self.canvas)
        return image

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        if self.weights is None:
            return rng.integers(len(self.operations), size=self.layers)
        shares = np.array(self.weights) / sum(self.weights)
        return rng.choice(len(self.operations), self.layers, replace=False, p=shares)
