"""Attention against its definition, position by position."""

import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.ops.attention import attended_mean, multi_query_attention

pytestmark = pytest.mark.numbers

RNG = np.random.default_rng(0)


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def test_multi_query_attention_is_its_definition(x64):
    """Other numbers of rows, columns, heads, keys and features, so that no two can be confused."""
    heads, depth, features = 3, 4, 5
    query, key, value = (
        RNG.normal(size=shape) for shape in ((2, 3, 2, heads * depth), (2, 2, 2, depth), (2, 2, 2, features))
    )
    expected = np.empty((2, 3, 2, heads * features))
    for n, row, column, head in np.ndindex(2, 3, 2, heads):
        own = query[n, row, column, head * depth : (head + 1) * depth]
        weights = softmax(key[n].reshape(-1, depth) @ own / depth**0.5)
        expected[n, row, column, head * features : (head + 1) * features] = weights @ value[n].reshape(-1, features)
    np.testing.assert_allclose(multi_query_attention(query, key, value, heads), expected, atol=1e-13)


def test_attended_mean_is_its_definition(x64):
    x, scores = RNG.normal(size=(2, 3, 4, 5)), RNG.normal(size=(2, 3, 4, 1))
    expected = [softmax(each.ravel()) @ picture.reshape(-1, 5) for picture, each in zip(x, scores, strict=True)]
    np.testing.assert_allclose(attended_mean(jnp.asarray(x), jnp.asarray(scores))[:, 0, 0], expected, atol=1e-13)


def test_half_precision_sums_in_single():
    """A thousand equal scores: in bfloat16 each weight would be added to a sum that it no longer changes."""
    key, value = jnp.zeros((1, 32, 32, 2), jnp.bfloat16), jnp.ones((1, 32, 32, 1), jnp.bfloat16)
    attended = multi_query_attention(jnp.ones((1, 1, 1, 2), jnp.bfloat16), key, value, 1)
    assert attended.dtype == jnp.bfloat16
    assert abs(float(attended.ravel()[0]) - 1) < 0.01


def test_no_pictures(x64):
    query, key = jnp.zeros((0, 3, 2, 8)), jnp.zeros((0, 2, 2, 4))
    assert multi_query_attention(query, key, key, 2).shape == (0, 3, 2, 8)
    assert attended_mean(key, key[..., :1]).shape == (0, 1, 1, 4)
