"""Compares an exported file, run by its own runtime, with the model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jeffnet.arch.quantization import ROUNDED
from jeffnet.errors import JeffnetError
from jeffnet.export.network import ExportNetwork
from jeffnet.export.run import ExportedModel
from jeffnet.export.targets import TARGETS
from jeffnet.functional import ImageClassifier, to_variables
from jeffnet.ops.conv import use_lowering
from jeffnet.ops.image import normalize
from jeffnet.weights.start import Start

# Of the largest output: below it rounding is all that the pictures' outputs differ by.
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class Limits:
    """How far an exported file may be from its model.

    Attributes:
      difference: most of `Comparison.difference`.
      of_spread: most of `Comparison.of_spread`.
      cosine: least of `Comparison.cosine`.
      agreement: least of `Comparison.agreement`, on a user's pictures. Of synthetic ones no class may be clear.
    """

    difference: float
    of_spread: float
    cosine: float
    agreement: float


# In ONNX Runtime B0, MobileNetV3-L, MixNet-S and Lite0 differ by up to 6e-6 in float32, and 5e-3 in float16.
LIMITS = {
    "float32": Limits(difference=1e-3, of_spread=1e-2, cosine=0.99999, agreement=0.99),
    "float16": Limits(difference=5e-2, of_spread=0.3, cosine=0.999, agreement=0.95),
    # What rounding costs a network that was not trained with it: most in pictures for which its logits are small.
    "int8": Limits(difference=1.0, of_spread=float("inf"), cosine=0.7, agreement=0.7),
}
# Of files of 8-bit integers from the model with the same rounding: runtimes may take the nearest but one integer where
# two are about as near, and MobileNetV3-S differs by up to 0.06 of the largest output then.
SIMULATED = Limits(difference=0.2, of_spread=float("inf"), cosine=0.95, agreement=0.9)
_WAY_OUT = "export floats, or train it for integers (quantize.to int8, docs/training.md); "


@dataclass(frozen=True)
class Comparison:
    """What an exported file gives beside what the model gives.

    Attributes:
      pictures: that both were given.
      difference: the largest, as a share of the model's largest output.
      cosine: between the outputs of both for a picture, the least.
      agreement: share of pictures with the same first class; None without classes.
      of_spread: the largest difference as a share of how far the model's outputs are from their mean over the pictures:
        whatever a file computes, large outputs that hardly depend on the picture hide it. None for one picture.
    """

    pictures: int
    difference: float
    cosine: float
    agreement: float | None
    of_spread: float | None

    @classmethod
    def of(cls, outputs: np.ndarray, expected: np.ndarray, has_classes: bool = True) -> "Comparison":
        """Compare outputs `(N, ..., C)`.

        Raises:
          JeffnetError: they have different shapes.
        """
        if outputs.shape != expected.shape:
            raise JeffnetError(f"the file gives {outputs.shape[1:]} for a picture, the model {expected.shape[1:]}")
        distance, largest = np.abs(outputs - expected).max(), np.abs(expected).max()
        same = float((outputs.argmax(-1) == expected.argmax(-1)).mean()) if has_classes else None
        spread = max(np.abs(expected - expected.mean(0)).max(), _LEAST_SPREAD * largest)
        of_spread = _share(distance, spread) if len(outputs) > 1 else None
        return cls(len(outputs), _share(distance, largest), _cosine(outputs, expected), same, of_spread)

    def faults(self, limits: Limits, are_real: bool) -> list[str]:
        """What is beyond the limits, in words; `are_real` where the pictures are a user's."""
        found = []
        if self.difference > limits.difference:
            found.append(f"by {self.difference:.2g} of the largest output (limit {limits.difference:g})")
        if self.of_spread is not None and self.of_spread > limits.of_spread:
            found.append(f"by {self.of_spread:.2g} of how pictures differ (limit {limits.of_spread:g})")
        if self.cosine < limits.cosine:
            found.append(f"to a cosine of {self.cosine:.4f} (limit {limits.cosine:g})")
        if are_real and self.agreement is not None and self.agreement < limits.agreement:
            found.append(f"in the first class of {1 - self.agreement:.1%} of the pictures")
        return found


def check_export(
    exported: ExportedModel, path: Path, network: ExportNetwork, start: Start, pictures: np.ndarray, are_real: bool
) -> Comparison:
    """Run a file and compare it with the model.

    Args:
      exported: the file.
      path: where it lies.
      network: that was written.
      start: the model, with its norms.
      pictures: uint8 `(N, H, W, C)`.
      are_real: whether they are a user's, so that the first classes count too.

    Returns:
      Of the file and the model. The model is that which the file is trained to be: one that was trained with the
      rounding of 8-bit integers has it here too.

    Raises:
      JeffnetError: the file differs from the model by more than `LIMITS`, or one of 8-bit integers from the model with
        the same rounding by more than `SIMULATED`.
    """
    images, has_classes = exported.prepare(pictures), network.plan.classifier is not None
    outputs = exported.run(images)

    def compare(expected: np.ndarray, limits: Limits, rounds: bool = False) -> Comparison:
        comparison = Comparison.of(outputs, expected, has_classes)
        if faults := comparison.faults(limits, are_real):
            way_out = _WAY_OUT if network.quantization and not rounds else ""
            raise JeffnetError(
                f"{exported.path!r} is not written: in {exported.runner.runtime} it differs from the model"
                f"{' with the same rounding' if rounds else ''} {' and '.join(faults)}"
                f"{_first(exported, path, network, images, limits, rounds)}; "
                f"{way_out}--no-check (check=False) writes it all the same"
            )
        return comparison

    if network.quantization is not None:
        comparison = compare(simulated_outputs(network, images), SIMULATED, rounds=True)
        if network.card.quantization is not None:
            return comparison
    return compare(model_outputs(network, start, pictures), LIMITS[exported.dtype])


def simulated_outputs(network: ExportNetwork, images: np.ndarray) -> np.ndarray:
    """What a network of 8-bit integers gives for pictures as the file takes them, simulated in float32."""
    arrays = {name: jnp.asarray(array) for name, array in network.arrays.items()}
    with use_lowering(_lowering()), jax.default_matmul_precision("highest"):
        run = jax.jit(lambda arrays, images: network.apply(arrays, images, rounds=True))
        return np.concatenate([np.asarray(run(arrays, image[None])) for image in images])


def model_outputs(network: ExportNetwork, start: Start, pictures: np.ndarray) -> np.ndarray:
    """What the model gives for pictures `(N, H, W, C)`, unfolded and in float32, by JAX's operations alone."""
    model = ImageClassifier(start.plan, jnp.float32, execution=start.execution)
    arrays = {name: jnp.asarray(array, jnp.float32) for name, array in start.arrays.items()}
    preprocessing = network.card.preprocessing

    def apply(variables: Mapping[str, Any], pixels: Array) -> Array:
        outputs = model.apply(variables, normalize(pixels, preprocessing.mean, preprocessing.std))
        return jax.nn.softmax(outputs) if "softmax" in network.options.include else outputs

    with use_lowering(_lowering()), jax.default_matmul_precision("highest"):
        run, variables = jax.jit(apply), to_variables(arrays)
        # One by one: a batch of the maps of a large model takes much memory.
        return np.concatenate([np.asarray(run(variables, picture[None])) for picture in pictures])


def _lowering() -> str:
    """A way to compute convolutions by JAX's operations alone; XLA's take long on CPUs."""
    return "shifted" if jax.default_backend() == "cpu" else "xla"


def _first(
    exported: ExportedModel, path: Path, network: ExportNetwork, images: np.ndarray, limits: Limits, rounds: bool
) -> str:
    """Where on the way through the network a file first leaves it, in words; '' where its format does not show that."""
    values = getattr(TARGETS[exported.target].load(), "values", None)
    if values is None:
        return ""
    expected = network_values(network, images[: exported.batch_size or 1], rounds)
    try:
        found = values(path, images[: exported.batch_size or 1], list(expected))
    except Exception:  # a file that cannot run says nothing more
        return ""
    for name, value in expected.items():
        if name in found and Comparison.of(found[name], value, False).faults(limits, False):
            return f", first at {name.removesuffix(ROUNDED)!r}"
    return ", and no layer by as much"


def network_values(network: ExportNetwork, images: np.ndarray, rounds: bool) -> dict[str, np.ndarray]:
    """The values of a folded network on its way, by name in their order, for pictures as the file takes them.

    With `rounds`, those of 8 bits are rounded, and named as in the file.
    """
    values: dict[str, np.ndarray] = {}
    grids = network.quantization.grids if network.quantization and rounds else {}

    def keep(name: str, value: Array) -> Array:
        values[f"{name}{ROUNDED}" if name in grids else name] = np.asarray(value)
        return value

    arrays = {name: jnp.asarray(array) for name, array in network.arrays.items()}
    floats = replace(network, options=replace(network.options, dtype="float32"))
    with use_lowering("xla"), jax.default_matmul_precision("highest"):
        floats.apply(arrays, jnp.asarray(images), keep, rounds)
    return values


def _share(distance: np.floating, of: np.floating) -> float:
    share = float(distance) / max(float(of), float(np.finfo(np.float32).tiny))
    return share if np.isfinite(share) else float("inf")  # not a number counts as wrong


def _cosine(outputs: np.ndarray, expected: np.ndarray) -> float:
    """The least cosine between the outputs of both for a picture."""
    rows, others = (array.reshape(len(array), -1).astype(np.float64) for array in (outputs, expected))
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    cosines = (rows * others).sum(1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    cosines[(rows == others).all(1)] = 1  # also where both are zeros, as of a classifier that starts so
    return float(cosines.min()) if np.isfinite(cosines).all() else -1.0
