"""Arrays, parameters and multiply-accumulates of a Plan, without running it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import assert_never

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

STATISTICS = ("mean", "var")


@dataclass(frozen=True)
class ArraySpec:
    """One array of a model under its canonical name.

    Attributes:
      name: the Plan's path and the kind of array, such as `blocks.2.1.conv_dw.kernel`. The last part is the leaf.
      shape: kernels are `(height, width, in channels / groups, out channels)`, the classifier's `(features, classes)`.
      groups: of the convolution whose kernel it is.
      reach: bound of the uniform distribution that a new model's values are from; None for that of `jeffnet.ops.init`.
      constant: the value in a new model; None where it is drawn, or is that of its kind.
    """

    name: str
    shape: tuple[int, ...]
    groups: int = 1
    reach: float | None = None
    constant: float | None = None

    @property
    def leaf(self) -> str:
        """The kind of array: `kernel`, `bias`, `scale`, `mean` or `var`."""
        return self.name.rpartition(".")[2]

    @property
    def is_depthwise(self) -> bool:
        """Whether it is the kernel of a depthwise convolution."""
        return len(self.shape) == 4 and self.shape[2] == 1 and self.groups == self.shape[3]

    @property
    def is_parameter(self) -> bool:
        """Whether it is trained; otherwise it is a running statistic."""
        return self.leaf not in STATISTICS


@dataclass(frozen=True)
class Layer:
    """One row of a model's table: an operation at one input size.

    Attributes:
      name: canonical name.
      kind: such as `conv 3x3`, `depthwise 5x5 /2`, `squeeze 48 -> 12`, `dense`.
      out_size: height and width of the output, which has `out_channels`.
      parameters: trained ones, of the operation and its norm.
      macs: multiply-accumulates of convolutions and matrix products for one picture.
    """

    name: str
    kind: str
    out_size: int
    out_channels: int
    parameters: int
    macs: int


def array_specs(plan: Plan) -> dict[str, ArraySpec]:
    """Every array of a model.

    Args:
      plan: of the model.

    Returns:
      Specs by canonical name, in the order in which a forward pass uses them.
    """
    specs = [spec for op in plan.operations for spec in _arrays(op)]
    if dense := plan.classifier:
        specs.append(ArraySpec(f"{dense.name}.kernel", (dense.in_features, dense.out_features)))
        specs.append(ArraySpec(f"{dense.name}.bias", (dense.out_features,)))
    return {spec.name: spec for spec in specs}


def count_parameters(plan: Plan) -> int:
    """Number of trained values; running statistics do not count.

    Args:
      plan: of the model.

    Returns:
      The number.
    """
    return sum(math.prod(spec.shape) for spec in array_specs(plan).values() if spec.is_parameter)


def count_macs(plan: Plan, image_size: int) -> int:
    """Multiply-accumulates of convolutions and matrix products, squeeze-and-excitation included, for one picture.

    Args:
      plan: of the model.
      image_size: height and width of the picture, in pixels.

    Returns:
      The number.
    """
    return sum(layer.macs for layer in layers(plan, image_size))


def layers(plan: Plan, image_size: int) -> list[Layer]:
    """The table of a model's operations.

    Args:
      plan: of the model.
      image_size: height and width of the input, in pixels.

    Returns:
      One row for each operation, in the order in which they run.
    """
    rows = [_conv_layer(plan.stem, image_size)]
    for block in plan.blocks:
        for op in block.ops:
            rows.append(_layer(op, rows[-1].out_size))
    pooled = plan.global_pool != "none"
    if plan.head:
        rows.append(_conv_layer(plan.head, 1 if plan.pool_first and pooled else rows[-1].out_size))
    if plan.classifier:
        size = 1 if pooled else rows[-1].out_size
        rows.append(replace(_conv_layer(plan.classifier.conv, size), kind="dense"))
    return rows


def output_size(part: ConvPart, stride: int, dilation: int, size: int) -> int:
    """Height of a convolution's output for an input of height `size`."""
    if isinstance(part.padding, str):
        return -(-size // stride)
    return (size + sum(part.padding[0]) - dilation * (part.kernel_size - 1) - 1) // stride + 1


def _arrays(op: Op) -> Iterator[ArraySpec]:
    match op:
        case Conv():
            yield from _conv_arrays(op)
        case SqueezeExcite() | GlobalContext() | Attention():
            for conv in op.convolutions:
                yield from _conv_arrays(conv)
        case Normalize():
            yield from _norm_arrays(op.norm)
        case LayerScale():
            yield ArraySpec(f"{op.name}.scale", (op.channels,), constant=op.initial)
        case Routing():
            reach = 1 / math.sqrt(op.channels + op.experts)
            yield ArraySpec(f"{op.name}.kernel", (op.channels, op.experts), reach=reach)
            yield ArraySpec(f"{op.name}.bias", (op.experts,))
        case ExpertConv():
            kernel, *norm = _conv_arrays(op.conv)
            yield replace(kernel, shape=(op.experts, *kernel.shape))
            yield from norm
        case Downsample():
            pass
        case _:
            assert_never(op)


def _conv_arrays(conv: Conv) -> Iterator[ArraySpec]:
    for part in conv.parts:
        shape = (part.kernel_size, part.kernel_size, part.in_channels // part.groups, part.out_channels)
        # The square root of 6 / (fan_in + fan_out).
        area = part.kernel_size**2 * (part.in_channels // part.groups + part.out_channels)
        yield ArraySpec(f"{part.name}.kernel", shape, part.groups, math.sqrt(6 / area) if conv.xavier else None)
        if conv.bias:
            yield ArraySpec(f"{part.name}.bias", (part.out_channels,))
    if conv.norm:
        yield from _norm_arrays(conv.norm)


def _norm_arrays(norm: Norm) -> Iterator[ArraySpec]:
    match norm:
        case BatchNorm():
            for leaf in ("scale", "bias", "mean", "var"):
                yield ArraySpec(f"{norm.name}.{leaf}", (norm.channels,))
        case GroupNorm() | LayerNorm():
            for leaf in ("scale", "bias"):
                yield ArraySpec(f"{norm.name}.{leaf}", (norm.channels,))
        case _:
            assert_never(norm)


def _layer(op: Op, size: int) -> Layer:
    parameters = sum(math.prod(spec.shape) for spec in _arrays(op) if spec.is_parameter)
    match op:
        case Conv():
            return _conv_layer(op, size)
        case SqueezeExcite():
            products = 2 * op.channels * op.reduced
            kind = f"squeeze {op.channels} -> {op.reduced}"
            return Layer(op.name, kind, size, op.channels, parameters, products)
        case GlobalContext():
            products = op.reduce.out_channels * 2 * op.reduce.in_channels + 2 * op.context.in_channels * size * size
            kind = f"context {op.reduce.in_channels} -> {op.reduce.out_channels}"
            return Layer(op.name, kind, size, op.expand.out_channels, parameters, products)
        case Attention():
            keys = size
            for conv in op.key:
                keys = output_size(conv.parts[0], conv.stride, conv.dilation, keys)
            mixing = 2 * op.query.out_channels * size * size * keys * keys
            ends = _macs(op.query, size) + _macs(op.output, size)
            shared = sum(_macs_of_chain(chain, size) for chain in (op.key, op.value))
            kind = f"attention {op.heads} heads"
            return Layer(op.name, kind, size, op.output.out_channels, parameters, ends + shared + mixing)
        case Normalize():
            return Layer(op.name, "norm", size, op.norm.channels, parameters, 0)
        case LayerScale():
            return Layer(op.name, "layer scale", size, op.channels, parameters, 0)
        case Routing():
            return Layer(op.name, f"routing {op.experts}", size, op.channels, parameters, op.channels * op.experts)
        case ExpertConv():
            layer = _conv_layer(op.conv, size)
            mixing = math.prod(next(_arrays(op)).shape)
            return replace(layer, kind=f"{layer.kind} x{op.experts}", parameters=parameters, macs=layer.macs + mixing)
        case Downsample():
            taps = len(op.taps)
            out = (size + 2 * op.padding - taps) // 2 + 1
            return Layer(op.name, f"downsample {taps}x{taps} /2", out, op.channels, 0, 0)
        case _:
            assert_never(op)


def _macs(conv: Conv, size: int) -> int:
    return _conv_layer(conv, size).macs


def _macs_of_chain(chain: tuple[Conv, ...], size: int) -> int:
    macs = 0
    for conv in chain:
        layer = _conv_layer(conv, size)
        macs, size = macs + layer.macs, layer.out_size
    return macs


def _conv_layer(conv: Conv, size: int) -> Layer:
    out = output_size(conv.parts[0], conv.stride, conv.dilation, size)
    specs = list(_conv_arrays(conv))
    kernels = sum(math.prod(spec.shape) for spec in specs if spec.leaf == "kernel")
    parameters = sum(math.prod(spec.shape) for spec in specs if spec.is_parameter)
    sizes = "+".join(f"{part.kernel_size}x{part.kernel_size}" for part in conv.parts)
    kind = "depthwise" if conv.is_depthwise else "conv"
    stride = f" /{conv.stride}" if conv.stride > 1 else ""
    dilation = f" dilated {conv.dilation}" if conv.dilation > 1 else ""
    return Layer(
        conv.name, f"{kind} {sizes}{stride}{dilation}", out, conv.out_channels, parameters, kernels * out * out
    )
