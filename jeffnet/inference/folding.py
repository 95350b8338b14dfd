"""Norms folded into the convolutions before them, for models that only infer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, assert_never

import numpy as np
from jax.typing import DTypeLike

from jeffnet.arch.operations import BatchNorm, Conv, Op, SqueezeExcite
from jeffnet.arch.plan import Plan


def fold_norms(
    plan: Plan, arrays: Mapping[str, Any], dtype: DTypeLike = np.float32
) -> tuple[Plan, dict[str, np.ndarray]]:
    """The same network for inference: its convolutions have a bias, and no norm follows them.

    Args:
      plan: the network.
      arrays: by canonical name; running statistics are those of a pass without training.
      dtype: of the result; the arithmetic is float64.

    Returns:
      The plan without norms, and its arrays by canonical name, in the order in which a pass uses them.
    """
    folded: dict[str, np.ndarray] = {}
    for conv in plan.convolutions:
        scale, bias = _scale_and_bias(conv, arrays)
        for part, _, channels in conv.shares:
            kernel = np.asarray(arrays[f"{part.name}.kernel"], np.float64) * scale[channels]
            folded |= {f"{part.name}.kernel": kernel.astype(dtype), f"{part.name}.bias": bias[channels].astype(dtype)}
    if plan.classifier:
        names = (f"{plan.classifier.name}.{leaf}" for leaf in ("kernel", "bias"))
        folded |= {name: np.asarray(arrays[name], np.float64).astype(dtype) for name in names}
    stages = tuple(
        tuple(replace(block, ops=tuple(map(_without_norms, block.ops))) for block in stage) for stage in plan.stages
    )
    return replace(plan, stem=_without_norm(plan.stem), stages=stages, head=_without_norm(plan.head)), folded


def _without_norms(op: Op) -> Op:
    match op:
        case Conv():
            return _without_norm(op)
        case SqueezeExcite():
            return op
        case _:
            assert_never(op)


def _without_norm(conv: Conv) -> Conv:
    return replace(conv, bias=True, norm=None)


def _scale_and_bias(conv: Conv, arrays: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The factor and the summand of every output channel that replace the convolution's bias and norm."""

    def take(name: str, leaf: str) -> np.ndarray:
        return np.asarray(arrays[f"{name}.{leaf}"], np.float64)

    scale, bias = np.ones(conv.out_channels), np.zeros(conv.out_channels)
    if conv.bias:
        bias = np.concatenate([take(part.name, "bias") for part in conv.parts])
    match conv.norm:
        case None:
            pass
        case BatchNorm(name=name, epsilon=epsilon):
            scale = take(name, "scale") / np.sqrt(take(name, "var") + epsilon)
            bias = (bias - take(name, "mean")) * scale + take(name, "bias")
        case _:
            assert_never(conv.norm)
    return scale, bias
