"""The formats of weights files. To add one, write its module here and give it an entry in `FORMATS`.

Nothing of a format is imported before the table is searched, so that a command line can name its forms.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from jeffnet.weights.formats.interface import Contents, Probe, WeightsFile


class FormatModule(Protocol):
    """What the module of a format has. A path may also be of a folder, or the prefix of several files."""

    def sniff(self, probe: "Probe") -> bool:
        """Whether a file has this format. Formats are detected by content, not by extension."""
        ...

    def read(self, path: Path) -> "WeightsFile":
        """What the file holds; arrays are read when they are used. Raises WeightsError if it cannot be read."""
        ...

    def write(self, path: Path, contents: "Contents") -> None:
        """Write a model. Raises WeightsError or OutputError if the format cannot hold it.

        The caller moves what was written into place, so that half a file never has the final name.
        """
        ...


@dataclass(frozen=True)
class Format:
    """One entry of the table.

    Attributes:
      module: its name in this package.
      forms: whose names and layouts it can write; the first is the default.
      endings: extensions of its files, in lower case.
    """

    module: str
    forms: tuple[str, ...]
    endings: tuple[str, ...]

    def load(self) -> FormatModule:
        """The module."""
        return cast(FormatModule, importlib.import_module(f"{__name__}.{self.module}"))


# In the order in which a file is compared with them.
FORMATS = (
    Format("safetensors", ("jeffnet", "timm", "efficientnet_pytorch"), (".safetensors",)),
    Format("tensorflow", ("tensorflow",), (".ckpt",)),
    Format("orbax", ("nnx",), (".ckpt",)),
    Format("pytorch", ("timm", "efficientnet_pytorch"), (".pth", ".pt", ".tar", ".bin")),
    Format("npz", ("npz", "objax"), (".npz",)),
    Format("keras", ("keras",), (".keras", ".h5")),
    Format("msgpack", ("linen",), (".msgpack",)),
)
# Endings of the files of `jeffnet export`, which are no weights; those of `jeffnet.export.targets.TARGETS`.
EXPORTED = (".onnx", ".tflite", ".stablehlo")
# The forms in which `jeffnet.checkpoints` writes a model.
FORMS = tuple(dict.fromkeys(form for format in FORMATS for form in format.forms))


def formats_of(path: Path) -> tuple[Format, ...]:
    """The formats whose files have names with the ending of this one; all of them if none has."""
    return tuple(format for format in FORMATS if path.suffix.lower() in format.endings) or FORMATS
