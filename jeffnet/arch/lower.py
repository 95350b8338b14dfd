"""Lowering of a `ModelSpec` to a `Plan`; `jeffnet.arch.blocks` has the block kinds."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from numbers import Integral, Real

from jeffnet.arch.blocks import BlockLowering, lower_conv, scaled_channels
from jeffnet.arch.grammar import BlockSpec, parse_stages
from jeffnet.arch.operations import Conv
from jeffnet.arch.plan import Block, FeatureInfo, Plan, with_classes
from jeffnet.arch.spec import ModelSpec
from jeffnet.errors import ArchitectureError, check_choice

GLOBAL_POOLS = ("avg", "max", "avgmax", "none")
OUTPUT_STRIDES = (8, 16, 32)
_MOST_BLOCKS = 1000


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
      num_classes: width of the logits; 0 for none.
      in_chans: channels of the pictures.
      drop_rate: dropout before the classifier, in [0, 1); None takes the architecture's, here and below.
      drop_path_rate: stochastic depth, in [0, 1): block `i` of `n`, from 0, has `drop_path_rate * i / n`.
      global_pool: 'avg', 'max', 'avgmax' or 'none'.
      output_stride: 32, 16 or 8; the latter two as in arXiv:1706.05587.
      bn_momentum: share of the old running statistics that a training step keeps.

    Returns:
      The Plan.

    Raises:
      ArchitectureError: an option outside its range, or an architecture that is no network; the message names the block
        string or the convolution.
    """
    drop_rate = spec.drop_rate if drop_rate is None else drop_rate
    drop_path_rate = spec.drop_path_rate if drop_path_rate is None else drop_path_rate
    bn_momentum = spec.bn_momentum if bn_momentum is None else bn_momentum
    rates = {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate, "bn_momentum": bn_momentum}
    _check_options(num_classes, in_chans, rates, global_pool, output_stride)
    stem_channels = scaled_channels(spec, spec.stem) if spec.scale_stem else spec.stem
    stem = lower_conv(spec, "conv_stem", in_chans, stem_channels, (spec.stem_kernel,), "bn1", spec.act, stride=2)
    try:
        stages, features = _lower_stages(spec, stem_channels, drop_path_rate, output_stride)
    except _NoDilationError as error:
        raise _without_dilation(spec, stem_channels, output_stride, error) from None
    plan = Plan(
        in_chans=in_chans,
        stem=stem,
        stages=stages,
        head=_lower_head(spec, stages[-1][-1].out_channels),
        pool_first=spec.pool_first,
        global_pool=global_pool,
        drop_rate=drop_rate,
        classifier=None,
        bn_momentum=bn_momentum,
        features=features,
    )
    return with_classes(plan, num_classes)


def _lower_head(spec: ModelSpec, in_channels: int) -> Conv | None:
    if spec.features == 0:
        return None
    channels = scaled_channels(spec, spec.features) if spec.scale_features else spec.features
    has_norm = not spec.pool_first if spec.head_norm is None else spec.head_norm
    has_bias = not has_norm if spec.head_bias is None else spec.head_bias
    norm = ("norm_head" if spec.pool_first else "bn2") if has_norm else None
    return lower_conv(spec, "conv_head", in_channels, channels, (1,), norm, spec.act, bias=has_bias)


def _check_options(
    num_classes: int, in_chans: int, rates: dict[str, float], global_pool: str, output_stride: int
) -> None:
    for name, number in (("num_classes", num_classes), ("in_chans", in_chans), ("output_stride", output_stride)):
        if not isinstance(number, Integral) or isinstance(number, bool):
            raise ArchitectureError(f"{name} {number!r} is not a whole number")
    if num_classes < 0:
        raise ArchitectureError(f"num_classes {num_classes} is negative: give a number of classes, or 0 for features")
    if in_chans < 1:
        raise ArchitectureError(f"in_chans {in_chans} is not a number of channels: give 1 or more")
    for name, rate in rates.items():
        if not isinstance(rate, Real) or not 0 <= rate < 1:
            raise ArchitectureError(f"{name} {rate!r} is outside [0, 1)")
    check_choice("global_pool", global_pool, GLOBAL_POOLS, ArchitectureError)
    check_choice("output_stride", output_stride, OUTPUT_STRIDES, ArchitectureError)


def scale_repeats(repeats: list[int], depth: float, rounding: str) -> list[int]:
    """The repetitions of a stage's block specs, multiplied by `depth`.

    Their total is rounded, by 'ceil' (EfficientNet) or 'round' (MixNet-XL), and shared out from the last spec to the
    first.
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


def repeats_of(spec: ModelSpec, stages: Sequence[Sequence[BlockSpec]]) -> list[list[int]]:
    """How many blocks each block string of each stage of a model stands for, with its depth."""
    repeats, count = [], 0.0
    for index, stage in enumerate(stages):
        at_end = index in (0, len(stages) - 1)
        depth = spec.depth[index] if isinstance(spec.depth, tuple) else spec.depth
        if at_end and not spec.scale_ends:
            depth = 1.0
        count += depth * sum(block.repeats for block in stage)
        if count > _MOST_BLOCKS:
            raise ArchitectureError(f"the stages have more than {_MOST_BLOCKS:,} blocks: repeat them fewer times")
        repeats.append(scale_repeats([block.repeats for block in stage], depth, spec.depth_rounding))
    return repeats


def _expand_stages(spec: ModelSpec) -> list[list[BlockSpec]]:
    """Stages with one spec per block: repetitions are scaled and written out."""
    stages = parse_stages(spec.stages)
    return [
        [block for block, repeat in zip(stage, repeats, strict=True) for _ in range(repeat)]
        for stage, repeats in zip(stages, repeats_of(spec, stages), strict=True)
    ]


def _lower_stages(
    spec: ModelSpec, stem_channels: int, drop_path_rate: float, output_stride: int
) -> tuple[tuple[tuple[Block, ...], ...], tuple[FeatureInfo, ...]]:
    specs = _expand_stages(spec)
    total = sum(len(stage) for stage in specs)
    channels, stride, dilation, index = stem_channels, 2, 1, 0
    # The map at a stride is the output of the last module before the next stride.
    features = [FeatureInfo("bn1", stem_channels, 2, -1)] if _halves(specs[0][0]) else []
    stages, packed = [], False
    for stage_index, stage in enumerate(specs):
        blocks = []
        for block_index, block in enumerate(stage):
            block_stride = block.stride if block_index == 0 else 1
            strided = block_stride > 1
            block_dilation = dilation
            packs = block.space_to_depth and not packed
            if packs:
                if stride * 2 > output_stride:
                    raise _NoDilationError(f"blocks.{stage_index} packs positions into channels")
                packed, stride = True, stride * 2
            elif packed and block_stride == 2:
                # The stride is done: the block takes the packed positions apart, by its expansion.
                packed, block_stride = False, 1
                block = replace(block, expansion=block.expansion / 4)
            if block_stride > 1 and stride * block_stride > output_stride:
                # This block still sees its input at the old density; those after it need the wider reach.
                _check_dilation(spec, block, stage_index)
                dilation, block_stride = dilation * block_stride, 1
            stride *= block_stride
            name = f"blocks.{stage_index}.{block_index}"
            rate = drop_path_rate * index / total
            _check_kernels(block, stage_index, max(block_dilation, dilation))
            lowering = BlockLowering(
                spec, name, block, channels, block_stride, block_dilation, packed=packed, packs=packs, strided=strided
            )
            blocks.append(lowering.lower(rate))
            channels = blocks[-1].out_channels
            index += 1
        stages.append(tuple(blocks))
        if stage_index + 1 == len(specs) or (_halves(specs[stage_index + 1][0]) and not packed):
            features.append(FeatureInfo(f"blocks.{stage_index}", channels, stride, stage_index))
    return tuple(stages), tuple(features)


def _halves(block: BlockSpec) -> bool:
    """Whether the first block of a stage halves the map, by its stride or by packing positions."""
    return block.stride > 1 or block.space_to_depth


def _check_dilation(spec: ModelSpec, block: BlockSpec, stage: int) -> None:
    """Check that a block can do without its stride, and the blocks after it with dilation."""
    if spec.downsample:
        raise _NoDilationError(f"blocks.{stage} halves its map by a fixed filter")
    first, middle, last = block.expand_kernels, block.kernels, block.project_kernels
    if block.kind == "uir" and any(last) and any((*first, *middle)):
        raise _NoDilationError(f"blocks.{stage} has a kernel after its stride")


def _check_kernels(block: BlockSpec, stage: int, dilation: int) -> None:
    """Check that no convolution but the one with the block's kernels has a reach that would have to be wider."""
    if dilation > 1 and block.kind != "uir" and max(*block.expand_kernels, *block.project_kernels) > 1:
        raise _NoDilationError(f"blocks.{stage} has a kernel 'a' or 'p' of more than 1x1")


class _NoDilationError(Exception):
    """A block has something that dilation cannot replace."""


def _without_dilation(spec: ModelSpec, stem_channels: int, output_stride: int, reason: Exception) -> ArchitectureError:
    """The error for an output stride that a network cannot have; it names those that it can have."""
    possible = []
    for larger in filter(lambda stride: stride > output_stride, sorted(OUTPUT_STRIDES)):
        with suppress(_NoDilationError):
            _lower_stages(spec, stem_channels, 0.0, larger)
            possible.append(str(larger))
    ways = f"give {' or '.join(possible)}, and " if possible else ""
    return ArchitectureError(
        f"output_stride {output_stride}: {reason}, which dilation cannot replace; {ways}take the map at stride "
        f"{output_stride} from `features`"
    )
