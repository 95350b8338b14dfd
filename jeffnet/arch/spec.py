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
    """

    from_expanded: bool = False
    divisor: int = 1
    act: str | None = None
    gate: str = "sigmoid"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """An architecture in the terms of its paper. `jeffnet.arch.lower.lower` turns it into a concrete `Plan`.

    Attributes:
      stages: block strings (see `jeffnet.arch.grammar`), grouped by stage.
      stem: channels of the first convolution, before scaling.
      features: channels of the last convolution, before scaling.
      width: multiplies channels, which are then rounded to multiples of 8.
      depth: multiplies the repetitions of every stage.
      act: activation of blocks whose string names none.
      padding: 'same' as in TensorFlow, which depends on the input's size; 'symmetric' as in PyTorch.
      bn_momentum: share of the running statistics that a training step keeps.
      bn_epsilon: added to the variance.
      scale_stem: whether `width` applies to `stem`.
      scale_features: whether `width` applies to `features`.
      scale_ends: whether `depth` applies to the first and the last stage.
      depth_rounding: rounding of a stage's scaled repetitions, 'ceil' or 'round'.
      se: the rule of squeeze-and-excitation.
      pool_first: the head convolution follows the global pooling, has a bias and no norm (MobileNetV3).
      drop_rate: dropout before the classifier, as in the paper.
      drop_path_rate: of stochastic depth, as in the paper; block `i` of `n`, from 0, has `drop_path_rate * i / n`.
    """

    stages: tuple[tuple[str, ...], ...]
    stem: int = 32
    features: int = 1280
    width: float = 1.0
    depth: float = 1.0
    act: str = "relu"
    padding: str = "symmetric"
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    scale_stem: bool = True
    scale_features: bool = False
    scale_ends: bool = True
    depth_rounding: str = "ceil"
    se: SqueezeRule = SqueezeRule()
    pool_first: bool = False
    drop_rate: float = 0.2
    drop_path_rate: float = 0.0


def with_blocks(spec: ModelSpec, pattern: str, replacement: str | Callable[[re.Match], str]) -> ModelSpec:
    """`spec` with a pattern replaced in every block string, as by `re.sub`."""
    stages = tuple(tuple(re.sub(pattern, replacement, block) for block in stage) for stage in spec.stages)
    return replace(spec, stages=stages)


def as_tensorflow(spec: ModelSpec) -> ModelSpec:
    """`spec` with the padding and the BatchNorm constants of the TensorFlow originals (tensorflow/tpu)."""
    return replace(spec, padding="same", bn_momentum=0.99, bn_epsilon=1e-3)
