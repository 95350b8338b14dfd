"""Norms of single pictures against Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.ops.group_norm import group_norm, layer_norm

RNG = np.random.default_rng(0)
X, SCALE, BIAS = RNG.normal(3, 2, (2, 5, 4, 6)), RNG.uniform(0.5, 1.5, 6), RNG.normal(size=6)


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("act", [None, "silu"])
def test_group_norm_equals_flax(groups, act, x64):
    layer = nn.GroupNorm(groups, epsilon=1e-3, dtype=jnp.float64, use_fast_variance=False)
    expected = layer.apply({"params": {"scale": SCALE, "bias": BIAS}}, X)
    ours = group_norm(jnp.asarray(X), SCALE, BIAS, groups, 1e-3, jnp.float64, act)
    np.testing.assert_allclose(ours, jax.nn.silu(expected) if act else expected, atol=1e-12)


def test_layer_norm_equals_flax(x64):
    layer = nn.LayerNorm(epsilon=1e-3, dtype=jnp.float64, use_fast_variance=False)
    expected = layer.apply({"params": {"scale": SCALE, "bias": BIAS}}, X)
    ours = layer_norm(jnp.asarray(X), SCALE, BIAS, 1e-3, jnp.float64)
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_statistics_of_half_precision_are_single():
    """A mean far above the deviation, which bfloat16 could not sum."""
    x = jnp.asarray(RNG.normal(30, 1, (1, 32, 32, 4)), jnp.bfloat16)
    y = group_norm(x, jnp.ones(4), jnp.zeros(4), 1, 1e-5, jnp.bfloat16)
    expected = group_norm(x.astype(jnp.float32), jnp.ones(4), jnp.zeros(4), 1, 1e-5, jnp.float32)
    assert y.dtype == jnp.bfloat16
    assert float(jnp.abs(y.astype(jnp.float32) - expected).max()) < 0.02
    assert abs(float(expected.mean())) < 1e-3 and abs(float(expected.std()) - 1) < 1e-3


def test_no_pictures():
    assert group_norm(jnp.zeros((0, 5, 4, 6)), jnp.ones(6), jnp.zeros(6), 3, 1e-5, jnp.float32).shape == (0, 5, 4, 6)
