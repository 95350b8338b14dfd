"""A folded network in JAX's operations, with a name for every value on the way.

Exporters trace it, calibration observes it, quantisation-aware training rounds its values. An exported graph has the
same values under the same names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, assert_never

import jax.numpy as jnp
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
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.attention import attended_mean, multi_query_attention
from jeffnet.ops.broadcast import over_channels
from jeffnet.ops.conv import conv_general_dilated
from jeffnet.ops.group_norm import sample_norm
from jeffnet.ops.network import apply_network, apply_routing
from jeffnet.ops.pool import downsample

# From the name of a value, and the value, to what takes its place.
Point = Callable[[str, Array], Array]

# From the name of a kernel, the kernel, and the bias that is added to what it gives, to what takes the bias's place.
Bias = Callable[[str, Array, Array], Array]


def unchanged(name: str, value: Array) -> Array:
    """The value itself."""
    return value


def unchanged_bias(name: str, kernel: Array, bias: Array) -> Array:
    """The bias itself."""
    return bias


@dataclass(frozen=True)
class FoldedNetwork:
    """A folded network as a function of its arrays.

    Values are named after what computes them: `images`; `NAME` of an operation for its result, `NAME:sum` for the
    outputs of a convolution before its norm and activation, where it has either, `NAME:mean` for what a gate is
    computed from; `NAME` of a block for its result, where it adds its input; `pool` and `classifier`.

    Attributes:
      plan: folded, see `jeffnet.inference.folding`.
      execution: how a pass runs.
      dtype: in which to compute.
      point: is given every value with its name, and returns what takes its place.
      weight: the same for the kernel of every convolution and of the classifier, by the name of its array.
      bias: the same for their biases, by the name of the kernel, with the kernel.
    """

    plan: Plan
    execution: Execution = Execution()
    dtype: Any = jnp.float32
    point: Point = unchanged
    weight: Point = unchanged
    bias: Bias = unchanged_bias

    def apply(self, arrays: Mapping[str, Array], images: Array) -> Array:
        """Logits, or pooled features.

        Args:
          arrays: of `fold_norms`, by canonical name.
          images: `(N, H, W, C)`, normalised.
        """
        pooled_head = self.plan.head if self.plan.pool_first else None

        def block(block: Block, x: Array) -> Array:
            return self._block(arrays, block, x)

        def conv(op: Conv, x: Array) -> Array:
            if op is self.plan.stem:
                x = self.point("images", x)
            return self._conv(arrays, op, self.point("pool", x) if op is pooled_head else x)

        def classifier(x: Array) -> Array:
            assert self.plan.classifier
            name = self.plan.classifier.name
            if pooled_head is None:
                x = self.point("pool", x)
            return self.point(name, self._dense(arrays, name, x))

        return apply_network(
            self.plan,
            images,
            self.dtype,
            conv,
            block,
            classifier if self.plan.classifier else None,
            execution=self.execution,
        )

    def _block(self, arrays: Mapping[str, Array], block: Block, x: Array) -> Array:
        shortcut, weights = x, None
        for op in block.ops:
            if isinstance(op, Routing):
                weights = self.point(op.name, apply_routing(x, partial(self._dense, arrays, op.name)))
            else:
                x = self._op(arrays, op, x, weights)
        return self.point(block.name, x + shortcut) if block.residual else x

    def _op(self, arrays: Mapping[str, Array], op: Op, x: Array, weights: Array | None) -> Array:
        match op:
            case Conv():
                return self._conv(arrays, op, x)
            case SqueezeExcite():
                mean = self.point(f"{op.name}:mean", x.mean((1, 2), keepdims=True))
                return self._gated(arrays, op, x, mean)
            case GlobalContext():
                mean = self.point(f"{op.name}:mean", attended_mean(x, self._conv(arrays, op.context, x)))
                return self._gated(arrays, op, x, mean)
            case Attention():
                chains = ((op.query,), op.key, op.value)
                query, key, value = (reduce(lambda x, conv: self._conv(arrays, conv, x), ops, x) for ops in chains)
                attended = self.point(op.name, multi_query_attention(query, key, value, op.heads))
                return self._conv(arrays, op.output, attended)
            case ExpertConv():
                assert weights is not None
                kernel = self.weight(f"{op.name}.kernel", arrays[f"{op.name}.kernel"])
                x = self._mixture(op.conv, x, kernel, weights)
                x = x + over_channels(arrays[f"{op.name}.bias"], x)
                return self._norm_act(arrays, op.name, op.conv.norm, x, op.conv.act)
            case Downsample():
                return self.point(op.name, downsample(x, op.taps, op.padding))
            case Normalize():
                return self._norm_act(arrays, op.name, op.norm, x, op.act)
            case LayerScale() | Routing():
                raise AssertionError(f"{op.name} is folded, or a block's")
            case _:
                assert_never(op)

    def _gated(self, arrays: Mapping[str, Array], op: SqueezeExcite | GlobalContext, x: Array, mean: Array) -> Array:
        gate = self._conv(arrays, op.expand, self._conv(arrays, op.reduce, mean))
        return self.point(op.name, x * gate)

    def _conv(self, arrays: Mapping[str, Array], op: Conv, x: Array) -> Array:
        # Not by indexing, which gathers where the number of pictures is a symbol.
        outputs = [
            self._part(arrays, op, part, lax.slice_in_dim(x, channels.start, channels.stop, axis=-1))
            for part, channels, _ in op.shares
        ]
        x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)
        return self._norm_act(arrays, op.name, op.norm, x, op.act)

    def _part(self, arrays: Mapping[str, Array], op: Conv, part: ConvPart, x: Array) -> Array:
        kernel = self.weight(f"{part.name}.kernel", arrays[f"{part.name}.kernel"])
        x = self._convolved(op, part, x, kernel)
        return x + over_channels(self._bias(arrays, part.name), x)

    def _bias(self, arrays: Mapping[str, Array], layer: str) -> Array:
        return self.bias(f"{layer}.kernel", arrays[f"{layer}.kernel"], arrays[f"{layer}.bias"])

    @staticmethod
    def _convolved(op: Conv, part: ConvPart, x: Array, kernel: Array) -> Array:
        steps, dilation = (op.stride, op.stride), (op.dilation, op.dilation)
        return conv_general_dilated(
            x, kernel, steps, part.padding, rhs_dilation=dilation, feature_group_count=part.groups
        )

    def _mixture(self, conv: Conv, x: Array, kernels: Array, weights: Array) -> Array:
        """As `jeffnet.ops.network.apply_experts`, in operations that need not know the number of pictures.

        1x1 convolutions mix the experts' kernels, all others, which are cheaper, the experts' outputs.
        """
        (part,) = conv.parts
        if conv.is_pointwise:
            return jnp.einsum("nhwi,nio->nhwo", x, jnp.einsum("ne,eio->nio", weights, kernels[:, 0, 0]))
        outputs = (
            lax.slice_in_dim(weights, expert, expert + 1, axis=1)[:, :, None, None]
            * self._convolved(conv, part, x, kernel)
            for expert, kernel in enumerate(kernels)
        )
        return reduce(jnp.add, outputs)

    def _norm_act(self, arrays: Mapping[str, Array], name: str, norm: Norm | None, x: Array, act: str | None) -> Array:
        if norm is not None or act is not None:
            x = self.point(f"{name}:sum", x)
        if norm is not None:
            assert not isinstance(norm, BatchNorm), f"{norm.name} is not folded"
            x = sample_norm(norm, x, arrays[f"{norm.name}.scale"], arrays[f"{norm.name}.bias"], self.dtype, act)
        elif act is not None:
            x = ACTIVATIONS[act](x)
        return self.point(name, x)

    def _dense(self, arrays: Mapping[str, Array], name: str, x: Array) -> Array:
        x = x @ self.weight(f"{name}.kernel", arrays[f"{name}.kernel"])
        return x + over_channels(self._bias(arrays, name), x)
