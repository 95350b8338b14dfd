"""Models whose norms do nothing but add a bias: the arrays of the folded network, under the names of the model.

Training that rounds kernels trains the folded ones, to the bit: norms are folded before the first step, and what the
model's file then holds is folded into the same numbers again.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jeffnet.arch.operations import BatchNorm, Conv, ExpertConv, LayerScale, Norm, Normalize
from jeffnet.arch.plan import Plan
from jeffnet.arch.summary import array_specs
from jeffnet.inference.folding import fold_norms


@functools.cache
def folded_plan(plan: Plan) -> Plan:
    """The plan of the folded network."""
    ones = {name: np.broadcast_to(np.float32(1), spec.shape) for name, spec in array_specs(plan).items()}
    return fold_norms(plan, ones)[0]


def folded_arrays(plan: Plan, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of the folded network from those of `with_plain_norms`, which may be traced; no number changes."""
    folded = {name: arrays[name] for name in array_specs(folded_plan(plan)) if name in arrays}
    for conv in _convolutions(plan):
        for part, _, channels in conv.shares:
            if isinstance(conv.norm, BatchNorm):
                folded[f"{part.name}.bias"] = arrays[f"{conv.norm.name}.bias"][channels]
            elif not conv.bias:
                folded[f"{part.name}.bias"] = jnp.zeros(part.out_channels, folded[f"{part.name}.kernel"].dtype)
    for norm in _lone_norms(plan):  # a 1x1 depthwise convolution
        folded[f"{norm.name}.kernel"] = arrays[f"{norm.name}.scale"][None, None, None]
    return folded


def with_plain_norms(plan: Plan, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a model that computes the same, with every norm folded that can be.

    Args:
      plan: of the model.
      arrays: by canonical name.

    Returns:
      float32 arrays by canonical name: BatchNorms have the mean 0 and, but for rounding, divide by 1.
    """
    _, folded = fold_norms(plan, arrays)
    plain = {name: folded.get(name, np.asarray(arrays[name], np.float32)) for name in array_specs(plan)}
    for conv in _convolutions(plan):
        if isinstance(conv.norm, BatchNorm):
            biases = [folded[f"{part.name}.bias"] for part in conv.parts]
            plain |= _plain(conv.norm, np.ones(conv.out_channels, np.float32), np.concatenate(biases))
    for norm in _lone_norms(plan):
        plain |= _plain(norm, folded[f"{norm.name}.kernel"][0, 0, 0], folded[f"{norm.name}.bias"])
    return plain | {name: np.full_like(plain[name], value) for name, value in _fixed(plan).items()}


def fixed_parameters(plan: Plan) -> frozenset[str]:
    """Names of the parameters that have no part in the folded network, so that training has to leave them alone."""
    return frozenset(_fixed(plan))


def _fixed(plan: Plan) -> dict[str, float]:
    fixed: dict[str, float] = {f"{op.name}.scale": 1.0 for op in plan.operations if isinstance(op, LayerScale)}
    for conv in _convolutions(plan):
        if isinstance(conv.norm, BatchNorm):
            fixed[f"{conv.norm.name}.scale"] = 1.0
            if conv.bias:
                fixed |= {f"{part.name}.bias": 0.0 for part in conv.parts}
    return fixed


def _plain(norm: Norm, scale: np.ndarray, bias: np.ndarray) -> dict[str, np.ndarray]:
    # The root of this variance plus epsilon is nearer to 1 than half the distance of neighbouring float32 numbers.
    var = np.full_like(scale, 1 - norm.epsilon)
    leaves = {"scale": scale, "bias": bias, "mean": np.zeros_like(scale), "var": var}
    return {f"{norm.name}.{leaf}": array for leaf, array in leaves.items()}


def _convolutions(plan: Plan) -> Iterator[Conv]:
    """All of them, those with a mixture of kernels too."""
    yield from plan.convolutions
    yield from (op.conv for op in plan.operations if isinstance(op, ExpertConv))


def _lone_norms(plan: Plan) -> Iterator[BatchNorm]:
    """BatchNorms that follow no convolution."""
    for op in plan.operations:
        if isinstance(op, Normalize) and isinstance(op.norm, BatchNorm):
            yield op.norm
