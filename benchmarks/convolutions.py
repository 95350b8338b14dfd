"""Milliseconds of every depthwise convolution of some models, forward and both gradients, on this machine's processor.

    python benchmarks/convolutions.py tf_efficientnet_b0 tf_mixnet_s --batch-size 16

Each kind of layer is measured by itself, in float32, in every way of computing it: our kernels in C++ (`native`),
shifted multiply-adds (`shifted`), torch in channels-last order where it is installed, and with `--xla` XLA's own
convolution, whose gradients are very slow. They take turns, so that a busy machine slows them alike, and before each
turn one call is not timed. Figures are medians; in the totals a layer counts as often as the model has it.
Beside other busy programs torch's threads wait for one another longer than ours: start it with `taskset -c 0` then.

The floor is the longer of two times, both measured in the same turns: of reading and writing as many bytes as the layer
must read and write, and of as many multiply-accumulates in a large matrix product. What the caches hold from one call
to the next is fast in all of them: inside a network a layer finds less of its input there.

Memory that a result is written to for the first time is mapped page by page, which can take longer than the
convolution. So the program starts itself anew, with glibc's allocator told to keep memory, as it is kept in a network
that runs again and again.
"""

import argparse
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from jeffnet.arch.operations import Padding
from jeffnet.arch.summary import output_size
from jeffnet.arch.zoo import model_plan, model_preprocessing

KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
OPERATIONS = ("forward", "input gradient", "kernel gradient")
PRODUCT_SIZE = 1536  # rows and columns of the matrices whose product shows the peak

Call = Callable[[], object]


@dataclass(frozen=True)
class Layer:
    """A depthwise convolution of square pictures."""

    size: int
    channels: int
    kernel: int
    stride: int
    dilation: int
    pads: tuple[int, int]

    @property
    def out_size(self) -> int:
        reach = (self.kernel - 1) * self.dilation
        return (self.size + sum(self.pads) - reach - 1) // self.stride + 1

    def __str__(self) -> str:
        suffix = (f" /{self.stride}" if self.stride > 1 else "") + (f" x{self.dilation}" if self.dilation > 1 else "")
        return f"{self.size}x{self.size}x{self.channels} {self.kernel}x{self.kernel}{suffix}"

    def macs(self, batch_size: int) -> int:
        """Multiply-accumulates, of each of the three operations."""
        return batch_size * self.out_size**2 * self.channels * self.kernel**2

    def floats(self, batch_size: int) -> int:
        """Numbers that each of the three operations reads or writes: pictures, outputs, kernel."""
        return self.channels * (batch_size * (self.size**2 + self.out_size**2) + self.kernel**2)


def layers_of(name: str, size: int | None) -> Counter[Layer]:
    """The depthwise convolutions of a model and how often it has each."""
    plan, size = model_plan(name), size or model_preprocessing(name).image_size
    found: Counter[Layer] = Counter()
    for op in plan.convolutions:
        for part in op.parts:
            if part.is_depthwise:
                pads = pads_of(part.padding, size, part.kernel_size, op.stride, op.dilation)
                found[Layer(size, part.in_channels, part.kernel_size, op.stride, op.dilation, pads)] += 1
        size = output_size(op.parts[0], op.stride, op.dilation, size)
    return found


def pads_of(padding: Padding, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    if not isinstance(padding, str):
        return padding[0]
    missing = max(0, (-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size)
    return missing // 2, missing - missing // 2


# ----------------------------------------------------------------------------------------------------------- contenders


def jax_calls(layer: Layer, batch_size: int, form: str) -> dict[str, Call]:
    """The three operations; `form` is one of our lowerings, or 'xla'."""
    import jax
    from jax import lax

    from jeffnet.ops.depthwise import Window, depthwise_conv

    strides, dilation = (layer.stride, layer.stride), (layer.dilation, layer.dilation)
    window = Window(strides, (layer.pads, layer.pads), dilation)

    def convolution(images, kernel):
        if form != "xla":
            return depthwise_conv(images, kernel, window, form)
        return lax.conv_general_dilated(
            images,
            kernel,
            window.strides,
            window.pads,
            rhs_dilation=window.dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=layer.channels,
        )

    images, kernel, gradient = map(jax.numpy.asarray, numbers(layer, batch_size))
    functions = {
        "forward": lambda images, kernel, gradient: convolution(images, kernel),
        "input gradient": lambda images, kernel, gradient: jax.vjp(convolution, images, kernel)[1](gradient)[0],
        "kernel gradient": lambda images, kernel, gradient: jax.vjp(convolution, images, kernel)[1](gradient)[1],
    }

    def call(function) -> Call:
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(images, kernel, gradient))

    return {name: call(function) for name, function in functions.items()}


def torch_calls(layer: Layer, batch_size: int) -> dict[str, Call]:
    """The three operations. Padding unlike on both sides is added beforehand, as in timm."""
    import torch
    from torch.nn import functional

    def on_channels_last(array, axes):
        return torch.from_numpy(array).permute(axes).contiguous(memory_format=torch.channels_last)

    images, kernel, gradient = numbers(layer, batch_size)
    images, gradient = (on_channels_last(each, (0, 3, 1, 2)) for each in (images, gradient))
    kernel = on_channels_last(kernel, (3, 2, 0, 1))
    before, after = layer.pads
    alike = before == after
    pads, where = (before if alike else 0), slice(before, before + layer.size)

    def padded():
        return images if alike else functional.pad(images, (before, after, before, after))

    def forward():
        return functional.conv2d(padded(), kernel, None, layer.stride, pads, layer.dilation, layer.channels)

    def backward(inputs, wanted):
        two = [layer.stride] * 2, [pads] * 2, [layer.dilation] * 2
        return torch.ops.aten.convolution_backward(
            gradient, inputs, kernel, None, *two, False, [0, 0], layer.channels, wanted
        )

    spread = padded()  # a forward pass has it already

    def input_gradient():
        found = backward(spread, [True, False, False])[0]
        return found if alike else found[:, :, where, where].contiguous(memory_format=torch.channels_last)

    def kernel_gradient():
        return backward(spread, [False, True, False])[1]

    return dict(zip(OPERATIONS, map(torch.no_grad(), (forward, input_gradient, kernel_gradient)), strict=True))


def floor_calls(layer: Layer, batch_size: int) -> dict[str, Call]:
    """Reads half of the bytes that an operation moves, and writes as many."""
    import jax

    values = jax.numpy.ones(layer.floats(batch_size) // 2, "float32")
    negative = jax.jit(lambda values: -values)
    return dict.fromkeys(OPERATIONS, lambda: jax.block_until_ready(negative(values)))


def product_call() -> Call:
    """A matrix product of `PRODUCT_SIZE` cubed multiply-accumulates."""
    import jax

    matrix = jax.numpy.ones((PRODUCT_SIZE, PRODUCT_SIZE), "float32")
    product = jax.jit(lambda matrix: matrix @ matrix)
    return lambda: jax.block_until_ready(product(matrix))


def numbers(layer: Layer, batch_size: int) -> Iterator:
    """Pictures, kernel and the outputs' gradient."""
    import numpy as np

    random = np.random.default_rng(0)
    pictures, outputs = ((batch_size, side, side, layer.channels) for side in (layer.size, layer.out_size))
    for shape in (pictures, (layer.kernel, layer.kernel, 1, layer.channels), outputs):
        yield random.standard_normal(shape, "float32")


# ------------------------------------------------------------------------------------------------------------ measuring


def seconds(call: Call, at_least: float) -> list[float]:
    """Of every call, of as many as take `at_least` seconds together, after one that does not count."""
    call()
    found = []
    while sum(found) < at_least:
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return found


def measure(calls: Mapping[str, Call], repeats: int, at_least: float) -> dict[str, float]:
    """Median seconds of each, turn by turn, every turn in another order."""
    names, found = list(calls), {name: [] for name in calls}
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            found[name] += seconds(calls[name], at_least)
    return {name: statistics.median(each) for name, each in found.items()}


def measure_layer(layer: Layer, ways: tuple[str, ...], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds of each operation in each way, `floor` among them."""
    calls = {"copy": floor_calls(layer, options.batch_size)}
    for way in ways:
        calls[way] = (
            torch_calls(layer, options.batch_size) if way == "torch" else jax_calls(layer, options.batch_size, way)
        )
    product = product_call()
    rows = {}
    for operation in OPERATIONS:
        every = {way: each[operation] for way, each in calls.items()}
        row = measure({"product": product, **every}, options.repeats, options.seconds)
        arithmetic = row.pop("product") * layer.macs(options.batch_size) / PRODUCT_SIZE**3
        rows[operation] = {"floor": max(row.pop("copy"), arithmetic), **row}
    return rows


# ------------------------------------------------------------------------------------------------------------ the table


def print_row(first: str, operation: str, row: Mapping[str, float], ways: tuple[str, ...]) -> None:
    times = [f"{row[way] * 1e3:.3f}" for way in ("floor", *ways)]
    ratios = [f"{row[way] / row[ways[0]]:.2f}" for way in ("floor", *ways[1:])]
    print("| " + " | ".join([first, operation, *times, *ratios]) + " |", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tf_efficientnet_b0", "tf_mixnet_s"])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, help="pixels along each side (default: the model's own)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.05, help="that a turn takes at least (default: %(default)s)")
    parser.add_argument("--xla", action="store_true", help="XLA's own convolutions too")
    return parser.parse_args()


def ways_here(options: argparse.Namespace) -> tuple[str, ...]:
    """What can be measured on this machine; the first is what the others are compared with."""
    from jeffnet.ops import native

    ways = ["native", "shifted"] + ["xla"] * options.xla
    if not native.available():
        print(f"no C++ kernels: {native.failure()}", file=sys.stderr)
        ways.remove("native")
    try:
        import torch
    except ImportError:
        print("torch is not installed", file=sys.stderr)
        return tuple(ways)
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return (*ways, "torch")


def main() -> None:
    options = parse()
    if not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEEP_MEMORY, "JAX_PLATFORMS": "cpu"})
    ways = ways_here(options)
    models = {name: layers_of(name, options.image_size) for name in options.models}
    columns = ["layer", "operation", *(f"{way}, ms" for way in ("floor", *ways))]
    columns += [f"{way} / {ways[0]}" for way in ("floor", *ways[1:])]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    rows = {}
    for layer in dict.fromkeys(layer for counts in models.values() for layer in counts):
        rows[layer] = measure_layer(layer, ways, options)
        for operation in OPERATIONS:
            print_row(str(layer), operation, rows[layer][operation], ways)
    for name, counts in models.items():
        totals = {
            operation: {
                way: sum(rows[layer][operation][way] * count for layer, count in counts.items())
                for way in ("floor", *ways)
            }
            for operation in OPERATIONS
        }
        totals["all three"] = {way: sum(row[way] for row in totals.values()) for way in ("floor", *ways)}
        for operation, row in totals.items():
            print_row(f"**{name}**", operation, row, ways)


if __name__ == "__main__":
    main()
