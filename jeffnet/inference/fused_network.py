"""How a fused model computes a folded network: which kernel computes which operation, and in what pieces."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, assert_never

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jeffnet.arch.execution import Execution
from jeffnet.arch.operations import (
    Attention,
    BatchNorm,
    Conv,
    ConvPart,
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
from jeffnet.arch.plan import Block, Plan
from jeffnet.arch.summary import layers
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.attention import attended_mean
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.conv import conv_general_dilated, make_window
from jeffnet.ops.dense import (
    ACTS,
    dense_conv,
    depthwise_act,
    grouped_dense_conv,
    inverted_residual,
    mixed_depthwise_act,
    pack_bias,
    pack_kernel,
)
from jeffnet.ops.depthwise import Window
from jeffnet.ops.group_norm import sample_norm
from jeffnet.ops.native import limits
from jeffnet.ops.network import apply_composite, apply_experts, apply_network, apply_routing
from jeffnet.ops.pool import downsample
from jeffnet.system.processor import cache_bytes, processors

# Bytes. The C library keeps up to 32 MiB that a call frees; of what is larger, the system clears every page anew.
_MOST_KEPT = 24 << 20
_MOST_REPEATED = 0.15  # largest share of a band's rows that its neighbour computes too


@dataclass(frozen=True)
class FusedNetwork:
    """A folded network as a function of its arrays.

    Attributes:
      plan: folded, see `jeffnet.inference.folding`.
      execution: how a pass runs.
      dtype: of the maps between operations.
      native: whether the C++ kernels are used, which compute sums, gates and means in float32 at least.
      piece: pictures that go through the network at once.
    """

    plan: Plan
    execution: Execution
    dtype: Any
    native: bool
    piece: int

    @property
    def ends(self) -> Any:
        """The dtype of pictures, logits, means and gates: kernels round only maps and weights to bfloat16."""
        return np.dtype(np.float32) if self.native else self.dtype

    def pack(self, folded: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays as the kernels take them; removes those of `folded`, so that none is in memory twice."""
        packed: dict[str, np.ndarray] = {}
        dense = [self.plan.classifier.conv] if self.plan.classifier else []
        gates = {
            conv
            for op in self.plan.operations
            if isinstance(op, SqueezeExcite | GlobalContext)
            for conv in (op.reduce, op.expand)
        }
        for op in (*self.plan.convolutions, *dense):
            for part in op.parts:
                kernel, bias = (folded.pop(f"{part.name}.{leaf}") for leaf in ("kernel", "bias"))
                kernel = kernel[None, None] if kernel.ndim == 2 else kernel
                form = self._form(op, part)
                if form == "dense":
                    dtype = self.dtype if op not in gates and self._takes_maps(part) else self.ends
                    kernel, bias = pack_kernel(kernel.astype(dtype)), pack_bias(bias)
                elif form == "jax":
                    kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
                packed |= {f"{part.name}.kernel": kernel, f"{part.name}.bias": bias}
        # What is left belongs to no kernel.
        packed |= {name: array.astype(self.dtype) for name, array in folded.items()}
        folded.clear()
        return packed

    @property
    def unfused(self) -> tuple[str, ...]:
        """Canonical names of what JAX's operations compute, wholly or in part, since no C++ kernel does."""
        dense = [self.plan.classifier.conv] if self.plan.classifier else []
        return tuple(name for op in (*self.plan.operations, *dense) for name in self._unfused(op))

    def _unfused(self, op: Op) -> Iterator[str]:
        match op:
            case Conv():
                if not _is_plain(op) or any(self._form(op, part) == "jax" for part in op.parts):
                    yield op.name
            case SqueezeExcite():
                yield from (name for conv in op.convolutions for name in self._unfused(conv))
            case GlobalContext() | Attention():
                yield op.name
                yield from (name for conv in op.convolutions for name in self._unfused(conv))
            case Downsample():
                if not self._has_kernel(op):
                    yield op.name
            case Normalize() | LayerScale() | Routing() | ExpertConv():
                yield op.name
            case _:
                assert_never(op)

    def _form(self, op: Conv, part: ConvPart) -> str:
        """Which of the kernels computes a part of a convolution: 'dense', 'depthwise', or 'jax' for none."""
        if not self.native:
            return "jax"
        size = (part.kernel_size, part.kernel_size)
        # 'SAME' pads by less than the kernel reaches.
        pads = ((0, 0), (0, 0)) if isinstance(part.padding, str) else part.padding
        window = Window((op.stride, op.stride), pads, (op.dilation, op.dilation))
        if part.groups == 1 and limits.dense((*size, part.in_channels, part.out_channels), window):
            return "dense"
        return "depthwise" if part.is_depthwise and limits.depthwise((*size, 1, part.in_channels), window) else "jax"

    def _takes_maps(self, part: ConvPart) -> bool:
        """Whether the dense kernel can read the maps: of bfloat16 it takes pairs."""
        return self.dtype != jnp.bfloat16 or part.kernel_size * part.in_channels % 2 == 0

    def _is_pointwise(self, op: Op) -> bool:
        if not isinstance(op, Conv) or not op.is_pointwise or not _is_plain(op):
            return False
        return self._form(op, op.parts[0]) == "dense" and self._takes_maps(op.parts[0])

    def _has_kernel(self, op: Downsample) -> bool:
        size = len(op.taps)
        return self.native and limits.depthwise((size, size, 1, op.channels), _halving(op))

    def apply(self, arrays: Mapping[str, Array], images: Array) -> Array:
        """Logits, or pooled features."""
        window = self.execution.test_window

        def trunk(images: Array) -> Array:
            return apply_network(
                self.plan,
                images,
                self.ends,
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
        x = x if self.plan.classifier is None or window else self._classifier(arrays, x)
        return x.astype(self.ends)

    def _block(self, arrays: Mapping[str, Array], block: Block, x: Array) -> Array:
        means: Array | None = None  # of `x` over each picture, where a kernel computed them
        gate: Array | None = None  # the next convolution multiplies by it
        weights: Array | None = None  # of the block's experts
        shortcut = x if block.residual else None
        ops = block.ops
        while ops:
            count, parts = self._inverted_ops(ops, x) if gate is None else (1, 0)
            (op, *others), ops = ops[:count], ops[count:]
            added = None
            if not ops and isinstance(op, Conv | Attention):
                added, shortcut = shortcut, None
            if gate is not None and not isinstance(op, Conv):
                x, means, gate = _gated(x, gate), None, None
            match op:
                case Conv() if others:
                    with jax.named_scope(block.name):
                        x, means = self._inverted(arrays, (op, *others), x, parts, added)
                case Conv():
                    x, means = self._conv(arrays, op, x, gate, added)
                    gate = None
                case SqueezeExcite() | GlobalContext():
                    gate = self._gate(arrays, op, x, means)
                case Attention():
                    x, means = self._attention(arrays, op, x, added), None
                case Routing():
                    kernel, bias = _weights(arrays, op.name)
                    weights = apply_routing(x, partial(_dense, kernel, bias))
                case ExpertConv():
                    assert weights is not None
                    kernel, bias = _weights(arrays, op.name)
                    x, means = apply_experts(op.conv, x, kernel, weights), None
                    x = self._norm_act(arrays, op.conv.norm, x + over_channels(bias, x), op.conv.act)
                case Downsample():
                    x, means = self._downsample(op, x)
                case Normalize():
                    x, means = self._norm_act(arrays, op.norm, x, op.act), None
                case LayerScale():
                    raise AssertionError(f"{op.name} is not folded")
                case _:
                    assert_never(op)
        x = _gated(x, gate)
        return x if shortcut is None else x + shortcut

    def _gate(
        self, arrays: Mapping[str, Array], op: SqueezeExcite | GlobalContext, x: Array, means: Array | None
    ) -> Array:
        """By what `op` multiplies the channels of `x`, `(N, 1, 1, C)`."""
        if isinstance(op, GlobalContext):
            means = attended_mean(x, self._conv(arrays, op.context, x)[0])
        elif means is None:
            means = x.mean((1, 2), keepdims=True, dtype=self.ends)
        reduced, _ = self._conv(arrays, op.reduce, means, dtype=self.ends)
        return self._conv(arrays, op.expand, reduced, dtype=self.ends)[0]

    def _attention(self, arrays: Mapping[str, Array], op: Attention, x: Array, shortcut: Array | None) -> Array:
        def conv(conv: Conv, x: Array) -> Array:
            return self._conv(arrays, conv, x, shortcut=shortcut if conv is op.output else None)[0]

        return apply_composite(op, x, conv)

    def _downsample(self, op: Downsample, x: Array) -> tuple[Array, Array | None]:
        if not self._has_kernel(op):
            return downsample(x, op.taps, op.padding), None
        kernel = np.multiply.outer(op.taps, op.taps).astype(np.float32)[:, :, None, None]
        kernel = jnp.broadcast_to(kernel, (*kernel.shape[:3], op.channels))
        return depthwise_act(x, kernel, jnp.zeros(op.channels, jnp.float32), _halving(op))

    def _norm_act(self, arrays: Mapping[str, Array], norm: Norm | None, x: Array, act: str | None) -> Array:
        """By JAX's operations."""
        if norm is None:
            return ACTIVATIONS[act](x) if act else x
        assert not isinstance(norm, BatchNorm), f"{norm.name} is not folded"
        return sample_norm(norm, x, arrays[f"{norm.name}.scale"], arrays[f"{norm.name}.bias"], self.dtype, act)

    def _inverted_ops(self, ops: Sequence[Op], x: Array) -> tuple[int, int]:
        """How many of the first operations one kernel computes, in how many parts of each picture; 1 and 0 for none."""
        match ops:
            case [expand, Conv(parts=[part]) as depthwise, after, *_] if self._is_pointwise(expand):
                pass
            case _:
                return 1, 0
        kernel = (part.kernel_size, part.kernel_size, 1, part.in_channels)
        fits = limits.inverted(x.shape, kernel, _window(depthwise, part, x)) and _is_plain(depthwise)
        if not fits or self._form(depthwise, part) != "depthwise":
            return 1, 0
        parts = -(-len(processors()) // x.shape[0])
        # The kernel of three operations ends with a product of all channels and no activation. Its parts are bands of
        # rows: neighbouring bands both compute the rows under the kernels at their border.
        whole = self._is_pointwise(after) and isinstance(after, Conv) and after.act is None
        rows, repeated = x.shape[1] / parts, part.kernel_size - depthwise.stride
        if whole and (parts == 1 or repeated <= rows * _MOST_REPEATED):
            return 3, parts
        return 2, parts

    def _inverted(
        self, arrays: Mapping[str, Array], ops: Sequence[Any], x: Array, parts: int, shortcut: Array | None
    ) -> tuple[Array, Array | None]:
        """Outputs, and means where they end with the depthwise convolution."""
        expand, depthwise, *project = ops
        window, acts = _window(depthwise, depthwise.parts[0], x), (expand.act, depthwise.act)
        kernels = _weights(arrays, expand.name), _weights(arrays, depthwise.name)
        if not project:
            return inverted_residual(x, *kernels, window, acts, parts)
        last, features = _weights(arrays, project[0].name), project[0].out_channels
        return inverted_residual(x, *kernels, window, acts, parts, last, features, shortcut)[0], None

    def _conv(
        self,
        arrays: Mapping[str, Array],
        op: Conv,
        x: Array,
        gate: Array | None = None,
        shortcut: Array | None = None,
        dtype: Any = None,
    ) -> tuple[Array, Array | None]:
        """Outputs and, if the kernels computed them, their means over each picture before the shortcut is added.

        The outputs are maps, or of another `dtype`, which does not hold for depthwise kernels.
        """
        if not _is_plain(op):
            x, _ = self._conv(arrays, replace(op, norm=None, act=None), x, gate)
            x = self._norm_act(arrays, op.norm, x, op.act)
            return x if shortcut is None else x + shortcut, None
        if len(op.parts) > 1:
            forms = {self._form(op, part) for part in op.parts}
            with jax.named_scope(op.name):
                if forms == {"depthwise"} and shortcut is None:
                    parts = [(*_weights(arrays, part.name), _window(op, part, x)) for part in op.parts]
                    return mixed_depthwise_act(_gated(x, gate), parts, op.act)
                takes = all(part.kernel_size == 1 and self._takes_maps(part) for part in op.parts)
                if forms == {"dense"} and takes:
                    shares = [(*_weights(arrays, part.name), part.in_channels, part.out_channels) for part in op.parts]
                    window, x = _window(op, op.parts[0], x), x.astype(shares[0][0].dtype)
                    dtype = dtype or self.dtype
                    return grouped_dense_conv(x, shares, (1, 1), window, op.act, gate, shortcut, dtype), None
        outputs, means = [], []
        for part, channels, features in op.shares:
            with jax.named_scope(part.name):
                part_gate = None if gate is None else gate[..., channels]
                part_shortcut = None if shortcut is None else shortcut[..., features]
                output, mean = self._part(arrays, op, part, x[..., channels], part_gate, part_shortcut, dtype)
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
        dtype: Any,
    ) -> tuple[Array, Array | None]:
        kernel, bias, window = *_weights(arrays, part.name), _window(op, part, x)
        form = self._form(op, part)
        if form == "dense":
            size, x, dtype = (part.kernel_size, part.kernel_size), x.astype(kernel.dtype), dtype or self.dtype
            return dense_conv(x, kernel, bias, size, part.out_channels, window, op.act, gate, shortcut, dtype), None
        x, means = _gated(x, gate), None
        if form == "depthwise":
            x, means = depthwise_act(x, kernel, bias, window, op.act)
        else:
            x = x.astype(kernel.dtype)
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
            kernel, bias = _weights(arrays, op.name)
            return _dense(kernel[0, 0], bias, x)
        rows = x.reshape(-1, 1, 1, x.shape[-1])
        return self._conv(arrays, op, rows, dtype=self.ends)[0].reshape(*x.shape[:-1], op.out_channels)


def _gated(x: Array, gate: Array | None) -> Array:
    return x if gate is None else (x.astype(gate.dtype) * gate).astype(x.dtype)


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def _weights(arrays: Mapping[str, Array], name: str) -> tuple[Array, Array]:
    return arrays[f"{name}.kernel"], arrays[f"{name}.bias"]


def _dense(kernel: Array, bias: Array, x: Array) -> Array:
    x = x @ kernel
    return x + over_channels(bias, x)


def _is_plain(op: Conv) -> bool:
    """Whether kernels compute all that comes after the products."""
    return op.norm is None and op.act in ACTS


def _halving(op: Downsample) -> Window:
    return Window((2, 2), ((op.padding, op.padding),) * 2, (1, 1))  # pyright: ignore[reportArgumentType]


def _window(op: Conv, part: ConvPart, x: Array) -> Window:
    size = (part.kernel_size, part.kernel_size)
    return make_window(x.shape[1:3], size, (op.stride, op.stride), part.padding, (op.dilation, op.dilation))


def best_piece(plan: Plan, batch_size: int, height: int, width: int, itemsize: int = 4) -> int:
    """As many pictures as have their largest input and output in the cache, need no new memory, and share the batch.

    `itemsize` is the number of bytes of a map's value.
    """
    scale = (height * width) / max(height, width) ** 2
    rows = [row.out_size**2 * row.out_channels * scale * itemsize for row in layers(plan, max(height, width))]
    largest = max(before + after for before, after in itertools.pairwise(rows))
    fitting = max(1, int(min(cache_bytes() / 2, _MOST_KEPT) / largest))
    return max(size for size in range(1, min(fitting, batch_size) + 1) if batch_size % size == 0)
