"""What a model sees in pictures."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jeffnet.data.images import upright
from jeffnet.data.preprocess import EvalTransform
from jeffnet.errors import OutputError
from jeffnet.inference.forward import Forward, probabilities
from jeffnet.system import figures
from jeffnet.system.files import write_file
from jeffnet.text.names import utf8, wrapped
from jeffnet.weights.card import ModelCard

# Smaller probabilities are 0.0 % in a table.
_LEAST_SHOWN = 0.0005
_MARKS = {True: ("✓", figures.GREEN), False: ("✗", figures.RED)}


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Attributes:
      name: what to call it.
      image: its pixels.
      label: number of its class among the model's; None if that is not known.
    """

    name: str
    image: Image.Image
    label: int | None = None


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one picture, the most probable first.

    Attributes:
      name: of the picture.
      classes: names for people.
      probabilities: softmax of the logits, in [0, 1].
      indices: of the classes among the logits.
      identifiers: what the model's training data call the classes, such as `n01440764`; None for those without a name.
      label: name of the picture's own class; None if that is not known.
      right: whether the most probable class is its own; None if that is not known.
      is_numbers: whether these are no classes but named numbers, in the place of `probabilities`.
    """

    name: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    indices: tuple[int, ...]
    identifiers: tuple[str | None, ...]
    label: str | None = None
    right: bool | None = None
    is_numbers: bool = False

    def text(self, value: float) -> str:
        """A probability or number for people."""
        return f"{value:.4g}" if self.is_numbers else f"{value:.1%}"

    def shown(self) -> Iterator[tuple[str, float]]:
        """Names and probabilities, without those that would be shown as 0.0 %."""
        pairs = zip(self.classes, self.probabilities, strict=True)
        return ((name, share) for name, share in pairs if self.is_numbers or not share < _LEAST_SHOWN)  # NaN is shown


def predict(
    forward: Forward,
    variables: Any,
    pictures: Sequence[Picture],
    card: ModelCard,
    classes: Sequence[str],
    top: int = 5,
    batch_size: int = 16,
    exif: bool = True,
) -> list[Prediction]:
    """The most probable classes of each picture.

    Args:
      forward: from `jeffnet.inference.forward.make_forward`.
      variables: of the model.
      pictures: of any sizes.
      card: of the model. Of several labels, all above their thresholds (0.5 without) are predicted, any number of them;
        in regression all numbers.
      classes: names for people, in the order of the logits.
      top: number of classes for a single label; all, if there are fewer.
      batch_size: pictures that run together.
      exif: turn pictures upright first, as their EXIF orientation says; False leaves them as
        `jeffnet.validation.validate` and timm do.
    """
    predictions = []
    transform, identifiers = EvalTransform(card.preprocessing, exif=exif), card.classes
    for start in range(0, len(pictures), batch_size):
        chosen = pictures[start : start + batch_size]
        pixels = np.stack([transform(picture.image) for picture in chosen])
        # Every batch has one shape, so that the model is compiled once.
        padded = np.zeros((min(batch_size, len(pictures)), *pixels.shape[1:]), np.uint8)
        padded[: len(chosen)] = pixels
        outputs = np.asarray(forward(variables, padded))
        values = outputs if card.task == "regression" else probabilities(outputs, card)
        for picture, row in zip(chosen, values, strict=False):
            best = _predicted(row, card, top)
            prediction = Prediction(
                picture.name,
                tuple(str(classes[index]) for index in best),
                tuple(float(row[index]) for index in best),
                tuple(best),
                tuple(identifiers[index] for index in best) if identifiers else (None,) * len(best),
                None if picture.label is None else str(classes[picture.label]),
                None if picture.label is None else picture.label == best[0],
                card.task == "regression",
            )
            predictions.append(prediction)
    return predictions


def _predicted(values: np.ndarray, card: ModelCard, top: int) -> list[int]:
    """The outputs of a picture that are predicted of it, the most probable first."""
    if card.task == "regression":
        return list(range(len(values)))
    order = np.argsort(-values, kind="stable").tolist()
    if card.task == "single_label":
        return order[:top]
    thresholds = card.thresholds or (0.5,) * len(values)
    return [index for index in order if values[index] > thresholds[index]]


def write_predictions(path: str | os.PathLike, predictions: Sequence[Prediction]) -> None:
    """Write a CSV file with a row for each picture and class.

    Raises:
      OutputError: it cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("picture", "label", "rank", "index", "identifier", "class", "probability"))
    for each in predictions:
        columns = each.indices, each.identifiers, each.classes, each.probabilities
        for rank, (index, identifier, name, share) in enumerate(zip(*columns, strict=True), start=1):
            names = [utf8(text or "") for text in (each.name, each.label, identifier, name)]
            writer.writerow((*names[:2], rank, index, *names[2:], f"{share:.6g}"))
    write_file(path, text.getvalue())


@figures.house_style()
def draw_predictions(
    pictures: Sequence[Picture],
    predictions: Sequence[Prediction],
    path: str | os.PathLike,
    exif: bool = True,
    explained: Sequence[Image.Image] = (),
) -> None:
    """Write a figure with each picture beside its most probable classes, in the format of the path's extension.

    Pictures are shown upright, as their EXIF orientation says, unless `exif` is False. Those of `explained`, one for
    each picture, stand beside them.

    Raises:
      OutputError: there are no pictures, or it cannot be written.
    """
    if not pictures:
        raise OutputError(f"no pictures to draw into {str(path)!r}")
    columns = min(2 if explained else 3, len(pictures))
    rows = -(-len(pictures) // columns)
    height = max(2.5, 0.35 * max(len(prediction.classes) for prediction in predictions))
    widths = [1, 1, 1.4] if explained else [1, 1.4]
    figure = figures.new_figure(2.5 * sum(widths) * columns, height * rows)
    grid = figure.subplots(rows, len(widths) * columns, squeeze=False, width_ratios=widths * columns)
    grid = grid.reshape(-1, len(widths))
    for cells, shown in zip(grid, explained, strict=False):
        cells[1].imshow(shown)
    for axes in grid.reshape(-1):
        axes.axis("off")
    # A folder that is the same of all says nothing.
    folders = {Path(picture.name).parent for picture in pictures}
    for (left, *_, right), picture, prediction in zip(grid, pictures, predictions, strict=False):
        image = upright(picture.image) if exif else picture.image
        left.imshow(image, cmap="gray" if image.mode == "L" else None, vmin=0, vmax=255)
        shown = Path(picture.name).parts[-2 if len(folders) > 1 else -1 :]
        left.set_title("\n".join(wrapped(part, 30, 1) for part in shown), fontsize=8)
        if prediction.label is not None:
            mark, colour = _MARKS[bool(prediction.right)]
            right.set_title(f"{mark} {wrapped(prediction.label, 38, 1)}", fontsize=9, loc="left", color=colour)
        _draw_bars(right, prediction)
    figures.save_figure(figure, path)


def _draw_bars(axes: Any, prediction: Prediction) -> None:
    rows = list(prediction.shown())
    axes.axis("on")
    shares = [0.0 if prediction.is_numbers else share for _, share in rows]
    axes.barh(range(len(rows)), shares, color=figures.SKY, alpha=0.5)
    for place, (name, share) in enumerate(rows):
        axes.text(0.15, place, prediction.text(share), va="center", ha="right", fontsize=9)
        axes.text(0.18, place, wrapped(name, 34, 2), va="center", fontsize=9)
    axes.set(xlim=(0, 1), yticks=[], xticks=[], ylim=(max(len(prediction.classes), 1) - 0.5, -0.5))
    axes.spines[:].set_visible(False)
    axes.grid(False)
