"""Block kinds, lowered to operations.

A new kind is one method of `BlockLowering`, its entry in `operations`, and one line in the grammar's table.
"""

from dataclasses import dataclass, replace

from jeffnet.arch.checks import LARGEST
from jeffnet.arch.grammar import BlockSpec
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
    Padding,
    Routing,
    SqueezeExcite,
    biased_conv,
)
from jeffnet.arch.plan import Block
from jeffnet.arch.spec import ModelSpec
from jeffnet.errors import ArchitectureError

# What halves a map in place of a stride: the window along one side, and the zeros around the map.
DOWNSAMPLING = {"average": ((0.5, 0.5), 0), "blur": ((0.25, 0.5, 0.25), 1)}


def round_channels(channels: float, width: float = 1.0, divisor: int = 8, limit: float = 0.9) -> int:
    """`channels * width` rounded to a multiple of `divisor`, never below this share of it (arXiv:1801.04381)."""
    scaled = channels * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < limit * scaled else rounded


def scaled_channels(spec: ModelSpec, channels: int) -> int:
    """Channels of a model, scaled and rounded by its rules."""
    return round_channels(channels, spec.width, spec.divisor, spec.round_limit)


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
    group_size: int | None = None,
    bias: bool = False,
    padding: str | None = None,
) -> Conv:
    """A convolution of a model; several kernels share its channels, `padding` replaces the model's.

    Raises:
      ArchitectureError: the channels are too many, or cannot be divided into groups with `group_size` output channels.
    """
    if out_channels > LARGEST:
        raise ArchitectureError(f"{name}: {out_channels} channels are more than {LARGEST:,}")
    if len(kernels) > min(in_channels, out_channels):
        raise ArchitectureError(
            f"{name}: {len(kernels)} kernels cannot share {in_channels} input channels and {out_channels} output "
            "channels"
        )
    ins, outs = _split(in_channels, len(kernels)), _split(out_channels, len(kernels))
    parts = tuple(
        ConvPart(
            name=name if len(kernels) == 1 else f"{name}.{index}",
            in_channels=ins[index],
            out_channels=outs[index],
            kernel_size=kernel,
            groups=outs[index] // group_size if group_size else 1,
            padding=_padding(padding or spec.padding, kernel, dilation),
        )
        for index, kernel in enumerate(kernels)
    )
    for part in parts:
        if group_size and (part.out_channels % group_size or part.in_channels % part.groups):
            raise ArchitectureError(
                f"{part.name}: groups of {group_size} channels do not divide its {part.in_channels} input channels and "
                f"{part.out_channels} output channels"
            )
    return Conv(name, parts, stride, dilation, bias, lower_norm(spec, norm, out_channels) if norm else None, act)


def lower_norm(spec: ModelSpec, name: str, channels: int) -> Norm:
    """A norm of a model.

    Raises:
      ArchitectureError: the channels cannot be divided into its groups.
    """
    if spec.norm == "batch":
        return BatchNorm(name, channels, spec.bn_epsilon)
    if channels % spec.norm_group:
        raise ArchitectureError(f"{name}: groups of {spec.norm_group} channels do not divide {channels}")
    return GroupNorm(name, channels, spec.bn_epsilon, channels // spec.norm_group)


@dataclass(frozen=True)
class BlockLowering:
    """Lowers one block. A method of each kind returns the operations in the order in which they run."""

    spec: ModelSpec
    name: str
    block: BlockSpec
    in_channels: int
    stride: int
    dilation: int
    packed: bool = False  # whether its maps have 2x2 positions in the channels of one
    packs: bool = False  # whether it packs them
    strided: bool = False  # whether it has a stride, or had one that is a dilation now

    @property
    def out_channels(self) -> int:
        return scaled_channels(self.spec, self.block.channels) * (4 if self.packed else 1)

    @property
    def act(self) -> str:
        return self.block.act or self.spec.act

    def lower(self, drop_path_rate: float) -> Block:
        """The block, with this rate of stochastic depth where it has a residual connection."""
        unchanged = not self.strided and self.in_channels == self.out_channels and not self.packs
        residual = self.block.skip and unchanged
        return Block(self.name, self.operations(), residual, drop_path_rate if residual else 0.0, self.out_channels)

    def operations(self) -> tuple[Op, ...]:
        """By the block's kind."""
        kinds = {
            "ir": self.inverted_residual,
            "ds": self.depthwise_separable,
            "dsa": self.depthwise_separable,
            "er": self.edge_residual,
            "cn": self.conv_norm_act,
            "uir": self.universal_inverted_residual,
            "mqa": self.attention,
        }
        return kinds[self.block.kind]()

    def inverted_residual(self) -> tuple[Op, ...]:
        block = self.block
        expanded = block.expanded or round_channels(self.in_channels * block.expansion)
        ops = (
            # Even at expansion 1 the convolution is there (FBNet-C); a block without it is a `ds`.
            self.conv("conv_pw", self.in_channels, expanded, block.expand_kernels, "bn1", self.act),
            *self.spatial("conv_dw", expanded, expanded, "bn2", block.group_size or 1),
            *self.squeeze_excite(expanded),
            self.conv("conv_pwl", expanded, self.out_channels, block.project_kernels, "bn3", None),
        )
        return self.mixed(ops) if block.experts else ops

    def mixed(self, ops: tuple[Op, ...]) -> tuple[Op, ...]:
        """The operations with a mixture of kernels in every convolution (CondConv, arXiv:1904.04971)."""
        experts = self.block.experts * self.spec.experts
        routing = Routing(f"{self.name}.routing_fn", self.in_channels, experts)
        return (routing, *(ExpertConv(op, experts) if isinstance(op, Conv) else op for op in ops))

    def depthwise_separable(self) -> tuple[Op, ...]:
        channels, act = self.in_channels, self.act if self.block.kind == "dsa" else None
        kernels, padding, packing = self.block.kernels, None, ()
        if self.packs:
            # A window over positions is half as wide over packs of them; what is left of 3x3 has no middle.
            packing = (self._packing(channels),)
            channels, kernels = 4 * channels, tuple((kernel + 1) // 2 for kernel in kernels)
            padding = "same" if 2 in kernels else None
        group = self.block.group_size or 1
        return (
            *packing,
            *self.spatial("conv_dw", channels, channels, "bn1", group, kernels, padding=padding),
            *self.squeeze_excite(channels),
            self.conv("conv_pw", channels, self.out_channels, self.block.project_kernels, "bn2", act),
        )

    def _packing(self, channels: int) -> Conv:
        """Space to depth, by a trained convolution (EfficientNet-X, arXiv:2102.05610)."""
        names = f"{self.name}.conv_s2d", f"{self.name}.bn_s2d"
        return lower_conv(
            self.spec, names[0], channels, 4 * channels, (2,), names[1], self.act, stride=2, padding="same"
        )

    def edge_residual(self) -> tuple[Op, ...]:
        block, source = self.block, self.in_channels
        if block.expand_from:
            source = scaled_channels(self.spec, block.expand_from)
        expanded = round_channels(source * block.expansion)
        return (
            # EdgeTPU's authors stride the 1x1 projection. Striding the expansion instead, padded as it is without a
            # stride, computes the same outputs for a quarter of the work; 'SAME' padding of the strided form would not.
            *self.spatial(
                "conv_exp",
                self.in_channels,
                expanded,
                "bn1",
                block.group_size,
                padding=None if self.spec.stride_expansion else "symmetric",
            ),
            *self.squeeze_excite(expanded),
            self.conv("conv_pwl", expanded, self.out_channels, block.project_kernels, "bn2", None),
        )

    def conv_norm_act(self) -> tuple[Op, ...]:
        return self.spatial("conv", self.in_channels, self.out_channels, "bn1")

    def universal_inverted_residual(self) -> tuple[Op, ...]:
        """Strided in the middle, or at the start if there is no kernel in the middle, or else at the end."""
        start, middle, end = (
            kernels[0] for kernels in (self.block.expand_kernels, self.block.kernels, self.block.project_kernels)
        )
        expanded = round_channels(self.in_channels * self.block.expansion)
        ops: list[Op] = []
        if start:
            stride = 1 if middle else self.stride
            ops += self.spatial(
                "dw_start", self.in_channels, self.in_channels, "dw_start_bn", 1, (start,), stride, None
            )
        ops.append(self.conv("pw_exp", self.in_channels, expanded, (1,), "pw_exp_bn", self.act))
        if middle:
            ops += self.spatial("dw_mid", expanded, expanded, "dw_mid_bn", 1)
        ops += self.squeeze_excite(expanded)
        ops.append(self.conv("pw_proj", expanded, self.out_channels, (1,), "pw_proj_bn", None))
        if end:
            stride = 1 if start or middle else self.stride
            ops += self.spatial("dw_end", self.out_channels, self.out_channels, "dw_end_bn", 1, (end,), stride, None)
        return (*ops, *self.layer_scale())

    def attention(self) -> tuple[Op, ...]:
        """Multi-query attention (arXiv:2404.10518), after a norm."""
        block, channels = self.block, self.in_channels
        attention = f"{self.name}.attn"

        def project(name: str, inputs: int, outputs: int) -> Conv:
            conv = lower_conv(self.spec, f"{attention}.{name}", inputs, outputs, (1,), None, None)
            return replace(conv, xavier=True)

        def shared(name: str) -> tuple[Conv, ...]:
            projection = project(name, channels, block.head_width)
            if block.key_stride == 1:
                return (projection,)
            down = lower_conv(
                self.spec,
                f"{attention}.{name}_down",
                channels,
                channels,
                block.kernels,
                f"{attention}.{name}_norm",
                None,
                stride=block.key_stride,
                dilation=self.dilation,
                group_size=1,
            )
            return replace(down, xavier=True), projection

        width = block.heads * block.head_width
        return (
            Normalize(lower_norm(self.spec, f"{self.name}.norm", channels), None),
            Attention(
                attention,
                block.heads,
                project("query", channels, width),
                shared("key"),
                shared("value"),
                project("output", width, self.out_channels),
            ),
            *self.layer_scale(),
        )

    def layer_scale(self) -> tuple[LayerScale, ...]:
        """At the end of a block, if the model has it."""
        initial = self.spec.layer_scale
        return () if initial is None else (LayerScale(f"{self.name}.layer_scale", self.out_channels, initial),)

    def conv(
        self, name: str, in_channels: int, out_channels: int, kernels: tuple[int, ...], norm: str, act: str | None
    ) -> Conv:
        """A convolution without a stride; its name and its norm's are those within the block."""
        name, norm = f"{self.name}.{name}", f"{self.name}.{norm}"
        return lower_conv(self.spec, name, in_channels, out_channels, kernels, norm, act)

    def spatial(
        self,
        name: str,
        in_channels: int,
        out_channels: int,
        norm: str,
        group_size: int | None = None,
        kernels: tuple[int, ...] | None = None,
        stride: int | None = None,
        act: str | None = "",
        padding: str | None = None,
    ) -> tuple[Op, ...]:
        """A convolution with the block's dilation, and what halves its map if that is not the stride's work.

        Kernels, stride, activation (`''`) and padding are the block's and the model's where none are given.
        """
        stride = stride or self.stride
        downsample = self.spec.downsample if stride > 1 else None
        conv = lower_conv(
            self.spec,
            f"{self.name}.{name}",
            in_channels,
            out_channels,
            kernels or self.block.kernels,
            f"{self.name}.{norm}",
            self.act if act == "" else act,
            stride=1 if downsample else stride,
            dilation=self.dilation,
            group_size=group_size,
            padding=padding,
        )
        if downsample is None:
            return (conv,)
        return conv, Downsample(f"{conv.name}_aa", out_channels, *DOWNSAMPLING[downsample])

    def squeeze_excite(self, channels: int) -> tuple[Op, ...]:
        """What weights so many channels by the whole picture, if the block has it."""
        block, rule, name = self.block, self.spec.se, f"{self.name}.se"
        if not block.se_ratio:
            return ()
        ratio = block.se_ratio / 4 if self.packs else block.se_ratio
        # Expanded channels over the expansion are the block's input, or what an EdgeTPU block takes for it.
        wanted = channels * (ratio if rule.from_expanded else ratio / block.expansion)
        if rule.kind == "context":
            return (self._global_context(name, channels, max(1, int(wanted + 0.5))),)
        reduced = max(1, round(wanted))
        if rule.divisor > 1:
            reduced = round_channels(wanted, divisor=rule.divisor, limit=self.spec.round_limit)
        return (SqueezeExcite(name, channels, block.squeezed or reduced, rule.act or self.act, rule.gate),)

    def _global_context(self, name: str, channels: int, reduced: int) -> GlobalContext:
        act, gate = self.spec.se.act or self.act, self.spec.se.gate
        reduce = biased_conv(f"{name}.reduce", channels, reduced, act)
        return GlobalContext(
            name,
            biased_conv(f"{name}.context", channels, 1),
            replace(reduce, norm=LayerNorm(f"{name}.norm", reduced, 1e-6)),
            biased_conv(f"{name}.expand", reduced, channels, gate),
        )


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
