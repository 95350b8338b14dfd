"""How a source names and lays out the arrays of a model, in both directions."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from jeffnet.arch.plan import Plan
from jeffnet.arch.summary import ArraySpec, array_specs
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
    """

    title: str
    names: Callable[[Plan, Iterable[str]], dict[str, str]]
    layout: str = "ours"
    ignored: re.Pattern | None = None
    background: bool = False
    conv_classifier: bool = False


OURS = Naming("jeffnet", lambda plan, present: {name: name for name in (*array_specs(plan), *CLASSIFIER)})


def to_canonical_names(arrays: Mapping[str, Stored], naming: Naming, plan: Plan) -> dict[str, Stored]:
    """A source's arrays under canonical names and in our layouts; what the model does not have keeps its name.

    Args:
      arrays: by the source's names.
      naming: of the source.
      plan: of the model.
    """
    specs = _with_classifier(plan)
    ours = {theirs: specs[name] for name, theirs in _names(naming, plan, arrays).items()}
    renamed = {}
    for name, array in arrays.items():
        if name in ours:
            spec = ours[name]
            array = _from_layout(array, spec, naming.layout)
            # Of TensorFlow's 1,001 classes the first is the background, which ImageNet's scores do not count.
            if naming.background and spec.name.startswith("classifier.") and array.shape[-1] == 1001:
                array = array.map(lambda values: values[..., 1:])
            renamed[spec.name] = array
        elif not (naming.ignored and naming.ignored.search(name)):
            renamed[name] = array
    return renamed


def to_source_names(
    arrays: Mapping[str, np.ndarray], naming: Naming, plan: Plan, present: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """The inverse: arrays by canonical name under a source's names and in its layouts, in the order of the Plan.

    Args:
      arrays: by canonical name.
      naming: the source's.
      plan: the model.
      present: names that tell which of its namings a source with several uses.
    """
    specs = array_specs(plan)
    names = naming.names(plan, present)
    return {names[name]: _to_layout(np.asarray(arrays[name]), spec, naming) for name, spec in specs.items()}


def _names(naming: Naming, plan: Plan, present: Iterable[str]) -> dict[str, str]:
    specs = _with_classifier(plan)
    return {name: theirs for name, theirs in naming.names(plan, present).items() if name in specs}


def _with_classifier(plan: Plan) -> dict[str, ArraySpec]:
    """The model's arrays and a classifier's: one that it does not have is an excess under our name, not foreign."""
    classifier = {name: ArraySpec(name, ()) for name in CLASSIFIER}
    return classifier | array_specs(plan)


def _from_layout(array: Stored, spec: ArraySpec, layout: str) -> Stored:
    if spec.leaf != "kernel" or layout == "ours":
        return array
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
    if naming.layout == "torch":
        return array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
    if naming.conv_classifier and spec.name == "classifier.kernel":
        return array[None, None]
    return array.swapaxes(2, 3) if spec.is_depthwise else array
