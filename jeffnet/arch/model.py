"""What the zoo has of a model: its architecture, its preprocessing and its published weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec, as_tensorflow

RELEASE = "https://github.com/rwightman/efficientnet-jax/releases/download/weights/"
# What these weight sets were called before timm gave them tags, after the name of the architecture.
_OLD_NAMES = {"ap_in1k": "_ap", "ns_jft_in1k": "_ns", "ns_jft_in1k_475": "_ns_475"}


@dataclass(frozen=True)
class WeightSet:
    """One set of published weights of an architecture.

    Scores are timm's, on the 50,000 validation pictures of ImageNet-1k with the model's preprocessing
    (huggingface/pytorch-image-models, results/results-imagenet.csv).

    Attributes:
      top1: per cent of the pictures whose most probable class is right.
      top5: per cent of the pictures with the right class among the five most probable.
      sha256: first 8 digits of the hash of the npz file in the original release.
      preprocessing: the entries of `Preprocessing` in which it differs from the architecture's.
    """

    top1: float
    top5: float
    sha256: str
    preprocessing: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A named model of the zoo: an architecture, with published weights or without.

    Attributes:
      spec: the network.
      preprocessing: that the weights were trained for.
      timm: timm's name with its tag, if weights are published; the model hub has them as `timm/<name>`.
      weights: the published weights, if there are any.
    """

    spec: ModelSpec
    preprocessing: Preprocessing
    timm: str | None = None
    weights: WeightSet | None = None


class Architecture:
    """An entry of a family's table.

    Args:
      spec: the network; names that start with `tf_` mean `jeffnet.arch.spec.as_tensorflow` of it.
      preprocessing: of the weights; 224 pixels and the other defaults unless given.
      **weights: by timm's tag; the first is the default.
    """

    def __init__(self, spec: ModelSpec, preprocessing: Preprocessing | None = None, **weights: WeightSet) -> None:
        self.spec, self.preprocessing, self.weights = spec, preprocessing or Preprocessing(), weights

    def models(self, name: str) -> dict[str, Model]:
        """The architecture's models by our names: one for every weight set, or one without weights.

        The architecture's name is timm's, with a leading `pt_` unless it starts with `tf_`. The first weight set has
        it too, the others are `name.tag`, except those of `_OLD_NAMES`.
        """
        spec = as_tensorflow(self.spec) if name.startswith("tf_") else self.spec
        if not self.weights:
            return {name: Model(spec, self.preprocessing)}
        models = {}
        for number, (tag, weights) in enumerate(self.weights.items()):
            suffix = _OLD_NAMES.get(tag, f".{tag}" if number else "")
            preprocessing = replace(self.preprocessing, **weights.preprocessing)
            models[name + suffix] = Model(spec, preprocessing, f"{name.removeprefix('pt_')}.{tag}", weights)
        return models
