"""What the zoo has of a model: its architecture, its preprocessing and its published weights."""

from dataclasses import dataclass

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec

RELEASE = "https://github.com/rwightman/efficientnet-jax/releases/download/weights/"


@dataclass(frozen=True)
class WeightSet:
    """One set of published weights of an architecture.

    Scores are timm's, on the 50,000 validation pictures of ImageNet-1k with the model's preprocessing
    (huggingface/pytorch-image-models, results/results-imagenet.csv).

    Attributes:
      top1: per cent of the pictures whose most probable class is right.
      top5: per cent of the pictures with the right class among the five most probable.
      sha256: first 8 digits of the hash of the npz file in the original release.
      preprocessing: None if it is the architecture's.
      name: our name of the model with these weights. None stands for the architecture's name if the set is its first,
        and for `architecture.tag` otherwise.
    """

    top1: float
    top5: float
    sha256: str
    preprocessing: Preprocessing | None = None
    name: str | None = None


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
      spec: the network.
      preprocessing: of the weights that have no other.
      **weights: by timm's tag; the first is the default.
    """

    def __init__(self, spec: ModelSpec, preprocessing: Preprocessing, **weights: WeightSet) -> None:
        self.spec, self.preprocessing, self.weights = spec, preprocessing, weights

    def models(self, name: str) -> dict[str, Model]:
        """The architecture's models by our names: one for every weight set, or one without weights.

        Args:
          name: the architecture's: timm's, with a leading `pt_` unless it starts with `tf_`.
        """
        if not self.weights:
            return {name: Model(self.spec, self.preprocessing)}
        models = {}
        for number, (tag, weights) in enumerate(self.weights.items()):
            ours = weights.name or (f"{name}.{tag}" if number else name)
            preprocessing = weights.preprocessing or self.preprocessing
            models[ours] = Model(self.spec, preprocessing, f"{name.removeprefix('pt_')}.{tag}", weights)
        return models
