"""The network of an exported file as a function of its pictures alone, for exporters that let JAX trace it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jeffnet.export.network import ExportNetwork
from jeffnet.inference.folded_network import Point, unchanged
from jeffnet.ops.conv import use_lowering

PLATFORMS = ("cpu", "cuda", "tpu")


def as_function(network: ExportNetwork, lowering: str, point: Point = unchanged) -> Callable[[Array], Array]:
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


def for_platforms(network: ExportNetwork) -> Callable[[Array], Array]:
    """The same for `PLATFORMS` in one program, with the convolutions that suit each.

    On CPUs depthwise convolutions are shifted multiply-adds, and 1x1 convolutions products of matrices, since XLA's own
    convolutions are slow there; other platforms have XLA's.
    """
    forms = {name: as_function(network, name) for name in ("shifted", "xla")}

    def run(images: Array) -> Array:
        return jax.lax.platform_dependent(images, cpu=forms["shifted"], default=forms["xla"])

    return run


def batch_dimension(network: ExportNetwork) -> Any:
    """The batch of the file's pictures: a number, or a symbol for any."""
    from jax import export

    return network.options.batch_size or export.symbolic_shape("batch")[0]
