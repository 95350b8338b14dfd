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
from jeffnet.arch.preprocessing import per_channel
from jeffnet.export.network import ExportNetwork
from jeffnet.export.onnx_graph import OnnxGraph, Tensor
from jeffnet.export.onnx_kernels import conv_kernel, expert_kernels, expert_matrices, part_window
from jeffnet.export.onnx_operations import (
    activation,
    attended_mean,
    convolution,
    mixture_of_outputs,
    multi_query_attention,
    product_with_mixture,
    sample_norm,
)
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
      weight: the same for the kernels of convolutions and of the classifier. Their first axis is that of the outputs,
        but for 1x1 kernels of experts. Several kernels of a convolution are one, named after the convolution.
      bias: the same for the biases that belong to these kernels.
    """

    def __init__(
        self,
        network: ExportNetwork,
        graph: OnnxGraph,
        dtype: Any = None,
        point: Point = _unchanged,
        weight: Point = _unchanged,
        bias: Point = _unchanged,
    ) -> None:
        self.network, self.graph, self.point, self.weight, self.bias = network, graph, point, weight, bias
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
                return self._norm_act(op.name, op.norm, op.act, lambda name: self.graph.add("Identity", name, [x]))
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
        return self._norm_act(op.name, op.norm, op.act, lambda name: self._kernels(op, name, x))

    def _kernels(self, op: Conv, name: str, x: Tensor) -> Tensor:
        """A convolution without norm and activation; several kernels have become one."""
        array, window, groups = conv_kernel(op, self.network.arrays, x.shape[1:])
        kernel = self._kernel(f"{op.name}.kernel", array)
        biases = [self.network.arrays[f"{part.name}.bias"] for part in op.parts]
        return convolution(self.graph, name, x, kernel, window, groups, self._bias(f"{op.name}.bias", *biases))

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
        array, conv = self.network.arrays[f"{op.name}.kernel"], op.conv

        def mixed(name: str) -> Tensor:
            if conv.is_pointwise:
                kernels = self._kernel(f"{op.name}.kernel", expert_matrices(array))
                y = product_with_mixture(self.graph, name, x, kernels, weights, conv.out_channels)
            else:
                kernels, (part,) = self._kernel(f"{op.name}.kernel", expert_kernels(array)), conv.parts
                window = part_window(conv, part, x.shape[1:])
                y = convolution(self.graph, f"{name}:experts", x, kernels, window, part.groups)
                y = mixture_of_outputs(self.graph, name, y, weights)
            bias = self._per_channel(f"{op.name}.bias", self.network.arrays[f"{op.name}.bias"], self.dtype)
            return self.graph.add("Add", name, [y, bias])

        return self._norm_act(op.name, op.conv.norm, op.conv.act, mixed)

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
        conv, name = classifier.conv, classifier.name
        kernel = self._kernel(f"{name}.kernel", self.network.arrays[f"{name}.kernel"].T[:, :, None, None])
        bias = self._bias(f"{name}.bias", self.network.arrays[f"{name}.bias"])
        return convolution(self.graph, name, x, kernel, part_window(conv, conv.parts[0], x.shape[1:]), 1, bias)

    def _dense(self, layer: str, name: str, x: Tensor) -> Tensor:
        kernel = self._kernel(f"{layer}.kernel", self.network.arrays[f"{layer}.kernel"].T)
        bias = self._bias(f"{layer}.bias", self.network.arrays[f"{layer}.bias"])
        return self.graph.add("Gemm", name, [x, kernel, bias], (kernel.shape[0],), transB=1)

    def _flat(self, name: str, x: Tensor) -> Tensor:
        """A map of one position as a vector."""
        return self.graph.add("Flatten", name, [x], (math.prod(x.shape),))

    def _kernel(self, name: str, array: np.ndarray) -> Tensor:
        return self.weight(name, self._constant(name, array))

    def _bias(self, name: str, *arrays: np.ndarray) -> Tensor:
        return self.bias(name, self._constant(name, *arrays))

    def _constant(self, name: str, *arrays: np.ndarray) -> Tensor:
        """Arrays one after the other, in the dtype in which to compute."""
        return self.graph.constant(name, np.concatenate(arrays).astype(self.dtype))


def _shape_after(function: Callable[[jax.Array], jax.Array], x: Tensor) -> tuple[int, ...]:
    """Of a map after a function of maps `(N, H, W, C)`, which raises what the model would."""
    channels, *sides = x.shape
    shape = jax.eval_shape(function, jax.ShapeDtypeStruct((1, *sides, channels), np.float32)).shape
    return (shape[3], *shape[1:3])
