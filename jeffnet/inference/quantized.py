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
from jeffnet.ops.image import normalize
from jeffnet.ops.quantize import LEVELS, fake_quantize, fake_quantize_bias, fake_quantize_kernel, kernel_scales

_BATCH = 10
_BINS = 2048
# Of the histogram's values, that `percentile` keeps.
_KEPT = 0.9999
# Shares of the observed range that `mse` tries.
_SHARES = np.linspace(0.3, 1, 71)


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
      method: 'minmax' takes all values; 'percentile' leaves out the most extreme of 10,000 on either side; 'mse' takes
        the range that rounds and cuts off with the smallest mean squared error.

    Raises:
      ConfigError: no such method, no pictures, or values that are no finite numbers.
    """
    check_choice("method", method, METHODS)
    names = quantized_points(plan).values

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
    if method != "minmax":
        counts = np.zeros((len(names), _BINS), np.int64)
        for images in batches():
            for limit, bins, value in zip(limits, counts, values(arrays, images), strict=True):
                bins += _histogram(np.asarray(value).ravel(), limit)
        ranges = [METHODS[method](bins, *limit) for bins, limit in zip(counts, limits, strict=True)]
    grids = {name: grid_of(low, high) for name, (low, high) in zip(names, ranges, strict=True)}
    return Quantization(grids, f"{method} of {count} pictures")


def normalized_batches(pictures: np.ndarray, preprocessing: Preprocessing) -> Callable[[], Iterator[np.ndarray]]:
    """For `calibrate`, from pixels `(N, H, W, C)`, 0 to 255."""

    def batches() -> Iterator[np.ndarray]:
        for first in range(0, len(pictures), _BATCH):
            yield np.asarray(normalize(pictures[first : first + _BATCH], preprocessing.mean, preprocessing.std))

    return batches


def grid_of(low: float, high: float) -> Grid:
    """The grid of a range, which is widened to contain 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / LEVELS)
    if scale < np.finfo(np.float32).tiny:
        return Grid(1.0, 0)
    return Grid(float(scale), round(-low / float(scale)))


def _histogram(values: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """How many of the values are in each of equal parts of a range."""
    low, high = limits
    places = ((values - np.float32(low)) * np.float32(_BINS / max(high - low, 1e-30))).astype(np.int32)
    return np.bincount(np.clip(places, 0, _BINS - 1, out=places), minlength=_BINS)


def _percentile(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    edges, shares = np.linspace(low, high, _BINS + 1), np.cumsum(counts) / counts.sum()
    first, last = np.searchsorted(shares, 1 - _KEPT), np.searchsorted(shares, _KEPT)
    return float(edges[first]), float(edges[last + 1])


def _least_error(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The best share of the upper limit, then of the lower one, then of the upper one again."""
    edges = np.linspace(low, high, _BINS + 1)
    centres = (edges[1:] + edges[:-1]) / 2

    def error(low: float, high: float) -> float:
        grid = grid_of(low, high)
        steps = np.clip(np.round(centres / grid.scale) + grid.zero_point, 0, LEVELS)
        return float((grid.scale * (steps - grid.zero_point) - centres) ** 2 @ counts)

    best = low, high
    for _ in range(2):
        best = best[0], min((high * share for share in _SHARES[::-1]), key=lambda high: error(best[0], high))
        best = min((low * share for share in _SHARES[::-1]), key=lambda low: error(low, best[1])), best[1]
    return best


METHODS = {"minmax": lambda counts, low, high: (low, high), "percentile": _percentile, "mse": _least_error}
