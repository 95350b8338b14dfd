"""What makes up for classes of unequal size in the loss, and what a run says about their sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jeffnet.errors import ConfigError
from jeffnet.text.names import listed, printable
from jeffnet.train.config import LossConfig

# Fewer training pictures than these are hardly enough to learn a class.
_FEW = 10
_SHOWN = 12  # classes; of more the extremes are shown


@dataclass(frozen=True)
class Balance:
    """What a loss does about unequal classes; None where it does nothing.

    Attributes:
      weights: float32 `(classes,)`, factors on the loss of a class; of several labels where a picture has the label.
      offsets: float32 `(classes,)`, added to the logits in training.
    """

    weights: np.ndarray | None = None
    offsets: np.ndarray | None = None


EVEN = Balance()


def make_balance(
    config: LossConfig, draws: np.ndarray | None, classes: Sequence[str], pictures: int | None = None
) -> Balance:
    """The weights and offsets of a loss.

    Args:
      config: of the loss.
      draws: int `(classes,)`, how often an epoch draws each class. A class without pictures counts as drawn once. None
        where nothing depends on it.
      classes: their names.
      pictures: how many there are, where they may have several labels; None for a single label.

    Raises:
      ConfigError: `class_weights` for another number of classes.
    """
    weights = offsets = None
    if config.class_weights:
        if len(config.class_weights) != len(classes):
            raise ConfigError(
                f"loss.class_weights has {len(config.class_weights)} values for {len(classes)} classes: give one for "
                f"each of {listed(classes)}, in this order"
            )
        weights = np.array(config.class_weights, np.float32)
    if draws is not None:
        counts = np.maximum(draws, 1).astype(np.float64)
        if config.weighting and pictures is not None:
            weights = ((pictures - draws) / counts).astype(np.float32)
        elif config.weighting:
            weights = _class_weights(counts, config.effective_beta if config.weighting == "effective" else None)
        if config.logit_adjustment:
            offsets = (config.logit_adjustment * np.log(counts / counts.sum())).astype(np.float32)
    return Balance(weights, offsets)


def _class_weights(counts: np.ndarray, beta: float | None) -> np.ndarray:
    """In proportion to 1 / n or, with a beta, to 1 / effective number of pictures; the mean over all pictures is 1."""
    # 1 - beta^n, exact for a beta close to 1.
    effective = counts if beta is None else -np.expm1(counts * np.log(max(beta, 1e-300)))
    return (counts.sum() / (counts / effective).sum() / effective).astype(np.float32)


def counts_text(counts: np.ndarray, classes: Sequence[str]) -> str:
    """How many training pictures each class has, in one line; of many classes the fewest, the median and the most."""
    pairs = [f"{printable(classes[int(n)])} {counts[n]:,}" for n in np.argsort(counts, kind="stable")]
    if len(pairs) > _SHOWN:
        pairs = [*pairs[:3], "...", f"median {np.median(counts):,.0f}", "...", *pairs[-3:]]
    return f"training pictures by class: {', '.join(pairs)}"


def few_text(counts: np.ndarray, classes: Sequence[str]) -> str:
    """A warning about classes of few training pictures, in one line; '' where there are none."""
    few = [int(number) for number in np.argsort(counts, kind="stable") if counts[number] < _FEW]
    if not few:
        return ""
    names = listed([f"{classes[number]} {counts[number]}" for number in few])
    which = "a class has" if len(few) == 1 else f"{len(few)} classes have"
    return f"{which} fewer than {_FEW} training pictures ({names}): add some, or do not trust what is predicted of them"
