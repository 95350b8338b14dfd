"""Rounding to 8 bits, against its definition, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.ops.quantize import fake_quantize, fake_quantize_kernel, quantize_kernel


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(0, 2, (5, 7)).astype(np.float32)


def test_values_are_the_nearest_of_the_grid(values):
    grid = (np.arange(256) - 140) * np.float32(0.02)
    nearest = grid[np.abs(values[..., None] - grid).argmin(-1)]
    rounded = fake_quantize(jnp.asarray(values), jnp.float32(0.02), jnp.float32(140))
    np.testing.assert_allclose(rounded, nearest, atol=1e-6)
    assert values.min() < grid[0] and values.max() > grid[-1]  # both ends cut something off
    np.testing.assert_array_equal(fake_quantize(rounded, jnp.float32(0.02), jnp.float32(140)), rounded)


def test_gradients_pass_inside_the_range_alone(values):
    gradient = jax.grad(lambda x: (3 * fake_quantize(x, jnp.float32(0.02), jnp.float32(140))).sum())(values)
    np.testing.assert_array_equal(gradient, np.where((values >= -2.8) & (values <= 2.3), 3, 0))


@pytest.mark.parametrize(("bits", "levels"), [(8, 127), (7, 63)])
def test_kernels_have_a_scale_for_every_output_channel(bits, levels):
    kernel = np.random.default_rng(1).normal(size=(3, 3, 4, 6)).astype(np.float32) * np.float32(10) ** np.arange(-3, 3)
    steps, scales = quantize_kernel(kernel, bits)
    assert steps.dtype == np.int8
    np.testing.assert_array_equal(np.abs(steps).max((0, 1, 2)), levels)
    np.testing.assert_allclose(steps * scales, kernel, atol=(0.501 * scales).max())
    assert (np.abs(steps * scales - kernel) <= 0.501 * scales).all()


@pytest.mark.parametrize(("dead", "bits"), [(False, 8), (True, 8), (False, 7)])
def test_what_training_sees_is_what_a_file_holds(dead, bits):
    """To the bit, in a compiled program too: of many weights some are nearly half way between two integers."""
    kernel = np.random.default_rng(2).normal(size=(64, 3, 1000)).astype(np.float32)
    if dead:
        kernel[..., ::2] = 0
    steps, scales = quantize_kernel(kernel, bits)
    assert np.isfinite(scales).all() and (scales > 0).all()
    np.testing.assert_array_equal(jax.jit(fake_quantize_kernel, static_argnums=1)(kernel, bits), steps * scales)
    np.testing.assert_array_equal(jax.grad(lambda x: (2 * fake_quantize_kernel(x, bits)).sum())(kernel), 2)
