"""Block kinds, lowered to operations.

A new kind is one method of `BlockLowering`, its entry in `operations`, and one line in the grammar's table.
"""

from dataclasses import dataclass
from typing import Any

from jeffnet.arch.grammar import BlockSpec
from jeffnet.arch.operations import BatchNorm, Conv, ConvPart, Op, Padding, SqueezeExcite
from jeffnet.arch.plan import Block
from jeffnet.arch.spec import ModelSpec


def round_channels(channels: float, width: float = 1.0, divisor: int = 8) -> int:
    """`channels * width` rounded to a multiple of `divisor`, never below 90 % of it (arXiv:1801.04381's authors)."""
    scaled = channels * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def lower_conv(
    spec: ModelSpec,
    name: str,
    in_channels: int,
    out_channels: int,
    kernels: tuple[int, ...],
    norm: str | None,
    act: str | None,
    *,
    stride: int = 1,
    dilation: int = 1,
    depthwise: bool = False,
    bias: bool = False,
    padding: str | None = None,
) -> Conv:
    """A convolution of a model; several kernels share its channels, `padding` replaces the model's."""
    ins, outs = _split(in_channels, len(kernels)), _split(out_channels, len(kernels))
    parts = tuple(
        ConvPart(
            name=name if len(kernels) == 1 else f"{name}.{index}",
            in_channels=ins[index],
            out_channels=outs[index],
            kernel_size=kernel,
            groups=ins[index] if depthwise else 1,
            padding=_padding(padding or spec.padding, kernel, dilation),
        )
        for index, kernel in enumerate(kernels)
    )
    batch_norm = BatchNorm(norm, out_channels, spec.bn_epsilon) if norm else None
    return Conv(name, parts, stride, dilation, bias, batch_norm, act)


@dataclass(frozen=True)
class BlockLowering:
    """Lowers one block. A method of each kind returns the operations in the order in which they run."""

    spec: ModelSpec
    name: str
    block: BlockSpec
    in_channels: int
    stride: int
    dilation: int

    @property
    def out_channels(self) -> int:
        return round_channels(self.block.channels, self.spec.width)

    @property
    def act(self) -> str:
        return self.block.act or self.spec.act

    def lower(self, drop_path_rate: float) -> Block:
        """The block, with this rate of stochastic depth where it has a residual connection."""
        residual = self.block.skip and self.stride == 1 and self.in_channels == self.out_channels
        return Block(self.name, self.operations(), residual, drop_path_rate if residual else 0.0, self.out_channels)

    def operations(self) -> tuple[Op, ...]:
        """By the block's kind."""
        kinds = {
            "ir": self.inverted_residual,
            "ds": self.depthwise_separable,
            "dsa": self.depthwise_separable,
            "er": self.edge_residual,
            "cn": self.conv_norm_act,
        }
        return kinds[self.block.kind]()

    def inverted_residual(self) -> tuple[Op, ...]:
        block, expanded = self.block, round_channels(self.in_channels * self.block.expansion)
        return (
            # Even at expansion 1 the convolution is there (FBNet-C); a block without it is a `ds`.
            self.conv("conv_pw", self.in_channels, expanded, block.expand_kernels, "bn1", self.act),
            self.spatial("conv_dw", expanded, expanded, "bn2", depthwise=True),
            *self.squeeze_excite(expanded),
            self.conv("conv_pwl", expanded, self.out_channels, block.project_kernels, "bn3", None),
        )

    def depthwise_separable(self) -> tuple[Op, ...]:
        channels, act = self.in_channels, self.act if self.block.kind == "dsa" else None
        return (
            self.spatial("conv_dw", channels, channels, "bn1", depthwise=True),
            *self.squeeze_excite(channels),
            self.conv("conv_pw", channels, self.out_channels, self.block.project_kernels, "bn2", act),
        )

    def edge_residual(self) -> tuple[Op, ...]:
        block, source = self.block, self.in_channels
        if block.expand_from:
            source = round_channels(block.expand_from, self.spec.width)
        expanded = round_channels(source * block.expansion)
        return (
            # The authors stride the 1x1 projection. Striding the expansion instead, padded as it is without a stride,
            # computes the same outputs for a quarter of the work; 'SAME' padding of the strided form would not.
            self.spatial("conv_exp", self.in_channels, expanded, "bn1", padding="symmetric"),
            *self.squeeze_excite(expanded),
            self.conv("conv_pwl", expanded, self.out_channels, block.project_kernels, "bn2", None),
        )

    def conv_norm_act(self) -> tuple[Op, ...]:
        return (self.spatial("conv", self.in_channels, self.out_channels, "bn1"),)

    def conv(
        self, name: str, in_channels: int, out_channels: int, kernels: tuple[int, ...], norm: str, act: str | None
    ) -> Conv:
        """A convolution without a stride; its name and its norm's are those within the block."""
        name, norm = f"{self.name}.{name}", f"{self.name}.{norm}"
        return lower_conv(self.spec, name, in_channels, out_channels, kernels, norm, act)

    def spatial(self, name: str, in_channels: int, out_channels: int, norm: str, **options: Any) -> Conv:
        """The convolution with the block's kernels, activation, stride and dilation; see `lower_conv` for options."""
        name, norm = f"{self.name}.{name}", f"{self.name}.{norm}"
        options |= {"stride": self.stride, "dilation": self.dilation}
        return lower_conv(self.spec, name, in_channels, out_channels, self.block.kernels, norm, self.act, **options)

    def squeeze_excite(self, channels: int) -> tuple[SqueezeExcite, ...]:
        """Squeeze-and-excitation of so many channels, if the block has it."""
        block, rule = self.block, self.spec.se
        if not block.se_ratio:
            return ()
        # Expanded channels over the expansion are the block's input, or what an EdgeTPU block takes for it.
        wanted = channels * (block.se_ratio if rule.from_expanded else block.se_ratio / block.expansion)
        reduced = round_channels(wanted, divisor=rule.divisor) if rule.divisor > 1 else round(wanted)
        return (SqueezeExcite(f"{self.name}.se", channels, reduced, rule.act or self.act, rule.gate),)


def _split(channels: int, parts: int) -> list[int]:
    """Equal shares; the first takes the rest too."""
    share = channels // parts
    return [channels - share * (parts - 1)] + [share] * (parts - 1)


def _padding(padding: str, kernel: int, dilation: int) -> Padding:
    if padding == "same":
        return "SAME"
    # Half of the dilated kernel on either side, with or without a stride: PyTorch's convention.
    reach = dilation * (kernel - 1) // 2
    return ((reach, reach), (reach, reach))
