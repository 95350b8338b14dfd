"""The network of an exported file as a function of its pictures alone, for exporters that let JAX trace it."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from jeffnet.export.network import ExportNetwork
from jeffnet.inference.folded_network import Point
from jeffnet.ops.conv import use_lowering


def as_function(network: ExportNetwork, lowering: str, point: Point | None = None) -> Callable[[Array], Array]:
    """What the file computes.

    Args:
      network: its arrays become constants, in the dtype of its options.
      lowering: of its convolutions, see `jeffnet.ops.conv.use_lowering`.
      point: see `jeffnet.inference.folded_network.FoldedNetwork`.
    """
    arrays = {name: array.astype(network.options.dtype) for name, array in network.arrays.items()}

    def run(images: Array) -> Array:
        with use_lowering(lowering):
            return network.apply({name: jnp.asarray(array) for name, array in arrays.items()}, images, point)

    return run


def batch_dimension(network: ExportNetwork) -> Any:
    """The batch of the file's pictures: a number, or a symbol for any."""
    from jax import export

    return network.options.batch_size or export.symbolic_shape("batch")[0]
