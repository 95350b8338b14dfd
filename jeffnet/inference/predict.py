"""What a model sees in pictures."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.data.images import upright
from jeffnet.data.preprocess import EvalTransform
from jeffnet.errors import OutputError
from jeffnet.system import figures
from jeffnet.text.names import wrapped
from jeffnet.validation.answers import Forward


@dataclass(frozen=True)
class Picture:
    """A decoded picture and what to call it."""

    name: str
    image: Image.Image


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one picture, the most probable first.

    Attributes:
      name: of the picture.
      classes: names.
      probabilities: softmax of the logits, in [0, 1].
    """

    name: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


def predict(
    forward: Forward,
    variables: Any,
    pictures: Sequence[Picture],
    preprocessing: Preprocessing,
    classes: Sequence[str],
    top: int = 5,
    batch_size: int = 16,
    exif: bool = True,
) -> list[Prediction]:
    """The most probable classes of each picture.

    Args:
      forward: from `jeffnet.validation.answers.make_forward`.
      variables: of the model.
      pictures: of any sizes.
      preprocessing: what the model expects.
      classes: names in the order of the logits.
      top: number of classes; all, if there are fewer.
      batch_size: pictures that run together.
      exif: turn pictures upright first, as their EXIF orientation says; False leaves them as
        `jeffnet.validation.validate` and timm do.
    """
    predictions = []
    transform = EvalTransform(preprocessing, exif=exif)
    for start in range(0, len(pictures), batch_size):
        chosen = pictures[start : start + batch_size]
        pixels = np.stack([transform(picture.image) for picture in chosen])
        # Every batch has one shape, so that the model is compiled once.
        padded = np.zeros((min(batch_size, len(pictures)), *pixels.shape[1:]), np.uint8)
        padded[: len(chosen)] = pixels
        probabilities = np.asarray(jax.nn.softmax(forward(variables, jnp.asarray(padded))))
        for picture, row in zip(chosen, probabilities, strict=False):
            best = np.argsort(-row, kind="stable")[:top]
            names = tuple(str(classes[index]) for index in best)
            predictions.append(Prediction(picture.name, names, tuple(float(row[index]) for index in best)))
    return predictions


@figures.house_style()
def draw_predictions(
    pictures: Sequence[Picture], predictions: Sequence[Prediction], path: str | os.PathLike, exif: bool = True
) -> None:
    """Write a figure with each picture beside its most probable classes, in the format of the path's extension.

    Pictures are shown upright, as their EXIF orientation says, unless `exif` is False.

    Raises:
      OutputError: there are no pictures, or it cannot be written.
    """
    if not pictures:
        raise OutputError(f"no pictures to draw into {str(path)!r}")
    columns = min(3, len(pictures))
    rows = -(-len(pictures) // columns)
    height = max(2.3, 0.35 * max(len(prediction.classes) for prediction in predictions))
    figure = figures.new_figure(5.4 * columns, height * rows)
    grid = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1, 1.2] * columns).reshape(-1, 2)
    for axes in grid.reshape(-1):
        axes.axis("off")
    for (left, right), picture, prediction in zip(grid, pictures, predictions, strict=False):
        image = upright(picture.image) if exif else picture.image
        left.imshow(image, cmap="gray" if image.mode == "L" else None, vmin=0, vmax=255)
        left.set_title(wrapped(Path(picture.name).name, 28), fontsize=9)
        right.axis("on")
        places = range(len(prediction.classes))
        right.barh(places, prediction.probabilities, color=figures.SKY, alpha=0.5)
        for place, name, share in zip(places, prediction.classes, prediction.probabilities, strict=True):
            right.text(0.21, place, f"{share:.1%}", va="center", ha="right", fontsize=9)
            right.text(0.25, place, wrapped(name, 26, 2), va="center", fontsize=9)
        right.set(xlim=(0, 1), yticks=[], xticks=[], ylim=(len(prediction.classes) - 0.5, -0.5))
        right.spines[:].set_visible(False)
        right.grid(False)
    figures.save_figure(figure, path)
