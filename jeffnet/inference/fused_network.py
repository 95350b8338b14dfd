"""How a fused model computes a folded network: which kernel computes which operation, and in what pieces."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jeffnet.arch.execution import Execution
from jeffnet.arch.operations import Conv, ConvPart, Op, SqueezeExcite
from jeffnet.arch.plan import Block, Plan
from jeffnet.arch.summary import layers
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.conv import conv_general_dilated, make_window
from jeffnet.ops.dense import ACTS, dense_conv, depthwise_act, inverted_residual, pack_bias, pack_kernel
from jeffnet.ops.depthwise import Window
from jeffnet.ops.native import limits
from jeffnet.ops.network import apply_network
from jeffnet.system.processor import cache_bytes, processors

_MOST_REPEATED = 0.15  # largest share of a band's rows that its neighbour computes too


@dataclass(frozen=True)
class FusedNetwork:
    """A folded network as a function of its arrays.

    Attributes:
      plan: without norms, see `jeffnet.inference.folding`.
      execution: how a pass runs.
      dtype: in which to compute.
      native: whether the C++ kernels are used.
      piece: pictures that go through the network at once.
    """

    plan: Plan
    execution: Execution
    dtype: Any
    native: bool
    piece: int

    def pack(self, folded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays as the kernels take them; removes those of `folded`, so that none is in memory twice."""
        packed: dict[str, np.ndarray] = {}
        dense = [self.plan.classifier.conv] if self.plan.classifier else []
        for op in (*self.plan.convolutions, *dense):
            for part in op.parts:
                kernel, bias = (folded.pop(f"{part.name}.{leaf}") for leaf in ("kernel", "bias"))
                kernel = kernel[None, None] if kernel.ndim == 2 else kernel
                if self._form(op, part) == "dense":
                    kernel, bias = pack_kernel(kernel), pack_bias(bias)
                packed |= {f"{part.name}.kernel": kernel, f"{part.name}.bias": bias}
        return packed

    def _form(self, op: Conv, part: ConvPart) -> str:
        """Which of the kernels computes a part of a convolution: 'dense', 'depthwise', or 'jax' for none."""
        if not self.native or op.act not in ACTS:
            return "jax"
        size = (part.kernel_size, part.kernel_size)
        # 'SAME' pads by less than the kernel reaches.
        pads = ((0, 0), (0, 0)) if isinstance(part.padding, str) else part.padding
        window = Window((op.stride, op.stride), pads, (op.dilation, op.dilation))
        if part.groups == 1 and limits.dense((*size, part.in_channels, part.out_channels), window):
            return "dense"
        return "depthwise" if part.is_depthwise and limits.depthwise((*size, 1, part.in_channels), window) else "jax"

    def _is_pointwise(self, op: Op) -> bool:
        return isinstance(op, Conv) and op.is_pointwise and self._form(op, op.parts[0]) == "dense"

    def apply(self, arrays: Mapping[str, Array], images: Array) -> Array:
        """Logits, or pooled features."""
        window = self.execution.test_window

        def trunk(images: Array) -> Array:
            return apply_network(
                self.plan,
                images,
                self.dtype,
                lambda op, x: self._conv(arrays, op, x)[0],
                lambda block, x: self._block(arrays, block, x),
                (lambda x: self._classifier(arrays, x)) if self.plan.classifier else None,
                execution=self.execution,
                # Test-time pooling comes after the classifier.
                output="logits" if window else "pre_logits",
            )

        count = images.shape[0]
        if self.piece < count:
            # The last piece of an uneven batch is filled up with what is already there.
            if missing := -count % self.piece:
                images = jnp.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)), mode="wrap")
            x = lax.map(trunk, images.reshape(-1, self.piece, *images.shape[1:]))
            x = x.reshape(-1, *x.shape[2:])[:count]
        else:
            x = trunk(images)
        # The classifier's weights are large against its work: they are read once for the whole batch.
        return x if self.plan.classifier is None or window else self._classifier(arrays, x)

    def _block(self, arrays: Mapping[str, Array], block: Block, x: Array) -> Array:
        shortcut, gate, ops, means = x, None, block.ops, None
        bands = self._bands(block, x)
        if bands:
            whole = len(ops) == 3
            with jax.named_scope(block.name):
                x, means = self._inverted(arrays, ops, x, bands, shortcut if block.residual and whole else None)
            if whole:
                return x
            ops = ops[2:]
        for index, op in enumerate(ops):
            last = index + 1 == len(ops)
            match op:
                case SqueezeExcite():
                    # The convolution that comes next multiplies by the gate.
                    if gate is not None:
                        x, means = x * gate, None
                    means = x.mean((1, 2), keepdims=True) if means is None else means
                    reduced, _ = self._conv(arrays, op.reduce, means)
                    gate, _ = self._conv(arrays, op.expand, reduced)
                case Conv():
                    x, means = self._conv(arrays, op, x, gate, shortcut if last and block.residual else None)
                    gate = None
                case _:
                    assert_never(op)
        if gate is not None:
            x = x * gate + shortcut if block.residual else x * gate
        return x

    def _bands(self, block: Block, x: Array) -> int:
        """Number of bands into which pictures are cut to fuse a block's first convolutions; 0 to not fuse them."""
        match block.ops:
            case [expand, Conv(parts=[part]) as depthwise, *rest] if self._is_pointwise(expand) and rest:
                pass
            case _:
                return 0
        kernel = (part.kernel_size, part.kernel_size, 1, part.in_channels)
        if (
            not limits.inverted(x.shape, kernel, _window(depthwise, part, x))
            or self._form(depthwise, part) != "depthwise"
        ):
            return 0
        # The kernel of whole blocks ends with a product of all channels and no activation.
        if len(rest) == 1 and not (self._is_pointwise(rest[0]) and rest[0].act is None):
            return 0
        bands = -(-len(processors()) // x.shape[0])
        # Neighbouring bands both compute the rows under the kernels at their border.
        rows, repeated = x.shape[1] / bands, part.kernel_size - depthwise.stride
        return bands if bands == 1 or repeated <= rows * _MOST_REPEATED else 0

    def _inverted(
        self, arrays: Mapping[str, Array], ops: tuple, x: Array, bands: int, shortcut: Array | None
    ) -> tuple[Array, Array]:
        expand, depthwise = ops[:2]
        window = _window(depthwise, depthwise.parts[0], x)
        weights = [_weights(arrays, op.parts[0]) for op in (ops if len(ops) == 3 else ops[:2])]
        project, features = (weights[2], ops[2].out_channels) if len(ops) == 3 else (None, 0)
        acts = (expand.act, depthwise.act)
        return inverted_residual(x, weights[0], weights[1], window, acts, bands, project, features, shortcut)

    def _conv(
        self, arrays: Mapping[str, Array], op: Conv, x: Array, gate: Array | None = None, shortcut: Array | None = None
    ) -> tuple[Array, Array | None]:
        """Outputs and, if the kernels computed them, their means over each picture before the shortcut is added."""
        outputs, means = [], []
        for part, channels, features in op.shares:
            with jax.named_scope(part.name):
                part_gate = None if gate is None else gate[..., channels]
                part_shortcut = None if shortcut is None else shortcut[..., features]
                output, mean = self._part(arrays, op, part, x[..., channels], part_gate, part_shortcut)
                outputs.append(output)
                means.append(mean)
        return _joined(outputs), None if any(mean is None for mean in means) else _joined(means)

    def _part(
        self,
        arrays: Mapping[str, Array],
        op: Conv,
        part: ConvPart,
        x: Array,
        gate: Array | None,
        shortcut: Array | None,
    ) -> tuple[Array, Array | None]:
        kernel, bias, window = *_weights(arrays, part), _window(op, part, x)
        form = self._form(op, part)
        if form == "dense":
            size = (part.kernel_size, part.kernel_size)
            return dense_conv(x, kernel, bias, size, part.out_channels, window, op.act, gate, shortcut), None
        x, means = x if gate is None else x * gate, None
        if form == "depthwise":
            x, means = depthwise_act(x, kernel, bias, window, op.act)
        else:
            x = conv_general_dilated(
                x, kernel, window.strides, window.pads, rhs_dilation=window.dilation, feature_group_count=part.groups
            )
            x = x + over_channels(bias, x)
            x = ACTIVATIONS[op.act](x) if op.act else x
        return x if shortcut is None else x + shortcut, means

    def _classifier(self, arrays: Mapping[str, Array], x: Array) -> Array:
        assert self.plan.classifier
        op = self.plan.classifier.conv
        if self._form(op, op.parts[0]) != "dense":
            x = x @ arrays[f"{op.name}.kernel"][0, 0]
            return x + over_channels(arrays[f"{op.name}.bias"], x)
        rows = x.reshape(-1, 1, 1, x.shape[-1])
        return self._conv(arrays, op, rows)[0].reshape(*x.shape[:-1], op.out_channels)


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def _weights(arrays: Mapping[str, Array], part: ConvPart) -> tuple[Array, Array]:
    return arrays[f"{part.name}.kernel"], arrays[f"{part.name}.bias"]


def _window(op: Conv, part: ConvPart, x: Array) -> Window:
    size = (part.kernel_size, part.kernel_size)
    return make_window(x.shape[1:3], size, (op.stride, op.stride), part.padding, (op.dilation, op.dilation))


def best_piece(plan: Plan, batch_size: int, height: int, width: int) -> int:
    """As many pictures as have their largest input and output in the cache, and divide the batch."""
    scale = (height * width) / max(height, width) ** 2
    rows = [row.out_size**2 * row.out_channels * scale * 4 for row in layers(plan, max(height, width))]
    largest = max(before + after for before, after in itertools.pairwise(rows))
    fitting = max(1, int(cache_bytes() / 2 / largest))
    return max(size for size in range(1, min(fitting, batch_size) + 1) if batch_size % size == 0)
