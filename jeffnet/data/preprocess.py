"""From a picture of any size to the pixels that a model takes: for evaluation, and at random for training."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jeffnet.arch.preprocessing import CROP_MODES, INTERPOLATIONS, Preprocessing
from jeffnet.arch.zoo import model_preprocessing
from jeffnet.data.augment.jitter import ColorJitter, picture_of
from jeffnet.data.augment.magnitudes import GREY, Canvas
from jeffnet.data.augment.operations import Fill
from jeffnet.data.augment.policies import Policy, parse_policy
from jeffnet.data.images import upright
from jeffnet.data.resize import resize
from jeffnet.errors import ConfigError, ImageError, check_choice

TRAIN_INTERPOLATIONS = (*INTERPOLATIONS, "random")

# Draws of a crop before giving up on fitting one into the picture.
_ATTEMPTS = 10


def preprocessing_of(model: Any) -> Preprocessing:
    """What a model expects of pictures.

    Args:
      model: a `Preprocessing`; what has one, such as a card; what has a card, such as the result of `from_pretrained`;
        or a name or an architecture.

    Returns:
      Size, crop, interpolation, mean and std.

    Raises:
      UnknownModelError: no such model.
    """
    card = getattr(model, "card", model)
    known = getattr(card, "preprocessing", card)
    return known if isinstance(known, Preprocessing) else model_preprocessing(known)


@dataclass(frozen=True)
class EvalTransform:
    """A picture as a model is evaluated on it: equal, bit for bit, to timm's and torchvision's before normalisation.

    Attributes:
      preprocessing: its `image_size`, `crop_pct` and `interpolation`; `mean` only gives a border its colour
        (normalisation is `jeffnet.ops.image.normalize`'s).
      size: height and width of the result; None takes the square of `preprocessing.image_size`.
      crop_mode: 'center' resizes until the short side is `1 / crop_pct` of the result's and keeps the centre; 'squash'
        resizes both sides to that, whatever becomes of the proportions, and keeps the centre; 'border' resizes until
        the long side is, and fills what is missing with the mean. None takes the preprocessing's.
      exif: first turn the picture as its EXIF orientation says, which timm and TensorFlow do not.

    Raises:
      ConfigError: a setting outside its range.
    """

    preprocessing: Preprocessing
    size: tuple[int, int] | None = None
    crop_mode: str | None = None
    exif: bool = False

    def __post_init__(self) -> None:
        if self.size is not None and not all(side > 0 for side in self.size):
            raise ConfigError(f"size {self.size} is not a size: give a positive height and width")
        object.__setattr__(self, "crop_mode", self.crop_mode or self.preprocessing.crop_mode)
        check_choice("crop_mode", self.crop_mode, CROP_MODES)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the result."""
        return self.size or (self.preprocessing.image_size, self.preprocessing.image_size)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The pixels of a picture of mode 'RGB' or 'L', uint8 `(H, W, C)`; an ImageError for other modes."""
        _check_mode(image)
        image = upright(image) if self.exif else image
        height, width = self.shape
        whole = self.window(image.width, image.height)
        left, top = max(whole.left, 0), max(whole.top, 0)
        right, bottom = min(whole.left + width, whole.width), min(whole.top + height, whole.height)
        result = np.empty((height, width, len(image.mode)), np.uint8)
        if (right - left, bottom - top) != (width, height):
            # The resized picture is smaller than the result: what is missing is the border.
            result[:] = self._border(len(image.mode))
        x, y = left - whole.left, top - whole.top
        resize(
            image,
            (whole.width, whole.height),
            Image.Resampling[self.preprocessing.interpolation.upper()],
            window=(left, top, right, bottom),
            out=result[y : y + bottom - top, x : x + right - left],
        )
        return result

    def window(self, width: int, height: int) -> "Window":
        """How a picture is resized, and where the result lies in that.

        Args:
          width: of the picture.
          height: of the picture.

        Returns:
          The resized picture's size, and the result's place in it.
        """
        out_height, out_width = self.shape
        target_height, target_width = (math.floor(side / self.preprocessing.crop_pct) for side in self.shape)
        if self.crop_mode == "squash":
            new_width, new_height = target_width, target_height
        elif self.crop_mode == "center" and target_width == target_height:
            # torchvision's rounding, in timm for squares, is not that of the next branch.
            short = target_width
            if width <= height:
                new_width, new_height = short, int(short * height / width)
            else:
                new_width, new_height = int(short * width / height), short
        else:
            ratios = height / target_height, width / target_width
            ratio = min(ratios) if self.crop_mode == "center" else max(ratios)
            new_width, new_height = max(round(width / ratio), 1), max(round(height / ratio), 1)
        return Window(new_width, new_height, _middle(new_width, out_width), _middle(new_height, out_height))

    def _border(self, channels: int) -> tuple[int, ...]:
        if self.crop_mode != "border":
            return (0,)
        mean = self.preprocessing.mean
        return tuple(round(255 * value) for value in (mean if len(mean) == channels else [sum(mean) / len(mean)]))


class Window(NamedTuple):
    """A picture resized to `width` x `height`, and the corner in it of what is kept; negative in a border."""

    width: int
    height: int
    left: int
    top: int


@dataclass(frozen=True)
class TrainTransform:
    """Random resized crop, flips, then what a policy does to the picture, then colour jitter, all at random.

    A crop of random area and random aspect ratio, at a random place, is resized to a square. When none of 10 draws
    fits into the picture, the largest central crop whose aspect ratio is within `ratio` is taken.

    Attributes:
      image_size: height and width of the result.
      scale: least and greatest area of the crop as a share in (0, 1] of the picture's; uniform between them.
      ratio: least and greatest width / height of the crop; its logarithm is uniform between them.
      interpolation: 'bicubic', 'bilinear', or 'random': one of them for each picture and for each operation of the
        policy.
      hflip: probability in [0, 1] of a flip of left and right.
      vflip: probability in [0, 1] of a flip of top and bottom.
      color_jitter: brightness, contrast and saturation vary by up to this share; with any policy.
      policy: see `jeffnet.data.augment.policies`; None for none.
      splits: views of each picture, all of the same crop; the first has neither policy nor colour jitter.
      fill: what the policy fills in from outside the picture, 0 to 255 by channel, such as the mean; None takes grey.

    Raises:
      ConfigError: a setting outside its range.

    Source: Szegedy et al., "Going Deeper with Convolutions", arXiv:1409.4842, section 6, for the crop.
    """

    image_size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.0
    policy: str | None = None
    splits: int = 1
    fill: Fill | None = None

    @classmethod
    def of(cls, preprocessing: Preprocessing, image_size: int | None = None, **settings: Any) -> "TrainTransform":
        """For a model: its size in training unless one is given, its interpolation, and its mean to fill in.

        Args:
          preprocessing: of the model.
          image_size: height and width of the result.
          **settings: of the class.

        Returns:
          The transform.
        """
        return cls(
            image_size or preprocessing.train_size or preprocessing.image_size,
            **{
                "interpolation": preprocessing.interpolation,
                "fill": tuple(round(255 * value) for value in preprocessing.mean),
                **settings,
            },
        )

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ConfigError(f"image_size {self.image_size} is not a size: give a positive number of pixels")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"scale {self.scale} is not a range of area: give (least, greatest) within (0, 1]")
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ConfigError(f"ratio {self.ratio} is not a range of width / height: give (least, greatest) above 0")
        check_choice("interpolation", self.interpolation, TRAIN_INTERPOLATIONS)
        for name in ("hflip", "vflip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} is not a probability: give a number in [0, 1]")
        if not 0 <= self.color_jitter < math.inf:
            raise ConfigError(f"color_jitter {self.color_jitter} is not a strength: give 0 or more, such as 0.4")
        if self.splits < 1:
            raise ConfigError(f"splits {self.splits} are no views of a picture: give 1 or more")
        if self.fill is not None and (
            len(self.fill) not in (1, 3) or not all(0 <= value <= 255 for value in self.fill)
        ):
            raise ConfigError(f"fill {self.fill} is not a colour: give 1 or 3 numbers from 0 to 255")
        if self.policy is not None:
            self._policy(self.policy)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """A random view of a picture of mode 'RGB' or 'L', uint8 `(S, S, C)`; several are `(splits, S, S, C)`.

        It depends on `rng` and the picture only. Other modes are an ImageError.
        """
        _check_mode(image)
        crop = self._cropped(image, rng)
        if self.splits == 1:
            return self._augmented(crop, rng)
        return np.stack([crop, *(self._augmented(crop, rng) for _ in range(self.splits - 1))])

    def _cropped(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """The crop at its final size, flipped or not."""
        crop = self.crop_box(image.width, image.height, rng)
        # No draw where nothing is left to chance, but for the one flip that has always been drawn: a change here would
        # change all that is drawn after it, and with it every run that is continued.
        name = INTERPOLATIONS[rng.integers(2)] if self.interpolation == "random" else self.interpolation
        flips = rng.random() < self.hflip, bool(self.vflip and rng.random() < self.vflip)
        return resize(image, (self.image_size, self.image_size), Image.Resampling[name.upper()], crop=crop, flips=flips)

    def _augmented(self, crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """What the policy and the colour jitter make of a crop."""
        if self.policy is not None:
            crop = _pixels(self._policy(self.policy)(picture_of(crop), rng))
        return ColorJitter(self.color_jitter)(crop, rng) if self.color_jitter else crop

    def _policy(self, text: str) -> Policy:
        return parse_policy(text, Canvas(self.fill or GREY, self.interpolation))

    def crop_box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """A random crop of a picture.

        Args:
          width: of the picture.
          height: of the picture.
          rng: draws area, ratio and place.

        Returns:
          Left, top, right and bottom edge.
        """
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


def _middle(side: int, kept: int) -> int:
    """Where the middle part of a side begins, or the side in the middle of a longer part (then it is negative)."""
    # round() to the even neighbour, as torchvision: an odd margin's middle is not always the lower one.
    return round((side - kept) / 2) if side >= kept else -((kept - side) // 2)


def _check_mode(image: Image.Image) -> None:
    if image.mode not in ("L", "RGB"):
        raise ImageError(
            f"a picture of mode {image.mode!r}: read it with jeffnet.data.images.read_image, or convert it"
        )


def _pixels(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
