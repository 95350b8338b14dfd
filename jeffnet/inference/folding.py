"""Norms and factors folded into the convolutions before them, for models that only infer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, assert_never

import numpy as np
from jax.typing import DTypeLike

from jeffnet.arch.operations import (
    Attention,
    BatchNorm,
    Conv,
    ConvPart,
    Downsample,
    ExpertConv,
    GlobalContext,
    GroupNorm,
    LayerNorm,
    LayerScale,
    Norm,
    Normalize,
    Op,
    Routing,
    SqueezeExcite,
)
from jeffnet.arch.plan import Plan
from jeffnet.arch.summary import array_specs

_Factors = np.ndarray | float


def fold_norms(
    plan: Plan, arrays: Mapping[str, Any], dtype: DTypeLike = np.float32
) -> tuple[Plan, dict[str, np.ndarray]]:
    """The same network for inference: every convolution has a bias, and no BatchNorm or LayerScale is left.

    BatchNorm and LayerScale are folded into the convolution before them. A BatchNorm that follows no convolution is a
    1x1 depthwise one: zeros that pad what comes after it keep it from being folded forward. GroupNorm and LayerNorm
    depend on their input, so they stay.

    Args:
      plan: the network.
      arrays: by canonical name; running statistics are those of a pass without training.
      dtype: of the result; the arithmetic is float64.

    Returns:
      The folded plan, and its arrays by canonical name, in the order in which a pass uses them.
    """
    folding = _Folding({name: arrays[name] for name in array_specs(plan)}, dtype)
    stem, head = folding.conv(plan.stem), folding.conv(plan.head) if plan.head else None
    stages = tuple(tuple(replace(block, ops=folding.ops(block.ops)) for block in stage) for stage in plan.stages)
    if plan.classifier:
        folding.keep(plan.classifier.name)
    assert not folding.arrays, f"neither folded nor kept: {list(folding.arrays)}"
    plan = replace(plan, stem=stem, stages=stages, head=head)
    folded = {name: folding.folded.pop(name) for name in array_specs(plan)}
    assert not folding.folded, f"not in the folded plan: {list(folding.folded)}"
    return plan, folded


class _Folding:
    """Folds operations.

    Attributes:
      arrays: of the network, by canonical name; those that are folded or kept are taken out.
      dtype: of the folded arrays.
      folded: arrays of the folded network.
    """

    def __init__(self, arrays: dict[str, Any], dtype: DTypeLike) -> None:
        self.arrays, self.dtype = arrays, dtype
        self.folded: dict[str, np.ndarray] = {}

    def ops(self, ops: tuple[Op, ...]) -> tuple[Op, ...]:
        """The operations of a block, from the last to the first, since factors go into the operation before them."""
        folded, factors = [], None
        for op in reversed(ops):
            match op:
                case LayerScale():
                    scale = self._take(op.name, "scale")
                    factors = scale if factors is None else scale * factors
                case Downsample():  # a sum within every channel, so factors may as well come before it
                    folded.append(op)
                case _:
                    folded.append(self._op(op, 1.0 if factors is None else factors))
                    factors = None
        assert factors is None, f"{ops[0].name}: factors at the beginning of a block"
        return tuple(reversed(folded))

    def _op(self, op: Op, factors: _Factors) -> Op:
        """An operation whose outputs are multiplied by factors."""
        match op:
            case Conv():
                return self.conv(op, factors)
            case ExpertConv():
                return replace(op, conv=self.conv(op.conv, factors))
            case Normalize(norm=BatchNorm() as norm):
                part = ConvPart(norm.name, norm.channels, norm.channels, 1, norm.channels, "SAME")
                assert op.act is None or isinstance(factors, float), f"{op.name}: factors after an activation"
                scale, shift = self._affine(norm)
                self._put(norm.name, kernel=(scale * factors)[None, None, None], bias=shift * factors)
                return Conv(norm.name, (part,), 1, 1, True, None, op.act)
            case Normalize():
                self._keep_norm(op.norm, factors)
                return op
            case Attention():
                return replace(
                    op,
                    query=self.conv(op.query),
                    key=tuple(map(self.conv, op.key)),
                    value=tuple(map(self.conv, op.value)),
                    output=self.conv(op.output, factors),
                )
            case GlobalContext():
                assert isinstance(factors, float), f"{op.name}: factors after a gate"
                return replace(
                    op, context=self.conv(op.context), reduce=self.conv(op.reduce), expand=self.conv(op.expand)
                )
            case SqueezeExcite():
                assert isinstance(factors, float), f"{op.name}: factors after a gate"
                for conv in op.convolutions:
                    self.conv(conv)
                return op
            case Routing():
                self.keep(op.name)
                return op
            case LayerScale() | Downsample():
                raise AssertionError("these are handled by `ops`")
            case _:
                assert_never(op)

    def conv(self, conv: Conv, factors: _Factors = 1.0) -> Conv:
        """A convolution, or the experts of one, whose outputs are multiplied by factors."""
        assert conv.act is None or isinstance(factors, float), f"{conv.name}: factors after an activation"
        scale, shift, norm = np.ones(conv.out_channels), np.zeros(conv.out_channels), None
        match conv.norm:
            case None:
                scale = scale * factors
            case BatchNorm():
                scale, shift = (values * factors for values in self._affine(conv.norm))
            case GroupNorm() | LayerNorm():
                norm = conv.norm
                self._keep_norm(norm, factors)
            case _:
                assert_never(conv.norm)
        for part, _, channels in conv.shares:
            bias = self._take(part.name, "bias") * scale[channels] if conv.bias else 0.0
            self._put(part.name, kernel=self._scaled(part.name, scale[channels]), bias=bias + shift[channels])
        return replace(conv, bias=True, norm=norm)

    def keep(self, name: str) -> None:
        """Kernel and bias of a layer as they are."""
        self._put(name, kernel=self._take(name, "kernel"), bias=self._take(name, "bias"))

    def _keep_norm(self, norm: Norm, factors: _Factors) -> None:
        self._put(
            norm.name, scale=self._take(norm.name, "scale") * factors, bias=self._take(norm.name, "bias") * factors
        )

    def _affine(self, norm: BatchNorm) -> tuple[np.ndarray, np.ndarray]:
        """The factor and the summand of every channel that do what a BatchNorm does."""
        scale = self._take(norm.name, "scale") / np.sqrt(self._take(norm.name, "var") + norm.epsilon)
        return scale, self._take(norm.name, "bias") - self._take(norm.name, "mean") * scale

    def _scaled(self, name: str, scale: np.ndarray) -> np.ndarray:
        """A kernel times the factors of its channels: in float64, but without a whole array of it."""
        kernel = np.asarray(self.arrays.pop(f"{name}.kernel"))
        return np.multiply(kernel, scale, out=np.empty(kernel.shape, self.dtype), dtype=np.float64, casting="unsafe")

    def _take(self, name: str, leaf: str) -> np.ndarray:
        return np.asarray(self.arrays.pop(f"{name}.{leaf}"), np.float64)

    def _put(self, name: str, **arrays: np.ndarray) -> None:
        self.folded |= {f"{name}.{leaf}": array.astype(self.dtype, copy=False) for leaf, array in arrays.items()}
