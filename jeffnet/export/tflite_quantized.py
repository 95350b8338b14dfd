"""8-bit integers in TFLite files, by LiteRT's quantizer with the ranges of jeffnet's own calibration or training."""

import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from jeffnet.arch.quantization import Grid
from jeffnet.errors import ConfigError
from jeffnet.export.network import ExportNetwork
from jeffnet.export.tflite_file import unpack
from jeffnet.ops.quantize import LEVELS
from jeffnet.system.extras import install

_PAD = 34  # among the operators of the format


def quantize_model(content: bytes, network: ExportNetwork) -> bytes:
    """A file of floats, whose tensors have the names of the network's values, with 8-bit integers.

    Convolutions, sums and the pooling have integers for values and kernels, the classifier for its kernel; the others
    compute in float between rounded values.

    Args:
      content: the file of floats.
      network: with the grids of its values.

    Raises:
      ConfigError: the quantizer is not installed.
    """
    try:
        from ai_edge_quantizer import qtyping, quantizer
    except ImportError:
        raise ConfigError(f"TFLite files of 8-bit integers need ai-edge-quantizer: {install('tflite')}") from None
    assert network.quantization
    grids = {**network.quantization.grids}
    grids |= {
        after: grids[before] for before, after in _padded(unpack(content, "the file of floats")) if before in grids
    }
    operators, names = qtyping.TFLOperationName, "|".join(map(re.escape, grids))
    recipe = quantizer.Quantizer(content)
    for operator in (operators.CONV_2D, operators.DEPTHWISE_CONV_2D, operators.ADD, operators.MEAN, operators.PAD):
        recipe.add_static_config(rf"^({names});?$", operator, activation_num_bits=8, weight_num_bits=8)
    recipe.add_dynamic_config(".*", operators.FULLY_CONNECTED, num_bits=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranges: Any = {name: _range(grid) for name, grid in grids.items()}
        quantized: Any = recipe.quantize(ranges, enable_progress_report=False).quantized_model
        return bytes(quantized)


def _padded(model: Any) -> Iterator[tuple[str, str]]:
    """Names of maps before and after zeros are added around them, which a grid has too."""
    graph = model.subgraphs[0]
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        if max(code.builtinCode, code.deprecatedBuiltinCode) == _PAD:
            names = (graph.tensors[index].name for index in (operator.inputs[0], operator.outputs[0]))
            before, after = (name.decode() if isinstance(name, bytes) else name for name in names)
            yield before, after


def _range(grid: Grid) -> dict[str, Any]:
    low, high = -grid.zero_point * grid.scale, (LEVELS - grid.zero_point) * grid.scale
    return {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
