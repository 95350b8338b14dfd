"""Running statistics of BatchNorm, estimated anew for given parameters."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jeffnet.arch.summary import STATISTICS
from jeffnet.train.config import ModelConfig
from jeffnet.train.network import Arrays, Network, make_network


def reestimate(
    config: ModelConfig, network: Network, arrays: Mapping[str, Array], batches: Iterable[Mapping[str, Any]]
) -> Arrays:
    """The arrays with running statistics that are the mean of those of some batches.

    Averaged parameters need it: their statistics are not the average of the statistics (arXiv:1803.05407, section 3.2).

    Args:
      config: of the model.
      network: the model.
      arrays: all of the model's.
      batches: at least one; `image` `(N, H, W, C)` or `(N, splits, H, W, C)`, of which the first view counts.

    Returns:
      All arrays; norms that are frozen keep theirs.
    """
    # A momentum of 0 makes the updated statistics those of the batch; nothing is dropped.
    still = make_network(
        replace(config, bn_momentum=0.0, drop_rate=0.0, drop_path_rate=0.0),
        network.preprocessing,
        network.num_classes,
    )

    @jax.jit
    def add(total: Arrays, arrays: Arrays, images: Array) -> Arrays:
        _, stats = still.train(arrays, images, jax.random.key(0))
        return jax.tree.map(jnp.add, total, stats)

    arrays = dict(arrays)
    total = {name: jnp.zeros_like(array) for name, array in arrays.items() if name.rpartition(".")[2] in STATISTICS}
    count = 0
    for batch in batches:
        images = batch["image"]
        total = add(total, arrays, images[:, 0] if images.ndim == 5 else images)
        count += 1
    return {**arrays, **{name: array / count for name, array in total.items()}}
