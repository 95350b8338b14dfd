"""From a picture of any size to the square of pixels that a model takes: for evaluation, and at random for training."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from jeffnet.arch.preprocessing import INTERPOLATIONS, Preprocessing
from jeffnet.errors import ConfigError, ImageError

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# Draws of a crop before giving up on fitting one into the picture.
_ATTEMPTS = 10


@dataclass(frozen=True)
class EvalTransform:
    """`evaluation_image` with fixed settings.

    Attributes:
      preprocessing: the settings; `mean` and `std` are not used here (`jeffnet.ops.image.normalize`).
    """

    preprocessing: Preprocessing

    @property
    def image_size(self) -> int:
        """Height and width of the result."""
        return self.preprocessing.image_size

    def __call__(self, image: Image.Image) -> np.ndarray:
        return evaluation_image(image, self.preprocessing)


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, then a horizontal flip at random.

    A crop of random area and random aspect ratio, at a random place, is resized to a square. When none of 10 draws
    fits into the picture, the largest central crop whose aspect ratio is within `ratio` is taken.

    Attributes:
      image_size: height and width of the result.
      scale: least and greatest area of the crop as a share in (0, 1] of the picture's; uniform between them.
      ratio: least and greatest width / height of the crop; its logarithm is uniform between them.
      interpolation: 'bicubic' or 'bilinear'.
      flip: probability in [0, 1] of the flip.

    Raises:
      ConfigError: a setting outside its range.

    Source: Szegedy et al., "Going Deeper with Convolutions", arXiv:1409.4842, section 6.
    """

    image_size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ConfigError(f"image_size {self.image_size} is not a size: give a positive number of pixels")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"scale {self.scale} is not a range of area: give (least, greatest) within (0, 1]")
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ConfigError(f"ratio {self.ratio} is not a range of width / height: give (least, greatest) above 0")
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(f"interpolation {self.interpolation!r} is not one of {', '.join(INTERPOLATIONS)}")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"flip {self.flip} is not a probability: give a number in [0, 1]")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """One random view of the picture.

        Args:
          image: mode 'RGB' or 'L'.
          rng: what the view depends on, besides the picture.

        Returns:
          uint8 `(S, S, C)`, 3 channels for 'RGB' and 1 for 'L'.
        """
        crop = image.crop(self.crop_box(image.width, image.height, rng))
        size = (self.image_size, self.image_size)
        pixels = _pixels(crop.resize(size, _FILTERS[self.interpolation]))
        return np.ascontiguousarray(pixels[:, ::-1]) if rng.random() < self.flip else pixels

    def crop_box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """A random crop of a picture of this size: left, top, right and bottom edge."""
        least, greatest = (math.log(ratio) for ratio in self.ratio)
        for _ in range(_ATTEMPTS):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(least, greatest))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = int(rng.integers(height - crop_height + 1))
                left = int(rng.integers(width - crop_width + 1))
                return left, top, left + crop_width, top + crop_height
        return self._central_box(width, height)

    def _central_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        # A crop of less than half a pixel would be rounded to nothing.
        crop_width = min(width, max(1, round(height * ratio)))
        crop_height = min(height, max(1, round(width / ratio)))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
        return left, top, left + crop_width, top + crop_height


def evaluation_image(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Resizes the short side to `floor(image_size / crop_pct)` and keeps the central square.

    Equal, bit for bit, to timm's and torchvision's evaluation transforms before normalisation.

    Args:
      image: mode 'RGB' or 'L'.
      preprocessing: its `image_size` S, `crop_pct` and `interpolation`.

    Returns:
      uint8 `(S, S, C)`, 3 channels for 'RGB' and 1 for 'L'.

    Raises:
      ImageError: another mode.
    """
    size = preprocessing.image_size
    # crop_pct is at most 1, so that the resized picture is never smaller than the crop and needs no padding.
    short = math.floor(size / preprocessing.crop_pct)
    if image.width <= image.height:
        width, height = short, int(short * image.height / image.width)
    else:
        width, height = int(short * image.width / image.height), short
    # round() to the even neighbour, as torchvision: an odd margin's middle is not always the lower one.
    left, top = round((width - size) / 2), round((height - size) / 2)
    filter_ = _FILTERS[preprocessing.interpolation]
    if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS:
        # A thread of a picture (1 x 10,000) would take gigabytes: resize only what the crop keeps. The filter's
        # positions then differ by rounding, which is why this is not the usual way.
        x, y = image.width / width, image.height / height
        box = (left * x, top * y, min((left + size) * x, image.width), min((top + size) * y, image.height))
        return _pixels(image.resize((size, size), filter_, box=box))
    return _pixels(image.resize((width, height), filter_).crop((left, top, left + size, top + size)))


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode not in ("L", "RGB"):
        raise ImageError(
            f"a picture of mode {image.mode!r}: read it with jeffnet.data.images.read_image, or convert it"
        )
    pixels = np.array(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
