"""8-bit integers in ONNX graphs, as pairs of QuantizeLinear and DequantizeLinear that runtimes fuse with operators.

Values are uint8, kernels int8 with a scale for each output channel: ONNX Runtime has its fast kernels for this pair.
"""

import numpy as np

from jeffnet.arch.quantization import ROUNDED, Grid, quantized_points
from jeffnet.export.network import ExportNetwork
from jeffnet.export.onnx_graph import OnnxGraph, Tensor
from jeffnet.export.onnx_network import OnnxNetwork
from jeffnet.ops.quantize import quantize_kernel

# Of 32 bits, with room for the sum of products.
_LARGEST_BIAS = 2**30


def quantized_onnx_network(network: ExportNetwork, graph: OnnxGraph) -> OnnxNetwork:
    """A network that is added with its values and kernels rounded as `quantized_network` rounds them.

    A value `NAME` of 8 bits is followed by `NAME:integers`, its integers, and `NAME:rounded`, what they stand for.
    """
    assert network.quantization
    layers, grids = dict(quantized_points(network.plan).layers), network.quantization.grids
    bits = network.quantization.kernel_bits
    for conv in network.plan.convolutions:  # several kernels have become one, of the convolution's name
        if (x := layers.get(f"{conv.parts[0].name}.kernel")) is not None:
            layers[f"{conv.name}.kernel"] = x

    def point(name: str, value: Tensor) -> Tensor:
        return _rounded(graph, name, value, grids[name]) if name in grids else value

    def weight(name: str, kernel: Tensor) -> Tensor:
        if name not in layers:
            return kernel
        steps, scales = quantize_kernel(np.moveaxis(graph.constants.pop(name), 0, -1), bits)
        return graph.dequantized(name, np.ascontiguousarray(np.moveaxis(steps, -1, 0)), scales)

    def bias(name: str, summand: Tensor) -> Tensor:
        kernel = f"{name.removesuffix('.bias')}.kernel"
        if kernel not in layers:
            return summand
        scales = graph.constants[f"{kernel}:scales"] * np.float32(grids[layers[kernel]].scale)
        steps = np.round(graph.constants[name] / scales)
        # Of the scale of the products that it is added to, as kernels of 8 bits take it; a huge one stays a float.
        if np.abs(steps).max() >= _LARGEST_BIAS:
            return summand
        del graph.constants[name]
        return graph.dequantized(name, steps.astype(np.int32), scales)

    return OnnxNetwork(network, graph, np.float32, point, weight, bias)


def _rounded(graph: OnnxGraph, name: str, value: Tensor, grid: Grid) -> Tensor:
    scale = graph.constant(f"{name}:scale", np.array(grid.scale, np.float32))
    zero = graph.constant(f"{name}:zero_point", np.array(grid.zero_point, np.uint8))
    steps = graph.add("QuantizeLinear", f"{name}:integers", [value, scale, zero], dtype=np.uint8)
    return graph.add("DequantizeLinear", f"{name}{ROUNDED}", [steps, scale, zero], value.shape, dtype=value.dtype)
