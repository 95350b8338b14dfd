"""The Plan: an architecture with every width, stride, padding, name and drop rate made concrete.

`lower` is the only place that knows block kinds and rounds channels. What comes out is a sequence of two kinds of
operation, `Conv` and `SqueezeExcite`, which a backend realises one by one with its framework's own layers.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Integral, Real

from jeffnet.arch.grammar import BlockSpec, parse_stages
from jeffnet.arch.spec import ModelSpec, SqueezeRule
from jeffnet.errors import ArchitectureError

GLOBAL_POOLS = ("avg", "max", "avgmax", "none")
OUTPUT_STRIDES = (8, 16, 32)

Padding = str | tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class ConvPart:
    """One kernel of a convolution: `'SAME'` padding or rows and columns before and after."""

    name: str
    in_channels: int
    out_channels: int
    kernel_size: int
    groups: int
    padding: Padding


@dataclass(frozen=True)
class Conv:
    """A convolution, then BatchNorm and activation where named.

    With several parts (MixNet, arXiv:1907.09595) the input's channels are split between them in order and their outputs
    concatenated.
    """

    name: str
    parts: tuple[ConvPart, ...]
    stride: int
    dilation: int
    bias: bool
    norm: str | None
    act: str | None

    @property
    def in_channels(self) -> int:
        return sum(part.in_channels for part in self.parts)

    @property
    def out_channels(self) -> int:
        return sum(part.out_channels for part in self.parts)


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
        """The first of its convolutions, with the activation."""
        return self._conv("conv_reduce", self.channels, self.reduced, self.act)

    @property
    def expand(self) -> Conv:
        """The second, with the gate."""
        return self._conv("conv_expand", self.reduced, self.channels, self.gate)

    def _conv(self, name: str, in_channels: int, out_channels: int, act: str) -> Conv:
        part = ConvPart(f"{self.name}.{name}", in_channels, out_channels, 1, 1, "SAME")
        return Conv(part.name, (part,), 1, 1, True, None, act)


@dataclass(frozen=True)
class Block:
    """Operations in order; with `residual`, the block's input is added to the (randomly dropped) result."""

    name: str
    ops: tuple[Conv | SqueezeExcite, ...]
    residual: bool
    drop_path_rate: float
    out_channels: int


@dataclass(frozen=True)
class FeatureInfo:
    """One of the feature maps at strides 2 to 32.

    Attributes:
      name: canonical name of the module whose output it is.
      channels: of the map.
      stride: pixels of the input per pixel of the map, along each side.
      stage: index of the stage whose output it is; -1 is the stem's.
    """

    name: str
    channels: int
    stride: int
    stage: int


@dataclass(frozen=True)
class Dense:
    """The classifier."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Plan:
    """A whole network, final in every number.

    Attributes:
      in_chans: channels of the input pictures.
      stem: the first convolution, stride 2.
      stages: blocks, grouped by stage.
      head: the last convolution; after the global pooling when `pool_first`.
      classifier: None when features are wanted.
      global_pool: 'avg', 'max', 'avgmax' (mean of the two) or 'none'.
      features: what maps `features()` can return.
      test_window: side of the windows of test-time pooling, see `with_test_pooling`; 0 for none.
      frozen_norms: names of norms that use their running statistics in training too.
      norm_groups: parts of a batch that norms in training normalise each by itself.
    """

    in_chans: int
    stem: Conv
    stages: tuple[tuple[Block, ...], ...]
    head: Conv
    pool_first: bool
    global_pool: str
    drop_rate: float
    classifier: Dense | None
    bn_momentum: float
    bn_epsilon: float
    features: tuple[FeatureInfo, ...]
    test_window: int = 0
    frozen_norms: frozenset[str] = frozenset()
    norm_groups: int = 1

    @property
    def num_features(self) -> int:
        """Width of the pre-logits."""
        return self.head.out_channels

    @property
    def output_stride(self) -> int:
        """Pixels of the input per pixel of the last map, along each side."""
        return max((feature.stride for feature in self.features), default=self.stem.stride)

    @property
    def blocks(self) -> Iterable[Block]:
        return (block for stage in self.stages for block in stage)


def lower(
    spec: ModelSpec,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    global_pool: str = "avg",
    output_stride: int = 32,
    bn_momentum: float | None = None,
) -> Plan:
    """Make every number of an architecture concrete.

    Args:
      spec: the architecture.
      num_classes: width of the logits; 0 for no classifier.
      in_chans: channels of the input pictures.
      drop_rate: dropout before the classifier, in [0, 1); None takes the architecture's own.
      drop_path_rate: stochastic depth, in [0, 1), of which block `i` of `n`, from 0, has `i / n`; None takes the
        architecture's own.
      global_pool: 'avg', 'max', 'avgmax' (mean of both) or 'none' (head and classifier apply to every position).
      output_stride: 32, or 16 or 8, where later strides become dilations (arXiv:1706.05587).
      bn_momentum: share in [0, 1) of the old running statistics that a training step keeps; None takes the
        architecture's own.

    Raises:
      ArchitectureError: an option outside its range, or a block string that cannot be parsed.
    """
    drop_rate = spec.drop_rate if drop_rate is None else drop_rate
    drop_path_rate = spec.drop_path_rate if drop_path_rate is None else drop_path_rate
    bn_momentum = spec.bn_momentum if bn_momentum is None else bn_momentum
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate, "bn_momentum": bn_momentum}
    _check_options(num_classes, in_chans, rates, global_pool, output_stride)
    builder = _Builder(spec)
    stem_channels = round_channels(spec.stem, spec.width if spec.scale_stem else 1.0)
    stem = builder.conv("conv_stem", in_chans, stem_channels, (3,), norm="bn1", act=spec.act, stride=2)
    stages, features = _lower_stages(builder, stem_channels, drop_path_rate, output_stride)
    num_features = round_channels(spec.features, spec.width if spec.scale_features else 1.0)
    head = builder.conv(
        "conv_head",
        stages[-1][-1].out_channels,
        num_features,
        (1,),
        norm=None if spec.pool_first else "bn2",
        act=spec.act,
        bias=spec.pool_first,
    )
    plan = Plan(
        in_chans=in_chans,
        stem=stem,
        stages=stages,
        head=head,
        pool_first=spec.pool_first,
        global_pool=global_pool,
        drop_rate=drop_rate,
        classifier=None,
        bn_momentum=bn_momentum,
        bn_epsilon=spec.bn_epsilon,
        features=features,
    )
    return with_classes(plan, num_classes)


def with_classes(plan: Plan, num_classes: int) -> Plan:
    """The same network with logits of another width; 0 for none."""
    return replace(plan, classifier=Dense("classifier", plan.num_features, num_classes) if num_classes else None)


def with_frozen_norms(plan: Plan, names: Iterable[str]) -> Plan:
    """The same network, in which norms of these names keep their running statistics, and use them in training too."""
    return replace(plan, frozen_norms=frozenset(names))


def with_norm_groups(plan: Plan, groups: int) -> Plan:
    """The same network, in which norms in training cut the batch into so many groups and normalise each by itself."""
    return replace(plan, norm_groups=groups)


def with_test_pooling(plan: Plan, image_size: int) -> Plan:
    """The same network for pictures larger than those it was trained on, in whatever backend it is built.

    Windows of the last map as large as the whole map was in training are averaged and classified, each by itself; the
    logits are the mean of the windows' average and maximum (Hansen's test-time pooling, as in timm).

    Args:
      plan: the network.
      image_size: of the pictures in training.
    """
    strides = [plan.stem.stride, *(op.stride for block in plan.blocks for op in block.ops if isinstance(op, Conv))]
    return replace(plan, global_pool="none", test_window=-(-image_size // math.prod(strides)))


def trunk(plan: Plan) -> Plan:
    """What arrays are trained for: the plan without its numbers of classes and channels, pooling, and training options.

    Arrays of one plan compute the same features in another if and only if both have the same trunk.
    """
    stem = replace(plan.stem, parts=tuple(replace(part, in_channels=0) for part in plan.stem.parts))
    stages = tuple(tuple(replace(block, drop_path_rate=0.0) for block in stage) for stage in plan.stages)
    plan = replace(plan, in_chans=0, stem=stem, stages=stages, classifier=None, global_pool="avg", test_window=0)
    return replace(plan, drop_rate=0.0, bn_momentum=0.0, frozen_norms=frozenset(), norm_groups=1)


def _check_options(
    num_classes: int, in_chans: int, rates: dict[str, float], global_pool: str, output_stride: int
) -> None:
    for name, number in (("num_classes", num_classes), ("in_chans", in_chans), ("output_stride", output_stride)):
        if not isinstance(number, Integral):
            raise ArchitectureError(f"{name} {number!r} is not a whole number")
    if num_classes < 0:
        raise ArchitectureError(f"num_classes {num_classes} is negative: give a number of classes, or 0 for features")
    if in_chans < 1:
        raise ArchitectureError(f"in_chans {in_chans} is not a number of channels: give 1 or more")
    for name, rate in rates.items():
        if not isinstance(rate, Real) or not 0 <= rate < 1:
            raise ArchitectureError(f"{name} {rate!r} is outside [0, 1)")
    if global_pool not in GLOBAL_POOLS:
        raise ArchitectureError(f"global_pool {global_pool!r} is not one of {', '.join(GLOBAL_POOLS)}")
    if output_stride not in OUTPUT_STRIDES:
        raise ArchitectureError(f"output_stride {output_stride} is not one of {', '.join(map(str, OUTPUT_STRIDES))}")


def round_channels(channels: float, width: float = 1.0, divisor: int = 8) -> int:
    """`channels * width` rounded to a multiple of `divisor`, never below 90 % of it (arXiv:1801.04381's authors)."""
    scaled = channels * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


def scale_repeats(repeats: list[int], depth: float, rounding: str) -> list[int]:
    """A stage's repetitions multiplied by `depth`, its total rounded, shared out from the last block spec to the first.

    Args:
      repeats: of each block spec of the stage.
      depth: the multiplier.
      rounding: 'ceil' (EfficientNet) or 'round' (MixNet-XL), of the stage's total.
    """
    total = sum(repeats)
    scaled_total = math.ceil(total * depth) if rounding == "ceil" else max(1, round(total * depth))
    scaled = []
    for repeat in reversed(repeats):
        share = max(1, round(repeat / total * scaled_total))
        scaled.append(share)
        total -= repeat
        scaled_total -= share
    return scaled[::-1]


def _expand_stages(spec: ModelSpec) -> list[list[BlockSpec]]:
    """Stages as one block spec a block: repetitions scaled and written out, only a stage's first block strided."""
    stages = parse_stages(spec.stages)
    expanded = []
    for index, stage in enumerate(stages):
        at_end = index in (0, len(stages) - 1)
        depth = 1.0 if at_end and not spec.scale_ends else spec.depth
        repeats = scale_repeats([block.repeats for block in stage], depth, spec.depth_rounding)
        expanded.append([block for block, repeat in zip(stage, repeats, strict=True) for _ in range(repeat)])
    return expanded


def _lower_stages(
    builder: "_Builder", stem_channels: int, drop_path_rate: float, output_stride: int
) -> tuple[tuple[tuple[Block, ...], ...], tuple[FeatureInfo, ...]]:
    specs = _expand_stages(builder.spec)
    total = sum(len(stage) for stage in specs)
    channels, stride, dilation, index = stem_channels, 2, 1, 0
    # The map at a stride is the output of the last module before the next stride.
    features = [FeatureInfo("bn1", stem_channels, 2, -1)] if specs[0][0].stride > 1 else []
    stages = []
    for stage_index, stage in enumerate(specs):
        blocks = []
        for block_index, block in enumerate(stage):
            block_stride = block.stride if block_index == 0 else 1
            block_dilation = dilation
            if block_stride > 1 and stride * block_stride > output_stride:
                # This block still sees its input at the old density; those after it need the wider reach.
                dilation, block_stride = dilation * block_stride, 1
            stride *= block_stride
            name = f"blocks.{stage_index}.{block_index}"
            rate = drop_path_rate * index / total
            blocks.append(builder.block(name, block, channels, block_stride, block_dilation, rate))
            channels = blocks[-1].out_channels
            index += 1
        stages.append(tuple(blocks))
        if stage_index + 1 == len(specs) or specs[stage_index + 1][0].stride > 1:
            features.append(FeatureInfo(f"blocks.{stage_index}", channels, stride, stage_index))
    return tuple(stages), tuple(features)


@dataclass(frozen=True)
class _Builder:
    """Lowers blocks: each method below `block` is one block kind, in the order in which its operations run."""

    spec: ModelSpec

    def conv(
        self,
        name: str,
        in_channels: int,
        out_channels: int,
        kernels: tuple[int, ...],
        *,
        norm: str | None,
        act: str | None,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        bias: bool = False,
        padding: str | None = None,
    ) -> Conv:
        ins, outs = _split(in_channels, len(kernels)), _split(out_channels, len(kernels))
        parts = tuple(
            ConvPart(
                name=name if len(kernels) == 1 else f"{name}.{index}",
                in_channels=ins[index],
                out_channels=outs[index],
                kernel_size=kernel,
                groups=ins[index] if depthwise else 1,
                padding=_padding(padding or self.spec.padding, kernel, dilation),
            )
            for index, kernel in enumerate(kernels)
        )
        return Conv(name, parts, stride, dilation, bias, norm, act)

    def block(
        self, name: str, block: BlockSpec, in_channels: int, stride: int, dilation: int, drop_path_rate: float
    ) -> Block:
        out_channels = round_channels(block.channels, self.spec.width)
        make = {
            "ir": self._inverted_residual,
            "ds": self._depthwise_separable,
            "dsa": self._depthwise_separable,
            "er": self._edge_residual,
            "cn": self._conv_norm_act,
        }[block.kind]
        ops = make(name, block, in_channels, out_channels, stride, dilation)
        residual = block.skip and stride == 1 and in_channels == out_channels
        return Block(name, ops, residual, drop_path_rate if residual else 0.0, out_channels)

    def _inverted_residual(
        self, name: str, block: BlockSpec, in_channels: int, out_channels: int, stride: int, dilation: int
    ) -> tuple[Conv | SqueezeExcite, ...]:
        act = block.act or self.spec.act
        expanded = round_channels(in_channels * block.expansion)
        return (
            # Even at expansion 1 the convolution is there (FBNet-C); a block without it is a `ds`.
            self.conv(f"{name}.conv_pw", in_channels, expanded, block.expand_kernels, norm=f"{name}.bn1", act=act),
            self.conv(
                f"{name}.conv_dw",
                expanded,
                expanded,
                block.kernels,
                norm=f"{name}.bn2",
                act=act,
                stride=stride,
                dilation=dilation,
                depthwise=True,
            ),
            *self._squeeze(name, block, expanded, act),
            self.conv(f"{name}.conv_pwl", expanded, out_channels, block.project_kernels, norm=f"{name}.bn3", act=None),
        )

    def _depthwise_separable(
        self, name: str, block: BlockSpec, in_channels: int, out_channels: int, stride: int, dilation: int
    ) -> tuple[Conv | SqueezeExcite, ...]:
        act = block.act or self.spec.act
        return (
            self.conv(
                f"{name}.conv_dw",
                in_channels,
                in_channels,
                block.kernels,
                norm=f"{name}.bn1",
                act=act,
                stride=stride,
                dilation=dilation,
                depthwise=True,
            ),
            *self._squeeze(name, block, in_channels, act),
            self.conv(
                f"{name}.conv_pw",
                in_channels,
                out_channels,
                block.project_kernels,
                norm=f"{name}.bn2",
                act=act if block.kind == "dsa" else None,
            ),
        )

    def _edge_residual(
        self, name: str, block: BlockSpec, in_channels: int, out_channels: int, stride: int, dilation: int
    ) -> tuple[Conv | SqueezeExcite, ...]:
        act = block.act or self.spec.act
        source = round_channels(block.expand_from, self.spec.width) if block.expand_from else in_channels
        expanded = round_channels(source * block.expansion)
        return (
            # The authors stride the 1x1 projection. Striding the expansion instead, padded as it is without a stride,
            # computes the same outputs for a quarter of the work; 'SAME' padding of the strided form would not.
            self.conv(
                f"{name}.conv_exp",
                in_channels,
                expanded,
                block.kernels,
                norm=f"{name}.bn1",
                act=act,
                stride=stride,
                dilation=dilation,
                padding="symmetric",
            ),
            *self._squeeze(name, block, expanded, act),
            self.conv(f"{name}.conv_pwl", expanded, out_channels, block.project_kernels, norm=f"{name}.bn2", act=None),
        )

    def _conv_norm_act(
        self, name: str, block: BlockSpec, in_channels: int, out_channels: int, stride: int, dilation: int
    ) -> tuple[Conv | SqueezeExcite, ...]:
        return (
            self.conv(
                f"{name}.conv",
                in_channels,
                out_channels,
                block.kernels,
                norm=f"{name}.bn1",
                act=block.act or self.spec.act,
                stride=stride,
                dilation=dilation,
            ),
        )

    def _squeeze(self, name: str, block: BlockSpec, channels: int, act: str) -> tuple[SqueezeExcite, ...]:
        if not block.se_ratio:
            return ()
        rule: SqueezeRule = self.spec.se
        # Expanded channels over the expansion are the block's input, or what an EdgeTPU block takes for it.
        wanted = channels * (block.se_ratio if rule.from_expanded else block.se_ratio / block.expansion)
        reduced = round_channels(wanted, divisor=rule.divisor) if rule.divisor > 1 else round(wanted)
        return (SqueezeExcite(f"{name}.se", channels, reduced, rule.act or act, rule.gate),)


def _split(channels: int, parts: int) -> list[int]:
    """Equal shares; the first takes what is left over."""
    share = channels // parts
    return [channels - share * (parts - 1)] + [share] * (parts - 1)


def _padding(padding: str, kernel: int, dilation: int) -> Padding:
    if padding == "same":
        return "SAME"
    # Half of the dilated kernel on each side, with or without a stride: PyTorch's convention.
    reach = dilation * (kernel - 1) // 2
    return ((reach, reach), (reach, reach))
