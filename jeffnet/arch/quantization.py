"""Which values of a folded network are 8-bit integers, and which of its kernels.

Convolutions, sums, maps that a gate has weighted, the pooled features and the classifier compute with integers. Gates,
attention-weighted means, routing and kernels mixed for each picture stay floats: a gate's few values decide over whole
channels and cost next to nothing. An activation that is not a limit, such as SiLU, is computed in float between two
values of 8 bits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

from jeffnet.arch.operations import (
    Attention,
    Conv,
    Downsample,
    ExpertConv,
    GlobalContext,
    LayerScale,
    Normalize,
    Op,
    Routing,
    SqueezeExcite,
)
from jeffnet.arch.plan import Plan
from jeffnet.errors import ArchitectureError

# Activations that only cut off a range, as rounding to integers of a range does anyway.
LIMITS = frozenset({None, "relu", "relu6"})
# Of kernels. Pairs of products with 7 fit into 16 bits, in which x86 processors without VNNI add them.
KERNEL_BITS = (7, 8)
# What the names of values end with in files, where a value is meant as its integers stand for it.
ROUNDED = ":rounded"


@dataclass(frozen=True)
class Grid:
    """The 256 numbers `scale * (q - zero_point)`, `q` from 0 to 255, one of which is 0.

    Attributes:
      scale: from one to the next, a positive float32.
      zero_point: the `q` of 0.
    """

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Quantization:
    """The grids of a network's values, by their names in `jeffnet.inference.folded_network.FoldedNetwork`.

    Attributes:
      grids: of all values that are rounded.
      method: how they were found, in words.
      kernel_bits: of kernels, one of `KERNEL_BITS`.
    """

    grids: Mapping[str, Grid]
    method: str
    kernel_bits: int = 8

    def __hash__(self) -> int:
        return hash((tuple(self.grids.items()), self.method, self.kernel_bits))


def quantization_entries(quantization: Quantization) -> dict[str, Any]:
    """As JSON has it; `parse_quantization` is the inverse."""
    grids = {name: [grid.scale, grid.zero_point] for name, grid in quantization.grids.items()}
    return {"method": quantization.method, "kernel_bits": quantization.kernel_bits, "grids": grids}


def parse_quantization(entries: Mapping[str, Any]) -> Quantization:
    """From `quantization_entries`; raises ArchitectureError where a grid is none, or kernels have other bits."""
    grids = {name: Grid(float(scale), zero_point) for name, (scale, zero_point) in entries["grids"].items()}
    for name, grid in grids.items():
        if not (0 < grid.scale < math.inf and type(grid.zero_point) is int and 0 <= grid.zero_point <= 255):
            raise ArchitectureError(f"its 8-bit range of {name!r} is {grid.scale}, {grid.zero_point}")
    if (bits := entries.get("kernel_bits", 8)) not in KERNEL_BITS:
        raise ArchitectureError(f"its kernels are of {bits} bits, not {' or '.join(map(str, KERNEL_BITS))}")
    return Quantization(grids, str(entries["method"]), bits)


@dataclass
class QuantizedPoints:
    """What is quantised in a network.

    Attributes:
      values: names of the values that are rounded, in the order in which they are computed.
      layers: the names of the kernels of 8 bits, with the name of the value that each is applied to.
      acts: the activations of rounded values that nothing but an activation is applied to, by the values' names.
    """

    values: list[str] = field(default_factory=list)
    layers: dict[str, str] = field(default_factory=dict)
    acts: dict[str, str] = field(default_factory=dict)

    def add(self, op: Op, x: str) -> str:
        """Add an operation that is applied to the value `x`; returns the name of its result."""
        match op:
            case Conv():
                return self._conv(op, x)
            case Attention():
                for chain in ((op.query,), op.key, op.value):
                    value = x
                    for conv in chain:
                        value = self._conv(conv, value)
                return self._conv(op.output, self._value(op.name))
            case SqueezeExcite() | GlobalContext() | ExpertConv() | Downsample() | Normalize():
                return self._value(op.name)
            case Routing() | LayerScale():  # weights of experts; LayerScale is folded
                return x
            case _:
                assert_never(op)

    def add_classifier(self, name: str, x: str) -> None:
        """Add the classifier; its logits stay floats, so that none of them are equal by rounding."""
        self.layers[f"{name}.kernel"] = x

    def _conv(self, op: Conv, x: str) -> str:
        for part in op.parts:
            self.layers[f"{part.name}.kernel"] = x
        if op.norm is not None or op.act not in LIMITS:
            name = self._value(f"{op.name}:sum")
            if op.norm is None and op.act is not None:
                self.acts[name] = op.act
        return self._value(op.name)

    def _value(self, name: str) -> str:
        self.values.append(name)
        return name


def quantized_points(plan: Plan) -> QuantizedPoints:
    """What is quantised in a folded network."""
    points = QuantizedPoints(["images"])
    x = points.add(plan.stem, "images")
    for block in plan.blocks:
        for op in block.ops:
            x = points.add(op, x)
        if block.residual:
            points.values.append(x := block.name)
    if plan.head and not plan.pool_first:
        x = points.add(plan.head, x)
    points.values.append("pool")
    x = "pool"
    if plan.head and plan.pool_first:
        x = points.add(plan.head, x)
    if plan.classifier:
        points.add_classifier(plan.classifier.name, x)
    return points
