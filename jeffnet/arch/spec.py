"""The description of an architecture, as in its paper."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from jeffnet.arch.checks import LARGEST, check_switch, checked_depth, checked_stages, number, whole
from jeffnet.errors import ArchitectureError, check_choice

# The names of activations in a spec.
ACTIVATIONS = ("relu", "relu6", "silu", "gelu", "hard_swish", "sigmoid", "hard_sigmoid")
_CHOICES = {
    "act": ACTIVATIONS,
    "padding": ("same", "symmetric"),
    "norm": ("batch", "group"),
    "depth_rounding": ("ceil", "round"),
    "downsample": (None, "average", "blur"),
}
_CHOICES_OF_SE = {"act": (None, *ACTIVATIONS), "gate": ACTIVATIONS, "kind": ("squeeze", "context")}
_WHOLE = {
    "stem": (1, LARGEST),
    "features": (0, LARGEST),
    "stem_kernel": (1, 63),
    "divisor": (1, LARGEST),
    "norm_group": (1, LARGEST),
    "experts": (1, 1024),
}
# Numbers above 0, up to this one; those of which the second is True may be 0.
_NUMBERS = {
    "width": (100.0, False),
    "round_limit": (1.0, True),
    "bn_epsilon": (1.0, False),
    "bn_momentum": (1.0, True),
    "drop_rate": (1.0, True),
    "drop_path_rate": (1.0, True),
}
_SWITCHES = ("scale_stem", "scale_features", "scale_ends", "stride_expansion", "pool_first")
_OPTIONAL_SWITCHES = ("head_norm", "head_bias")


@dataclass(frozen=True)
class SqueezeRule:
    """Width and activations of squeeze-and-excitation (arXiv:1709.01507).

    Attributes:
      from_expanded: the ratio applies to the expanded channels (MobileNetV3), not to the block's input (EfficientNet).
      divisor: the reduced width is rounded to a multiple of this; 1 rounds to the nearest whole number.
      act: activation between the two convolutions; None uses the block's.
      gate: activation of the factors that multiply the channels.
      kind: 'squeeze', or 'context': the mean over the picture is weighted by attention (GlobalContext).

    Raises:
      ArchitectureError: a value of another type or outside its range.
    """

    from_expanded: bool = False
    divisor: int = 1
    act: str | None = None
    gate: str = "sigmoid"
    kind: str = "squeeze"

    def __post_init__(self) -> None:
        check_switch("se.from_expanded", self.from_expanded)
        object.__setattr__(self, "divisor", whole("se.divisor", self.divisor, 1, LARGEST))
        for name, choices in _CHOICES_OF_SE.items():
            check_choice(f"se.{name}", getattr(self, name), choices, ArchitectureError)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """An architecture in the terms of its paper. `jeffnet.arch.lower.lower` turns it into a concrete `Plan`.

    Attributes:
      stages: block strings (see `jeffnet.arch.grammar`), grouped by stage; a stage of one may be that string.
      stem: channels of the first convolution, before scaling.
      features: channels of the last convolution, before scaling; 0 for a network without it (MobileNetV1).
      stem_kernel: size of the first convolution's kernel.
      width: multiplies channels, which are then rounded.
      divisor: what rounded channels are multiples of; 1 rounds to the nearest whole number.
      round_limit: rounding takes no more from a width than leaves this share of it.
      depth: multiplies the repetitions of every stage; one for each stage, or one for all.
      act: activation where a block string names none: 'relu', 'relu6', 'silu', 'gelu', 'hard_swish', 'hard_sigmoid' or
        'sigmoid'.
      padding: 'same' as in TensorFlow, which depends on the input's size; 'symmetric' as in PyTorch.
      bn_momentum: share of the old running statistics that a training step keeps; PyTorch and timm call the rest
        momentum.
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

    Raises:
      ArchitectureError: a value of another type or outside its range. Block strings are parsed when it is lowered.
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

    def __post_init__(self) -> None:
        def keep(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        keep("stages", checked_stages(self.stages))
        keep("depth", checked_depth(self.depth, len(self.stages)))
        for name, (least, most) in _WHOLE.items():
            keep(name, whole(name, getattr(self, name), least, most))
        for name, (most, may_be_0) in _NUMBERS.items():
            keep(name, number(name, getattr(self, name), most, may_be_0))
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices, ArchitectureError)
        for name in (*_SWITCHES, *_OPTIONAL_SWITCHES):
            if getattr(self, name) is not None or name in _SWITCHES:
                check_switch(name, getattr(self, name))
        if self.stem_kernel % 2 == 0:
            raise ArchitectureError(f"stem_kernel {self.stem_kernel} is even: give an odd size")
        if self.layer_scale is not None:
            keep("layer_scale", number("layer_scale", self.layer_scale, 100.0))
        if not isinstance(self.se, SqueezeRule):
            raise ArchitectureError(f"se {self.se!r}: give a SqueezeRule")


def with_blocks(spec: ModelSpec, pattern: str, replacement: str | Callable[[re.Match], str]) -> ModelSpec:
    """`spec` with a pattern replaced in every block string, as by `re.sub`."""
    stages = tuple(tuple(re.sub(pattern, replacement, block) for block in stage) for stage in spec.stages)
    return replace(spec, stages=stages)


def as_tensorflow(spec: ModelSpec) -> ModelSpec:
    """`spec` with the padding and the BatchNorm constants of the TensorFlow originals (tensorflow/tpu)."""
    return replace(spec, padding="same", bn_momentum=0.99, bn_epsilon=1e-3)


def as_spec(value: object) -> ModelSpec:
    """An architecture from what describes one.

    Args:
      value: a `ModelSpec`; its stages of block strings, with the defaults of all else; or its attributes by name, as
        JSON has them.

    Returns:
      The architecture; its block strings are not parsed.

    Raises:
      ArchitectureError: another kind of value, an unknown attribute, or a value of an attribute that it cannot have.
    """
    match value:
        case ModelSpec():
            return value
        case Mapping():
            attributes = {**value}
            if isinstance(attributes.get("se"), Mapping):
                attributes["se"] = _from_attributes(SqueezeRule, attributes["se"])
            if "stages" not in attributes:
                raise ArchitectureError("an architecture needs stages")
            return _from_attributes(ModelSpec, attributes)
        case Sequence() if not isinstance(value, str | bytes):
            return ModelSpec(stages=value)  # pyright: ignore[reportArgumentType]
    raise ArchitectureError(
        f"{value!r} is no architecture: give a ModelSpec, or stages of block strings, such as "
        "[['ds_r1_k3_s1_c16'], ['ir_r2_k3_s2_e6_c24']]"
    )


def spec_attributes(spec: ModelSpec) -> dict[str, Any]:
    """An architecture's attributes by name, as JSON can hold them; `as_spec` is the inverse."""
    attributes = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return attributes | {"se": {field.name: getattr(spec.se, field.name) for field in fields(SqueezeRule)}}


def spec_name(spec: ModelSpec) -> str:
    """What a model without a name is called in its files: `custom_` and eight digits, equal for equal architectures."""
    defaults = spec_attributes(ModelSpec(stages=spec.stages))
    # Without defaults, so that an attribute that is added one day does not change the names of models.
    differing = {name: value for name, value in spec_attributes(spec).items() if value != defaults[name]}
    text = json.dumps(differing | {"stages": spec.stages}, sort_keys=True)
    return f"custom_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _from_attributes(kind: type, attributes: Mapping[str, Any]) -> Any:
    names = [field.name for field in fields(kind)]
    if unknown := [name for name in attributes if name not in names]:
        raise ArchitectureError(f"{kind.__name__} has no {str(unknown[0])[:50]!r}, but {', '.join(names)}")
    return kind(**attributes)
