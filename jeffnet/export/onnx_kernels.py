"""Kernels in the layout of ONNX: `(outputs, inputs of a group, height, width)`."""

from collections.abc import Mapping, Sequence

import numpy as np

from jeffnet.arch.operations import Conv, ConvPart
from jeffnet.ops.conv import make_window
from jeffnet.ops.depthwise import Window


def part_window(op: Conv, part: ConvPart, sides: Sequence[int]) -> Window:
    """The window of one kernel of a convolution of a map of these sides."""
    return make_window(sides, (part.kernel_size,) * 2, (op.stride,) * 2, part.padding, (op.dilation,) * 2)


def conv_kernel(op: Conv, arrays: Mapping[str, np.ndarray], sides: Sequence[int]) -> tuple[np.ndarray, Window, int]:
    """The kernel of a convolution of a map of these sides, its window, and the number of groups.

    Several kernels are embedded into one, with zeros around the smaller ones: a depthwise one if all of them are,
    otherwise one of all channels. In ONNX Runtime MixNet-S takes 0.6 times as long so as with the channels split
    between convolutions and concatenated, since neither keeps the layout in which it computes; grouped convolutions in
    place of those of all channels take 0.7 times as long.
    """
    windows = [part_window(op, part, sides) for part in op.parts]
    if len(op.parts) == 1:
        return arrays[f"{op.parts[0].name}.kernel"].transpose(3, 2, 0, 1), windows[0], op.parts[0].groups
    reaches = [op.dilation * (part.kernel_size - 1) for part in op.parts]
    positions = windows[0].out_size(sides, (op.parts[0].kernel_size,) * 2)
    corners, taps, pads = [], [], []
    for axis in (0, 1):
        before = [window.pads[axis][0] for window in windows]
        first, last = max(before), max(reach - start for reach, start in zip(reaches, before, strict=True))
        corners.append([_steps(first - start, op) for start in before])
        taps.append(_steps(first + last, op) + 1)
        pads.append((first, max(0, (positions[axis] - 1) * op.stride + last + 1 - sides[axis])))
    kernel = np.zeros((op.out_channels, 1 if op.is_depthwise else op.in_channels, *taps))
    for (part, inputs, outputs), *corner in zip(op.shares, *corners, strict=True):
        rows, columns = (slice(start, start + part.kernel_size) for start in corner)
        values = arrays[f"{part.name}.kernel"].transpose(3, 2, 0, 1)
        kernel[outputs, :, rows, columns] = values if op.is_depthwise else _of_all_inputs(part, values, inputs, op)
    return (
        kernel,
        Window(windows[0].strides, tuple(pads), windows[0].dilation),
        op.in_channels if op.is_depthwise else 1,
    )


def _steps(rows: int, op: Conv) -> int:
    """So many steps of the dilation are these rows."""
    steps, rest = divmod(rows, op.dilation)
    assert not rest, f"{op.name}: taps of one kernel lie between those of another"
    return steps


def _of_all_inputs(part: ConvPart, values: np.ndarray, inputs: slice, op: Conv) -> np.ndarray:
    """A kernel of all channels of a convolution, that has zeros for those that a part does not see."""
    kernel = np.zeros((part.out_channels, op.in_channels, *values.shape[2:]))
    rows, columns = part.out_channels // part.groups, part.in_channels // part.groups
    for group in range(part.groups):
        outputs, start = slice(group * rows, (group + 1) * rows), inputs.start + group * columns
        kernel[outputs, start : start + columns] = values[outputs]
    return kernel


def expert_matrices(kernels: np.ndarray) -> np.ndarray:
    """1x1 kernels of experts `(E, 1, 1, I, O)` as rows `(E, O * I)`."""
    return kernels[:, 0, 0].mT.reshape(len(kernels), -1)


def expert_kernels(kernels: np.ndarray) -> np.ndarray:
    """Kernels of experts `(E, height, width, I, O)` as one kernel `(O * E, I, height, width)`."""
    kernels = kernels.transpose(4, 0, 3, 1, 2)
    return kernels.reshape(-1, *kernels.shape[2:])
