"""The network that every exporter writes: folded, with what the file does before and after it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jeffnet.arch.execution import Execution
from jeffnet.arch.plan import Plan
from jeffnet.arch.quantization import Quantization
from jeffnet.errors import ConfigError
from jeffnet.export.options import ExportOptions
from jeffnet.inference.folded_network import FoldedNetwork, Point, unchanged
from jeffnet.inference.folding import fold_norms
from jeffnet.inference.quantized import quantized_network
from jeffnet.ops.image import normalize
from jeffnet.weights.card import ModelCard
from jeffnet.weights.start import Start


@dataclass(frozen=True)
class ExportNetwork:
    """A folded network and what its file takes and gives.

    Attributes:
      plan: folded, see `jeffnet.inference.folding`.
      execution: how a pass runs.
      arrays: of the folded network by canonical name, float32.
      card: of the model.
      options: what the file is asked to be.
      quantization: the grids of its values, for a file of 8-bit integers; None for floats.
    """

    plan: Plan
    execution: Execution
    arrays: Mapping[str, np.ndarray]
    card: ModelCard
    options: ExportOptions
    quantization: Quantization | None = None

    @classmethod
    def of(cls, start: Start, card: ModelCard, options: ExportOptions) -> "ExportNetwork":
        """Fold a model.

        Raises:
          ConfigError: the model has shapes instead of arrays, or arrays beyond the range of the file's dtype.
        """
        if any(isinstance(array, jax.ShapeDtypeStruct) for array in start.arrays.values()):
            raise ConfigError("the model has shapes instead of arrays: create it without abstract=True")
        plan, arrays = fold_norms(start.plan, start.arrays)
        largest = float(np.finfo(options.dtype).max)
        for name, array in arrays.items():
            if (most := float(np.abs(array).max(initial=0))) > largest:
                raise ConfigError(f"{name} has {most:.3g}, {options.dtype} ends at {largest:.3g}: export as float32")
        return cls(plan, start.execution, arrays, card, options)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        side = self.card.preprocessing.image_size
        return self.options.image_size or (side, side)

    @property
    def takes_pixels(self) -> bool:
        """Whether pictures are uint8 pixels; otherwise they are normalised float32."""
        return "preprocessing" in self.options.include

    def images(self, batch_size: Any) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the pictures that the file takes.

        Args:
          batch_size: a number, or a symbolic dimension.
        """
        height, width = self.image_size
        shape = (batch_size, height, width, self.plan.in_chans)
        if self.options.layout == "nchw":
            shape = (shape[0], shape[3], shape[1], shape[2])
        return jax.ShapeDtypeStruct(shape, jnp.uint8 if self.takes_pixels else jnp.float32)

    def apply(
        self, arrays: Mapping[str, Array], images: Array, point: Point = unchanged, rounds: bool = False
    ) -> Array:
        """What the file computes, in JAX's operations.

        Args:
          arrays: `arrays`, or as many of another dtype, in which to compute.
          images: as the file takes them.
          point: see `FoldedNetwork`.
          rounds: whether values, kernels and biases are rounded as `quantization` says; otherwise all are floats.

        Returns:
          float32 logits, probabilities, or pooled features.
        """
        if self.options.layout == "nchw":
            images = images.transpose(0, 2, 3, 1)
        if self.takes_pixels:
            preprocessing = self.card.preprocessing
            images = normalize(images, preprocessing.mean, preprocessing.std)
        dtype = jnp.dtype(self.options.dtype)
        network = FoldedNetwork(self.plan, self.execution, dtype, point)
        if rounds:
            assert self.quantization
            network = quantized_network(self.plan, self.execution, self.quantization)
            rounded = network.point
            network = replace(network, point=lambda name, value: point(name, rounded(name, value)))
        outputs = network.apply(arrays, images).astype(jnp.float32)
        return jax.nn.softmax(outputs) if "softmax" in self.options.include else outputs
