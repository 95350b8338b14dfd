"""Functions from variables and pictures to logits, which validation and prediction call."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.errors import WeightsError
from jeffnet.weights.card import ModelCard

if TYPE_CHECKING:  # errors of weights and pictures need not wait for JAX
    from jax import Array

Forward = Callable[[Any, "Array | np.ndarray"], "Array"]


def make_forward(apply: "Callable[[Any, Array], Array]", preprocessing: Preprocessing, jit: bool = True) -> Forward:
    """A compiled function from variables and pictures `(N, H, W, C)`, 0 to 255, to float32 logits `(N, classes)`.

    Args:
      apply: a pure function from variables and normalised images to logits, as every backend's `inference` returns.
      preprocessing: mean and standard deviation of the pictures.
      jit: compile the function; otherwise operations run one by one.
    """
    import jax
    import jax.numpy as jnp

    from jeffnet.ops.image import normalize

    def forward(variables: Any, images: "Array | np.ndarray") -> "Array":
        logits = apply(variables, normalize(images, preprocessing.mean, preprocessing.std))
        return jnp.asarray(logits, jnp.float32)

    return jax.jit(forward) if jit else forward


def exported_forward(exported: Callable[[np.ndarray], np.ndarray]) -> Forward:
    """A function like those of `make_forward` that runs an exported file, see `jeffnet.export.run`."""
    import jax.numpy as jnp

    def forward(variables: Any, images: "Array | np.ndarray") -> "Array":
        return jnp.asarray(exported(np.asarray(images)))

    return forward


def check_classifies(card: ModelCard, source: str | None) -> None:
    """Raises WeightsError unless a model gives a picture one logit per class.

    Args:
      card: of the model.
      source: of its weights; None for the published ones.
    """
    weights = f"weights {(source or card.model)!r}"
    if not card.num_classes:
        raise WeightsError(f"{weights} have no classifier: there are no classes to predict")
    if card.global_pool == "none" and not card.test_window:
        raise WeightsError(f"{weights} have logits for every place of the last map, not for the picture")


def probabilities(logits: np.ndarray, card: ModelCard) -> np.ndarray:
    """Probabilities of a model's classes, shaped and typed like the logits.

    Args:
      logits: `(N, classes)`.
      card: of the model; of several labels each has a probability of its own, else they sum to 1.

    Raises:
      WeightsError: the model predicts numbers.
    """
    if card.task == "regression":
        raise WeightsError(f"{card.model} predicts numbers, which have no probabilities: use its outputs")
    # exp() of a large number overflows, tanh() does not.
    return softmax(logits) if card.task == "single_label" else (1 + np.tanh(logits / 2)) / 2


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of classes, `(N, classes)` like the logits, and of their dtype."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)
