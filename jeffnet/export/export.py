"""Models of any backend to files for other runtimes, each of them run before it gets its name."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import ModelLike
from jeffnet.backends import to_start
from jeffnet.checkpoints import describe_model
from jeffnet.data.preprocess import EvalTransform
from jeffnet.errors import ConfigError
from jeffnet.export.calibrate import CALIBRATION_IMAGES, quantized
from jeffnet.export.check import Comparison, check_export
from jeffnet.export.metadata import ExportMetadata
from jeffnet.export.network import ExportNetwork
from jeffnet.export.options import export_options
from jeffnet.export.pictures import read_pictures, synthetic_pictures
from jeffnet.export.run import exported_model
from jeffnet.export.targets import TARGETS, check_free, check_opset_target, choose_target, packages_of
from jeffnet.system.files import written_atomically
from jeffnet.weights.card import ModelCard
from jeffnet.weights.start import Start

# Pictures of the check.
_SYNTHETIC, _MOST_GIVEN = 8, 100


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
      path: of the file or folder.
      bytes: that it has, with the file beside it where it has one.
      metadata: what it says of itself.
      runtime: name and version of what ran it; None without a check.
      comparison: with the model; None without a check.
    """

    path: str
    bytes: int
    metadata: ExportMetadata
    runtime: str | None = None
    comparison: Comparison | None = None


def export_model(
    path: str | os.PathLike,
    model: Any,
    name: ModelLike | ModelCard,
    *,
    to: str | None = None,
    classes: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
    check: bool = True,
    check_with: str | None = None,
    int8: bool = False,
    calibrate_with: str | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    kernel_bits: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> ExportReport:
    """Write a model as a file for another runtime, run it there, and compare what it gives with what the model gives.

    The model stays as it is. A file that differs from it is not kept.

    Args:
      path: to write to; must not exist, its folder must.
      model: what any backend's `create_model` returns.
      name: the model's name, or the architecture that was given to `create_model`; or the card from `from_pretrained`.
      to: one of `jeffnet.export.targets.TARGETS`: 'onnx', 'tflite', 'stablehlo' or 'savedmodel'; None goes by the
        path's ending.
      classes: names of the classes in the order of the logits; the card's by default.
      preprocessing: what the model expects of pictures; the card's or the model's by default.
      check: False skips the comparison.
      check_with: pictures for it, a data set as `jeffnet validate` takes it or a folder of pictures, of which up to 100
        are used; None takes synthetic ones.
      int8: compute with 8-bit integers; for 'onnx' and 'tflite'.
      calibrate_with: pictures from which to learn the ranges of values, a data set or folder like `check_with`. A model
        that was trained with `quantize` needs none.
      calibration_images: how many of these to use.
      kernel_bits: of the integers of kernels, 7 or 8; None for those of the model's training, else 7 in 'onnx', which
        are right on every processor, and 8 in 'tflite', which has no others.
      progress: called with a line for each step.
      **options: see `jeffnet.export.options.ExportOptions`.

    Returns:
      What was written, and how far it is from the model.

    Raises:
      ConfigError: an option outside its range, or one that contradicts another.
      UnknownModelError: no such model.
      WeightsError: the model is not the one of this name, or was changed so that the file would compute something else.
      OutputError: the path exists or cannot be written.
      DatasetError: there are no such pictures.
      JeffnetError: a package is not installed, or the file differs from the model.

    Example:
      from jeffnet.export import export_model
      from jeffnet.linen import create_model

      report = export_model("b0.onnx", create_model("efficientnet_b0"), "efficientnet_b0")
      print(report.runtime, report.comparison.difference)
    """
    path = Path(path)
    target, chosen = choose_target(path, to), export_options(options)
    if chosen.batch_size is None and not TARGETS[target].any_batch:
        chosen = replace(chosen, batch_size=1)
    check_opset_target(target, chosen.opset)
    check_free(path)
    start = to_start(model)
    card, _ = describe_model(start, name, classes, preprocessing)
    if chosen.embed_labels and not card.classes:
        raise ConfigError(f"the classes of {card.model} have no names to embed: give them (classes=...)")
    if "softmax" in chosen.include and card.task != "single_label":
        raise ConfigError(f"{card.model} was trained for {card.task}, without a softmax: leave out softmax")
    if "softmax" in chosen.include and not card.num_classes:
        raise ConfigError(f"{card.model} gives features, which have no probabilities: leave out softmax")
    network = ExportNetwork.of(start, card, chosen)
    network = replace(network, options=replace(chosen, image_size=network.image_size))
    pictures = _pictures(network, check_with) if check else None
    if int8:
        network = quantized(network, target, calibrate_with, calibration_images, kernel_bits, progress)
    metadata = ExportMetadata(target, card, network.options, *_quantization(network))
    with written_atomically(path) as partial:
        progress(f"{card.model}: write")
        with packages_of(target):
            TARGETS[target].load().write(Path(partial), network, metadata)
        report = ExportReport(str(path), _bytes(Path(partial).parent), metadata)
        if pictures is not None:
            progress(f"{card.model}: run and compare")
            report = _checked(report, Path(partial), network, start, pictures, check_with is not None)
        check_free(path)  # again: another export may have taken the name in the meantime
    return report


def _quantization(network: ExportNetwork) -> tuple[str | None, int | None]:
    """How a network is quantised, in words, and the bits of its kernels."""
    if network.quantization is None:
        return None, None
    bits = network.quantization.kernel_bits
    return f"8-bit integers with ranges by {network.quantization.method}, kernels of {bits} bits", bits


def _checked(
    report: ExportReport, partial: Path, network: ExportNetwork, start: Start, pictures: np.ndarray, are_real: bool
) -> ExportReport:
    target = report.metadata.target
    with packages_of(target):
        runner = TARGETS[target].load().open_runner(partial)
    exported = exported_model(report.path, target, runner)
    comparison = check_export(exported, partial, network, start, pictures, are_real)
    return replace(report, runtime=runner.runtime, comparison=comparison)


def _pictures(network: ExportNetwork, data: str | None) -> np.ndarray:
    """Pictures to compare with; before anything is written, since they may be missing."""
    (height, width), channels = network.image_size, network.card.in_chans
    if data is None:
        return synthetic_pictures(_SYNTHETIC, height, width, channels)
    return read_pictures(data, EvalTransform(network.card.preprocessing, (height, width)), channels, _MOST_GIVEN)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
