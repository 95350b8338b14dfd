"""Pooling over a picture, over windows, and by a fixed filter."""

import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.arch.lower import GLOBAL_POOLS
from jeffnet.errors import InputError
from jeffnet.ops.pool import downsample, global_pool, pool_windows

X = np.random.default_rng(0).normal(size=(2, 3, 4, 5))

EXPECTED = {
    "avg": X.mean((1, 2), keepdims=True),
    "max": X.max((1, 2), keepdims=True),
    "avgmax": (X.mean((1, 2), keepdims=True) + X.max((1, 2), keepdims=True)) / 2,
    "none": X,
}


@pytest.mark.parametrize("kind", GLOBAL_POOLS)
def test_values(kind, x64):
    np.testing.assert_allclose(global_pool(jnp.asarray(X), kind), EXPECTED[kind], rtol=1e-13)


@pytest.mark.parametrize("kind", GLOBAL_POOLS)
def test_dtypes_stay(kind):
    assert global_pool(jnp.asarray(X, jnp.bfloat16), kind).dtype == jnp.bfloat16


@pytest.mark.parametrize("side", [1, 2, 3])
def test_every_window_is_averaged(side, x64):
    found = pool_windows(jnp.asarray(X), side)
    expected = [[X[:, i : i + side, j : j + side].mean((1, 2)) for j in range(5 - side)] for i in range(4 - side)]
    np.testing.assert_allclose(found, np.transpose(expected, (2, 0, 1, 3)), rtol=1e-12)


def test_a_window_larger_than_the_map_is_an_error():
    with pytest.raises(InputError, match="last map is 3 x 4, the windows of test-time pooling 4 x 4"):
        pool_windows(jnp.asarray(X), 4)


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (2, 5, 7, 3), (1, 2, 3, 1), (0, 5, 4, 3)])
@pytest.mark.parametrize(("taps", "padding"), [((0.5, 0.5), 0), ((0.25, 0.5, 0.25), 1), ((0.5, 0.3, 0.2), 1)])
def test_downsampling_is_a_strided_filter(taps, padding, shape, x64):
    """At even and odd sizes; the last window is not symmetric, so that its ends cannot be confused."""
    x = np.random.default_rng(0).normal(size=shape)
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((size + 2 * padding - len(taps)) // 2 + 1 for size in shape[1:3])
    expected = sum(
        down * across * padded[:, i : i + 2 * height : 2, j : j + 2 * width : 2][:, :height, :width]
        for i, down in enumerate(taps)
        for j, across in enumerate(taps)
    )
    np.testing.assert_allclose(downsample(jnp.asarray(x), taps, padding), expected, atol=1e-13)


def test_a_map_smaller_than_the_filter_cannot_be_halved():
    with pytest.raises(InputError, match="1 x 3 cannot be halved by a filter of 2 x 2"):
        downsample(jnp.ones((1, 1, 3, 2)), (0.5, 0.5), 0)
