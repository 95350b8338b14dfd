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
      top1: per cent of the pictures whose first guess is right.
      top5: per cent of the pictures with the right class among the first five guesses.
      sha256: first 8 digits of the hash of the npz file in the original release.
      preprocessing: None takes the architecture's.
      name: our name of the model with these weights. None is the architecture's name for its first set, and
        `architecture.tag` for the others.
    """

    top1: float
    top5: float
    sha256: str
    preprocessing: Preprocessing | None = None
    name: str | None = None


@dataclass(frozen=True)
class Model:
    """What a name of the zoo stands for: an architecture and at most one set of weights.

    Attributes:
      spec: the network.
      preprocessing: what the weights expect of their input.
      timm: timm's name with its tag, of models with published weights; the model hub has them as `timm/<name>`.
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
      preprocessing: what weights expect of their input.
      **weights: by timm's tag; the first is the default.
    """

    def __init__(self, spec: ModelSpec, preprocessing: Preprocessing, **weights: WeightSet) -> None:
        self.spec, self.preprocessing, self.weights = spec, preprocessing, weights

    def models(self, name: str) -> dict[str, Model]:
        """By our names: one for each weight set, or one without weights.

        Args:
          name: the architecture's, which is timm's, with `pt_` before those that are not TensorFlow's originals.
        """
        if not self.weights:
            return {name: Model(self.spec, self.preprocessing)}
        models = {}
        for number, (tag, weights) in enumerate(self.weights.items()):
            ours = weights.name or (f"{name}.{tag}" if number else name)
            preprocessing = weights.preprocessing or self.preprocessing
            models[ours] = Model(self.spec, preprocessing, f"{name.removeprefix('pt_')}.{tag}", weights)
        return models
