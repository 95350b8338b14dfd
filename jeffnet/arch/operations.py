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


@dataclass(frozen=True)
class GroupNorm:
    """Normalises groups of channels of each picture, then scales and shifts every channel (arXiv:1803.08494).

    Attributes:
      name: canonical name.
      channels: of its input.
      epsilon: added to the variance under the root.
      groups: of neighbouring channels.
    """

    name: str
    channels: int
    epsilon: float
    groups: int


@dataclass(frozen=True)
class LayerNorm:
    """Normalises the channels of every position, then scales and shifts them (arXiv:1607.06450).

    Attributes:
      name: canonical name.
      channels: of its input.
      epsilon: added to the variance under the root.
    """

    name: str
    channels: int
    epsilon: float


Norm = BatchNorm | GroupNorm | LayerNorm


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
    concatenated. `xavier` says how the kernel of a new model is drawn, see `jeffnet.ops.init`.
    """

    name: str
    parts: tuple[ConvPart, ...]
    stride: int
    dilation: int
    bias: bool
    norm: Norm | None
    act: str | None
    xavier: bool = False

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
        return biased_conv(f"{self.name}.conv_reduce", self.channels, self.reduced, self.act)

    @property
    def expand(self) -> Conv:
        """The second convolution, with the gate."""
        return biased_conv(f"{self.name}.conv_expand", self.reduced, self.channels, self.gate)

    @property
    def convolutions(self) -> tuple[Conv, ...]:
        """In the order in which they run."""
        return self.reduce, self.expand


@dataclass(frozen=True)
class Downsample:
    """Halves rows and columns: every channel filtered by the same fixed window, at every second position.

    It stands after a convolution that has no stride of its own for it, against aliasing (arXiv:1904.11486).

    Attributes:
      name: canonical name; it has no arrays.
      channels: of its input.
      taps: the window along one side; they sum to 1.
      padding: rows and columns of zeros on every side.
    """

    name: str
    channels: int
    taps: tuple[float, ...]
    padding: int

    @property
    def convolutions(self) -> tuple[Conv, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class GlobalContext:
    """Channels weighted by an attention-weighted mean over the picture (arXiv:1904.11492).

    The mean's weights are the softmax of `context` over positions; two 1x1 convolutions make the factors of it.

    Attributes:
      name: canonical name.
      context: a 1x1 convolution to one channel.
      reduce: a 1x1 convolution with a norm and an activation.
      expand: a 1x1 convolution with the gate.
    """

    name: str
    context: Conv
    reduce: Conv
    expand: Conv

    @property
    def convolutions(self) -> tuple[Conv, ...]:
        """In the order in which they run."""
        return self.context, self.reduce, self.expand


@dataclass(frozen=True)
class Attention:
    """Multi-query attention: the heads of the queries share one key and one value (arXiv:1911.02150, 2404.10518).

    Attributes:
      name: canonical name.
      heads: of the queries.
      query: a 1x1 convolution to `heads * width` channels, the heads outermost.
      key: convolutions one after the other, the last to `width` channels; earlier ones may have a stride.
      value: the same.
      output: a 1x1 convolution of all heads.
    """

    name: str
    heads: int
    query: Conv
    key: tuple[Conv, ...]
    value: tuple[Conv, ...]
    output: Conv

    @property
    def convolutions(self) -> tuple[Conv, ...]:
        """In the order in which they run."""
        return self.query, *self.key, *self.value, self.output


@dataclass(frozen=True)
class Normalize:
    """A norm, then an activation, if there is one."""

    norm: Norm
    act: str | None

    @property
    def name(self) -> str:
        """The norm's canonical name."""
        return self.norm.name

    @property
    def convolutions(self) -> tuple[Conv, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class LayerScale:
    """Multiplies every channel by a trained factor (arXiv:2103.17239).

    Attributes:
      name: canonical name.
      channels: of its input.
      initial: value of the factors of a new model.
    """

    name: str
    channels: int
    initial: float

    @property
    def convolutions(self) -> tuple[Conv, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class Routing:
    """Weights of a block's experts for each picture: the sigmoid of a dense layer of its mean (arXiv:1904.04971).

    It stands at the beginning of a block, and leaves the map as it is.
    """

    name: str
    channels: int
    experts: int

    @property
    def convolutions(self) -> tuple[Conv, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class ExpertConv:
    """A convolution whose kernel is, for each picture, the sum of several kernels times the block's routing weights.

    Attributes:
      conv: it has one part; its kernel's array has the experts as first axis. A bias, which only folded plans have, is
        one for all experts.
      experts: number of kernels.
    """

    conv: Conv
    experts: int

    @property
    def name(self) -> str:
        """The convolution's canonical name."""
        return self.conv.name

    @property
    def convolutions(self) -> tuple[Conv, ...]:
        """None: it has no kernel of its own."""
        return ()


# Operations that consist of convolutions: a backend makes one module of each, with the convolutions in it.
Composite = SqueezeExcite | GlobalContext | Attention
Op = Conv | Composite | Normalize | LayerScale | Downsample | Routing | ExpertConv


@dataclass(frozen=True)
class Dense:
    """The classifier."""

    name: str
    in_features: int
    out_features: int

    @property
    def conv(self) -> Conv:
        """The 1x1 convolution that computes the same at every position."""
        return biased_conv(self.name, self.in_features, self.out_features)


def biased_conv(name: str, in_channels: int, out_channels: int, act: str | None = None) -> Conv:
    """A 1x1 convolution with a bias and no norm."""
    part = ConvPart(name, in_channels, out_channels, 1, 1, "SAME")
    return Conv(name, (part,), 1, 1, True, None, act)
