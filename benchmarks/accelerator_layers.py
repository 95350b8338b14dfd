"""The layers of a model one by one: what each moves and computes, and how long it takes by itself.

A layer is a convolution with its bias and activation, as it is after norms are folded, or a squeeze-and-excitation.
`benchmarks/accelerator.py` measures them in a process that runs `serve`.
"""

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jeffnet.arch.operations import Conv, SqueezeExcite
from jeffnet.arch.plan import Plan
from jeffnet.arch.summary import Layer, layers
from jeffnet.arch.zoo import model_plan
from jeffnet.bench.child import Channel

# Copies of a layer in one program and calls before the device is waited for: the time to start a program is that of
# several small layers. No copy shares its input or its weights: XLA would merge products, and caches would hold inputs.
COPIES, CALLS = 8, 4
_PATTERN = (1 << 20) - 3  # random numbers that inputs repeat; not a multiple of any number of channels
_HOST_MEMORY = 1 << 30  # that it may take of a machine without an accelerator


@dataclass(frozen=True)
class LayerCase:
    """A layer that a model has `count` times, of square pictures.

    Attributes:
      name: its sizes, in words.
      op: the operation.
      size: height and width of its input.
      elements: numbers that it reads and writes for a picture.
      weights: numbers that it reads for a batch.
      macs: multiply-accumulates for a picture.
      count: how often the model has it.
    """

    name: str
    op: Conv | SqueezeExcite
    size: int
    elements: int
    weights: int
    macs: int
    count: int = 1

    @property
    def channels(self) -> int:
        """Of its input."""
        return self.op.channels if isinstance(self.op, SqueezeExcite) else self.op.in_channels

    @property
    def forms(self) -> tuple[str, ...]:
        """The ways in which it can be computed; the first is that of accelerators."""
        if isinstance(self.op, Conv) and self.op.is_depthwise:
            return "convolution", "shifted products"
        if isinstance(self.op, SqueezeExcite) or self.op.is_pointwise:
            return "convolution", "matrix product"
        return ("convolution",)

    def bytes(self, batch_size: int, itemsize: int) -> int:
        """Bytes that it reads and writes."""
        return itemsize * (self.elements * batch_size + self.weights)


def layer_cases(plan: Plan, image_size: int) -> list[LayerCase]:
    """The distinct convolutions of one kernel and squeeze-and-excitations, those that move most in the model first."""
    found: dict[str, LayerCase] = {}
    for op, size, layer in _operations(plan, image_size):
        if not isinstance(op, SqueezeExcite) and not (isinstance(op, Conv) and len(op.parts) == 1):
            continue
        name = f"{size}x{size} {layer.kind}"
        if isinstance(op, Conv):
            op = replace(op, bias=True, norm=None)
            channels = str(op.out_channels) if op.is_depthwise else f"{op.in_channels} -> {op.out_channels}"
            name = " ".join(filter(None, (name, channels, op.act)))
            elements = size**2 * op.in_channels + layer.out_size**2 * layer.out_channels
        else:
            # The mean is complete before the first channel can be multiplied.
            elements = 3 * size**2 * op.channels
        case = found.get(name) or LayerCase(name, op, size, elements, layer.parameters, layer.macs, 0)
        found[name] = replace(case, count=case.count + 1)
    return sorted(found.values(), key=lambda case: -case.elements * case.count)


def model_elements(plan: Plan, image_size: int) -> int:
    """Numbers that a pass over one picture reads and writes, layer by layer, if all but convolutions were fused.

    Norms, activations and shortcuts are computed where a convolution has its outputs; of squeeze-and-excitation only
    the mean reads its input once more. A training step moves three times as much at least: the backward pass of a
    convolution reads the gradient twice and the input once, and writes the input's gradient.
    """
    ends = {block.ops[-1].name for block in plan.blocks if block.residual}
    elements, before = 0, image_size**2 * plan.in_chans
    for op, _, layer in _operations(plan, image_size):
        after = layer.out_size**2 * layer.out_channels
        elements += before + (0 if isinstance(op, SqueezeExcite) else after) + (after if layer.name in ends else 0)
        before = after
    return elements


def _operations(plan: Plan, image_size: int) -> Iterator[tuple[Any, int, Layer]]:
    """All operations, with the size of their input and their row in the model's table."""
    ops: list[Any] = list(plan.operations)
    if plan.classifier:
        ops.append(plan.classifier.conv)
    size = image_size
    for op, layer in zip(ops, layers(plan, image_size), strict=True):
        if plan.global_pool != "none" and (layer.kind == "dense" or (op is plan.head and plan.pool_first)):
            size = 1
        yield op, size, layer
        size = layer.out_size


def serve(arguments: dict[str, Any], channel: Channel) -> None:
    """Answer requests `{'layer', 'form', 'seconds'}` by `{'seconds'}`, of one layer; `arguments` are of `layer_cases`.

    Other arguments: `dtype` and `batch_size`. First an empty message is sent, when the device is ready.
    """
    import jax

    cases = {case.name: case for case in layer_cases(model_plan(arguments["model"]), arguments["image_size"])}
    jax.block_until_ready(jax.numpy.zeros(1))
    channel.send({})
    for request in channel.requests():
        case = cases[request["layer"]]
        numbers = arguments["batch_size"], arguments["dtype"], request["seconds"]
        channel.send({"seconds": layer_seconds(case, request["form"], *numbers)})


def layer_seconds(case: LayerCase, form: str, batch_size: int, dtype: str, seconds: float) -> float:
    """Seconds of a layer: the median over calls, as many as take `seconds`."""
    import jax

    from jeffnet.bench.worker import turn

    room = _device_memory() // 4
    copies = max(1, min(COPIES, room // case.bytes(batch_size, jax.numpy.dtype(dtype).itemsize)))
    shape, pattern = (batch_size, case.size, case.size, case.channels), _random((_PATTERN,), dtype)
    make_input = jax.jit(lambda pattern: jax.numpy.resize(pattern, shape))
    inputs = [make_input(pattern) for _ in range(copies)]
    weights = [layer_weights(case.op, dtype) for _ in range(copies)]
    program = jax.jit(
        lambda inputs, weights: [apply_layer(case.op, *pair, form) for pair in zip(inputs, weights, strict=True)]
    )

    def call() -> None:
        outputs = None
        for _ in range(CALLS):
            outputs = program(inputs, weights)
        jax.block_until_ready(outputs)

    return statistics.median(turn(call, seconds)) / (CALLS * copies)


def apply_layer(op: Conv | SqueezeExcite, x: Any, weights: Mapping[str, Any], form: str) -> Any:
    """A layer's output in one of its forms, `(N, H', W', C')`; `weights` are kernel and bias of each convolution."""
    from jeffnet.ops.activations import ACTIVATIONS
    from jeffnet.ops.conv import conv_general_dilated, make_window, use_lowering
    from jeffnet.ops.depthwise import shifted_conv
    from jeffnet.ops.network import apply_composite

    if isinstance(op, SqueezeExcite):
        return apply_composite(op, x, lambda conv, x: apply_layer(conv, x, weights, form))
    (part,), (kernel, bias) = op.parts, weights[op.name]
    strides, dilation = (op.stride, op.stride), (op.dilation, op.dilation)
    if form == "shifted products":
        window = make_window(x.shape[1:3], kernel.shape[:2], strides, part.padding, dilation)
        y = shifted_conv(x, kernel, window)
    else:
        # On every platform, and as operations that XLA can fuse with what follows.
        with use_lowering("shifted" if form == "matrix product" else "xla"):
            y = conv_general_dilated(
                x, kernel, strides, part.padding, rhs_dilation=dilation, feature_group_count=part.groups
            )
    return ACTIVATIONS[op.act](y + bias) if op.act else y + bias


def layer_weights(op: Conv | SqueezeExcite, dtype: str) -> dict[str, tuple[Any, Any]]:
    """Random kernels, under which numbers keep their size, and biases, by names of convolutions."""
    weights = {}
    for conv in op.convolutions:
        (part,) = conv.parts
        shape = part.kernel_size, part.kernel_size, part.in_channels // part.groups, part.out_channels
        kernel = _random(shape, dtype, 1 / math.sqrt(math.prod(shape[:3])))
        weights[conv.name] = kernel, _random(shape[3:], dtype, 0.1)
    return weights


def _random(shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> Any:
    """Drawn on the host: JAX would compile a program for each shape."""
    import jax
    import numpy as np

    numbers = scale * np.random.default_rng(0).standard_normal(shape, np.float32)
    return jax.numpy.asarray(numbers.astype(jax.numpy.dtype(dtype)))


def _device_memory() -> int:
    """Bytes of the device; on a CPU some of the host's."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("bytes_limit", _HOST_MEMORY)
