"""Operations of plans in operators of ONNX. Maps are `(N, C, H, W)`, shapes are without N."""

import math
from typing import assert_never

import numpy as np

from jeffnet.arch.operations import GroupNorm, LayerNorm
from jeffnet.export.onnx_graph import OnnxGraph, Tensor
from jeffnet.ops.depthwise import Window
from jeffnet.ops.precision import at_least_float32

_GELU_OPSET = 20


def activation(graph: OnnxGraph, name: str, act: str, x: Tensor) -> Tensor:
    """An activation by the name that plans use."""
    match act:
        case "relu":
            return graph.add("Relu", name, [x])
        case "relu6":
            return graph.add("Clip", name, [x, _number(graph, 0, x), _number(graph, 6, x)])
        case "silu":
            return graph.add("Mul", name, [x, graph.add("Sigmoid", f"{name}:sigmoid", [x])])
        case "gelu":
            return _gelu(graph, name, x)
        case "hard_swish":
            return graph.add("HardSwish", name, [x])
        case "sigmoid":
            return graph.add("Sigmoid", name, [x])
        case "hard_sigmoid":
            return graph.add("HardSigmoid", name, [x], alpha=1 / 6, beta=0.5)
        case _:
            raise AssertionError(f"{name}: no rule for {act}")


def _gelu(graph: OnnxGraph, name: str, x: Tensor) -> Tensor:
    if graph.opset >= _GELU_OPSET:
        return graph.add("Gelu", name, [x])
    # In the order in which runtimes recognise it.
    scaled = graph.add("Div", f"{name}:scaled", [x, _number(graph, math.sqrt(2), x)])
    erf = graph.add("Erf", f"{name}:erf", [scaled])
    double = graph.add("Mul", f"{name}:double", [x, graph.add("Add", f"{name}:above", [erf, _number(graph, 1, x)])])
    return graph.add("Mul", name, [double, _number(graph, 0.5, x)])


def sample_norm(
    graph: OnnxGraph, name: str, norm: GroupNorm | LayerNorm, x: Tensor, scale: np.ndarray, bias: np.ndarray
) -> Tensor:
    """A norm of each picture by itself; its statistics are at least float32."""
    match norm:
        case GroupNorm():
            return _group_norm(graph, name, norm, x, scale, bias)
        case LayerNorm():
            return _layer_norm(graph, name, norm, x, scale, bias)
        case _:
            assert_never(norm)


def _group_norm(graph: OnnxGraph, name: str, norm: GroupNorm, x: Tensor, scale: np.ndarray, bias: np.ndarray) -> Tensor:
    # GroupNormalization of opset 18 has other arguments than that of 21; of this form runtimes recognise either.
    dtype, count = at_least_float32(x.dtype), norm.groups
    groups = graph.reshape(
        f"{name}:groups", graph.cast(f"{name}:float", x, dtype), (count, math.prod(x.shape) // count)
    )
    ones = graph.constant(f"ones:{count}:{dtype.name}", np.ones(count, dtype))
    zeros = graph.constant(f"zeros:{count}:{dtype.name}", np.zeros(count, dtype))
    y = graph.add("InstanceNormalization", f"{name}:normal", [groups, ones, zeros], epsilon=norm.epsilon)
    y = graph.reshape(f"{name}:map", y, x.shape)
    factors = graph.constant(f"{norm.name}.scale", scale.astype(dtype)[:, None, None])
    summands = graph.constant(f"{norm.name}.bias", bias.astype(dtype)[:, None, None])
    scaled = graph.add("Mul", f"{name}:scaled", [y, factors])
    if x.dtype == dtype:
        return graph.add("Add", name, [scaled, summands])
    return graph.cast(name, graph.add("Add", f"{name}:shifted", [scaled, summands]), x.dtype)


def _layer_norm(graph: OnnxGraph, name: str, norm: LayerNorm, x: Tensor, scale: np.ndarray, bias: np.ndarray) -> Tensor:
    dtype = at_least_float32(x.dtype)
    y = graph.transpose(f"{name}:nhwc", graph.cast(f"{name}:float", x, dtype), (1, 2, 0))
    arrays = [
        graph.constant(f"{norm.name}.{leaf}", array.astype(dtype)) for leaf, array in (("scale", scale), ("bias", bias))
    ]
    y = graph.add("LayerNormalization", f"{name}:normal", [y, *arrays], axis=-1, epsilon=norm.epsilon)
    if x.dtype == dtype:
        return graph.transpose(name, y, (2, 0, 1))
    return graph.transpose(name, graph.cast(f"{name}:half", y, x.dtype), (2, 0, 1))


def attended_mean(graph: OnnxGraph, name: str, x: Tensor, scores: Tensor) -> Tensor:
    """The mean over positions, weighted by the softmax of their scores, which is at least float32."""
    count = math.prod(x.shape[1:])
    rows = graph.reshape(f"{name}:rows", scores, (1, count))
    weights = graph.add("Softmax", f"{name}:softmax", [_exact(graph, f"{name}:float", rows)], axis=-1)
    weights = graph.cast(f"{name}:half", graph.reshape(f"{name}:weights", weights, (count, 1)), x.dtype)
    positions = graph.reshape(f"{name}:positions", x, (x.channels, count))
    mean = graph.add("MatMul", f"{name}:vector", [positions, weights], (x.channels, 1))
    return graph.reshape(name, mean, (x.channels, 1, 1))


def multi_query_attention(graph: OnnxGraph, name: str, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Heads that share keys and values; products and softmax are at least float32."""
    (channels, *sides), depth, features = query.shape, key.channels, value.channels
    queries, positions = math.prod(sides), math.prod(key.shape[1:])
    assert channels == heads * depth
    q = graph.reshape(f"{name}:query", query, (heads, depth, queries))
    q = _exact(graph, f"{name}:query:float", graph.transpose(f"{name}:query:rows", q, (0, 2, 1)))
    k = _exact(graph, f"{name}:key:float", graph.reshape(f"{name}:key", key, (1, depth, positions)))
    scores = graph.add("MatMul", f"{name}:products", [q, k], (heads, queries, positions))
    scores = graph.add("Mul", f"{name}:scores", [scores, _number(graph, depth**-0.5, scores)])
    weights = graph.cast(f"{name}:half", graph.add("Softmax", f"{name}:softmax", [scores], axis=-1), value.dtype)
    weights = graph.transpose(f"{name}:weights", weights, (0, 2, 1))
    v = graph.reshape(f"{name}:value", value, (1, features, positions))
    attended = graph.add("MatMul", f"{name}:heads", [v, weights], (heads, features, queries))
    return graph.reshape(name, attended, (heads * features, *sides))


def convolution(
    graph: OnnxGraph, name: str, x: Tensor, kernel: Tensor, window: Window, groups: int, bias: Tensor | None = None
) -> Tensor:
    """A convolution, in the layout of `jeffnet.export.onnx_kernels`."""
    (top, bottom), (left, right) = window.pads
    return graph.add(
        "Conv",
        name,
        [x, kernel, bias] if bias else [x, kernel],
        (kernel.shape[0], *window.out_size(x.shape[1:], kernel.shape[2:])),
        kernel_shape=kernel.shape[2:],
        strides=window.strides,
        dilations=window.dilation,
        pads=(top, left, bottom, right),
        group=groups,
    )


def product_with_mixture(
    graph: OnnxGraph, name: str, x: Tensor, kernels: Tensor, weights: Tensor, outputs: int
) -> Tensor:
    """The product of every picture with its own mixture of matrices `(E, outputs * C)`."""
    inputs, *sides = x.shape
    matrix = graph.add("MatMul", f"{name}:mixture", [weights, kernels], (outputs * inputs,))
    matrix = graph.reshape(f"{name}:matrix", matrix, (outputs, inputs))
    positions = graph.reshape(f"{name}:positions", x, (inputs, math.prod(sides)))
    y = graph.add("MatMul", f"{name}:product", [matrix, positions], (outputs, math.prod(sides)))
    return graph.reshape(f"{name}:map", y, (outputs, *sides))


def mixture_of_outputs(graph: OnnxGraph, name: str, x: Tensor, weights: Tensor) -> Tensor:
    """The mixture of what all experts give, `(C * E, H, W)`: in ONNX all pictures have the same kernel."""
    (experts,), (channels, *sides) = weights.shape, x.shape
    outputs, positions = channels // experts, math.prod(sides)
    y = graph.reshape(f"{name}:by_output", x, (outputs, experts, positions))
    row = graph.reshape(f"{name}:weights", weights, (1, 1, experts))
    y = graph.add("MatMul", f"{name}:mixture", [row, y], (outputs, 1, positions))
    return graph.reshape(f"{name}:map", y, (outputs, *sides))


def _exact(graph: OnnxGraph, name: str, x: Tensor) -> Tensor:
    return graph.cast(name, x, at_least_float32(x.dtype))


def _number(graph: OnnxGraph, value: float, like: Tensor) -> Tensor:
    """A scalar of the dtype of another tensor."""
    return graph.constant(f"number:{value!r}:{like.dtype.name}", np.array(value, like.dtype))
