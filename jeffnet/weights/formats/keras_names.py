"""The names of the layers of keras.applications: EfficientNet B0 to B7, MobileNetV2 and MobileNetV3.

Source: keras-team/keras, keras/src/applications.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import assert_never

from jeffnet.arch.operations import Conv, SqueezeExcite
from jeffnet.arch.plan import Plan
from jeffnet.arch.summary import array_specs
from jeffnet.errors import WeightsError
from jeffnet.weights.naming import CLASSIFIER, Naming


@dataclass(frozen=True)
class _Family:
    """How a family's layers are called.

    Attributes:
      first: what the names in the first block begin with.
      block: in the others: `place` among all blocks, `stage` from 1, and `letter`, the place in the stage.
      layers: of each of our operations, the names of the layers of the convolution and of the norm.
    """

    first: str
    block: str
    layers: Mapping[str, tuple[str, str]]


_EFFICIENTNET = _Family(
    "block1a_",
    "block{stage}{letter}_",
    {
        "stem": ("stem_conv", "stem_bn"), "expand": ("expand_conv", "expand_bn"), "depthwise": ("dwconv", "bn"),
        "reduce": ("se_reduce", ""), "gate": ("se_expand", ""), "project": ("project_conv", "project_bn"),
        "head": ("top_conv", "top_bn"), "classifier": ("predictions", ""),
    },
)  # fmt: skip
_MOBILENETV2 = _Family(
    "expanded_conv_",
    "block_{place}_",
    {
        "stem": ("Conv1", "bn_Conv1"), "expand": ("expand", "expand_BN"), "depthwise": ("depthwise", "depthwise_BN"),
        "project": ("project", "project_BN"), "head": ("Conv_1", "Conv_1_bn"), "classifier": ("predictions", ""),
    },
)  # fmt: skip
_MOBILENETV3 = _Family(
    "expanded_conv_",
    "expanded_conv_{place}_",
    {
        "stem": ("conv", "conv_bn"), "expand": ("expand", "expand_bn"), "depthwise": ("depthwise", "depthwise_bn"),
        "reduce": ("squeeze_excite_conv", ""), "gate": ("squeeze_excite_conv_1", ""),
        "project": ("project", "project_bn"), "last": ("conv_1", "conv_1_bn"), "head": ("conv_2", ""),
        "classifier": ("logits", ""),
    },
)  # fmt: skip
STEMS = {family.layers["stem"][0] for family in (_EFFICIENTNET, _MOBILENETV2, _MOBILENETV3)}
_LEAVES = {"kernel": "kernel", "bias": "bias"}
_NORM_LEAVES = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


def _family(plan: Plan) -> _Family:
    kernels = {part.kernel_size for op in plan.convolutions for part in op.parts}
    squeezed = any(isinstance(op, SqueezeExcite) for block in plan.blocks for op in block.ops)
    if plan.stem.parts[0].padding == "SAME" and plan.stem.norm and plan.stem.norm.epsilon == 1e-3:
        if plan.pool_first:
            return _MOBILENETV3
        if plan.stem.act == "silu" and squeezed:
            return _EFFICIENTNET
        if plan.stem.act == "relu6" and kernels == {1, 3} and not squeezed:
            return _MOBILENETV2
    raise WeightsError(
        "Keras has EfficientNet B0 to B7, MobileNetV2 and MobileNetV3, padded as in TensorFlow: give a name of these, "
        "which begins with tf_"
    )


def _operations(plan: Plan, family: _Family) -> Iterator[tuple[Conv, str, str]]:
    """Every convolution in order, its key in the family's layers, and what their names begin with."""
    yield plan.stem, "stem", ""
    for place, block in enumerate(plan.blocks):
        stage, index = (int(number) for number in block.name.split(".")[1:])
        prefix = family.block.format(place=place, stage=stage + 1, letter=chr(ord("a") + index))
        prefix = prefix if place else family.first
        before = "expand"
        for op in block.ops:
            match op:
                case SqueezeExcite():
                    yield op.reduce, "reduce", prefix
                    yield op.expand, "gate", prefix
                case Conv() if op.is_depthwise:
                    yield op, "depthwise", prefix
                    before = "project"
                case Conv():
                    yield (op, before, prefix) if len(block.ops) > 1 else (op, "last", "")
                case _:
                    assert_never(op)
    yield plan.head, "head", ""


def _names(plan: Plan, present: Iterable[str]) -> dict[str, str]:
    family, present = _family(plan), set(present)
    counted = "conv2d/kernel" in present and f"{family.layers['stem'][0]}/kernel" not in present
    counters = Counter()

    def layer(kind: str, name: str) -> str:
        """The layer's name, or that of the next layer of a kind in a file that has counted them."""
        if not counted:
            return name
        place = counters[kind]
        counters[kind] += 1
        return f"{kind}_{place}" if place else kind

    names = {}
    for op, key, prefix in _operations(plan, family):
        conv, norm = family.layers[key]
        part = op.parts[0]
        conv = layer("depthwise_conv2d" if op.is_depthwise else "conv2d", prefix + conv)
        names |= {f"{part.name}.{ours}": f"{conv}/{theirs}" for ours, theirs in _LEAVES.items()}
        if op.norm:
            norm = layer("batch_normalization", prefix + norm)
            names |= {f"{op.norm.name}.{ours}": f"{norm}/{theirs}" for ours, theirs in _NORM_LEAVES.items()}
    if present and plan.pool_first and names["conv_head.kernel"] not in present:
        raise WeightsError(
            "a MobileNetV3 without its top lacks the convolution after the pooling: build it with include_top=True"
        )
    classifier = layer("conv2d" if plan.pool_first else "dense", family.layers["classifier"][0])
    names |= {f"classifier.{ours}": f"{classifier}/{theirs}" for ours, theirs in _LEAVES.items()}
    # Which of the convolutions have a bias is the Plan's to say.
    wanted = {*array_specs(plan), *CLASSIFIER}
    return {ours: theirs for ours, theirs in names.items() if ours in wanted}


KERAS = Naming("file of Keras", _names, "tensorflow")
