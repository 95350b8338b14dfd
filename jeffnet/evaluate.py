"""Scores of a model on labelled pictures: each counted exactly once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.data.batches import EvalLoader
from jeffnet.ops.image import normalize
from jeffnet.ops.loss import cross_entropy, in_top

Forward = Callable[[Any, Array], Array]


@dataclass(frozen=True)
class Scores:
    """Means over a data set.

    Attributes:
      examples: how many pictures were counted.
      loss: cross entropy.
      top1: per cent of pictures whose first guess is right.
      top5: per cent of pictures with the right class among the first five.
    """

    examples: int
    loss: float
    top1: float
    top5: float


def make_forward(apply: Forward, preprocessing: Preprocessing) -> Forward:
    """A compiled function from variables and uint8 pictures `(N, H, W, C)` to float32 logits `(N, classes)`.

    Args:
      apply: a pure function from variables and normalised images to logits, as every backend's `inference` gives it.
      preprocessing: mean and standard deviation of the pictures.
    """

    @jax.jit
    def forward(variables: Any, images: Array) -> Array:
        logits = apply(variables, normalize(images, preprocessing.mean, preprocessing.std))
        return jnp.asarray(logits, jnp.float32)

    return forward


def evaluate(forward: Forward, variables: Any, batches: EvalLoader, progress: bool = False) -> Scores:
    """Score a model.

    Args:
      forward: as `make_forward` makes it.
      variables: of the model.
      batches: one pass over the data set; rows outside a batch's `mask` do not count.
      progress: show a bar where standard error is a terminal.
    """
    totals = np.zeros(4)
    for batch in tqdm(batches, desc="validating", unit="batch", leave=False, disable=None if progress else True):
        sums = _sums(forward(variables, jnp.asarray(batch["image"])), batch["label"], batch["mask"])
        totals += np.asarray(sums, np.float64)
    count = max(totals[0], 1)
    return Scores(int(totals[0]), totals[1] / count, 100 * totals[2] / count, 100 * totals[3] / count)


@jax.jit
def _sums(logits: Array, labels: Array, mask: Array) -> Array:
    per_example = (
        jnp.ones(labels.shape),
        cross_entropy(logits, labels),
        in_top(logits, labels, 1),
        in_top(logits, labels, 5),
    )
    # `where`, not a product: a NaN in the padding would otherwise spread.
    return jnp.stack([jnp.where(mask, values, 0).sum() for values in per_example])
