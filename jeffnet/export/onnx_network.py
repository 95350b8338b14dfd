"""A folded network as an ONNX graph.

Its tensors have the names of `jeffnet.inference.folded_network.FoldedNetwork`, its constants canonical names of arrays.
Maps are `(N, C, H, W)`, as every operator of ONNX takes them.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, assert_never

import jax
import numpy as np

from jeffnet.arch.operations import (
    Attention,
    BatchNorm,
    Conv,
    ConvPart,
    Dense,
    Downsample,
    ExpertConv,
    GlobalContext,
    LayerScale,
    Norm,
    Normalize,
    Op,
    Routing,
    SqueezeExcite,
)
from jeffnet.arch.plan import Block
from jeffnet.export.network import ExportNetwork
from jeffnet.export.onnx_graph import OnnxGraph, Tensor
from jeffnet.export.onnx_operations import activation, attended_mean, multi_query_attention, sample_norm
from jeffnet.ops.conv import make_window
from jeffnet.ops.image import per_channel
from jeffnet.ops.pool import downsample, pool_windows

# From the name of a value, and the value, to what takes its place in what comes after it.
Point = Callable[[str, Tensor], Tensor]


def _unchanged(name: str, value: Tensor) -> Tensor:
    return value


class OnnxNetwork:
    """Adds a network to a graph.

    Attributes:
      network: what is exported.
      graph: gets its nodes and constants.
      dtype: in which to compute.
      point: is given every value with its name, as by `FoldedNetwork`, and returns what takes its place.
      weight: the same for the kernel of every convolution and of the classifier; the first axis is the outputs' but for
        kernels of experts.
    """

    def __init__(
        self,
        network: ExportNetwork,
        graph: OnnxGraph,
        dtype: Any = None,
        point: Point = _unchanged,
        weight: Point = _unchanged,
    ) -> None:
        self.network, self.graph, self.point, self.weight = network, graph, point, weight
        self.dtype = np.dtype(dtype or network.options.dtype)

    def add(self) -> Tensor:
        """From `input` to `output`; returns the latter."""
        plan = self.network.plan
        x = self._conv(plan.stem, self.point("images", self._images()))
        for block in plan.blocks:
            x = self._block(block, x)
        x = self._head(x)
        if "softmax" in self.network.options.include:
            return self.graph.add("Softmax", "output", [self.graph.cast("logits:float", x, np.float32)], axis=-1)
        if x.dtype == np.float32:
            return self.graph.add("Identity", "output", [x])
        return self.graph.cast("output", x, np.float32)

    def _images(self) -> Tensor:
        """The input as the stem takes it."""
        graph, options = self.graph, self.network.options
        shape = self.network.images(1)
        x = graph.input("input", shape.shape[1:], shape.dtype)
        steps: list[Callable[[str, Tensor], Tensor]] = []
        if options.layout == "nhwc":
            steps.append(partial(graph.transpose, axes=(2, 0, 1)))
        if self.network.takes_pixels:
            steps += [partial(graph.cast, dtype=np.float32), self._scaled, self._shifted]
        if self.dtype != np.float32:
            steps.append(partial(graph.cast, dtype=self.dtype))
        if not steps:
            return graph.add("Identity", "images", [x])
        for number, step in enumerate(steps, 1):
            x = step("images" if number == len(steps) else f"input:{number}", x)
        return x

    def _scaled(self, name: str, x: Tensor) -> Tensor:
        return self.graph.add("Mul", name, [x, self._per_channel("input:scale", 1 / (255 * self._pixels("std")))])

    def _shifted(self, name: str, x: Tensor) -> Tensor:
        shift = -self._pixels("mean") / self._pixels("std")
        return self.graph.add("Add", name, [x, self._per_channel("input:shift", shift)])

    def _pixels(self, name: str) -> np.ndarray:
        values = getattr(self.network.card.preprocessing, name)
        return np.array(per_channel(name, values, self.network.plan.in_chans), np.float64)

    def _per_channel(self, name: str, values: np.ndarray, dtype: Any = np.float32) -> Tensor:
        """A constant to be broadcast over positions."""
        return self.graph.constant(name, values.astype(dtype)[:, None, None])

    def _block(self, block: Block, x: Tensor) -> Tensor:
        shortcut, weights = x, None
        for op in block.ops:
            if isinstance(op, Routing):
                weights = self._routing(op, x)
            else:
                x = self._op(op, x, weights)
        return self.point(block.name, self.graph.add("Add", block.name, [x, shortcut])) if block.residual else x

    def _op(self, op: Op, x: Tensor, weights: Tensor | None) -> Tensor:
        match op:
            case Conv():
                return self._conv(op, x)
            case SqueezeExcite():
                mean = self.graph.add("GlobalAveragePool", f"{op.name}:mean", [x], (x.channels, 1, 1))
                return self._gated(op, x, mean)
            case GlobalContext():
                mean = attended_mean(self.graph, f"{op.name}:mean", x, self._conv(op.context, x))
                return self._gated(op, x, mean)
            case Attention():
                return self._attention(op, x)
            case ExpertConv():
                assert weights is not None
                return self._expert_conv(op, x, weights)
            case Downsample():
                return self.point(op.name, self._downsample(op, x))
            case Normalize():
                return self._norm_act(op.name, op.norm, op.act, lambda name: x)
            case LayerScale() | Routing():
                raise AssertionError(f"{op.name} is folded, or a block's")
            case _:
                assert_never(op)

    def _gated(self, op: SqueezeExcite | GlobalContext, x: Tensor, mean: Tensor) -> Tensor:
        gate = self._conv(op.expand, self._conv(op.reduce, self.point(mean.name, mean)))
        return self.point(op.name, self.graph.add("Mul", op.name, [x, gate]))

    def _attention(self, op: Attention, x: Tensor) -> Tensor:
        chains = ((op.query,), op.key, op.value)
        query, key, value = (reduce(lambda x, conv: self._conv(conv, x), ops, x) for ops in chains)
        attended = multi_query_attention(self.graph, op.name, query, key, value, op.heads)
        return self._conv(op.output, self.point(op.name, attended))

    def _downsample(self, op: Downsample, x: Tensor) -> Tensor:
        shape = _shape_after(partial(downsample, taps=op.taps, padding=op.padding), x)
        window = np.outer(op.taps, op.taps).astype(self.dtype)
        kernel = self.graph.constant(f"{op.name}:window", np.tile(window, (op.channels, 1, 1, 1)))
        return self.graph.add(
            "Conv",
            op.name,
            [x, kernel],
            shape,
            kernel_shape=window.shape,
            strides=(2, 2),
            pads=(op.padding,) * 4,
            group=op.channels,
        )

    def _conv(self, op: Conv, x: Tensor) -> Tensor:
        return self._norm_act(op.name, op.norm, op.act, lambda name: self._parts(op, name, x))

    def _parts(self, op: Conv, name: str, x: Tensor) -> Tensor:
        """All kernels of a convolution, each applied to its share of the channels."""
        if len(op.parts) == 1:
            return self._part(op, op.parts[0], name, x)
        inputs = self.graph.split(f"{name}:shares", x, [part.in_channels for part in op.parts])
        outputs = [self._part(op, part, part.name, share) for part, share in zip(op.parts, inputs, strict=True)]
        return self.graph.add("Concat", name, outputs, (op.out_channels, *outputs[0].shape[1:]), axis=1)

    def _part(self, op: Conv, part: ConvPart, name: str, x: Tensor) -> Tensor:
        kernel = self.weight(f"{part.name}.kernel", self._kernel(part.name))
        return self._convolved(op, part, name, [x, kernel, self._array(f"{part.name}.bias")])

    def _convolved(self, op: Conv, part: ConvPart, name: str, inputs: list[Tensor]) -> Tensor:
        (_, *size), kernel = inputs[0].shape, inputs[1]
        window = make_window(size, kernel.shape[2:], (op.stride,) * 2, part.padding, (op.dilation,) * 2)
        reach = (op.dilation * (part.kernel_size - 1) + 1,) * 2
        sides = [
            (side + sum(pads) - taps) // op.stride + 1
            for side, pads, taps in zip(size, window.pads, reach, strict=True)
        ]
        (top, bottom), (left, right) = window.pads
        return self.graph.add(
            "Conv",
            name,
            inputs,
            (kernel.shape[0], *sides),
            kernel_shape=kernel.shape[2:],
            strides=window.strides,
            dilations=window.dilation,
            pads=(top, left, bottom, right),
            group=part.groups,
        )

    def _norm_act(self, name: str, norm: Norm | None, act: str | None, make: Callable[[str], Tensor]) -> Tensor:
        """A value that `make` adds under the name that it is given, then norm and activation, where there are any."""
        if norm is None and act is None:
            return self.point(name, make(name))
        x = self.point(f"{name}:sum", make(f"{name}:sum"))
        if norm is not None:
            assert not isinstance(norm, BatchNorm), f"{norm.name} is not folded"
            arrays = (self.network.arrays[f"{norm.name}.{leaf}"] for leaf in ("scale", "bias"))
            x = sample_norm(self.graph, f"{name}:norm" if act else name, norm, x, *arrays)
        return self.point(name, activation(self.graph, name, act, x) if act else x)

    def _routing(self, op: Routing, x: Tensor) -> Tensor:
        mean = self.graph.add("GlobalAveragePool", f"{op.name}:mean", [x], (x.channels, 1, 1))
        logits = self._dense(op.name, f"{op.name}:logits", self._flat(f"{op.name}:vector", mean))
        return self.point(op.name, self.graph.add("Sigmoid", op.name, [logits]))

    def _expert_conv(self, op: ExpertConv, x: Tensor, weights: Tensor) -> Tensor:
        def mixed(name: str) -> Tensor:
            y = (self._mixed_kernels if op.conv.is_pointwise else self._mixed_outputs)(op, name, x, weights)
            bias = self._per_channel(f"{op.name}.bias", self.network.arrays[f"{op.name}.bias"], self.dtype)
            return self.graph.add("Add", name, [y, bias])

        return self._norm_act(op.name, op.conv.norm, op.conv.act, mixed)

    def _mixed_kernels(self, op: ExpertConv, name: str, x: Tensor, weights: Tensor) -> Tensor:
        """The product of every picture with its own mixture of matrices."""
        graph, outputs, (inputs, *sides) = self.graph, op.conv.out_channels, x.shape
        kernels = self._array(f"{op.name}.kernel", lambda array: array[:, 0, 0].mT.reshape(op.experts, -1))
        kernels = self.weight(f"{op.name}.kernel", kernels)
        matrix = graph.add("MatMul", f"{name}:mixture", [weights, kernels], (outputs * inputs,))
        matrix = graph.reshape(f"{name}:matrix", matrix, (outputs, inputs))
        positions = graph.reshape(f"{name}:positions", x, (inputs, math.prod(sides)))
        y = graph.add("MatMul", f"{name}:product", [matrix, positions], (outputs, math.prod(sides)))
        return graph.reshape(f"{name}:map", y, (outputs, *sides))

    def _mixed_outputs(self, op: ExpertConv, name: str, x: Tensor, weights: Tensor) -> Tensor:
        """The mixture of what all kernels give: ONNX has no convolution whose kernel differs by picture."""
        (part,), graph, outputs = op.conv.parts, self.graph, op.conv.out_channels

        def outermost(array: np.ndarray) -> np.ndarray:  # the kernels of all experts for an output side by side
            array = array.transpose(4, 0, 3, 1, 2)
            return array.reshape(-1, *array.shape[2:])

        kernels = self.weight(f"{op.name}.kernel", self._array(f"{op.name}.kernel", outermost))
        y = self._convolved(op.conv, part, f"{name}:experts", [x, kernels])
        sides = y.shape[1:]
        y = graph.reshape(f"{name}:by_output", y, (outputs, op.experts, math.prod(sides)))
        row = graph.reshape(f"{name}:weights", weights, (1, 1, op.experts))
        y = graph.add("MatMul", f"{name}:mixture", [row, y], (outputs, 1, math.prod(sides)))
        return graph.reshape(f"{name}:map", y, (outputs, *sides))

    def _head(self, x: Tensor) -> Tensor:
        """Pooled features, or logits."""
        plan, execution = self.network.plan, self.network.execution
        if plan.head and not plan.pool_first:
            x = self._conv(plan.head, x)
        pooled = not execution.test_window and plan.global_pool != "none"
        flat = pooled and not (plan.head and plan.pool_first)
        x = self._pool(x, "pool:map" if flat else "pool")
        x = self._flat("pool", x) if flat else x
        if plan.classifier or (plan.head and plan.pool_first):
            x = self.point("pool", x)
        if plan.head and plan.pool_first:
            x = self._conv(plan.head, x)
            x = self._flat(f"{plan.head.name}:vector", x) if pooled else x
        if plan.classifier:
            x = self.point(plan.classifier.name, self._classifier(plan.classifier, x))
            if execution.test_window:
                x = self._flat("windows:vector", self._global_pool("windows", "avgmax", x))
        return x if len(x.shape) == 1 else self.graph.transpose("output:nhwc", x, (1, 2, 0))

    def _pool(self, x: Tensor, name: str) -> Tensor:
        plan, side = self.network.plan, self.network.execution.test_window
        if side:
            shape = _shape_after(partial(pool_windows, side=side), x)
            return self.graph.add("AveragePool", name, [x], shape, kernel_shape=(side, side))
        return self._global_pool(name, plan.global_pool, x)

    def _global_pool(self, name: str, kind: str, x: Tensor) -> Tensor:
        graph, shape = self.graph, (x.channels, 1, 1)
        match kind:
            case "avg":
                return graph.add("GlobalAveragePool", name, [x], shape)
            case "max":
                return graph.add("GlobalMaxPool", name, [x], shape)
            case "avgmax":
                parts = [self._global_pool(f"{name}:{part}", part, x) for part in ("avg", "max")]
                both = graph.add("Add", f"{name}:sum", parts)
                return graph.add("Mul", name, [both, graph.constant("half", np.array(0.5, x.dtype))])
            case "none":
                return graph.add("Identity", name, [x])
            case _:
                raise AssertionError(f"no rule for pooling {kind}")

    def _classifier(self, classifier: Dense, x: Tensor) -> Tensor:
        """Of a vector, or of every position of a map."""
        if len(x.shape) == 1:
            return self._dense(classifier.name, classifier.name, x)
        conv = classifier.conv
        kernel = self._array(f"{classifier.name}.kernel", lambda array: array.T[:, :, None, None])
        kernel = self.weight(f"{classifier.name}.kernel", kernel)
        inputs = [x, kernel, self._array(f"{classifier.name}.bias")]
        return self._convolved(conv, conv.parts[0], classifier.name, inputs)

    def _dense(self, layer: str, name: str, x: Tensor) -> Tensor:
        kernel = self.weight(f"{layer}.kernel", self._array(f"{layer}.kernel", np.transpose))
        bias = self._array(f"{layer}.bias")
        return self.graph.add("Gemm", name, [x, kernel, bias], (kernel.shape[0],), transB=1)

    def _flat(self, name: str, x: Tensor) -> Tensor:
        """A map of one position as a vector."""
        return self.graph.add("Flatten", name, [x], (math.prod(x.shape),))

    def _kernel(self, name: str) -> Tensor:
        return self._array(f"{name}.kernel", lambda array: array.transpose(3, 2, 0, 1))

    def _array(self, name: str, change: Callable[[np.ndarray], np.ndarray] = np.asarray) -> Tensor:
        """An array of the network, in the layout and dtype that an operator takes."""
        return self.graph.constant(name, change(self.network.arrays[name]).astype(self.dtype))


def _shape_after(function: Callable[[jax.Array], jax.Array], x: Tensor) -> tuple[int, ...]:
    """Of a map after a function of maps `(N, H, W, C)`, which raises what the model would."""
    channels, *sides = x.shape
    shape = jax.eval_shape(function, jax.ShapeDtypeStruct((1, *sides, channels), np.float32)).shape
    return (shape[3], *shape[1:3])
