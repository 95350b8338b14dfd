"""The formats of exported files."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from jeffnet.errors import ConfigError, EndingError, JeffnetError, OutputError, check_choice
from jeffnet.export.description import BESIDE
from jeffnet.system.extras import install
from jeffnet.system.files import check_absent

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
      any_batch: whether a file can take any number of pictures; otherwise it takes one unless asked for more.
      kernel_bits: of the kernels of its files of 8-bit integers; the first unless asked for another. None have integers
        where there is none.
    """

    module: str
    endings: tuple[str, ...]
    extra: str
    any_batch: bool = True
    kernel_bits: tuple[int, ...] = ()

    def load(self) -> TargetModule:
        """Its module."""
        return cast(TargetModule, importlib.import_module(self.module))


TARGETS: dict[str, Target] = {
    "onnx": Target("jeffnet.export.onnx", (".onnx",), "onnx", kernel_bits=(7, 8)),
    "tflite": Target("jeffnet.export.tflite", (".tflite",), "tflite", any_batch=False, kernel_bits=(8,)),
    "stablehlo": Target("jeffnet.export.stablehlo", (".stablehlo",), "export"),
    "savedmodel": Target("jeffnet.export.savedmodel", ("",), "tf"),
}


def has_ending(path: str | os.PathLike) -> bool:
    """Whether a path ends like a file of `TARGETS`."""
    return Path(path).suffix.lower() in {ending for target in TARGETS.values() for ending in target.endings if ending}


def choose_target(path: Path, to: str | None = None) -> str:
    """The format in which to write a file.

    Args:
      path: to write to.
      to: one of `TARGETS`; None goes by the ending of the path.

    Raises:
      ConfigError: no such format.
      EndingError: files of this format have another ending, or no format has this one.
    """
    ending = path.suffix.lower()
    of_ending = next((name for name, target in TARGETS.items() if ending in target.endings), None)
    if to is None:
        if of_ending is None:
            known = ", ".join(f"*{target.endings[0]} ({name})" for name, target in TARGETS.items() if target.endings[0])
            folder = next(name for name, target in TARGETS.items() if "" in target.endings)
            raise EndingError(
                f"cannot export to {str(path)!r}: give a name such as {known}, or one without an ending ({folder})"
            )
        return of_ending
    check_choice("target", to, TARGETS)
    endings = TARGETS[to].endings
    # A folder may have any name that is not one of another format's files.
    if ending in endings or ("" in endings and of_ending is None):
        return to
    wanted = f"ends in {' or '.join(filter(None, endings))}" if any(endings) else "is a folder's"
    raise EndingError(f"cannot export to {str(path)!r} as {to}: give a name that {wanted}")


def check_free(path: Path) -> None:
    """Raises OutputError where a file cannot be written, or would overwrite one."""
    if not path.name:
        raise OutputError(f"cannot write {str(path)!r}: give the name of a file")
    for place in (path, path.with_name(path.name + BESIDE)):
        check_absent(place)
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {str(path)!r}: its folder does not exist, make it")


def check_opset_target(target: str, opset: int | None) -> None:
    """Raises ConfigError where an opset is asked for and the format has none."""
    if opset is not None and target != "onnx":
        raise ConfigError(f"opset {opset} is for ONNX files, this is {target}: leave it out")


@contextmanager
def packages_of(target: str) -> Iterator[None]:
    """Within it, a package of a format that is not installed is a JeffnetError that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise JeffnetError(
            f"{target} files need {error.name}, which is not installed: {install(TARGETS[target].extra)}"
        ) from error


def check_int8(
    int8: bool,
    target: str,
    dtype: str = "float32",
    calibrate_with: str | None = None,
    kernel_bits: int | None = None,
) -> None:
    """Raises ConfigError where a target has no 8-bit integers, or options contradict them."""
    if not int8:
        for option, value in {"calibration with": calibrate_with, "kernel bits": kernel_bits}.items():
            if value is not None:
                raise ConfigError(f"{option} {value} is for 8-bit integers: ask for these too (int8), or leave it out")
        return
    able = [name for name, entry in TARGETS.items() if entry.kernel_bits]
    if target not in able:
        raise ConfigError(f"{target} files have no 8-bit integers here: export to {' or '.join(able)}")
    if dtype != "float32":
        raise ConfigError(f"8-bit integers and dtype {dtype} contradict one another: give one of them")
    if kernel_bits is not None and kernel_bits not in (bits := TARGETS[target].kernel_bits):
        raise ConfigError(f"kernels of {target} files have {' or '.join(map(str, bits))} bits, not {kernel_bits}")
