"""TFLite files, which LiteRT runs on phones and elsewhere.

The file takes a fixed number of pictures. It is a float32 graph; 'float16' halves its weights.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.errors import WeightsError, first_line
from jeffnet.export.batches import check_pictures, in_batches
from jeffnet.export.checksum import check_tflite, tflite_archive
from jeffnet.export.metadata import ExportMetadata, labels, metadata_json, parse_metadata
from jeffnet.export.network import ExportNetwork
from jeffnet.export.tflite_convert import convert
from jeffnet.export.tflite_file import description, halve_weights, name_tensors, pack, put_description, schema, unpack
from jeffnet.export.tflite_quantized import quantize_model
from jeffnet.system.files import write_file
from jeffnet.system.reading import read_file

_log = logging.getLogger("jeffnet")
# Of inputs that are quantised. Their range is that of normalised pictures, a few units, or that of pixels, 255.
_INTEGERS, _PIXEL_RANGE = ("int8", "uint8"), 100


def write(path: Path, network: ExportNetwork, metadata: ExportMetadata) -> None:
    """Write the file, which holds its description.

    Raises:
      ConfigError: no converter is installed, or it cannot convert the network.
      OutputError: it cannot be written.
    """
    write_file(path, serialized(network, metadata))


def serialized(network: ExportNetwork, metadata: ExportMetadata) -> bytes:
    """The bytes of the file.

    Raises:
      ConfigError: no converter is installed, or it cannot convert the network.
      WeightsError: the package that describes the format is not installed.
    """
    schema()  # before long work
    half = network.options.dtype == "float16"
    content, points, converter = convert(replace(network, options=replace(network.options, dtype="float32")))
    _log.debug("converted by %s", converter)
    model = unpack(content, "the converted network")
    model.description = f"{network.card.model}, exported by jeffnet through {converter}"
    if points:
        as_they_are = network.options.layout == "nhwc" and not network.takes_pixels
        given = points[-1] if "softmax" not in network.options.include else "probabilities"
        name_tensors(model, points, points[0] if as_they_are else "input", given)
    if half:
        halve_weights(model)
    if network.quantization:
        model = unpack(quantize_model(pack(model), network), "the quantised network")
    put_description(model, metadata_json(metadata))
    packed = pack(model)
    # Where TFLite's own tools have the names of the classes.
    texts = {"labels.txt": "\n".join(labels(metadata))} if metadata.options.embed_labels else {}
    return packed + tflite_archive(packed, texts)


class _Runner:
    """A file in LiteRT's interpreter, see `jeffnet.export.targets.Runner`."""

    def __init__(self, path: Path, threads: int | None, **options: Any) -> None:
        from importlib.metadata import version

        self._source = str(path)
        try:
            content = read_file(path, None)
        except OSError as error:
            raise WeightsError(f"cannot read {self._source!r}: {error.strerror or error}") from error
        check_tflite(content, self._source)
        text = description(unpack(content, self._source))
        self.metadata = None if text is None else parse_metadata(text, self._source)
        self.runtime = f"ai-edge-litert {version('ai-edge-litert')}"
        from ai_edge_litert.interpreter import Interpreter

        try:
            self._interpreter = Interpreter(model_content=content, num_threads=threads, **options)
            self._interpreter.allocate_tensors()
            (self._input,), (self._output,) = (
                self._interpreter.get_input_details(),
                self._interpreter.get_output_details(),
            )
        except Exception as error:  # whatever the interpreter raises
            raise WeightsError(f"LiteRT cannot run {self._source!r}: {first_line(error)}") from error
        self.shape = tuple(int(size) for size in self._input["shape"])
        self.dtype = np.dtype(self._input["dtype"]).name
        scale, self._zero = self._input["quantization"]
        self._scale = float(scale)
        if self._scale and self.dtype in _INTEGERS:  # they stand for normalised pictures, or for pixels
            self.dtype = "float32" if self._scale * 255 < _PIXEL_RANGE else "uint8"

    def __call__(self, images: Any) -> np.ndarray:
        images = np.asarray(images)
        check_pictures(self._source, images, self.shape, self.dtype)
        return in_batches(self._run, images.astype(self.dtype), self.shape[0])

    def _run(self, batch: np.ndarray) -> np.ndarray:
        self._interpreter.set_tensor(self._input["index"], self._as_input(batch))
        self._interpreter.invoke()
        return self._floats(self._output)

    def _floats(self, tensor: dict[str, Any]) -> np.ndarray:
        """What a tensor has, or what its integers stand for."""
        values = self._interpreter.get_tensor(tensor["index"])
        if np.issubdtype(values.dtype, np.floating):
            return values
        scale, zero = tensor["quantization"]
        return (values.astype(np.float32) - zero) * np.float32(scale)

    def _as_input(self, batch: np.ndarray) -> np.ndarray:
        """Pictures as the integers that stand for them, where the file takes such."""
        dtype = np.dtype(self._input["dtype"])
        if not self._scale or dtype.name not in _INTEGERS:
            return batch
        steps, limits = np.rint(batch.astype(np.float32) / self._scale) + self._zero, np.iinfo(dtype)
        return np.clip(steps, limits.min, limits.max).astype(dtype)

    def values(self, images: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The values of points for one picture after another."""
        tensors = {each["name"]: each for each in self._interpreter.get_tensor_details()}
        found: dict[str, list[np.ndarray]] = {name: [] for name in names if name in tensors}
        for start in range(0, len(images), self.shape[0]):
            self(images[start : start + self.shape[0]])
            count = len(images[start : start + self.shape[0]])
            for name, values in found.items():
                values.append(self._floats(tensors[name])[:count])
        return {name: np.concatenate(values) for name, values in found.items()}


def open_runner(path: Path, threads: int | None = None) -> _Runner:
    """A file in LiteRT's interpreter.

    Raises:
      WeightsError: it cannot be read, is something else, or cannot be run; or LiteRT is not installed.
    """
    return _Runner(path, threads)


def values(path: Path, images: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The values on the way of a file, see `jeffnet.export.targets.TargetModule`.

    Raises:
      WeightsError: as `open_runner`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*experimental_preserve_all_tensors", UserWarning)  # they are wanted
        runner = _Runner(path, None, experimental_preserve_all_tensors=True)
    return runner.values(images, names)
