"""Batch statistics and normalisation: formulas, precision, dtypes, and batches that lie on several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.ops.norm import batch_normalize, batch_statistics, statistics_dtype


def _draw(*shape):
    return np.random.default_rng(0).normal(2.0, 3.0, shape)


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (7, 3), (2, 1, 1, 3)])
def test_statistics(shape, x64):
    """The biased variance normalises, the unbiased one is what running statistics keep."""
    x = _draw(*shape)
    axes = tuple(range(len(shape) - 1))
    mean, var, unbiased = batch_statistics(jnp.asarray(x))
    np.testing.assert_allclose(mean, x.mean(axes), rtol=1e-13)
    np.testing.assert_allclose(var, x.var(axes), rtol=1e-13)
    np.testing.assert_allclose(unbiased, x.var(axes, ddof=1), rtol=1e-13)


def test_a_single_value_has_no_variance():
    """The unbiased variance of one value is undefined: it is 0, not a division by zero."""
    mean, var, unbiased = batch_statistics(jnp.full((1, 1, 1, 2), 5.0))
    np.testing.assert_array_equal(mean, [5, 5])
    np.testing.assert_array_equal(var, [0, 0])
    np.testing.assert_array_equal(unbiased, [0, 0])


def test_a_large_mean_does_not_cancel():
    """In float32 E[x^2] - E[x]^2 would lose all digits of a deviation of 1 around 10,000."""
    x = 1e4 + np.random.default_rng(0).normal(size=(64, 4, 4, 1))
    _, var, _ = batch_statistics(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_statistics_are_float32(dtype):
    assert {value.dtype for value in batch_statistics(jnp.ones((2, 2, 2, 3), dtype))} == {jnp.dtype(jnp.float32)}
    assert statistics_dtype(dtype) == jnp.float32


def test_statistics_of_float64_are_float64(x64):
    assert {value.dtype for value in batch_statistics(jnp.ones((2, 3), jnp.float64))} == {jnp.dtype(jnp.float64)}
    assert statistics_dtype(jnp.bfloat16, jnp.float64) == jnp.float64


def test_float16_statistics_do_not_overflow():
    """The sum of 60,000 values of 10, and the squares of 1,000, are beyond float16."""
    mean, var, _ = batch_statistics(jnp.asarray([[1000.0], [-1000.0]] * 30_000, jnp.float16))
    np.testing.assert_allclose(mean, [0], atol=1e-3)
    np.testing.assert_allclose(var, [1e6], rtol=1e-5)


def test_members_of_a_mapped_axis_form_one_batch(x64):
    x = _draw(4, 2, 3, 3, 5)
    mapped = jax.vmap(lambda part: batch_statistics(part, "batch"), axis_name="batch")(jnp.asarray(x))
    whole = batch_statistics(jnp.asarray(x.reshape(8, 3, 3, 5)))
    for parts, value in zip(mapped, whole, strict=True):
        np.testing.assert_allclose(parts, np.broadcast_to(value, parts.shape), rtol=1e-12)


def test_normalisation(x64):
    x, rng = _draw(4, 5, 6, 3), np.random.default_rng(1)
    mean, scale, bias = rng.normal(size=(3, 3))
    var = rng.uniform(0.5, 2, 3)
    normalized = batch_normalize(*map(jnp.asarray, (x, mean, var, scale, bias)), 1e-3, jnp.float64)
    np.testing.assert_allclose(normalized, (x - mean) / np.sqrt(var + 1e-3) * scale + bias, rtol=1e-12, atol=1e-12)


def test_normalisation_rounds_only_its_result():
    """bfloat16 has 8 bits: subtracting a mean of 100 in it would leave an error of 0.25."""
    x = jnp.asarray([[100.5], [99.5]], jnp.bfloat16)
    ones = jnp.ones(1)
    y = batch_normalize(x, 100 * ones, 0.25 * ones, ones, 0 * ones, 0.0, jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y, np.float32), [[1], [-1]])
