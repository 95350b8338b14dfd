"""What the zoo has of a model: its architecture, its preprocessing and its published weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec, as_tensorflow

RELEASE = "https://github.com/rwightman/efficientnet-jax/releases/download/weights/"
# Of all published weights.
LICENSE = "Apache-2.0"
# What models with these weights were called before timm gave weights tags, after the name of the architecture.
OLD_NAMES = {"ap_in1k": "_ap", "ns_jft_in1k": "_ns", "ns_jft_in1k_475": "_ns_475"}


@dataclass(frozen=True)
class WeightSet:
    """One set of published weights of an architecture, under `LICENSE`.

    Scores are timm's, on the 50,000 validation pictures of ImageNet-1k with the model's preprocessing
    (huggingface/pytorch-image-models, results/results-imagenet.csv).

    Attributes:
      top1: per cent of the pictures whose most probable class is right; None for weights of other classes.
      top5: per cent of the pictures with the right class among the five most probable.
      sha256: first 8 digits of the hash of the npz file in the original release; None where that has none.
      preprocessing: the entries of `Preprocessing` in which it differs from the architecture's.
      classes: which classes the logits are of, see `jeffnet.arch.imagenet.LABEL_SETS`.
    """

    top1: float | None = None
    top5: float | None = None
    sha256: str | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    classes: str = "imagenet1k"


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

    @property
    def release_file(self) -> str | None:
        """The file of the weights in the original release, which has its own names; None where it has none."""
        if self.timm is None or self.weights is None or self.weights.sha256 is None:
            return None
        architecture, _, tag = self.timm.partition(".")
        prefix = "" if architecture.startswith("tf_") else "pt_"
        return f"{prefix}{architecture}{OLD_NAMES.get(tag, '')}-{self.weights.sha256}.npz"


class Architecture:
    """An entry of a family's table.

    Args:
      spec: the network; names that start with `tf_` mean `jeffnet.arch.spec.as_tensorflow` of it, unless it is padded
        like that already.
      preprocessing: of the weights; 224 pixels and the other defaults unless given.
      **weights: by timm's tag; the first is the default.
    """

    def __init__(self, spec: ModelSpec, preprocessing: Preprocessing | None = None, **weights: WeightSet) -> None:
        self.spec, self.preprocessing, self.weights = spec, preprocessing or Preprocessing(), weights

    def models(self, name: str) -> dict[str, Model]:
        """The architecture's models: `name` has the default weights, or none; `name.tag` has others.

        Args:
          name: the architecture's, as in timm.
        """
        spec = self.spec
        if name.startswith("tf_") and spec.padding != "same":
            spec = as_tensorflow(spec)
        models = {} if self.weights else {name: Model(spec, self.preprocessing)}
        for tag, weights in self.weights.items():
            preprocessing = replace(self.preprocessing, **weights.preprocessing)
            models[f"{name}.{tag}" if models else name] = Model(spec, preprocessing, f"{name}.{tag}", weights)
        return models
