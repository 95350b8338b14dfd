"""The names of the layers of keras.applications: EfficientNet B0 to B7, EfficientNetV2, MobileNetV2 and MobileNetV3.

Source: keras-team/keras, keras/src/applications.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from jeffnet.arch.operations import BatchNorm, Conv, SqueezeExcite
from jeffnet.arch.plan import Plan
from jeffnet.errors import WeightsError
from jeffnet.weights.naming import Layer, Naming, array_names


@dataclass(frozen=True)
class _Family:
    """The names of a family's layers.

    Attributes:
      first: prefix of the layers of the first block.
      block: prefix of those of the others, with `place` among all blocks, `stage` from 1, and `letter` in the stage.
      layers: by the role of a layer: a convolution and its norm.
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
_EFFICIENTNETV2 = replace(
    _EFFICIENTNET,
    layers={
        **_EFFICIENTNET.layers,
        "depthwise": ("dwconv2", "bn"),
        "single": ("project_conv", "project_bn"),
    },
)
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
        "project": ("project", "project_bn"), "single": ("conv_1", "conv_1_bn"), "head": ("conv_2", ""),
        "classifier": ("logits", ""),
    },
)  # fmt: skip
STEMS = {family.layers["stem"][0] for family in (_EFFICIENTNET, _MOBILENETV2, _MOBILENETV3)}
LEAVES = {
    "kernel": "/kernel", "bias": "/bias", "scale": "/gamma", "batch_normalization.bias": "/beta",
    "mean": "/moving_mean", "var": "/moving_variance",
}  # fmt: skip


def _family(plan: Plan) -> _Family:
    kernels = {part.kernel_size for op in plan.convolutions for part in op.parts}
    squeezed = any(isinstance(op, SqueezeExcite) for block in plan.blocks for op in block.ops)
    norm = plan.stem.norm
    if plan.stem.parts[0].padding == "SAME" and isinstance(norm, BatchNorm) and norm.epsilon == 1e-3:
        if plan.pool_first:
            return _MOBILENETV3
        if plan.stem.act == "silu" and squeezed:
            first = next(plan.blocks).ops[0]
            return _EFFICIENTNET if isinstance(first, Conv) and first.is_depthwise else _EFFICIENTNETV2
        if plan.stem.act == "relu6" and kernels == {1, 3} and not squeezed:
            return _MOBILENETV2
    raise WeightsError(
        "Keras has EfficientNet B0 to B7, EfficientNetV2, MobileNetV2 and MobileNetV3, padded as in TensorFlow: give a "
        "name of these, which begins with tf_"
    )


def _names(plan: Plan, present: Iterable[str]) -> dict[str, str]:
    family, present = _family(plan), set(present)
    is_counted = "conv2d/kernel" in present and f"{family.layers['stem'][0]}/kernel" not in present
    counts = Counter()

    def name(layer: Layer) -> str:
        if is_counted:  # in a file without names of layers
            kind = "conv2d" if plan.pool_first and layer.kind == "dense" else layer.kind
            counts[kind] += 1
            return f"{kind}_{counts[kind] - 1}" if counts[kind] > 1 else kind
        # MobileNetV3's last convolution before the pooling is in none of Keras's blocks.
        if not layer.block or (layer.role == "single" and plan.pool_first):
            return layer.look_up(family.layers)
        stage, index = map(int, layer.block.split(".")[1:])
        prefix = family.block.format(place=layer.place, stage=stage + 1, letter=chr(ord("a") + index))
        return (prefix if layer.place else family.first) + layer.look_up(family.layers)

    names = array_names(plan, name, LEAVES)
    if present and plan.pool_first and names["conv_head.kernel"] not in present:
        raise WeightsError(
            "a MobileNetV3 without its top lacks the convolution after the pooling: build it with include_top=True"
        )
    return names


KERAS = Naming("file of Keras", _names, "tensorflow")
