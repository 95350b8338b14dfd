"""Which values of a network are quantised, their ranges, and the simulation in floats."""

import zlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.arch.execution import Execution
from jeffnet.arch.quantization import Grid, Quantization, quantized_points
from jeffnet.errors import ConfigError
from jeffnet.inference.folded_network import FoldedNetwork
from jeffnet.inference.folding import fold_norms
from jeffnet.inference.quantized import METHODS, _Observed, calibrate, grid_of, quantized_network
from jeffnet.weights.start import start_model

MODELS = ["tiny", "tiny_tf", "tiny_flat"]


def folded(name):
    start = start_model(name, num_classes=5)
    arrays = {}
    for key, array in start.arrays.items():
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        shift = 0.0 if key.endswith(("kernel", "bias", "mean")) else 1.0
        arrays[key] = np.asarray(array) + (rng.uniform(-0.2, 0.2, array.shape) if array.ndim == 1 else 0.0)
        arrays[key] = np.where(arrays[key] == 0, shift, arrays[key])
    return fold_norms(start.plan, arrays)


def shapes(plan, arrays, size=32):
    """Shapes of all values by name, and the names of all kernels, in order."""
    seen, kernels = {}, []

    def point(name, value):
        assert name not in seen
        seen[name] = value.shape
        return value

    def weight(name, kernel):
        kernels.append(name)
        return kernel

    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    jax.eval_shape(FoldedNetwork(plan, point=point, weight=weight).apply, arrays, images)
    return seen, kernels


def check_points(plan, arrays):
    points, (seen, kernels) = quantized_points(plan), shapes(plan, arrays)
    assert len(set(points.values)) == len(points.values)
    assert [name for name in points.values if name not in seen] == []
    assert [name for name in points.layers if name not in kernels] == []
    assert set(points.layers.values()) <= set(points.values)
    for name, x in points.layers.items():
        # The channels that the kernel is applied to; for one of several parts, more.
        inputs = arrays[name].shape[-2]
        channels = seen[x][-1]
        assert channels % inputs == 0 or inputs < channels, (name, x)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_quantised_is_there(name, tiny_model):
    check_points(*folded(name))


def test_what_is_quantised_of_every_operation(one_operation):
    check_points(*folded(one_operation))


def test_gates_and_logits_stay_floats(tiny_model):
    plan, _arrays = folded("tiny")
    points = quantized_points(plan)
    assert not any(".se" in name and name.rpartition(".")[2] != "se" for name in [*points.values, *points.layers])
    assert "classifier.kernel" in points.layers and "classifier" not in points.values
    # SiLU is computed between two values of 8 bits, a convolution's limit with it.
    assert {"blocks.1.0.conv_pw:sum", "blocks.1.0.conv_pw"} <= set(points.values)
    assert "blocks.1.0.conv_pwl:sum" not in points.values


@pytest.fixture(scope="module")
def tiny_flat(tiny_model):
    plan, arrays = folded("tiny_flat")
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
    return plan, arrays, images


@pytest.fixture(scope="module")
def quantization(tiny_flat):
    plan, arrays, images = tiny_flat
    return calibrate(plan, Execution(), arrays, lambda: iter([images[:5], images[5:]]), "minmax")


def test_every_value_of_the_simulation_is_of_its_grid(tiny_flat, quantization):
    plan, arrays, images = tiny_flat
    seen = {}
    network = quantized_network(plan, Execution(), quantization)

    def point(name, value):
        seen[name] = value = network.point(name, value)
        return value

    def run(arrays, images):
        seen.clear()
        logits = replace(network, point=point).apply(arrays, images)
        return dict(seen), logits, network.apply(arrays, images), FoldedNetwork(plan).apply(arrays, images)

    quickly = {"xla_backend_optimization_level": 0}
    values, logits, same, expected = jax.jit(run, compiler_options=quickly)(arrays, images)
    assert list(quantization.grids) == quantized_points(plan).values
    for name, grid in quantization.grids.items():
        steps = np.asarray(values[name], np.float64) / grid.scale + grid.zero_point
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
        # What calibration saw fills the grid, but for what rounding before it has changed.
        assert -1e-3 < steps.min() < 30 and 225 < steps.max() < 255.001
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 0.1
    np.testing.assert_array_equal(same, logits)


@pytest.mark.parametrize("method", METHODS)
def test_ranges_of_rare_large_values(method, tiny_flat):
    """One pixel of a million is a hundred times the others."""
    plan, arrays, _images = tiny_flat
    many = np.random.default_rng(1).uniform(-1, 1, (64, 72, 72, 3)).astype(np.float32)
    many[0, 0, 0, 0] = 100
    grid = calibrate(plan, Execution(), arrays, lambda: [many], method).grids["images"]
    highest = grid.scale * (255 - grid.zero_point)
    assert grid.zero_point * grid.scale == pytest.approx(1, abs=0.5 if method == "minmax" else 0.1)
    assert highest == pytest.approx(100, abs=1) if method == "minmax" else highest < 50


def test_no_picture_decides_for_the_others(tiny_flat):
    """One of a hundred is a hundred times as bright: the others keep their fine steps."""
    plan, arrays, _images = tiny_flat
    pictures = np.random.default_rng(1).uniform(-1, 1, (100, 32, 32, 3)).astype(np.float32)
    pictures[0] *= 100
    grid = calibrate(plan, Execution(), arrays, lambda: [pictures]).grids["images"]
    assert grid.scale < 0.1 < calibrate(plan, Execution(), arrays, lambda: [pictures], "minmax").grids["images"].scale


def test_inputs_that_an_activation_makes_alike_cost_no_steps(tiny_flat):
    """Below -10 SiLU is 0: the range of its input need not reach there."""
    observed, plain = _Observed(-50, 5, "silu"), _Observed(-50, 5, None)
    values = np.random.default_rng(0).uniform(-50, 5, (4, 1000)).astype(np.float32)
    for each in (observed, plain):
        each.add(values)
    assert observed.best_range()[0] > -20 and plain.best_range()[0] < -40


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 3.0), (-3.0, -1.0), (0.0, 6.0)])
def test_zero_is_always_of_the_grid(low, high):
    grid = grid_of(low, high)
    assert 0 <= grid.zero_point <= 255 and grid.scale > 0
    assert -grid.zero_point * grid.scale == pytest.approx(min(low, 0), abs=grid.scale)
    assert (255 - grid.zero_point) * grid.scale == pytest.approx(max(high, 0), abs=grid.scale)
    assert grid_of(0.0, 0.0) == Grid(1.0, 0)


def test_what_cannot_be_calibrated(tiny_flat):
    plan, arrays, images = tiny_flat
    with pytest.raises(ConfigError, match="no pictures to calibrate with: give at least one"):
        calibrate(plan, Execution(), arrays, lambda: [])
    with pytest.raises(ConfigError, match="method 'max' is not one of minmax, mse"):
        calibrate(plan, Execution(), arrays, lambda: [images], "max")
    with pytest.raises(ConfigError, match="'images' is not finite for the pictures"):
        calibrate(plan, Execution(), arrays, lambda: [images * np.nan])
    with pytest.raises(ConfigError, match="ranges are of another network: there is none for 'conv_stem'"):
        quantized_network(plan, Execution(), Quantization({"images": Grid(1.0, 0)}, "by hand"))
