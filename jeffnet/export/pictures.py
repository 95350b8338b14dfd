"""Pictures on which an exported file is checked: a user's, or synthetic ones."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from jeffnet.data.images import is_picture, read_image
from jeffnet.data.open import open_source
from jeffnet.data.preprocess import EvalTransform
from jeffnet.data.sources import evenly_spread, picture_files

# Cells along a side of the noises that add up to a synthetic picture. Coarse ones are stronger, as in photographs.
_CELLS = (2, 3, 5, 9, 17, 33, 65)
_BLOBS = 6


def read_pictures(data: str, transform: EvalTransform, channels: int, most: int, split: str = "val") -> np.ndarray:
    """Pictures of a data set, evenly spread over it.

    Args:
      data: any that `jeffnet.data.open.open_source` takes, or a folder of pictures without classes.
      transform: from a picture to pixels.
      channels: 3 for RGB, 1 for grey.
      most: how many, where there are more.
      split: of a data set.

    Returns:
      uint8 `(N, H, W, C)`.

    Raises:
      DatasetError: there is no such data set, or it is empty.
      ImageError: a picture cannot be decoded.
    """
    path = Path(data)
    if path.is_dir() and any(is_picture(name) for name in os.listdir(path)):
        files = picture_files(path)
        return np.stack([transform(read_image(files[place], channels)) for place in evenly_spread(len(files), most)])
    source = open_source(data, split, channels, min_images=1)
    return np.stack([transform(source[place].image) for place in evenly_spread(len(source), most)])


def synthetic_pictures(number: int, height: int, width: int, channels: int) -> np.ndarray:
    """Always the same pictures: smooth noise of several scales, and blobs of one colour.

    Returns:
      uint8 `(number, height, width, channels)`.
    """
    rng = np.random.default_rng(0)
    return np.stack([_synthetic(rng, height, width, channels) for _ in range(number)])


def _synthetic(rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    values = np.zeros((height, width, channels), np.float32)
    for cells in _CELLS:
        noise = rng.standard_normal((cells, cells, channels), np.float32) * rng.uniform(0.5, 1.5)
        planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in noise.T]
        values += np.stack([np.asarray(plane) for plane in planes], axis=-1) / cells**0.5
    y, x = np.mgrid[:1:1j*height, :1:1j*width]  # fmt: skip
    for _ in range(_BLOBS):
        (top, left), (high, wide) = rng.uniform(0, 1, 2), rng.uniform(0.05, 0.3, 2)
        inside = ((y - top) / high) ** 2 + ((x - left) / wide) ** 2 < 1
        values[inside] = rng.standard_normal(channels)
    return np.clip(128 + 55 * values, 0, 255).astype(np.uint8)
