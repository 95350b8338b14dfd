"""Changes to the bytes of a TFLite file: names of its tensors, halved weights, and the description that it holds."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jeffnet.errors import WeightsError, first_line
from jeffnet.export.description import METADATA_KEY
from jeffnet.system.extras import install

_IDENTIFIER = b"TFL3"
_PLACE = re.compile(r"#(\d+)#")
# Smaller constants, such as the factors of activations, stay as they are.
_FEWEST_HALVED = 16


def schema() -> Any:
    """The classes of the file's tables.

    Raises:
      WeightsError: no package that has them is installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise WeightsError(f"TFLite needs ai-edge-litert: {install('tflite')}") from error
    return schema_py_generated


def unpack(content: bytes, source: str) -> Any:
    """The tables of a file.

    Raises:
      WeightsError: it is no TFLite file, or damaged.
    """
    if content[4:8] != _IDENTIFIER:
        raise WeightsError(f"{source!r} is no TFLite file")
    try:
        model = schema().ModelT.InitFromPackedBuf(content, 0)
        # LiteRT's quantizer puts the constants of larger networks behind the tables, at places that packing changes.
        for buffer in model.buffers:
            if buffer.offset > 1 and buffer.offset + buffer.size <= len(content):
                buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
                buffer.offset = buffer.size = 0
        return model
    except WeightsError:
        raise
    except Exception as error:  # whatever the bytes lead to
        raise WeightsError(f"{source!r} is a damaged TFLite file: {first_line(error)}") from error


def pack(model: Any) -> bytes:
    """The bytes of tables."""
    import flatbuffers

    builder = flatbuffers.Builder(2**20)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def name_tensors(model: Any, points: Sequence[str], taken: str, given: str) -> None:
    """Name tensors after the points whose values they are; what leads to one has its name and a number after a slash.

    A converter makes one operation of several. It computes the last one's point, and the points before it are no more.

    Args:
      model: tables, which are changed.
      points: whose numbers the names of tensors have.
      taken: name of the input.
      given: name of the output.
    """
    (graph,) = model.subgraphs
    computing: dict[int, list[Any]] = {}
    fused = set()
    for operator in graph.operators:
        tensor = graph.tensors[operator.outputs[0]]
        places = {int(place) for place in _PLACE.findall(tensor.name.decode())}
        if places:
            last = max(places)
            computing.setdefault(last, []).append(tensor)
            fused |= {place for place in places - {last} if points[place] == f"{points[last]}:sum"}
    for place, tensors in computing.items():
        name = points[place]
        values = [] if place in fused else [tensors.pop()]
        for tensor in values:
            tensor.name = name
        for number, tensor in enumerate(tensors):
            tensor.name = f"{name}/{number}"
    graph.tensors[graph.inputs[0]].name, graph.tensors[graph.outputs[0]].name = taken, given
    for number, tensor in enumerate(graph.tensors):
        if isinstance(tensor.name, bytes) and _PLACE.search(tensor.name.decode()):
            tensor.name = f"constant/{number}"


def halve_weights(model: Any) -> None:
    """Store float32 constants as float16, from which an operation at the start of the graph restores them.

    Runtimes with float16 arithmetic leave that operation out, and so compute in float16; others compute in float32.
    """
    tables = schema()
    (graph,) = model.subgraphs
    constants = {
        index: np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(np.float32)
        for index, tensor in enumerate(graph.tensors)
        if tensor.type == tables.TensorType.FLOAT32 and model.buffers[tensor.buffer].data is not None
    }
    code = tables.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = tables.BuiltinOperator.DEQUANTIZE
    code.version = 3  # the first that takes float16
    model.operatorCodes.append(code)
    restoring = []
    for index, values in constants.items():
        if values.size < _FEWEST_HALVED:
            continue
        tensor, half, buffer = graph.tensors[index], tables.TensorT(), tables.BufferT()
        buffer.data = values.astype(np.float16).view(np.uint8)
        half.name, half.shape, half.type = f"constant/{index}/float16", tensor.shape, tables.TensorType.FLOAT16
        half.buffer, tensor.buffer = len(model.buffers), 0
        model.buffers.append(buffer)
        graph.tensors.append(half)
        operator = tables.OperatorT()
        operator.opcodeIndex = len(model.operatorCodes) - 1
        operator.inputs, operator.outputs = [len(graph.tensors) - 1], [index]
        restoring.append(operator)
    graph.operators = [*restoring, *graph.operators]
    used = {tensor.buffer for each in model.subgraphs for tensor in each.tensors}
    used |= {entry.buffer for entry in model.metadata or ()}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None


def put_description(model: Any, text: str) -> None:
    """Add a text to the file's metadata."""
    tables = schema()
    entry, buffer = tables.MetadataT(), tables.BufferT()
    buffer.data = np.frombuffer(text.encode(), np.uint8)
    entry.name, entry.buffer = METADATA_KEY, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(each for each in model.metadata or () if _text(each.name) != METADATA_KEY), entry]


def description(model: Any) -> str | None:
    """The text of `put_description`; None where there is none."""
    for entry in model.metadata or ():
        if _text(entry.name) == METADATA_KEY:
            return bytes(np.asarray(model.buffers[entry.buffer].data, np.uint8)).decode(errors="replace")
    return None


def _text(name: bytes | str) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name
