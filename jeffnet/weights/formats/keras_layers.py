"""The layers around the network in a Keras model, from its configuration: they are followed or refused by name.

The network's layers are recognised by their arrays. Layers without arrays may change its pixels, pooling or outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jeffnet.errors import WeightsError

_CONTAINERS = {"Functional", "Sequential", "Model", "InputLayer"}
# Layers that act in training only, as do all whose names begin with Random, except RandomCrop.
_FOR_TRAINING = {
    *("Dropout", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise", "ActivityRegularization"),
    *("AugMix", "AutoContrast", "CutMix", "MixUp", "RandAugment", "Identity"),
}
_SHAPES = {"Flatten", "Reshape"}
_ACTIVATIONS = {"Activation", "ReLU"}
# MobileNetV3's hard swish in older versions.
_OLD_ACTIVATIONS = {"Multiply", "TFOpLambda", "Add"}
_LEAST_DEVIATION = 1e-7  # Keras's, where the variance is zero


@dataclass(frozen=True)
class Layer:
    """A layer in a model's configuration: its class, its name, and its options."""

    kind: str
    name: str
    options: dict[str, Any]

    @property
    def activation(self) -> str:
        """Name of the function that its output goes through."""
        function = self.options.get("activation") or "linear"
        return str(function.get("config") if isinstance(function, dict) else function)

    @property
    def is_for_training(self) -> bool:
        """Whether it changes nothing in inference."""
        is_random = self.kind.startswith("Random") and self.kind != "RandomCrop"
        return is_random or self.kind in _FOR_TRAINING or self.kind in _CONTAINERS


def described(config: Any) -> Iterator[Layer]:
    """Every layer of a model's configuration in order; those of nested models in their place."""
    options = config["config"]
    yield Layer(str(config["class_name"]), str(options.get("name", config["class_name"])), options)
    for layer in options.get("layers", ()):
        yield from described(layer)


def pixels(
    layers: Sequence[Layer], moments: Callable[[str], tuple[np.ndarray, np.ndarray]], channels: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """The mean and standard deviation by which a model normalises pixels in [0, 1]; None if it does not.

    Args:
      layers: of the model.
      moments: gives the mean and the variance among the arrays of the Normalization of a name.
      channels: of the pictures.

    Raises:
      WeightsError: a layer before the network does something else to them.
    """
    scale, offset, last = np.ones(channels), np.zeros(channels), None
    for layer in layers:
        if layer.kind == "Conv2D":
            break
        if layer.kind == "Rescaling":
            factor, shift = (np.asarray(layer.options[key], np.float64) for key in ("scale", "offset"))
        elif layer.kind == "Normalization" and not layer.options.get("invert"):
            stated = layer.options.get("mean"), layer.options.get("variance")
            mean, variance = moments(layer.name) if None in stated else stated
            mean, variance = (np.asarray(value, np.float64).reshape(-1) for value in (mean, variance))
            factor = 1 / np.maximum(np.sqrt(variance), _LEAST_DEVIATION)
            shift = -mean * factor
        elif layer.is_for_training or layer.kind == "ZeroPadding2D":
            continue
        else:
            raise _refusal(layer, "stands before the network, and what it does to pictures is not followed")
        if factor.size not in (1, channels) or shift.size not in (1, channels):
            raise _refusal(layer, f"is for other pictures than of {channels} channels")
        scale, offset, last = scale * factor.reshape(-1), offset * factor.reshape(-1) + shift.reshape(-1), layer
    if last is None:
        return None
    std = 1 / (255 * scale)
    mean = -offset * std
    if not (np.isfinite(std).all() and np.isfinite(mean).all() and (std > 0).all()):
        raise _refusal(last, "leaves no positive scale of the pixels")
    return mean, std


def check_head(layers: Sequence[Layer], pool_first: bool) -> None:
    """Raises WeightsError if a model makes other outputs of the network's last map than the probabilities of ours.

    Args:
      layers: of the model.
      pool_first: whether the network pools before its last convolutions, as MobileNetV3.
    """
    last = max((place for place, layer in enumerate(layers) if layer.kind == "BatchNormalization"), default=-1)
    pooled = classifier = None
    softmax, activations = False, 0
    for layer in layers[last + 1 :]:
        is_last_convolution = pool_first and pooled and layer.kind == "Conv2D" and layer.activation == "linear"
        is_activation = layer.kind in _ACTIVATIONS or (pool_first and layer.kind in _OLD_ACTIVATIONS)
        if layer.is_for_training or is_last_convolution or (pooled and layer.kind in _SHAPES):
            if layer.name == "logits" and is_last_convolution:
                classifier = layer
        elif layer.kind == "GlobalAveragePooling2D" and not pooled:
            pooled = layer
        elif layer.kind == "Dense" and pooled and classifier is None:
            classifier, softmax = layer, _is_softmax(layer)
        elif layer.kind in ("Activation", "Softmax") and classifier and not softmax:
            softmax = layer.kind == "Softmax" or _is_softmax(layer)
        elif is_activation and classifier is None and (pool_first or not (pooled or activations)):
            activations += 1
        else:
            raise _refusal(
                layer,
                "makes something else of the network's output: jeffnet's models end in the average over positions, one "
                "dense layer, and a softmax over classes",
            )


def _is_softmax(layer: Layer) -> bool:
    if layer.activation not in ("softmax", "linear"):
        raise _refusal(layer, f"ends in the activation {layer.activation!r}, jeffnet's classifiers in a softmax")
    return layer.activation == "softmax"


def _refusal(layer: Layer, reason: str) -> WeightsError:
    return WeightsError(f"its layer {layer.name!r} ({layer.kind}) {reason}")
