"""Exported files as models: pictures in, scores out, whatever the file's format and its layout of pictures.

from jeffnet.export.run import open_exported

model = open_exported("b0.onnx")
scores = model(pixels)  # (N, H, W, C), 0 to 255
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.arch.imagenet import known_classes
from jeffnet.arch.preprocessing import LARGEST_IMAGE, per_channel
from jeffnet.arch.zoo import ModelLike, model_preprocessing, own_spec, resolve_name
from jeffnet.errors import InputError, JeffnetError, WeightsError, first_line
from jeffnet.export.batches import in_batches
from jeffnet.export.metadata import BESIDE
from jeffnet.export.targets import TARGETS, Runner, packages_of
from jeffnet.system.reading import check_file, parse_json, read_text
from jeffnet.weights.card import ModelCard

# Probabilities of 0 have no logarithm.
LEAST_PROBABILITY = 1e-30
_CHANNELS = (1, 3)
# Of pictures, as `ExportedModel.prepare` makes them.
_DTYPES = ("uint8", "float16", "float32", "float64")


@dataclass(frozen=True)
class ExportedModel:
    """An exported file, ready to run.

    Attributes:
      path: of the file.
      target: its format, one of `jeffnet.export.targets.TARGETS`.
      runner: the file in its runtime.
      card: of the model.
      image_size: height and width of the pictures.
      layout: of the pictures that the file takes, 'nhwc' or 'nchw'.
      batch_size: pictures of one run of the file; None for any number.
      gives_probabilities: whether the file ends in a softmax; None where it does not say so.
    """

    path: str
    target: str
    runner: Runner
    card: ModelCard
    image_size: tuple[int, int]
    layout: str
    batch_size: int | None
    gives_probabilities: bool | None

    @property
    def takes_pixels(self) -> bool:
        """Whether the file itself normalises."""
        return np.dtype(self.runner.dtype) == np.uint8

    @property
    def dtype(self) -> str:
        """Of weights and arithmetic, as far as the file says it."""
        metadata = self.runner.metadata
        return (metadata.quantization and "int8") or metadata.options.dtype if metadata else "unknown"

    def __call__(self, pixels: Any) -> np.ndarray:
        """Scores of pictures: logits, or where the file gives probabilities their logarithms.

        Args:
          pixels: uint8 or float `(N, H, W, C)`, 0 to 255.

        Returns:
          float32 `(N, classes)`.

        Raises:
          InputError: the pictures have another size than the file's.
          WeightsError: the file cannot run.
        """
        outputs = self.run(self.prepare(pixels))
        gives_probabilities = self.gives_probabilities
        if gives_probabilities is None:
            gives_probabilities = bool((outputs >= 0).all() and np.allclose(outputs.sum(-1), 1, atol=1e-3))
        return np.log(np.maximum(outputs, LEAST_PROBABILITY)) if gives_probabilities else outputs

    def prepare(self, pixels: Any) -> np.ndarray:
        """Pictures as the file takes them: normalised unless it does that, in its layout.

        Args:
          pixels: `(N, H, W, C)`, 0 to 255.

        Returns:
          What `run` takes.
        """
        pixels = np.asarray(pixels)
        expected = (*self.image_size, self.card.in_chans)
        if pixels.shape[1:] != expected:
            raise InputError(f"{self.path!r} takes pictures of shape {expected}, not {pixels.shape[1:]}")
        if self.takes_pixels:
            images = pixels if pixels.dtype == np.uint8 else np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        else:
            preprocessing, channels = self.card.preprocessing, self.card.in_chans
            mean = np.asarray(per_channel("mean", preprocessing.mean, channels), np.float32)
            std = np.asarray(per_channel("std", preprocessing.std, channels), np.float32)
            images = ((pixels.astype(np.float32) / 255 - mean) / std).astype(self.runner.dtype)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if self.layout == "nchw" else images

    def run(self, images: np.ndarray) -> np.ndarray:
        """What the file gives for any number of pictures, in batches of its size.

        Args:
          images: as the file takes them, see `prepare`.

        Returns:
          Its outputs, one for each picture.

        Raises:
          WeightsError: it fails, gives something else than scores, or not as many as its description has classes.
        """
        try:
            outputs = in_batches(lambda batch: np.asarray(self.runner(batch)), images, self.batch_size)
        except Exception as error:
            raise WeightsError(f"{self.path!r} fails in {self.runner.runtime}: {first_line(error)}") from error
        if outputs.dtype.kind not in "fV":  # bfloat16 is of kind V
            raise WeightsError(f"{self.path!r} gives {outputs.dtype}, not scores: export it without what follows them")
        if self.card.num_classes and outputs.shape[-1] != self.card.num_classes:
            raise WeightsError(
                f"{self.path!r} gives arrays of shape {outputs.shape[1:]} for a picture, but is described as a model "
                f"of {self.card.num_classes} classes: export it again"
            )
        return outputs.astype(np.float32)


def open_exported(path: str | os.PathLike, name: ModelLike | None = None, threads: int | None = None) -> ExportedModel:
    """Open an exported file; its format is found by its content.

    Args:
      path: of an ONNX, TFLite or StableHLO file, or of the folder of a SavedModel.
      name: of the model, for a file that another program has written: its preprocessing is then the model's.
      threads: that its runtime may use; None leaves that to the runtime.

    Returns:
      The model.

    Raises:
      WeightsError: no such file, one of another format, a damaged one, or one that does not say which model it is.
      JeffnetError: its runtime is not installed.
    """
    path = os.fspath(path)
    target = find_target(path)
    with packages_of(target), _damage(path, target):
        runner = TARGETS[target].load().open_runner(Path(path), threads)
    return exported_model(path, target, runner, name)


def content_hash(path: str | os.PathLike) -> str:
    """SHA-256 of a file; of a folder, of the names of its files and their SHA-256.

    Raises:
      WeightsError: it cannot be read.
    """
    place = Path(path)
    try:
        if place.is_dir():
            files = sorted(file for file in place.rglob("*") if file.is_file())
            lines = "".join(f"{content_hash(file)} {file.relative_to(place)}\n" for file in files)
            return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
        check_file(place, None)
        with open(place, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{os.fspath(path)!r} cannot be read: {error.strerror}") from error


def exported_model(path: str, target: str, runner: Runner, name: ModelLike | None = None) -> ExportedModel:
    """The model of a file that is open; see `open_exported` for its arguments."""
    if runner.dtype not in _DTYPES:
        raise WeightsError(f"{path!r} takes pictures of {runner.dtype}: export it for float32 or uint8")
    metadata = runner.metadata
    if metadata is not None:
        if name is not None and not _is_of(metadata.card, name):
            raise WeightsError(f"{path!r} is of {metadata.card.model}, not of {resolve_name(name)}: give no name")
        options, side = metadata.options, metadata.card.preprocessing.image_size
        probabilities = "softmax" in options.include
        size = options.image_size or (side, side)
        return ExportedModel(
            path, target, runner, metadata.card, size, options.layout, options.batch_size, probabilities
        )
    if name is None:
        raise WeightsError(
            f"{path!r} does not say how its pictures are prepared, since another program wrote it: give the name of "
            "the model whose preprocessing it takes (--model NAME; in Python as the argument after the path)"
        )
    layout, sides, channels = _pictures_of(path, runner.shape)
    preprocessing = model_preprocessing(name)
    size = tuple(side or preprocessing.image_size for side in sides)
    if max(size) > LARGEST_IMAGE:
        raise WeightsError(f"{path!r} takes pictures of {size[0]}x{size[1]}: none have over {LARGEST_IMAGE:,} a side")
    card = ModelCard(resolve_name(name), 0, channels, preprocessing, spec=own_spec(name))
    model = ExportedModel(path, target, runner, card, (size[0], size[1]), layout, runner.shape[0], None)
    shape = model(np.zeros((1, *size, channels), np.uint8)).shape[1:]
    if len(shape) != 1:
        raise WeightsError(f"{path!r} gives arrays of shape {shape} for a picture, not a score for each class")
    (classes,) = shape
    card = ModelCard(card.model, classes, channels, preprocessing, known_classes(classes), spec=card.spec)
    return ExportedModel(path, target, runner, card, model.image_size, layout, model.batch_size, None)


def _is_of(card: ModelCard, name: ModelLike) -> bool:
    spec = own_spec(name)
    return resolve_name(name) == card.model or (spec is not None and spec == card.spec)


def find_target(path: str) -> str:
    """The format of an exported file, by its content.

    Raises:
      WeightsError: no such file, or it has another format.
    """
    place = Path(path)
    if place.is_dir():
        if (place / "saved_model.pb").is_file():
            return "savedmodel"
        raise WeightsError(f"{path!r} is a folder without a saved_model.pb: give an exported file, or a SavedModel")
    try:
        check_file(place, None)  # opening a pipe would wait for its writer
        with open(place, "rb") as file:
            start = file.read(16)
    except OSError as error:
        raise WeightsError(f"{path!r} cannot be read: {error.strerror}") from error
    for target, has_start in _STARTS.items():
        if has_start(start):
            return target
    if _is_stablehlo(place):
        return "stablehlo"
    raise WeightsError(
        f"{path!r} is no exported model: give an ONNX, TFLite or StableHLO file, or the folder of a SavedModel"
    )


# ONNX files are messages of protobuf: the version of the format, then a text or a number.
_STARTS: dict[str, Callable[[bytes], bool]] = {
    "tflite": lambda start: start[4:8] == b"TFL3",
    "onnx": lambda start: len(start) > 2 and start[0] == 0x08 and 3 <= start[1] < 0x20 and start[2] < 0x80,
}


def _is_stablehlo(path: Path) -> bool:
    """Whether a description of a StableHLO file lies beside it."""
    try:
        return parse_json(read_text(path.with_name(path.name + BESIDE)))["target"] == "stablehlo"
    except (OSError, ValueError, KeyError, TypeError):
        return path.suffix.lower() in TARGETS["stablehlo"].endings


def _pictures_of(path: str, shape: tuple[int | None, ...]) -> tuple[str, tuple[int | None, ...], int]:
    """Layout, sides and channels of pictures of this shape."""
    if len(shape) == 4:
        if shape[3] in _CHANNELS:
            return "nhwc", shape[1:3], shape[3]
        if shape[1] in _CHANNELS:
            return "nchw", shape[2:4], shape[1]
    raise WeightsError(f"{path!r} takes arrays of shape {shape}, which are no pictures")


@contextmanager
def _damage(path: str, target: str) -> Iterator[None]:
    """Within it, errors of a runtime are WeightsErrors that name the file."""
    try:
        yield
    except (JeffnetError, ImportError):
        raise
    except Exception as error:
        raise WeightsError(f"{path!r} cannot be opened as {target}, it may be damaged: {first_line(error)}") from error
