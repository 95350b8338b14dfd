"""From the magnitudes of the papers, 0 to 10, to what each operation takes.

An operation of a policy has a magnitude and a probability. Where the papers' implementations disagree on what a
magnitude means, each meaning is an entry of its own in `OPERATIONS`; timm's names of them are the same in CamelCase.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from jeffnet.data.augment import operations
from jeffnet.data.augment.operations import Fill

FULL = 10.0
GREY: Fill = (128, 128, 128)


@dataclass(frozen=True)
class Canvas:
    """How operations that move pixels make up new ones.

    Attributes:
      fill: colour of what comes in from outside the picture, 0 to 255 by channel.
      interpolation: 'bicubic', 'bilinear', or 'random': one of them for each operation.
    """

    fill: Fill = GREY
    interpolation: str = "random"

    def resample(self, rng: np.random.Generator) -> Image.Resampling:
        """Pillow's filter for one operation."""
        name = ("bilinear", "bicubic")[rng.integers(2)] if self.interpolation == "random" else self.interpolation
        return Image.Resampling[name.upper()]


@dataclass(frozen=True)
class Noise:
    """Variation of the magnitudes that a policy states.

    Attributes:
      std: of normal noise; infinite draws magnitudes uniformly from 0 to the stated one instead.
      most: greatest magnitude; the least is 0.
    """

    std: float = 0.0
    most: float = FULL

    def around(self, magnitude: float, rng: np.random.Generator) -> float:
        """A magnitude near the stated one."""
        if self.std == math.inf:
            magnitude = rng.uniform(0, magnitude)
        elif self.std > 0:
            magnitude = rng.normal(magnitude, self.std)
        return min(max(magnitude, 0.0), self.most)


CANVAS = Canvas()
EXACT = Noise()


@dataclass(frozen=True)
class Operation:
    """A function of a picture and what it takes at a magnitude.

    Attributes:
      function: of a picture, then of the argument if there is one, then of fill and filter if it moves pixels.
      argument: of the magnitude and of a number drawn uniformly from [0, 1), which mostly decides the sign; None where
        the operation has no strength.
      moves: whether pixels move.
    """

    function: Callable[..., Image.Image]
    argument: Callable[[float, float], float] | None = None
    moves: bool = False

    def __call__(self, image: Image.Image, magnitude: float, rng: np.random.Generator, canvas: Canvas) -> Image.Image:
        """The picture, changed by so much."""
        if self.argument is None:
            return self.function(image)
        argument = self.argument(magnitude, rng.random())
        if self.moves:
            return self.function(image, argument, canvas.fill, canvas.resample(rng))
        return self.function(image, argument)


@dataclass(frozen=True)
class Step:
    """An operation of a policy.

    Attributes:
      operation: a key of `OPERATIONS`.
      probability: in [0, 1], that it takes place at all.
      magnitude: from 0 to 10, or more where the policy's noise lets it.
    """

    operation: str
    probability: float
    magnitude: float

    def __call__(self, image: Image.Image, rng: np.random.Generator, noise: Noise, canvas: Canvas) -> Image.Image:
        """The picture, changed or not."""
        if self.probability < 1 and rng.random() >= self.probability:
            return image
        return OPERATIONS[self.operation](image, noise.around(self.magnitude, rng), rng, canvas)


def either_way(most: float) -> Callable[[float, float], float]:
    """An argument proportional to the magnitude, `most` at full, of either sign."""
    return lambda magnitude, draw: magnitude / FULL * most * (-1 if draw < 0.5 else 1)


def _within(least: float, most: float) -> Callable[[float, float], float]:
    return lambda magnitude, draw: max(least, min(most, least + (most - least) * (magnitude / FULL)))


def _factor(magnitude: float, draw: float) -> float:
    """From 0.1 to 1.9: the picture changes least at a magnitude of 5."""
    return magnitude / FULL * 1.8 + 0.1


def _factor_increasing(magnitude: float, draw: float) -> float:
    """Up to 0.9 from 1, either way: the picture changes the more, the higher the magnitude."""
    return max(0.1, 1.0 + magnitude / FULL * 0.9 * (-1 if draw < 0.5 else 1))


def _bits(magnitude: float, draw: float) -> int:
    return int(magnitude / FULL * 4)


def _threshold(magnitude: float, draw: float) -> int:
    return min(256, int(magnitude / FULL * 256))


def _random_radius(magnitude: float, draw: float) -> float:
    """Uniform from 0.1 to a length that is 2 pixels at full magnitude."""
    return 0.1 + draw * (magnitude / FULL * 2.0 - 0.1)


def _moves(function: Callable[..., Image.Image], most: float) -> Operation:
    return Operation(function, either_way(most), moves=True)


_CHANGES = (operations.color, operations.contrast, operations.brightness, operations.sharpness)
OPERATIONS: dict[str, Operation] = {
    "auto_contrast": Operation(ImageOps.autocontrast),
    "equalize": Operation(ImageOps.equalize),
    "invert": Operation(ImageOps.invert),
    "rotate": _moves(operations.rotate, 30),
    "posterize": Operation(operations.posterize, _bits),
    "posterize_increasing": Operation(operations.posterize, lambda magnitude, draw: 4 - _bits(magnitude, draw)),
    "posterize_original": Operation(operations.posterize, lambda magnitude, draw: 4 + _bits(magnitude, draw)),
    "solarize": Operation(operations.solarize, _threshold),
    "solarize_increasing": Operation(operations.solarize, lambda magnitude, draw: 256 - _threshold(magnitude, draw)),
    "solarize_add": Operation(operations.solarize_add, lambda magnitude, draw: min(128, int(magnitude / FULL * 110))),
    **{change.__name__: Operation(change, _factor) for change in _CHANGES},
    **{f"{change.__name__}_increasing": Operation(change, _factor_increasing) for change in _CHANGES},
    "shear_x": _moves(operations.shear_x, 0.3),
    "shear_y": _moves(operations.shear_y, 0.3),
    "translate_x_rel": _moves(operations.translate_x_relative, 0.45),
    "translate_y_rel": _moves(operations.translate_y_relative, 0.45),
    # AugMix moves by less.
    "translate_x_short": _moves(operations.translate_x_relative, 0.3),
    "translate_y_short": _moves(operations.translate_y_relative, 0.3),
    "desaturate": Operation(operations.desaturate, _within(0.5, 1.0)),
    "gaussian_blur": Operation(operations.gaussian_blur, _within(0.1, 2.0)),
    "gaussian_blur_rand": Operation(operations.gaussian_blur, _random_radius),
}
