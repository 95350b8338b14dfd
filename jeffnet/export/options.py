"""What an exported file is asked to be."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from jeffnet.errors import ConfigError, check_choice

LAYOUTS = ("nhwc", "nchw")
DTYPES = ("float32", "float16")
INCLUDED = ("preprocessing", "softmax")


@dataclass(frozen=True)
class ExportOptions:
    """What an exported file takes and gives.

    Attributes:
      batch_size: pictures of a call; None for any number.
      image_size: height and width in pixels; None for the model's.
      layout: of its pictures, 'nhwc' or 'nchw'.
      dtype: of weights and arithmetic, 'float32' or 'float16'. Pictures and logits are float32 for both.
      include: what the file does besides: 'preprocessing' takes uint8 pixels and normalises them, 'softmax' gives
        probabilities instead of logits.
      embed_labels: store the names of the classes, for people, where other programs look for them.
      opset: of ONNX; None for the oldest that has all operations.

    Raises:
      ConfigError: a value outside its range.
    """

    batch_size: int | None = None
    image_size: tuple[int, int] | None = None
    layout: str = "nhwc"
    dtype: str = "float32"
    include: tuple[str, ...] = ()
    embed_labels: bool = False
    opset: int | None = None

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, LAYOUTS)
        check_choice("dtype", self.dtype, DTYPES)
        if isinstance(self.include, str):
            raise ConfigError(f"include {self.include!r} is a text: give a tuple, such as ('softmax',)")
        for name in self.include:
            check_choice("include", name, INCLUDED)
        object.__setattr__(self, "include", tuple(self.include))
        for name in ("batch_size", "opset"):
            if (number := getattr(self, name)) is not None:
                object.__setattr__(self, name, _whole(name, number))
        if self.image_size is not None:
            sides = self.image_size if isinstance(self.image_size, (tuple, list)) else ()
            if len(sides) != 2:
                raise ConfigError(f"image_size {self.image_size!r}: give one side, or height and width")
            object.__setattr__(self, "image_size", tuple(_whole("image_size", side) for side in sides))


def export_options(options: Mapping[str, Any]) -> ExportOptions:
    """Options by name; `image_size` may be one side of square pictures.

    Raises:
      ConfigError: no such option, or a value outside its range.
    """
    names = [field.name for field in fields(ExportOptions)]
    for name in options:
        check_choice("option", name, names)
    size = options.get("image_size")
    return ExportOptions(**{**options, **({"image_size": (size, size)} if hasattr(size, "__index__") else {})})


def _whole(name: str, number: Any) -> int:
    """A number of at least 1; NumPy's, which JSON does not take, become Python's."""
    # Python counts True as a whole number.
    if isinstance(number, bool) or not hasattr(number, "__index__"):
        raise ConfigError(f"{name} {number!r} is not a whole number")
    if number < 1:
        raise ConfigError(f"{name} {number} is below 1")
    return operator.index(number)
