"""ONNX files, written straight from a folded plan, and ONNX Runtime, which runs them."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.errors import ConfigError, InputError, OutputError, WeightsError, first_line
from jeffnet.export.checksum import CHECKSUM_KEY, check_onnx, onnx_checksum
from jeffnet.export.metadata import METADATA_KEY, ExportMetadata, labels, metadata_json, parse_metadata
from jeffnet.export.network import ExportNetwork
from jeffnet.export.onnx_graph import OLDEST_OPSET, OnnxGraph
from jeffnet.export.onnx_network import OnnxNetwork
from jeffnet.export.onnx_quantized import quantized_onnx_network
from jeffnet.system.extras import install
from jeffnet.system.processor import lacks_vnni

_log = logging.getLogger("jeffnet")
# Of a session: compute with kernels of 8 bits without overflow, where the processor needs another operation for it.
EXACT_INT8 = ("session.x64quantprecision", "1")
# A message of protocol buffers, which an ONNX file is, is smaller than this.
_BYTES = 2**31
# What a file needs besides its arrays, at most.
_DESCRIPTION = 2**22


def write(path: Path, network: ExportNetwork, metadata: ExportMetadata) -> None:
    """Write a model as one ONNX file.

    Raises:
      ConfigError: `onnx` is not installed, or does not know the opset.
      OutputError: the file would have 2 GB or more.
      InputError: the pictures are too small for the model.
    """
    graph = OnnxGraph(check_opset(network.options.opset), network.options.batch_size)
    check_size(path, network)
    output = (quantized_onnx_network if network.quantization else OnnxNetwork)(network, graph).add()
    model = graph.model(metadata.card.model, output, entries(metadata))
    content = model.SerializeToString(deterministic=True)
    with open(path, "wb") as file:
        file.write(content)
        file.write(onnx_checksum(content))


def check_opset(opset: int | None) -> int:
    """The version of the operators to use.

    Raises:
      ConfigError: `onnx` is not installed, or does not know the opset.
    """
    try:
        from onnx import defs
    except ImportError:
        raise ConfigError(f"ONNX files need onnx: {install('onnx')}") from None
    newest = defs.onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        raise ConfigError(
            f"opset {opset}: give one of {OLDEST_OPSET}, the oldest that is written, to {newest}, the newest that the "
            "installed onnx knows"
        )
    return opset or OLDEST_OPSET


def check_size(path: Path, network: ExportNetwork) -> None:
    """Raises OutputError where a network does not fit in one file."""
    numbers = sum(array.size for array in network.arrays.values())
    needed = numbers * np.dtype(network.options.dtype).itemsize + _DESCRIPTION
    if needed >= _BYTES:
        raise OutputError(
            f"cannot write {path.name!r}: its arrays have {needed / 2**30:.1f} GB, an ONNX file takes less than 2: "
            "export it as float16 or to another format"
        )


def entries(metadata: ExportMetadata) -> dict[str, str]:
    """What a file says of itself, as texts by name: for jeffnet, and for people."""
    card, pixels = metadata.card, metadata.card.preprocessing
    height, width = metadata.options.image_size or (pixels.image_size,) * 2
    words = [f"{height} x {width} pixels", f"{pixels.interpolation}, crop_pct {pixels.crop_pct}"]
    words += [f"mean {', '.join(map(str, pixels.mean))}", f"std {', '.join(map(str, pixels.std))} (of values 0 to 1)"]
    if "preprocessing" in metadata.options.include:
        words.append("mean and std are in the graph, which takes pixels of 0 to 255")
    texts = {"model": card.model, "preprocessing": "; ".join(words), "classes": "\n".join(card.classes)}
    if metadata.options.embed_labels:
        texts["labels"] = "\n".join(labels(metadata))
    return {METADATA_KEY: metadata_json(metadata), **{name: text for name, text in texts.items() if text}}


class OnnxRunner:
    """An ONNX file in ONNX Runtime, on the processor. See `jeffnet.export.targets.Runner`.

    Attributes:
      metadata: what the file says of itself; None for a file that jeffnet did not write.
      runtime: name and version.
      shape: of the pictures that it takes; None for a side that may be any.
      dtype: of these pictures.
      outputs: names of what the graph gives.
    """

    def __init__(self, source: str, session: Any) -> None:
        import onnxruntime

        (images,) = session.get_inputs()
        texts = session.get_modelmeta().custom_metadata_map
        if METADATA_KEY in texts and CHECKSUM_KEY not in texts:
            raise WeightsError(f"{source!r} is damaged: it ends before its checksum: export or copy it again")
        text = texts.get(METADATA_KEY)
        self.metadata = None if text is None else parse_metadata(text, source)
        self.runtime = f"ONNX Runtime {onnxruntime.__version__}"
        self.shape = tuple(side if isinstance(side, int) else None for side in images.shape)
        self.dtype = _DTYPES.get(images.type, images.type)
        self.outputs = tuple(output.name for output in session.get_outputs())
        self._session, self._input, self._source = session, images.name, source

    def __call__(self, images: Any) -> np.ndarray:
        return self.values(images, self.outputs[:1])[0]

    def values(self, images: Any, names: Sequence[str]) -> list[np.ndarray]:
        """Outputs by their names.

        Raises:
          InputError: the file takes other pictures.
        """
        given = np.shape(images)
        if len(given) != len(self.shape) or any(b not in (None, a) for a, b in zip(given, self.shape, strict=True)):
            taken = ", ".join("any number" if side is None else str(side) for side in self.shape)
            raise InputError(f"images of shape {given}: {self._source!r} takes ({taken})")
        return self._session.run(list(names), {self._input: np.ascontiguousarray(images, self.dtype)})


_DTYPES = {
    "tensor(float)": "float32",
    "tensor(uint8)": "uint8",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
}


def open_runner(path: Path, threads: int | None = None) -> OnnxRunner:
    """An ONNX file in ONNX Runtime, on the processor.

    Raises:
      ConfigError: ONNX Runtime is not installed.
      WeightsError: the file cannot be read, is no ONNX, has other inputs than pictures or several outputs, or needs a
        newer ONNX Runtime.
    """
    if not path.is_file():
        raise WeightsError(
            f"cannot read {str(path)!r}: {'it is a folder' if path.is_dir() else 'there is no such file'}"
        )
    check_onnx(path)
    runner = _runner(str(path), str(path), threads)
    if len(runner.outputs) != 1:
        raise WeightsError(f"{str(path)!r} has {len(runner.outputs)} outputs, an image classifier has one")
    return runner


def values(path: Path, images: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Values on the way of an exported file.

    Args:
      path: of the file.
      images: as it takes them.
      names: of values, as `jeffnet.inference.folded_network.FoldedNetwork` calls them.

    Returns:
      Those that the file has, by name; maps are `(N, H, W, C)`.
    """
    import onnx

    model = onnx.load(path)
    tensors = {each.name: each for each in model.graph.value_info}
    found = [name for name in names if name in tensors]
    model.graph.output.extend(tensors[name] for name in found)
    results = _runner(model.SerializeToString(), str(path), None).values(images, found)
    maps = (np.moveaxis(value, 1, -1) if value.ndim == 4 else value for value in results)
    return dict(zip(found, maps, strict=True))


def _runner(model: str | bytes, source: str, threads: int | None) -> OnnxRunner:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(f"running ONNX files needs onnxruntime: {install('onnx')}") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = threads or 0, 1
    runner = _opened(model, source, options)
    if runner.metadata and runner.metadata.kernel_bits == 8 and lacks_vnni():
        _log.warning(
            "%r has kernels of 8 bits, whose products overflow in ONNX Runtime's fast operators for processors without "
            "VNNI such as this one: it runs with %s=%s here, which is slower; kernels of 7 bits are right and fast",
            Path(source).name,
            *EXACT_INT8,
        )
        options.add_session_config_entry(*EXACT_INT8)
        runner = _opened(model, source, options)
    return runner


def _opened(model: str | bytes, source: str, options: Any) -> OnnxRunner:
    import onnxruntime

    try:
        # Its fallback is the same provider, and prints.
        session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], enable_fallback=False
        )
    except Exception as error:  # onnxruntime's own classes, which it does not export
        raise WeightsError(f"ONNX Runtime cannot open {source!r}: {first_line(error)}") from error
    if len(session.get_inputs()) != 1:
        raise WeightsError(f"{source!r} has {len(session.get_inputs())} inputs, an image classifier has one")
    return OnnxRunner(source, session)
