"""Quantised networks: the simulation in floats, and the grids that calibration finds."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jeffnet.arch.execution import Execution
from jeffnet.arch.plan import Plan
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.quantization import Grid, Quantization, quantized_points
from jeffnet.errors import ConfigError, check_choice
from jeffnet.inference.folded_network import FoldedNetwork
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.image import normalize
from jeffnet.ops.quantize import LEVELS, fake_quantize, fake_quantize_bias, fake_quantize_kernel, kernel_scales

_BATCH = 10
_BINS = 2048
# Shares of the observed range that `mse` tries.
_SHARES = np.linspace(0.05, 1, 96)
METHODS = ("minmax", "mse")
PASSES = 2  # over the pictures, of 'mse'


def quantized_network(plan: Plan, execution: Execution, quantization: Quantization) -> FoldedNetwork:
    """A folded network that rounds its values, kernels and biases as its exported file does.

    Raises:
      ConfigError: the grids are those of another network.
    """
    points = quantized_points(plan)
    if missing := [name for name in points.values if name not in quantization.grids]:
        raise ConfigError(f"the ranges are of another network: there is none for {missing[0]!r}")

    def point(name: str, value: Array) -> Array:
        grid = quantization.grids.get(name)
        if grid is None:
            return value
        return fake_quantize(value, jnp.float32(grid.scale), jnp.float32(grid.zero_point))

    def weight(name: str, kernel: Array) -> Array:
        return fake_quantize_kernel(kernel, quantization.kernel_bits) if name in points.layers else kernel

    def bias(name: str, kernel: Array, bias: Array) -> Array:
        if name not in points.layers:
            return bias
        value_scale = jnp.float32(quantization.grids[points.layers[name]].scale)
        return fake_quantize_bias(bias, kernel_scales(kernel, quantization.kernel_bits) * value_scale)

    return FoldedNetwork(plan, execution, point=point, weight=weight, bias=bias)


def calibrate(
    plan: Plan,
    execution: Execution,
    arrays: Mapping[str, Any],
    batches: Callable[[], Iterable[np.ndarray]],
    method: str = "mse",
) -> Quantization:
    """The grids of a folded network's values, from what they are for some pictures.

    Args:
      plan: folded, see `jeffnet.inference.folding`.
      execution: how a pass runs.
      arrays: of the folded network by canonical name.
      batches: gives normalised pictures `(N, H, W, C)`, of at least one batch, every time it is called.
      method: 'minmax' takes all values; 'mse' takes the range that rounds and cuts off with the smallest squared error,
        as a share of the picture's squares, so that no picture of unusually large values decides for all. The error is
        that behind the activation, where there is one: which SiLU's far negative inputs are matters little.

    Raises:
      ConfigError: no such method, no pictures, or values that are no finite numbers.
    """
    check_choice("method", method, METHODS)
    points = quantized_points(plan)
    names = points.values

    @jax.jit
    def values(arrays: Mapping[str, Array], images: Array) -> tuple[Array, ...]:
        seen: dict[str, Array] = {}

        def point(name: str, value: Array) -> Array:
            seen[name] = value
            return value

        FoldedNetwork(plan, execution, point=point).apply(arrays, images)
        return tuple(seen[name] for name in names)

    limits, count = np.zeros((len(names), 2)), 0
    for images in batches():
        count += len(images)
        for limit, value in zip(limits, values(arrays, images), strict=True):
            value = np.asarray(value)  # whose extremes are NaN where any number is
            limit[:] = np.minimum(limit[0], value.min()), np.maximum(limit[1], value.max())
    if not count:
        raise ConfigError("there are no pictures to calibrate with: give at least one")
    for name, limit in zip(names, limits, strict=True):
        if not np.isfinite(limit).all():
            raise ConfigError(f"the model's {name!r} is not finite for the pictures of the calibration")
    ranges = limits
    if method == "mse":
        observed = [
            _Observed(low, high, points.acts.get(name)) for name, (low, high) in zip(names, limits, strict=True)
        ]
        for images in batches():
            for each, value in zip(observed, values(arrays, images), strict=True):
                each.add(np.asarray(value))
        ranges = [each.best_range() for each in observed]
    grids = {name: grid_of(low, high) for name, (low, high) in zip(names, ranges, strict=True)}
    return Quantization(grids, f"{method} of {count} pictures")


def normalized_batches(
    pictures: np.ndarray, preprocessing: Preprocessing, done: Callable[[int], object] = lambda count: None
) -> Callable[[], Iterator[np.ndarray]]:
    """For `calibrate`, from pixels `(N, H, W, C)`, 0 to 255; `done` is given the size of each batch after it."""

    def batches() -> Iterator[np.ndarray]:
        for first in range(0, len(pictures), _BATCH):
            batch = pictures[first : first + _BATCH]
            yield np.asarray(normalize(batch, preprocessing.mean, preprocessing.std))
            done(len(batch))

    return batches


def grid_of(low: float, high: float) -> Grid:
    """The grid of a range, which is widened to contain 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / LEVELS)
    if scale < np.finfo(np.float32).tiny:
        return Grid(1.0, 0)
    return Grid(float(scale), round(-low / float(scale)))


class _Observed:
    """A histogram of a value between its limits, to which every picture adds the same sum of squares."""

    def __init__(self, low: float, high: float, act: str | None) -> None:
        """The value is given to an activation, or used as it is."""
        self._low, self._high = low, high
        self._edges = np.linspace(low, high, _BINS + 1)
        # Called once, and interpolated in between, since calls of JAX take time.
        self._acted = np.asarray(ACTIVATIONS[act](jnp.asarray(self._edges))) if act else self._edges
        self._centres = (self._edges[1:] + self._edges[:-1]) / 2
        self._exact = self._after(self._centres)
        self._counts = np.zeros(_BINS)

    def add(self, value: np.ndarray) -> None:
        """Add what the value is for pictures, `(N, ...)`."""
        bins = np.float32(_BINS / max(self._high - self._low, 1e-30))
        places = np.clip(((value - np.float32(self._low)) * bins).astype(np.int32), 0, _BINS - 1)
        for picture in places.reshape(len(places), -1):
            counts = np.bincount(picture, minlength=_BINS)
            self._counts += counts / max(counts @ self._exact**2, 1e-30)

    def best_range(self) -> tuple[float, float]:
        """The best share of the upper limit, then of the lower one, then of the upper one again."""
        best = self._low, self._high
        for _ in range(2):
            high = min(self._high * _SHARES[::-1], key=lambda high: self._error(best[0], high))
            best = min(self._low * _SHARES[::-1], key=lambda low: self._error(low, high)), high
        return best

    def _error(self, low: float, high: float) -> float:
        grid = grid_of(low, high)
        steps = np.clip(np.round(self._centres / grid.scale) + grid.zero_point, 0, LEVELS)
        return float((self._after(grid.scale * (steps - grid.zero_point)) - self._exact) ** 2 @ self._counts)

    def _after(self, values: np.ndarray) -> np.ndarray:
        return np.interp(values, self._edges, self._acted)
