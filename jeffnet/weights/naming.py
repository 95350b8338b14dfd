"""How a source names and lays out the arrays of a model, in both directions."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from jeffnet.arch.operations import (
    Attention,
    Conv,
    Downsample,
    ExpertConv,
    GlobalContext,
    LayerScale,
    Normalize,
    Routing,
    SqueezeExcite,
)
from jeffnet.arch.plan import Plan
from jeffnet.arch.summary import ArraySpec, array_specs
from jeffnet.errors import WeightsError
from jeffnet.weights.stored import Stored

CLASSIFIER = ("classifier.kernel", "classifier.bias")


@dataclass(frozen=True)
class Naming:
    """The names and layouts of one source.

    Attributes:
      title: what to call it in messages.
      names: from a Plan and the names in a file to the source's name of every array, by canonical name. Raises
        WeightsError where the source has no such model.
      layout: 'ours'; 'torch': kernels `(out, in, height, width)` and `(out, in)`; 'tensorflow': depthwise kernels
        `(height, width, channels, 1)`, and the classifier may be a 1x1 convolution.
      ignored: names of a file's arrays that are no part of a model, such as an optimizer's.
      background: whether a model of 1,001 classes has none of ImageNet's as its first.
      conv_classifier: whether the classifier is written as a 1x1 convolution; either is read.
      epsilon: of the source's norms, where it may differ from the model's. The difference is added to the running
        variances that are read, so that an evaluation computes the same; None for the model's.
    """

    title: str
    names: Callable[[Plan, Iterable[str]], dict[str, str]]
    layout: str = "ours"
    ignored: re.Pattern | None = None
    background: bool = False
    conv_classifier: bool = False
    epsilon: float | None = None


@dataclass(frozen=True)
class Layer:
    """A layer with arrays: one kernel of a convolution, a norm or the classifier.

    Attributes:
      name: canonical name.
      role: 'stem', 'head' or 'classifier'; in a block 'expand', 'depthwise', 'reduce' and 'gate' (of
        squeeze-and-excitation) or 'project'; 'single' in a block of one convolution. A norm has its convolution's.
      kind: 'conv2d', 'depthwise_conv2d', 'batch_normalization' or 'dense', as TensorFlow calls it.
      number: `.0`, `.1` ... where a convolution has several kernels.
      block: canonical name of its block, if it is in one.
      place: of the block in the network, from 0.
    """

    name: str
    role: str
    kind: str
    number: str = ""
    block: str = ""
    place: int = 0

    def look_up(self, names: Mapping[str, tuple[str, str]]) -> str:
        """Its name in a table that has, by role, the names of a convolution and of its norm."""
        return names[self.role][self.kind == "batch_normalization"]


def array_names(plan: Plan, layer_name: Callable[[Layer], str], leaves: Mapping[str, str]) -> dict[str, str]:
    """A source's names of a model's arrays, by canonical name; of a classifier's even where the model has none.

    Args:
      plan: the model.
      layer_name: gives the source's name of a layer; is called once for each, in the order in which they run.
      leaves: what the source appends to it for a leaf ('kernel'), or for that of one kind ('dense.kernel').
    """
    layers = {layer.name: (layer.kind, layer_name(layer)) for layer in _layers(plan)}
    names = {}
    for name in _with_classifier(plan):
        module, _, leaf = name.rpartition(".")
        kind, theirs = layers[module]
        names[name] = theirs + leaves.get(f"{kind}.{leaf}", leaves[leaf])
    return names


def _layers(plan: Plan) -> Iterator[Layer]:
    yield from _conv_layers(plan.stem, "stem")
    for place, block in enumerate(plan.blocks):
        for op in block.ops:
            match op:
                case SqueezeExcite():
                    yield from _conv_layers(op.reduce, "reduce", block.name, place)
                    yield from _conv_layers(op.expand, "gate", block.name, place)
                case Conv() if len(block.ops) == 1:
                    yield from _conv_layers(op, "single", block.name, place)
                case Conv() if op.is_depthwise:
                    yield from _conv_layers(op, "depthwise", block.name, place)
                case Conv():
                    yield from _conv_layers(op, "expand" if op is block.ops[0] else "project", block.name, place)
                case GlobalContext() | Attention() | Normalize() | LayerScale() | Routing() | ExpertConv():
                    raise WeightsError(f"only timm has names for the {type(op).__name__} of {block.name}")
                case Downsample():
                    pass
                case _:
                    assert_never(op)
    for head in plan.head_ops:
        yield from _conv_layers(head, "head")
    yield Layer("classifier", "classifier", "dense")


def _conv_layers(conv: Conv, role: str, block: str = "", place: int = 0) -> Iterator[Layer]:
    for part in conv.parts:
        kind = "depthwise_conv2d" if part.is_depthwise else "conv2d"
        yield Layer(part.name, role, kind, part.name.removeprefix(conv.name), block, place)
    if conv.norm:
        yield Layer(conv.norm.name, role, "batch_normalization", "", block, place)


OURS = Naming("jeffnet", lambda plan, present: {name: name for name in _with_classifier(plan)})


def to_canonical_names(arrays: Mapping[str, Stored], naming: Naming, plan: Plan) -> dict[str, Stored]:
    """A source's arrays under canonical names and in our layouts; what the model does not have keeps its name."""
    specs = _with_classifier(plan)
    ours = {theirs: specs[name] for name, theirs in naming.names(plan, arrays).items()}
    renamed = {}
    for name, array in arrays.items():
        if name in ours:
            spec = ours[name]
            array = _from_layout(array, spec, naming.layout)
            if spec.leaf == "var" and (excess := excess_epsilon(naming, plan)):
                array = array.map(lambda values, excess=excess: values + excess)
            # Of TensorFlow's 1,001 classes the first is the background, which ImageNet's scores do not count.
            if naming.background and spec.name in CLASSIFIER and array.shape[-1] == 1001:
                array = array.map(lambda values: values[..., 1:])
            renamed[spec.name] = array
        elif not (naming.ignored and naming.ignored.search(name)):
            renamed[name] = array
    return renamed


def excess_epsilon(naming: Naming, plan: Plan) -> float:
    """By how much the epsilon of a source's norms exceeds that of a model's."""
    if naming.epsilon is None or plan.stem.norm is None:
        return 0.0
    return naming.epsilon - plan.stem.norm.epsilon


def to_source_names(
    arrays: Mapping[str, np.ndarray], naming: Naming, plan: Plan, present: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """The inverse: arrays by canonical name under a source's names and in its layouts, in the order of the Plan.

    For `present`, names that tell which of its namings a source with several uses, see `Naming.names`.

    Raises:
      WeightsError: the source has no names for such a model.
    """
    specs = array_specs(plan)
    names = naming.names(plan, present)
    if len({names[name] for name in specs}) < len(specs):
        raise WeightsError(f"a {naming.title} has no names for all layers of this architecture: choose another form")
    return {names[name]: _to_layout(np.asarray(arrays[name]), spec, naming) for name, spec in specs.items()}


def _with_classifier(plan: Plan) -> dict[str, ArraySpec]:
    """The model's arrays and a classifier's: one that it does not have is an excess under our name, not foreign."""
    specs = array_specs(plan)
    return specs | {name: ArraySpec(name, ()) for name in CLASSIFIER if name not in specs}


def _from_layout(array: Stored, spec: ArraySpec, layout: str) -> Stored:
    if spec.leaf != "kernel" or layout == "ours":
        return array
    if layout == "torch" and len(spec.shape) == 5:
        # The kernels of all experts, each `(out, in, height, width)` in one row.
        experts, height, width, inputs, outputs = spec.shape
        if array.shape == (experts, height * width * inputs * outputs):
            shape = (experts, outputs, inputs, height, width)
            return array.map(lambda values: values.reshape(shape).transpose(0, 3, 4, 2, 1))
        return array
    if layout == "torch" and (array.ndim, len(spec.shape)) == (2, 4):  # a dense layer for a 1x1 convolution
        return array.map(lambda values: values.transpose()[None, None])
    if layout == "torch":
        axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
        return array.map(lambda values: values.transpose(axes)) if axes else array
    if spec.name == "classifier.kernel" and array.ndim == 4 and array.shape[:2] == (1, 1):
        return array.map(lambda values: values[0, 0])
    if spec.is_depthwise and array.ndim == 4:
        return array.map(lambda values: values.swapaxes(2, 3))
    return array


def _to_layout(array: np.ndarray, spec: ArraySpec, naming: Naming) -> np.ndarray:
    if spec.leaf != "kernel" or naming.layout == "ours":
        return array
    if naming.layout == "torch" and array.ndim == 5:
        return array.transpose(0, 4, 3, 1, 2).reshape(len(array), -1)
    if naming.layout == "torch":
        return array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
    if naming.conv_classifier and spec.name == "classifier.kernel":
        return array[None, None]
    return array.swapaxes(2, 3) if spec.is_depthwise else array
