"""Global pooling."""

import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.arch.plan import GLOBAL_POOLS
from jeffnet.ops.pool import global_pool

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
