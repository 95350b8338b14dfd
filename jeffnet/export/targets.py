"""The formats of exported files."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from jeffnet.export.metadata import ExportMetadata
    from jeffnet.export.network import ExportNetwork


class Runner(Protocol):
    """An exported file in its own runtime.

    Attributes:
      metadata: what the file says of itself; None for a file that jeffnet did not write.
      runtime: name and version of what runs it.
      shape: of the pictures that it takes, as the file states it; None for a side that may be any.
      dtype: of these pictures, such as 'float32'.
    """

    metadata: "ExportMetadata | None"
    runtime: str
    shape: tuple[int | None, ...]
    dtype: str

    def __call__(self, images: Any) -> Any:
        """What the file gives for pictures as it takes them, of any number that it takes: a NumPy array."""
        ...


class TargetModule(Protocol):
    """The module of a target.

    One whose files can be asked for values on the way also has
    `values(path, images, names) -> dict[str, numpy.ndarray]`: those of `names`, as `FoldedNetwork` calls them, that the
    file has, maps as `(N, H, W, C)`. The check of an export uses it to say which layer differs.
    """

    def write(self, path: Path, network: "ExportNetwork", metadata: "ExportMetadata") -> None:
        """Write the file, or folder, to a path whose name may differ from the final one."""
        ...

    def open_runner(self, path: Path, threads: int | None = None) -> Runner:
        """An exported file, ready to run; `threads` is for runtimes that take a number."""
        ...


@dataclass(frozen=True)
class Target:
    """A format of exported files.

    Attributes:
      module: its `TargetModule`.
      endings: of its files; the first is the usual one. '' for a folder.
      extra: of jeffnet, that installs what writing and running it needs.
    """

    module: str
    endings: tuple[str, ...]
    extra: str

    def load(self) -> TargetModule:
        """Its module."""
        return cast(TargetModule, importlib.import_module(self.module))


TARGETS: dict[str, Target] = {
    "onnx": Target("jeffnet.export.onnx", (".onnx",), "onnx"),
    "tflite": Target("jeffnet.export.tflite", (".tflite",), "tflite"),
    "stablehlo": Target("jeffnet.export.stablehlo", (".stablehlo",), "export"),
    "savedmodel": Target("jeffnet.export.savedmodel", ("",), "tf"),
}
