"""The names of torchvision's EfficientNet, EfficientNetV2, MobileNetV2, MobileNetV3 and MNASNet.

They are padded as in PyTorch. The norms of some have another epsilon than ours: see `Naming.epsilon`.

Source: pytorch/vision, torchvision/models/{efficientnet,mobilenetv2,mobilenetv3,mnasnet}.py.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from jeffnet.arch.plan import Plan
from jeffnet.arch.preprocessing import IMAGENET, INCEPTION, Preprocessing
from jeffnet.arch.summary import array_specs
from jeffnet.arch.zoo import model_plan
from jeffnet.errors import WeightsError
from jeffnet.weights.naming import CLASSIFIER, Layer, Naming, array_names, to_canonical_names
from jeffnet.weights.stored import Stored

LEAVES = {"kernel": ".weight", "scale": ".weight", "bias": ".bias", "mean": ".running_mean", "var": ".running_var"}
_COUNTERS = re.compile(r"\.num_batches_tracked$")
# Torch's default, and what torchvision gives the others.
_EPSILON, _LARGE_EPSILON = 1e-5, 1e-3


def _seen(size: int, resize: int, interpolation: str, **constants: tuple[float, ...]) -> Preprocessing:
    """Pictures resized until their short side is `resize`, of which the centre is cut."""
    # Rounded down, so that the quotient is not below the size that was meant.
    return Preprocessing(size, int(size / resize * 10_000) / 10_000, interpolation, **{**IMAGENET, **constants})


# torchvision's models by ours, with what its default weights expect of pictures.
MODELS = {
    "efficientnet_b0": ("efficientnet_b0", _seen(224, 256, "bicubic")),
    "efficientnet_b1": ("efficientnet_b1", _seen(240, 255, "bilinear")),
    "efficientnet_b2": ("efficientnet_b2", _seen(288, 288, "bicubic")),
    "efficientnet_b3": ("efficientnet_b3", _seen(300, 320, "bicubic")),
    "efficientnet_b4": ("efficientnet_b4", _seen(380, 384, "bicubic")),
    "efficientnet_b5": ("efficientnet_b5", _seen(456, 456, "bicubic")),
    "efficientnet_b6": ("efficientnet_b6", _seen(528, 528, "bicubic")),
    "efficientnet_b7": ("efficientnet_b7", _seen(600, 600, "bicubic")),
    "efficientnetv2_s": ("efficientnet_v2_s", _seen(384, 384, "bilinear")),
    "efficientnetv2_m": ("efficientnet_v2_m", _seen(480, 480, "bilinear")),
    "efficientnetv2_l": ("efficientnet_v2_l", _seen(480, 480, "bicubic", **INCEPTION)),
    "mobilenetv2_100": ("mobilenet_v2", _seen(224, 232, "bilinear")),
    "mobilenetv3_large_100": ("mobilenet_v3_large", _seen(224, 232, "bilinear")),
    "mobilenetv3_small_100": ("mobilenet_v3_small", _seen(224, 256, "bilinear")),
    "mnasnet_050": ("mnasnet0_5", _seen(224, 256, "bilinear")),
    "mnasnet_075": ("mnasnet0_75", _seen(224, 232, "bilinear")),
    "mnasnet_100": ("mnasnet1_0", _seen(224, 256, "bilinear")),
    "mnasnet_130": ("mnasnet1_3", _seen(224, 232, "bilinear")),
}


@dataclass(frozen=True)
class _Position:
    """A layer of a block: of the operation of a `number`, of so many operations."""

    layer: Layer
    number: int
    operations: int

    @property
    def stage(self) -> int:
        """Of its block, from 0."""
        return int(self.layer.block.split(".")[1])

    @property
    def index(self) -> int:
        """Of its block in the stage."""
        return int(self.layer.block.split(".")[2])

    @property
    def is_norm(self) -> int:
        """1 for a norm, which follows its convolution."""
        return int(self.layer.kind == "batch_normalization")

    @property
    def module(self) -> str:
        """Its name in a sequence of convolution, norm and activation, or in squeeze-and-excitation."""
        return {"reduce": "fc1", "gate": "fc2"}.get(self.layer.role, str(self.is_norm))


def _of_efficientnet(at: _Position) -> str:
    return f"features.{at.stage + 1}.{at.index}.block.{at.number}.{at.module}"


def _of_mobilenetv2(at: _Position) -> str:
    # The projection and its norm are not in a sequence of their own.
    is_last = at.number == at.operations - 1
    return f"features.{at.layer.place + 1}.conv.{at.number + at.is_norm if is_last else f'{at.number}.{at.is_norm}'}"


def _of_mobilenetv3(at: _Position) -> str:
    block = f"features.{at.layer.place + 1}"
    return f"{block}.{at.module}" if at.layer.role == "single" else f"{block}.block.{at.number}.{at.module}"


def _of_mnasnet(at: _Position) -> str:
    # A convolution, a norm and an activation each time; those of the first block follow the stem's.
    if at.layer.place == 0:
        return f"layers.{3 + 3 * at.number + at.is_norm}"
    return f"layers.{7 + at.stage}.{at.index}.layers.{3 * at.number + at.is_norm}"


@dataclass(frozen=True)
class _Family:
    """How the models of one of torchvision's files name their modules.

    Attributes:
      mark: an array that no other family has.
      stem: the first convolution and its norm.
      block: gives the name of a layer of a block.
      head: the last convolution and its norm, from the number of `stages` and of `blocks`.
      classifier: of the logits.
    """

    mark: str
    stem: tuple[str, str]
    block: Callable[[_Position], str]
    head: tuple[str, str]
    classifier: str = "classifier.1"


_STEM = ("features.0.0", "features.0.1")
_EFFICIENTNET = _Family(
    "features.1.0.block.0.0.weight", _STEM, _of_efficientnet, ("features.{stages}.0", "features.{stages}.1")
)
_MOBILENETV2 = _Family(
    "features.1.conv.0.0.weight", _STEM, _of_mobilenetv2, ("features.{blocks}.0", "features.{blocks}.1")
)
_MOBILENETV3 = _Family(
    "features.1.block.0.0.weight", _STEM, _of_mobilenetv3, ("classifier.0", ""), classifier="classifier.3"
)
_MNASNET = _Family("layers.8.0.layers.0.weight", ("layers.0", "layers.1"), _of_mnasnet, ("layers.14", "layers.15"))
_FAMILIES = (_EFFICIENTNET, _MOBILENETV2, _MOBILENETV3, _MNASNET)


def _family(names: Iterable[str]) -> _Family | None:
    names = set(names)
    return next((family for family in _FAMILIES if family.mark in names), None)


def _names(plan: Plan, present: Iterable[str]) -> dict[str, str]:
    if plan.stem.parts[0].padding == "SAME":
        raise WeightsError(
            "torchvision's models are padded as PyTorch's: give a name that does not begin with tf_, of "
            f"{', '.join(MODELS)}"
        )
    family = _family(present) or _EFFICIENTNET
    counts = {"stages": len(plan.stages) + 1, "blocks": len(list(plan.blocks)) + 1}
    places = {
        part.name: (number, len(block.ops))
        for block in plan.blocks
        for number, op in enumerate(block.ops)
        for conv in op.convolutions
        for part in (*conv.parts, *((conv.norm,) if conv.norm else ()))
    }

    def name(layer: Layer) -> str:
        if layer.role == "classifier":
            return family.classifier
        if layer.block:
            return family.block(_Position(layer, *places[layer.name]))
        pair = family.stem if layer.role == "stem" else family.head
        return pair[layer.kind == "batch_normalization"].format(**counts)

    return array_names(plan, name, LEAVES)


TORCHVISION = Naming("torchvision state dict", _names, "torch", _COUNTERS)


def torchvision_naming(arrays: Mapping[str, Stored]) -> Naming | None:
    """The naming of a state dict of torchvision, with the epsilon of its norms; None for other arrays."""
    family = _family(arrays)
    return replace(TORCHVISION, epsilon=_epsilon(family, arrays)) if family else None


def _epsilon(family: _Family, arrays: Mapping[str, Stored]) -> float:
    """The epsilon of a model's norms, of which a state dict says nothing."""
    if family is _MOBILENETV3:
        return _LARGE_EPSILON
    if family is _EFFICIENTNET:
        is_v2 = arrays[family.mark].shape[1:2] != (1,)
        # B5 to B7 are those whose last convolution has 2,048 channels and more.
        is_large = "features.8.0.weight" in arrays and arrays["features.8.0.weight"].shape[0] >= 2048
        return _LARGE_EPSILON if is_v2 or is_large else _EPSILON
    return _EPSILON


def torchvision_model(arrays: Mapping[str, Stored], naming: Naming) -> str | None:
    """Our name of the model of torchvision that has arrays of these names and shapes; None if there is none."""
    for model in MODELS:
        plan = model_plan(model)
        specs = array_specs(plan)
        found = to_canonical_names(arrays, naming, plan)
        adaptable = {f"{plan.stem.name}.kernel", *CLASSIFIER}
        if found.keys() | adaptable == specs.keys() and all(
            name in adaptable or found[name].shape == spec.shape for name, spec in specs.items()
        ):
            return model
    return None
