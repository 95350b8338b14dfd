"""The operations of a network, with every number final.

`Op` and `Norm` are closed unions: code that handles one dispatches by `match`, with `assert_never` at the end, so that
pyright lists every place where a new operation or norm is not handled yet.
"""

from collections.abc import Iterator
from dataclasses import dataclass

Padding = str | tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class BatchNorm:
    """Normalises channels by statistics of the batch, then scales and shifts them (arXiv:1502.03167)."""

    name: str
    channels: int
    epsilon: float


Norm = BatchNorm


@dataclass(frozen=True)
class ConvPart:
    """One kernel of a convolution.

    `padding` is `'SAME'`, as in TensorFlow, or the rows and the columns that are added before and after.
    """

    name: str
    in_channels: int
    out_channels: int
    kernel_size: int
    groups: int
    padding: Padding

    @property
    def is_depthwise(self) -> bool:
        """Whether it computes every channel from that channel alone."""
        return self.groups == self.in_channels == self.out_channels


@dataclass(frozen=True)
class Conv:
    """A convolution, then a norm and an activation, where there are any.

    With several parts (MixNet, arXiv:1907.09595) the input's channels are split between them in order and their outputs
    concatenated.
    """

    name: str
    parts: tuple[ConvPart, ...]
    stride: int
    dilation: int
    bias: bool
    norm: Norm | None
    act: str | None

    @property
    def in_channels(self) -> int:
        return sum(part.in_channels for part in self.parts)

    @property
    def out_channels(self) -> int:
        return sum(part.out_channels for part in self.parts)

    @property
    def is_depthwise(self) -> bool:
        """Whether it computes every channel from that channel alone."""
        return all(part.is_depthwise for part in self.parts)

    @property
    def is_pointwise(self) -> bool:
        """Whether it is one matrix product over all channels at every position."""
        (part, *others), unpadded = self.parts, ("SAME", ((0, 0), (0, 0)))
        return not others and part.kernel_size == part.groups == self.stride == 1 and part.padding in unpadded

    @property
    def shares(self) -> Iterator[tuple[ConvPart, slice, slice]]:
        """The parts, with their channels of the input and of the output."""
        inputs = outputs = 0
        for part in self.parts:
            yield part, slice(inputs, inputs + part.in_channels), slice(outputs, outputs + part.out_channels)
            inputs, outputs = inputs + part.in_channels, outputs + part.out_channels

    @property
    def convolutions(self) -> "tuple[Conv, ...]":
        """Itself; every operation lists its convolutions."""
        return (self,)


@dataclass(frozen=True)
class SqueezeExcite:
    """Mean over the picture, 1x1 convolution, activation, 1x1 convolution, gate; multiplies its input's channels."""

    name: str
    channels: int
    reduced: int
    act: str
    gate: str

    @property
    def reduce(self) -> Conv:
        """The first convolution, with the activation."""
        return _biased_conv(f"{self.name}.conv_reduce", self.channels, self.reduced, self.act)

    @property
    def expand(self) -> Conv:
        """The second convolution, with the gate."""
        return _biased_conv(f"{self.name}.conv_expand", self.reduced, self.channels, self.gate)

    @property
    def convolutions(self) -> tuple[Conv, ...]:
        """In the order in which they run."""
        return self.reduce, self.expand


# A backend makes one module of each of these; of a convolution it makes several, beside each other.
ModuleOp = SqueezeExcite
Op = Conv | ModuleOp


@dataclass(frozen=True)
class Dense:
    """The classifier."""

    name: str
    in_features: int
    out_features: int

    @property
    def conv(self) -> Conv:
        """The 1x1 convolution that computes the same at every position."""
        return _biased_conv(self.name, self.in_features, self.out_features)


def _biased_conv(name: str, in_channels: int, out_channels: int, act: str | None = None) -> Conv:
    """A 1x1 convolution with a bias and no norm."""
    part = ConvPart(name, in_channels, out_channels, 1, 1, "SAME")
    return Conv(name, (part,), 1, 1, True, None, act)
