"""Pictures of any kind to the arrays that a model takes.

    import jeffnet

    transform = jeffnet.transform_for("efficientnet_b0")
    images = transform("photo.jpg")  # float32 (1, 224, 224, 3), normalised
    images = transform(["photo.jpg", pixels, picture])  # (3, 224, 224, 3)

The pixels are those of `jeffnet validate`.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jax import Array
from PIL import Image

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import ModelLike
from jeffnet.data.images import converted, image_from_array, read_image
from jeffnet.data.preprocess import EvalTransform, TrainTransform, preprocessing_of
from jeffnet.errors import ConfigError
from jeffnet.inference.remote import fetch_picture
from jeffnet.ops.image import normalize
from jeffnet.system.reading import is_url
from jeffnet.weights.card import ModelCard
from jeffnet.weights.download import without_password


def load_image(picture: Any, channels: int = 3) -> Image.Image:
    """A picture from wherever it is.

    Transparency is dropped without blending, and an EXIF orientation is not applied, as in timm.

    Args:
      picture: a path; an http(s) address; the bytes of a file; a picture of Pillow; or an array `(H, W, C)` or `(H, W)`
        with C from 1, 3 and 4, of integers from 0 to 255 or floats from 0 to 1.
      channels: 3 for mode 'RGB', 1 for mode 'L'.

    Returns:
      The picture in mode 'RGB' or 'L', at its full size.

    Raises:
      ImageError: it cannot be read or fetched, or is none of these.
    """
    if isinstance(picture, Image.Image):
        return converted(picture, channels)
    if isinstance(picture, str) and is_url(picture):
        return read_image(fetch_picture(picture), channels, without_password(picture))
    if isinstance(picture, str | os.PathLike):
        return read_image(picture, channels)
    if isinstance(picture, bytes | bytearray | memoryview):
        return read_image(bytes(picture), channels)
    return image_from_array(picture, channels)


def listed_pictures(pictures: Any) -> tuple[list[Any], bool]:
    """Pictures one by one.

    Args:
      pictures: one that `load_image` takes; a list or a tuple of them; or an array `(N, H, W, C)`.

    Returns:
      A list, and whether a single picture was given, outside of any list.
    """
    if isinstance(pictures, list | tuple):
        return list(pictures), False
    if getattr(pictures, "ndim", 0) == 4:
        return list(np.asarray(pictures)), False
    return [pictures], True


@dataclass(frozen=True)
class PictureTransform:
    """From pictures of any kind to a model's input.

    Attributes:
      preprocessing: what the model expects.
      channels: of the input, 3 or 1.
      transform: from a picture to its pixels: as in validation, or at random.
    """

    preprocessing: Preprocessing
    channels: int
    transform: EvalTransform | TrainTransform
    _own_random: np.random.Generator = field(default_factory=np.random.default_rng, repr=False, compare=False)

    def __call__(self, pictures: Any, rng: np.random.Generator | int | None = None) -> Array:
        """Normalised pictures.

        Args:
          pictures: one that `load_image` takes; a list or a tuple of them; or an array `(N, H, W, C)`.
          rng: a generator or a seed for what is random; None draws anew.

        Returns:
          float32 `(N, H, W, C)`, also of one picture.

        Raises:
          ImageError: a picture cannot be read.
        """
        return self.normalized(self.pixels(pictures, rng))

    def normalized(self, pixels: np.ndarray) -> Array:
        """What `pixels` returns as the model takes it, float32 `(N, H, W, C)`."""
        return normalize(pixels, self.preprocessing.mean, self.preprocessing.std)

    def pixels(self, pictures: Any, rng: np.random.Generator | int | None = None) -> np.ndarray:
        """The same before they are normalised, uint8 `(N, H, W, C)`."""
        images = [load_image(picture, self.channels) for picture in listed_pictures(pictures)[0]]
        transform = self.transform
        if isinstance(transform, EvalTransform):
            rows, (height, width) = [transform(image) for image in images], transform.shape
        else:
            random = self._own_random if rng is None else np.random.default_rng(rng)
            rows, height, width = [transform(image, random) for image in images], *(transform.image_size,) * 2
        return np.stack(rows) if rows else np.zeros((0, height, width, self.channels), np.uint8)


def transform_for(
    model: "ModelCard | Preprocessing | ModelLike | Any",
    train: bool | TrainTransform = False,
    *,
    image_size: int | None = None,
    exif: bool = False,
) -> PictureTransform:
    """The transform from pictures to the input of a model, with the pixels of `jeffnet validate`.

    Args:
      model: a card, or what has one, such as the result of `from_pretrained`; a name; or a `Preprocessing`.
      train: True for random crops and flips at the size of the model's training, as recipes have them unless they say
        otherwise; or a `TrainTransform` with other settings.
      image_size: height and width of the result; the model's by default.
      exif: turn pictures upright first, as their EXIF orientation says, which validation and timm do not.

    Returns:
      A function of pictures.

    Raises:
      UnknownModelError: no such model.
      ConfigError: `exif` with `train`, which has none, or a transform with several views of a picture.

    Example:
      import numpy as np
      from jeffnet import transform_for

      transform = transform_for("efficientnet_b0")
      print(transform(np.zeros((480, 640, 3), np.uint8)).shape)
    """
    card, preprocessing = getattr(model, "card", model), preprocessing_of(model)
    channels = card.in_chans if isinstance(card, ModelCard) else len(preprocessing.mean)
    if image_size is not None:
        preprocessing = preprocessing.changed(image_size=image_size, train_size=image_size)
    if train is False:
        return PictureTransform(preprocessing, channels, EvalTransform(preprocessing, exif=exif))
    if exif:
        raise ConfigError("exif is for pictures of validation: training takes them as they are stored")
    if train is True:
        train = TrainTransform.of(preprocessing)
    if train.splits != 1:
        raise ConfigError(f"a transform with {train.splits} views of a picture: the model takes one, give splits=1")
    return PictureTransform(preprocessing, channels, train)
