"""Drop path: what it drops, and that the mean stays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.ops.stochastic import drop_path


@pytest.mark.parametrize("shape", [(64, 3, 2, 5), (64, 7)])
def test_whole_examples_are_dropped_and_the_others_scaled(shape):
    x = jax.random.uniform(jax.random.key(0), shape, minval=1.0, maxval=2.0)
    dropped = np.asarray(drop_path(x, 0.5, jax.random.key(1)))
    axes = tuple(range(1, len(shape)))
    kept = (dropped != 0).all(axes)
    assert ((dropped == 0).all(axes) | kept).all()
    assert 16 < kept.sum() < 48  # examples draw on their own
    np.testing.assert_allclose(dropped[kept], 2 * np.asarray(x)[kept], rtol=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_the_mean_stays(rate):
    """Over 20,000 examples the share that is dropped is the rate, and the mean 1, within four standard deviations."""
    dropped = np.asarray(drop_path(jnp.ones((20_000, 1)), rate, jax.random.key(0)))
    deviation = (rate * (1 - rate) / 20_000) ** 0.5
    assert abs((dropped == 0).mean() - rate) < 4 * deviation
    assert abs(dropped.mean() - 1) < 4 * deviation / (1 - rate)


def test_rate_0_is_the_identity():
    x = jnp.ones((2, 3))
    assert drop_path(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_other_rates_are_errors(rate):
    with pytest.raises(ValueError, match=r"outside \[0, 1\)"):
        drop_path(jnp.ones((2, 3)), rate, jax.random.key(0))


def test_keys_differ_and_repeat():
    x = jnp.ones((64, 1))
    first, again, other = (drop_path(x, 0.5, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_gradients_pass_through_what_is_kept():
    x = jnp.ones((64, 2))
    gradient = jax.grad(lambda x: drop_path(x, 0.25, jax.random.key(0)).sum())(x)
    np.testing.assert_allclose(gradient, drop_path(x, 0.25, jax.random.key(0)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtypes_stay(dtype):
    assert drop_path(jnp.ones((2, 3), dtype), 0.5, jax.random.key(0)).dtype == dtype


def test_dropped_examples_are_zero_even_where_they_overflowed():
    """0 times infinity would be NaN."""
    assert np.isfinite(drop_path(jnp.full((64, 1), jnp.inf), 0.5, jax.random.key(0))).any()
    values = np.asarray(drop_path(jnp.full((64, 1), jnp.inf), 0.5, jax.random.key(0)))
    assert set(values.ravel().tolist()) == {0.0, float("inf")}
