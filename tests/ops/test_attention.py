"""Attention against its definition, position by position."""

import jax.numpy as jnp
import numpy as np

from jeffnet.ops.attention import attended_mean, multi_query_attention

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


def test_scores_of_half_precision_are_single():
    """Large products with small differences, which bfloat16 would round away."""
    small = np.linspace(-1, 1, 17)
    keys = np.stack([np.full(17, 16), small], axis=-1).reshape(1, 17, 1, 2)
    query, key, value = (
        jnp.asarray(each, jnp.bfloat16) for each in (np.reshape([8, 1], (1, 1, 1, 2)), keys, small.reshape(1, 17, 1, 1))
    )
    attended = multi_query_attention(query, key, value, 1)
    assert attended.dtype == jnp.bfloat16
    assert abs(float(attended.ravel()[0]) - softmax(small / 2**0.5) @ small) < 0.005


def test_no_pictures(x64):
    query, key = jnp.zeros((0, 3, 2, 8)), jnp.zeros((0, 2, 2, 4))
    assert multi_query_attention(query, key, key, 2).shape == (0, 3, 2, 8)
    assert attended_mean(key, key[..., :1]).shape == (0, 1, 1, 4)
