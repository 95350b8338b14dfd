"""The description of an architecture, as in its paper."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class SqueezeRule:
    """Width and activations of squeeze-and-excitation (arXiv:1709.01507).

    Attributes:
      from_expanded: the ratio applies to the expanded channels (MobileNetV3), not to the block's input (EfficientNet).
      divisor: the reduced width is rounded to a multiple of this; 1 rounds to the nearest whole number.
      act: activation between the two convolutions; None uses the block's.
      gate: activation of the factors that multiply the channels.
      kind: 'squeeze', or 'context': the mean over the picture is weighted by attention (GlobalContext).
    """

    from_expanded: bool = False
    divisor: int = 1
    act: str | None = None
    gate: str = "sigmoid"
    kind: str = "squeeze"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """An architecture in the terms of its paper. `jeffnet.arch.lower.lower` turns it into a concrete `Plan`.

    Attributes:
      stages: block strings (see `jeffnet.arch.grammar`), grouped by stage.
      stem: channels of the first convolution, before scaling.
      features: channels of the last convolution, before scaling; 0 for a network without it (MobileNetV1).
      stem_kernel: size of the first convolution's kernel.
      width: multiplies channels, which are then rounded.
      divisor: what rounded channels are multiples of; 1 rounds to the nearest whole number.
      round_limit: rounding takes no more from a width than leaves this share of it.
      depth: multiplies the repetitions of every stage; one for each stage, or one for all.
      act: activation of blocks whose string names none.
      padding: 'same' as in TensorFlow, which depends on the input's size; 'symmetric' as in PyTorch.
      bn_momentum: share of the running statistics that a training step keeps.
      bn_epsilon: added to the variance, by norms of all kinds.
      norm: 'batch' (BatchNorm) or 'group' (GroupNorm).
      norm_group: channels in a group of GroupNorm.
      scale_stem: whether `width` applies to `stem`.
      scale_features: whether `width` applies to `features`.
      scale_ends: whether `depth` applies to the first and the last stage.
      depth_rounding: rounding of a stage's scaled repetitions, 'ceil' or 'round'.
      se: the rule of squeeze-and-excitation.
      stride_expansion: edge residuals stride their expansion (EfficientNetV2), not their projection (EdgeTPU).
      downsample: what halves a map after a strided convolution, which then has stride 1: 'average' of 2x2 positions,
        'blur' by a 3x3 binomial filter (arXiv:1904.11486), or None.
      experts: multiplies the experts of the block strings (CondConv).
      layer_scale: value of the trained factors at the end of `uir` and `mqa` blocks of a new model; None for none.
      pool_first: the head convolution follows the global pooling (MobileNetV3).
      head_norm: the head convolution has a norm; None has one where it comes before the pooling.
      head_bias: the head convolution has a bias; None has one where it has no norm.
      drop_rate: dropout before the classifier, as in the paper.
      drop_path_rate: of stochastic depth, as in the paper; block `i` of `n`, from 0, has `drop_path_rate * i / n`.
    """

    stages: tuple[tuple[str, ...], ...]
    stem: int = 32
    features: int = 1280
    stem_kernel: int = 3
    width: float = 1.0
    divisor: int = 8
    round_limit: float = 0.9
    depth: float | tuple[float, ...] = 1.0
    act: str = "relu"
    padding: str = "symmetric"
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    norm: str = "batch"
    norm_group: int = 8
    scale_stem: bool = True
    scale_features: bool = False
    scale_ends: bool = True
    depth_rounding: str = "ceil"
    se: SqueezeRule = SqueezeRule()
    stride_expansion: bool = True
    downsample: str | None = None
    experts: int = 1
    layer_scale: float | None = None
    pool_first: bool = False
    head_norm: bool | None = None
    head_bias: bool | None = None
    drop_rate: float = 0.2
    drop_path_rate: float = 0.0


def with_blocks(spec: ModelSpec, pattern: str, replacement: str | Callable[[re.Match], str]) -> ModelSpec:
    """`spec` with a pattern replaced in every block string, as by `re.sub`."""
    stages = tuple(tuple(re.sub(pattern, replacement, block) for block in stage) for stage in spec.stages)
    return replace(spec, stages=stages)


def as_tensorflow(spec: ModelSpec) -> ModelSpec:
    """`spec` with the padding and the BatchNorm constants of the TensorFlow originals (tensorflow/tpu)."""
    return replace(spec, padding="same", bn_momentum=0.99, bn_epsilon=1e-3)
