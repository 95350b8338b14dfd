"""How a picture becomes a model's input."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from numbers import Integral, Real
from typing import Any

from jeffnet.errors import ArchitectureError, InputError, check_choice

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INCEPTION_MEAN = (0.5, 0.5, 0.5)
INCEPTION_STD = (0.5, 0.5, 0.5)
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
# Pixels from -1 to 1, as Inception has them.
INCEPTION = {"mean": INCEPTION_MEAN, "std": INCEPTION_STD}

LARGEST_IMAGE = 2**15  # pixels along a side

INTERPOLATIONS = ("bicubic", "bilinear")
CROP_MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing that weights were trained for.

    Attributes:
      image_size: height and width of the input, in pixels: the size at which the weights are tested.
      crop_pct: share of the resized picture that the centre crop keeps, in (0, 1]: the short side is resized to
        `floor(image_size / crop_pct)` before the crop.
      interpolation: 'bicubic' or 'bilinear'.
      mean: per channel, subtracted from pixel values in [0, 1].
      std: per channel, divides the difference.
      crop_mode: 'center', 'squash' or 'border', see `jeffnet.data.preprocess.EvalTransform`.
      train_size: height and width in training, in pixels; None for the same.

    Raises:
      ArchitectureError: a value outside its range.
    """

    image_size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_mode: str = "center"
    train_size: int | None = None

    def __post_init__(self) -> None:
        # NumPy's scalars and arrays cannot be compared or written to JSON like Python's numbers.
        for name in ("image_size", "crop_pct", "train_size"):
            object.__setattr__(self, name, _plain(getattr(self, name)))
        for name in ("mean", "std"):
            values = getattr(self, name)
            try:
                numbers = tuple(map(_plain, values))
            except TypeError:
                numbers = (None,)
            if not all(isinstance(number, Real) and not isinstance(number, bool) for number in numbers):
                raise ArchitectureError(f"{name} {values!r}: give a number for each channel, such as (0.5, 0.5, 0.5)")
            object.__setattr__(self, name, numbers)
        # Sizes also come from files, and pictures of these sizes are allocated.
        for name, size in (("image_size", self.image_size), ("train_size", self.train_size)):
            if size is None and name == "train_size":
                continue
            # Python counts True as a whole number.
            if isinstance(size, bool) or not isinstance(size, Integral) or not 1 <= size <= LARGEST_IMAGE:
                raise ArchitectureError(
                    f"{name} {size!r} is not a size: give a number of pixels from 1 to {LARGEST_IMAGE:,}"
                )
        is_number = isinstance(self.crop_pct, Real) and not isinstance(self.crop_pct, bool)
        in_range = is_number and 0 < self.crop_pct <= 1
        if not in_range or self.image_size / self.crop_pct > LARGEST_IMAGE:
            raise ArchitectureError(
                f"crop_pct {self.crop_pct!r} is outside (0, 1], or cuts {self.image_size} pixels from pictures of more "
                f"than {LARGEST_IMAGE:,}"
            )
        check_choice("interpolation", self.interpolation, INTERPOLATIONS, ArchitectureError)
        check_choice("crop_mode", self.crop_mode, CROP_MODES, ArchitectureError)
        if len(self.mean) != len(self.std) or not all(self.std) or not all(map(isfinite, (*self.mean, *self.std))):
            raise ArchitectureError(f"mean {self.mean} and std {self.std}: as many of each, finite, and no std of 0")

    def changed(self, **values: Any) -> "Preprocessing":
        """The same with other values.

        Args:
          **values: by attribute; None keeps the present value.

        Returns:
          The changed preprocessing.
        """
        return replace(self, **{name: value for name, value in values.items() if value is not None})


def sized(image_size: int, crop_pct: float, train_size: int | None = None, **others: Any) -> dict[str, Any]:
    """Entries of a `Preprocessing` for weights of another size than the architecture's first."""
    return {"image_size": image_size, "crop_pct": crop_pct, "train_size": train_size, **others}


def inception(image_size: int, crop_pct: float, interpolation: str = "bicubic", **others: Any) -> Preprocessing:
    """With pixels from -1 to 1."""
    return Preprocessing(image_size, crop_pct, interpolation, **INCEPTION, **others)


def per_channel(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    """A mean or std for each channel; grey pictures take the average of three values."""
    if len(values) == channels:
        return tuple(values)
    if len(values) == 3 and channels == 1:
        return (sum(values) / 3,)
    raise InputError(f"{name} {tuple(values)} does not fit images of {channels} channels: give {channels} values")


def _plain(number: Any) -> Any:
    """NumPy's number as Python's."""
    return number.item() if hasattr(number, "item") else number
