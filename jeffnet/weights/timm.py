"""The names of PyTorch's implementations: timm, the original release's npz files, and `efficientnet_pytorch`.

Sources: huggingface/pytorch-image-models, rwightman/efficientnet-jax, lukemelas/EfficientNet-PyTorch.
"""

import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from jeffnet.arch.operations import Conv
from jeffnet.arch.plan import Plan
from jeffnet.arch.summary import array_specs
from jeffnet.errors import WeightsError
from jeffnet.weights.formats.interface import Contents
from jeffnet.weights.naming import CLASSIFIER, Layer, Naming, array_names, to_source_names

_LEAVES = {
    "kernel": ".weight", "scale": ".weight", "bias": ".bias", "mean": ".running_mean", "var": ".running_var",
}  # fmt: skip
_COUNTERS = re.compile(r"\.num_batches_tracked$")
# The modules of each source by the role of a layer: a convolution and its norm.
_RELEASE = {
    "stem": ("stem.conv", "stem.bn"), "expand": ("conv_exp", "bn_exp"), "depthwise": ("conv_dw", "bn_dw"),
    "reduce": ("se.reduce", ""), "gate": ("se.expand", ""), "project": ("conv_pwl", "bn_pwl"),
    "separable": ("conv_pw", "bn_pw"), "single": ("conv", "bn"), "head": ("head.conv_pw", "head.bn"),
    "classifier": ("head.classifier", ""),
}  # fmt: skip
_EFFICIENTNET_PYTORCH = {
    "stem": ("_conv_stem", "_bn0"), "expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1"),
    "reduce": ("_se_reduce", ""), "gate": ("_se_expand", ""), "project": ("_project_conv", "_bn2"),
    "head": ("_conv_head", "_bn1"), "classifier": ("_fc", ""),
}  # fmt: skip


# timm's names of modules that are not ours.
_TIMM = (
    (re.compile(r"\.(dw_start|pw_exp|dw_mid|pw_proj|dw_end)_bn$"), r".\1.bn"),
    (re.compile(r"\.(dw_start|pw_exp|dw_mid|pw_proj|dw_end)$"), r".\1.conv"),
    (re.compile(r"\.attn\.(query|key|value|output)$"), r".attn.\1.proj"),
    (re.compile(r"\.attn\.(key|value)_down$"), r".attn.\1.down_conv"),
    (re.compile(r"\.attn\.(key|value)_norm$"), r".attn.\1.norm"),
    (re.compile(r"\.se\.context$"), ".se.conv_attn"),
    (re.compile(r"\.se\.reduce$"), ".se.mlp_scale.fc1"),
    (re.compile(r"\.se\.norm$"), ".se.mlp_scale.norm"),
    (re.compile(r"\.se\.expand$"), ".se.mlp_scale.fc2"),
)


def _names_of_timm(plan: Plan, present: Iterable[str]) -> dict[str, str]:
    names = {}
    for name in (*array_specs(plan), *CLASSIFIER):
        module, _, leaf = name.rpartition(".")
        for pattern, theirs in _TIMM:
            module = pattern.sub(theirs, module)
        names[name] = f"{module}.gamma" if module.endswith(".layer_scale") else module + _LEAVES[leaf]
    return names


def _names_of_release(plan: Plan, present: Iterable[str]) -> dict[str, str]:
    # Depthwise separable blocks have no expansion, and another name for the projection.
    separable = {block.name for block in plan.blocks if isinstance(op := block.ops[0], Conv) and op.is_depthwise}

    def name(layer: Layer) -> str:
        if layer.role == "project" and layer.block in separable:
            layer = replace(layer, role="separable")
        return f"{layer.block}.{layer.look_up(_RELEASE)}{layer.number}".lstrip(".")

    return array_names(plan, name, _LEAVES)


def _names_of_efficientnet_pytorch(plan: Plan, present: Iterable[str]) -> dict[str, str]:
    # EfficientNet Lite, which others published in this layout, has ReLU6. So has MobileNetV2, whose kernels are 3x3.
    kernels = {part.kernel_size for conv in plan.convolutions for part in conv.parts}
    has_act = plan.stem.act == "silu" or (plan.stem.act == "relu6" and 5 in kernels)
    if not has_act or plan.stem.parts[0].padding != "SAME":
        raise WeightsError(
            "efficientnet_pytorch has EfficientNet B0 to B8, L2 and Lite, padded as in TensorFlow: give a name of "
            "these, which begins with tf_"
        )

    def name(layer: Layer) -> str:
        return (f"_blocks.{layer.place}." if layer.block else "") + layer.look_up(_EFFICIENTNET_PYTORCH)

    return array_names(plan, name, _LEAVES)


TIMM = Naming("timm state dict", _names_of_timm, "torch", _COUNTERS)
RELEASE = Naming("npz file of efficientnet-jax", _names_of_release, "torch", _COUNTERS)
EFFICIENTNET_PYTORCH = Naming("efficientnet_pytorch state dict", _names_of_efficientnet_pytorch, "torch", _COUNTERS)
_STATE_DICTS = {"timm": TIMM, "efficientnet_pytorch": EFFICIENTNET_PYTORCH}


def state_dict_naming(names: Iterable[str]) -> Naming:
    """Whose state dict has these names, of the two that have a first convolution."""
    return TIMM if "conv_stem.weight" in names else EFFICIENTNET_PYTORCH


def state_dict(contents: Contents) -> dict[str, np.ndarray]:
    """The state dict of a model in the form 'timm' or 'efficientnet_pytorch'."""
    state = to_source_names(contents.arrays, _STATE_DICTS[contents.form], contents.card.plan())
    # torch's layers count their training steps, and a strict loader misses the counter.
    norms = [name for name in state if name.endswith(".running_var")]
    return state | {name.replace("running_var", "num_batches_tracked"): np.zeros((), np.int64) for name in norms}
