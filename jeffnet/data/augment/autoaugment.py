"""AutoAugment: one of 25 pairs of operations, found by a search; and 3-Augment, one of three operations."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from jeffnet.data.augment.magnitudes import CANVAS, EXACT, Canvas, Noise, Step

SubPolicy = tuple[Step, ...]


@dataclass(frozen=True)
class AutoAugment:
    """Applies the steps of a sub-policy that is drawn for each picture.

    Attributes:
      sub_policies: drawn with equal probability.
      noise: on the magnitudes.
      canvas: for pixels from outside the picture.

    Source: Cubuk et al., "AutoAugment", arXiv:1805.09501.
    """

    sub_policies: tuple[SubPolicy, ...]
    noise: Noise = EXACT
    canvas: Canvas = CANVAS

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The picture, changed at random; mode 'RGB' or 'L'."""
        for step in self.sub_policies[rng.integers(len(self.sub_policies))]:
            image = step(image, rng, self.noise, self.canvas)
        return image


# Sub-policies of two steps, each an operation, its probability in tenths and its magnitude.
# The paper's for ImageNet; some are in it twice.
_ORIGINAL = """
    posterize 4 8, rotate 6 9       | solarize 6 5, auto_contrast 6 5 | equalize 8 8, equalize 6 3
    posterize 6 7, posterize 6 6    | equalize 4 7, solarize 2 4      | equalize 4 4, rotate 8 8
    solarize 6 3, equalize 6 7      | posterize 8 5, equalize 10 2    | rotate 2 3, solarize 6 8
    equalize 6 8, posterize 4 6     | rotate 8 8, color 4 0           | rotate 4 9, equalize 6 2
    equalize 0 7, equalize 8 8      | invert 6 4, equalize 10 8       | color 6 4, contrast 10 8
    rotate 8 8, color 10 2          | color 8 8, solarize 8 7         | sharpness 4 7, invert 6 8
    shear_x 6 5, equalize 10 9      | color 4 0, equalize 6 3         | equalize 4 7, solarize 2 4
    solarize 6 5, auto_contrast 6 5 | invert 6 4, equalize 10 8       | color 6 4, contrast 10 8
    equalize 8 8, equalize 6 3
"""
# Of the authors' code that trained EfficientNets; no paper has it.
_V0 = """
    equalize 8 1, shear_y 8 4        | color 4 9, equalize 6 3      | color 4 1, rotate 6 8
    solarize 8 3, equalize 4 7       | solarize 4 2, solarize 6 2   | color 2 0, equalize 8 8
    equalize 4 8, solarize_add 8 3   | shear_x 2 9, rotate 6 8      | color 6 1, equalize 10 2
    invert 4 9, rotate 6 0           | equalize 10 9, shear_y 6 3   | color 4 7, equalize 6 0
    posterize 4 6, auto_contrast 4 7 | solarize 6 8, color 6 9      | solarize 2 4, rotate 8 9
    rotate 10 7, translate_y_rel 8 9 | shear_x 0 0, solarize 8 4    | shear_y 8 0, color 6 4
    color 10 0, rotate 6 2           | equalize 8 4, equalize 0 8   | equalize 10 4, auto_contrast 6 2
    shear_y 4 7, solarize_add 6 7    | posterize 8 2, solarize 6 10 | solarize 6 8, equalize 6 1
    color 8 6, rotate 4 5
"""


def _sub_policies(table: str, posterize: str = "posterize") -> tuple[SubPolicy, ...]:
    """The sub-policies of a table, with one of the three meanings of posterize's magnitude."""
    pairs = [[step.split() for step in pair.split(",")] for pair in table.strip().replace("\n", "|").split("|")]
    return tuple(
        tuple(
            Step(posterize if name == "posterize" else name, int(tenths) / 10, int(magnitude))
            for name, tenths, magnitude in pair
        )
        for pair in pairs
    )


# Touvron et al., "DeiT III", arXiv:2204.07118: solarize at 128, all grey, or blur.
_THREE = ((Step("solarize", 1, 5),), (Step("desaturate", 1, 10),), (Step("gaussian_blur_rand", 1, 10),))

SUB_POLICIES: dict[str, tuple[SubPolicy, ...]] = {
    "v0": _sub_policies(_V0),
    "v0r": _sub_policies(_V0, "posterize_increasing"),
    "original": _sub_policies(_ORIGINAL, "posterize_original"),
    "originalr": _sub_policies(_ORIGINAL, "posterize_increasing"),
    "3a": _THREE,
}
