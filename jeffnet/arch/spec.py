"""What a network is before any width, padding or name is made concrete."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class SqueezeRule:
    """How wide squeeze-and-excitation is and what it computes (arXiv:1709.01507).

    Attributes:
      from_expanded: the ratio is of the expanded channels (MobileNetV3) instead of the block's input (EfficientNet).
      divisor: the reduced width is rounded to a multiple of this; 1 rounds to the nearest whole number.
      act: activation between the two convolutions; None takes the block's.
      gate: activation whose value multiplies the channels.
    """

    from_expanded: bool = False
    divisor: int = 1
    act: str | None = None
    gate: str = "sigmoid"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """An architecture in the terms of its paper. `jeffnet.arch.plan.lower` turns it into a concrete `Plan`.

    Attributes:
      stages: block strings (see `jeffnet.arch.grammar`), grouped by stage.
      stem: channels of the first convolution, before scaling.
      features: channels of the last convolution, before scaling.
      width: multiplies channels, which are then rounded to multiples of 8.
      depth: multiplies the repetitions of every stage.
      act: activation where a block string names none.
      padding: 'same' pads as TensorFlow does, depending on the input's size; 'symmetric' as PyTorch does.
      bn_momentum: share of the old running statistics that one training step keeps.
      bn_epsilon: added to the variance under the root.
      scale_stem: whether `width` applies to `stem`.
      scale_features: whether `width` applies to `features`.
      scale_ends: whether `depth` applies to the first and the last stage.
      depth_rounding: 'ceil' or 'round', of a stage's scaled repetitions.
      se: the rule of squeeze-and-excitation.
      pool_first: the head convolution follows the global pooling, has a bias and no norm (MobileNetV3).
      drop_rate: dropout before the classifier, as in the paper.
      drop_path_rate: stochastic depth, as in the paper: block `i` of `n`, from 0, has `drop_path_rate * i / n` of it.
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


def as_tensorflow(spec: ModelSpec) -> ModelSpec:
    """`spec` with the padding and the BatchNorm constants of the TensorFlow originals (tensorflow/tpu)."""
    return replace(spec, padding="same", bn_momentum=0.99, bn_epsilon=1e-3)
