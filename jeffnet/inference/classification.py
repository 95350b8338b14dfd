"""What a classifier says of pictures: probabilities and names, shown as text and in notebooks."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
from PIL import Image

# Classes that are shown, and the widest that a shown picture is, in pixels.
_SHOWN, _WIDTH = 5, 160
_ROWS = 16  # pictures of a list that are shown


class Guess(NamedTuple):
    """A class and its probability."""

    name: str
    probability: float


@dataclass(frozen=True, eq=False)
class Classification:
    """What a classifier says of one picture.

    Attributes:
      probabilities: float32 `(classes,)`, which sum to 1 unless a picture can have several labels.
      classes: names, in the same order.
      pixels: the picture as the model saw it, uint8 `(H, W, C)`; None in a long list.
    """

    probabilities: np.ndarray
    classes: tuple[str, ...]
    pixels: np.ndarray | None = None

    def top(self, count: int = _SHOWN) -> list[Guess]:
        """The most probable classes, the most probable first.

        Args:
          count: how many; all, if there are fewer.

        Returns:
          Pairs `(name, probability)`.
        """
        return [Guess(self.classes[index], float(self.probabilities[index])) for index in self.indices(count)]

    def indices(self, count: int = _SHOWN) -> list[int]:
        """The numbers of the most probable classes, the most probable first.

        Args:
          count: how many; all, if there are fewer.

        Returns:
          Places in `classes`.
        """
        return np.argsort(-self.probabilities, kind="stable")[:count].tolist()

    @property
    def name(self) -> str:
        """The most probable class."""
        return self.top(1)[0].name

    def __repr__(self) -> str:
        return "\n".join(f"{probability:6.1%}  {name}" for name, probability in self.top())

    def _repr_html_(self) -> str:
        rows = "".join(_bar(guess) for guess in self.top())
        picture = "" if self.pixels is None else f'<img src="{_data_address(self.pixels)}" width="{_WIDTH}">'
        return (
            '<div style="display:flex;gap:12px;align-items:center;flex-wrap:wrap;margin:4px 0">'
            f'{picture}<div style="min-width:240px;flex:0 1 420px">{rows}</div></div>'
        )


class Classifications(Sequence[Classification]):
    """What a classifier says of several pictures; an item is of one."""

    def __init__(self, probabilities: np.ndarray, classes: tuple[str, ...], pixels: np.ndarray | None = None) -> None:
        """Of `(N, classes)` probabilities, the names of the classes, and the pictures `(N, H, W, C)`."""
        self.probabilities, self.classes, self.pixels = probabilities, classes, pixels

    def __len__(self) -> int:
        return len(self.probabilities)

    @overload
    def __getitem__(self, index: int) -> Classification: ...
    @overload
    def __getitem__(self, index: slice) -> "Classifications": ...
    def __getitem__(self, index: int | slice) -> "Classification | Classifications":
        kind = Classifications if isinstance(index, slice) else Classification
        return kind(self.probabilities[index], self.classes, None if self.pixels is None else self.pixels[index])

    @property
    def names(self) -> list[str]:
        """The most probable class of each picture."""
        return [answer.name for answer in self]

    def top(self, count: int = _SHOWN) -> list[list[Guess]]:
        """The most probable classes of each picture.

        Args:
          count: how many; all, if there are fewer.

        Returns:
          For each picture, what `Classification.top` returns.
        """
        return [answer.top(count) for answer in self]

    def __repr__(self) -> str:
        lines = [
            f"{number}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in answer.top(3))
            for number, answer in enumerate(self[:_ROWS])
        ]
        return "\n".join([*lines, *self._left_out()])

    def _repr_html_(self) -> str:
        return "".join([*(answer._repr_html_() for answer in self[:_ROWS]), *self._left_out()])

    def _left_out(self) -> list[str]:
        return [f"... and {len(self) - _ROWS} more"] if len(self) > _ROWS else []


def _bar(guess: Guess) -> str:
    # Colours that can be read on light and dark pages.
    share = 100 * guess.probability
    return (
        f'<div style="position:relative;margin:2px 0;padding:2px 6px">'
        f'<div style="position:absolute;inset:0;width:{share:.1f}%;background:rgba(70,130,180,.4);border-radius:3px">'
        f'</div><span style="position:relative">{html.escape(guess.name)}</span>'
        f'<span style="position:relative;float:right">{share:.1f} %</span></div>'
    )


def _data_address(pixels: np.ndarray) -> str:
    """A small copy of a picture as an address that holds it."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((2 * _WIDTH, 2 * _WIDTH))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
