"""The names of PyTorch's implementations: timm, the original release's npz files, and `efficientnet_pytorch`.

Sources: huggingface/pytorch-image-models, rwightman/efficientnet-jax, lukemelas/EfficientNet-PyTorch.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from jeffnet.arch.operations import Conv
from jeffnet.arch.plan import Block, Plan
from jeffnet.arch.summary import array_specs
from jeffnet.errors import WeightsError
from jeffnet.weights.formats.interface import Contents
from jeffnet.weights.naming import CLASSIFIER, Naming, to_source_names

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_COUNTERS = re.compile(r"\.num_batches_tracked$")


def _torch_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{module}.{_LEAVES[leaf]}"


def _names_of_timm(plan: Plan, present: Iterable[str]) -> dict[str, str]:
    return {name: _torch_name(name) for name in (*array_specs(plan), *CLASSIFIER)}


# The release's names of the modules of a block, by which convolution only that kind of block has.
_RELEASE_BLOCKS = {
    "conv_exp": {"bn1": "bn_exp", "bn2": "bn_pwl"},
    "conv_pwl": {"conv_pw": "conv_exp", "bn1": "bn_exp", "bn2": "bn_dw", "bn3": "bn_pwl"},
    "conv_dw": {"bn1": "bn_dw", "bn2": "bn_pw"},
    "conv": {"bn1": "bn"},
}
_RELEASE_SQUEEZE = {"se.conv_reduce": "se.reduce", "se.conv_expand": "se.expand"}
_RELEASE_ENDS = {
    "conv_stem": "stem.conv", "bn1": "stem.bn", "conv_head": "head.conv_pw", "bn2": "head.bn",
    "classifier": "head.classifier",
}  # fmt: skip


def _names_of_release(plan: Plan, present: Iterable[str]) -> dict[str, str]:
    modules = dict(_RELEASE_ENDS)
    for block in plan.blocks:
        kinds = _convolutions(block)
        table = next(table for kind, table in _RELEASE_BLOCKS.items() if kind in kinds) | _RELEASE_SQUEEZE
        modules |= {f"{block.name}.{ours}": f"{block.name}.{theirs}" for ours, theirs in table.items()}
    return {name: _renamed(theirs, modules) for name, theirs in _names_of_timm(plan, present).items()}


def _convolutions(block: Block) -> list[str]:
    return [op.name.rpartition(".")[2] for op in block.ops if isinstance(op, Conv)]


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    # A module of several kernels (MixNet) has a number after its name.
    module, number, leaf = re.fullmatch(r"(.+?)((?:\.\d+)?)\.(\w+)", name).groups()  # pyright: ignore
    return f"{modules.get(module, module)}{number}.{leaf}"


# The modules of `efficientnet_pytorch` for each sequence of convolutions that its blocks have.
_EFFICIENTNET_PYTORCH_BLOCKS = {
    ("conv_pw", "conv_dw", "conv_pwl"): {
        "conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1",
        "conv_pwl": "_project_conv", "bn3": "_bn2",
    },
    ("conv_dw", "conv_pw"): {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"},
}  # fmt: skip


def _names_of_efficientnet_pytorch(plan: Plan, present: Iterable[str]) -> dict[str, str]:
    # EfficientNet Lite, which others published in this layout, has ReLU6. So has MobileNetV2, whose kernels are 3x3.
    kernels = {part.kernel_size for op in plan.convolutions for part in op.parts}
    has_act = plan.stem.act == "silu" or (plan.stem.act == "relu6" and 5 in kernels)
    if not has_act or plan.stem.parts[0].padding != "SAME":
        raise WeightsError(
            "efficientnet_pytorch has EfficientNet B0 to B8, L2 and Lite, padded as in TensorFlow: give a name of "
            "these, which begins with tf_"
        )
    modules = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    for place, block in enumerate(plan.blocks):
        table = _EFFICIENTNET_PYTORCH_BLOCKS[tuple(_convolutions(block))] | {
            "se.conv_reduce": "_se_reduce",
            "se.conv_expand": "_se_expand",
        }
        modules |= {f"{block.name}.{ours}": f"_blocks.{place}.{theirs}" for ours, theirs in table.items()}
    return {name: _renamed(theirs, modules) for name, theirs in _names_of_timm(plan, present).items()}


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
