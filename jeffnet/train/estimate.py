"""Re-estimation of BatchNorm's running statistics for given parameters."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jeffnet.arch.plan import without_training_options
from jeffnet.train.network import Network
from jeffnet.train.state import Arrays
from jeffnet.weights.start import statistics

Estimate = Callable[[Sequence[Arrays], Iterable[Mapping[str, Any]]], list[Arrays]]


def make_estimate(network: Network) -> Estimate:
    """A function that gives models running statistics that are the mean of those of some batches.

    Averaged parameters need it: their statistics are not the average of the statistics (arXiv:1803.05407, section 3.2).

    Args:
      network: the model.

    Returns:
      A function from the arrays of several models, and at least one batch, to all of their arrays. `image` is
      `(N, H, W, C)`, or `(N, splits, H, W, C)`, of which the first view counts. Norms that are frozen keep theirs.
    """
    still = network.with_plan(without_training_options(network.plan))

    # One program for all models: where devices share a batch, they wait for one another in it.
    @jax.jit
    def add(totals: list[Arrays], models: list[Arrays], images: Array) -> list[Arrays]:
        stats = [still.train(arrays, images, jax.random.key(0))[1] for arrays in models]
        return jax.tree.map(jnp.add, totals, stats)

    def estimate(models: Sequence[Arrays], batches: Iterable[Mapping[str, Any]]) -> list[Arrays]:
        totals = [jax.tree.map(jnp.zeros_like, statistics(arrays)) for arrays in models]
        count = 0
        for batch in batches:
            images = batch["image"]
            images = images[:, 0] if images.ndim == 5 else images
            totals = add(totals, list(models), images)
            count += 1
        means = [{name: array / count for name, array in total.items()} for total in totals]
        return [{**arrays, **mean} for arrays, mean in zip(models, means, strict=True)]

    return estimate
