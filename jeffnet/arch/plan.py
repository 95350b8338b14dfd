"""The Plan: an architecture with every width, stride, padding, name and drop rate made concrete.

`jeffnet.arch.lower.lower` makes it. It is a sequence of operations (`jeffnet.arch.operations`); backends realise them
one by one with their framework's layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from jeffnet.arch.operations import Conv, Dense, LayerScale, Op


@dataclass(frozen=True)
class Block:
    """Operations in order; with `residual`, the block's input is added to the (randomly dropped) result."""

    name: str
    ops: tuple[Op, ...]
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
class Plan:
    """A whole network, final in every number.

    Attributes:
      in_chans: channels of the input pictures.
      stem: the first convolution, stride 2.
      stages: blocks, grouped by stage.
      head: the last convolution, if there is one; after the global pooling when `pool_first`.
      classifier: None when features are wanted.
      global_pool: 'avg', 'max', 'avgmax' (mean of the two) or 'none'.
      drop_rate: dropout before the classifier.
      bn_momentum: share of the old running statistics that a training step keeps.
      features: the maps that `features()` can return.
    """

    in_chans: int
    stem: Conv
    stages: tuple[tuple[Block, ...], ...]
    head: Conv | None
    pool_first: bool
    global_pool: str
    drop_rate: float
    classifier: Dense | None
    bn_momentum: float
    features: tuple[FeatureInfo, ...]

    @property
    def num_features(self) -> int:
        """Width of the pre-logits."""
        return self.head.out_channels if self.head else self.stages[-1][-1].out_channels

    @property
    def output_stride(self) -> int:
        """Pixels of the input per pixel of the last map, along each side."""
        return max((feature.stride for feature in self.features), default=self.stem.stride)

    @property
    def num_classes(self) -> int:
        """Width of the logits; 0 without a classifier."""
        return self.classifier.out_features if self.classifier else 0

    @property
    def blocks(self) -> Iterator[Block]:
        """Those of all stages, in order."""
        return (block for stage in self.stages for block in stage)

    @property
    def head_ops(self) -> tuple[Conv, ...]:
        """The head convolution, if there is one."""
        return (self.head,) if self.head else ()

    @property
    def operations(self) -> Iterator[Op]:
        """All but the classifier, in the order in which they run."""
        yield self.stem
        for block in self.blocks:
            yield from block.ops
        yield from self.head_ops

    @property
    def convolutions(self) -> Iterator[Conv]:
        """All of them in the order in which they run, those inside other operations included."""
        for op in self.operations:
            yield from op.convolutions


def with_classes(plan: Plan, num_classes: int) -> Plan:
    """The same network with logits of another width; 0 for none."""
    return replace(plan, classifier=Dense("classifier", plan.num_features, num_classes) if num_classes else None)


def without_training_options(plan: Plan) -> Plan:
    """The same network, which drops nothing, and whose running statistics become those of the last batch."""

    def op_without(op: Op) -> Op:
        return replace(op, initial=0.0) if isinstance(op, LayerScale) else op

    stages = tuple(
        tuple(replace(block, drop_path_rate=0.0, ops=tuple(map(op_without, block.ops))) for block in stage)
        for stage in plan.stages
    )
    return replace(plan, stages=stages, drop_rate=0.0, bn_momentum=0.0)


def trunk(plan: Plan) -> Plan:
    """The part of a plan for which arrays are trained: without classes, input channels, pooling and training options.

    Arrays of one plan compute the same features in another if and only if both have the same trunk.
    """
    stem = replace(plan.stem, parts=tuple(replace(part, in_channels=0) for part in plan.stem.parts))
    return replace(without_training_options(plan), in_chans=0, stem=stem, classifier=None, global_pool="avg")
