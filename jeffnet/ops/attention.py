"""Attention between the positions of a picture."""

import jax
import jax.numpy as jnp
from jax import Array

from jeffnet.ops.precision import at_least_float32


def multi_query_attention(query: Array, key: Array, value: Array, heads: int) -> Array:
    """Every head's mean of the values, weighted by the softmax of its queries' products with the keys.

    The heads share keys and values. Products and softmax are at least float32.

    Args:
      query: `(N, H, W, heads * D)`, the heads outermost.
      key: `(N, H', W', D)`.
      value: `(N, H', W', E)`.
      heads: number of heads.

    Returns:
      `(N, H, W, heads * E)`, in the dtype of `value`.

    Source: Shazeer, "Fast Transformer Decoding: One Write-Head is All You Need", arXiv:1911.02150.
    """
    count, height, width, _ = query.shape
    depth, features = key.shape[-1], value.shape[-1]
    positions = key.shape[1] * key.shape[2]  # not -1, which an array of no pictures leaves open
    query = query.reshape(count, height * width, heads, depth)
    key, value = key.reshape(count, positions, depth), value.reshape(count, positions, features)
    dtype = at_least_float32(query.dtype)
    scores = jnp.einsum("nqhd,npd->nqhp", query, key, preferred_element_type=dtype) * depth**-0.5
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("nqhp,npe->nqhe", weights, value).reshape(count, height, width, heads * features)


def attended_mean(x: Array, scores: Array) -> Array:
    """The mean over a picture's positions, weighted by the softmax of their scores.

    Args:
      x: `(N, H, W, C)`.
      scores: `(N, H, W, 1)`; their softmax is at least float32.

    Returns:
      `(N, 1, 1, C)`, in the dtype of `x`.
    """
    weights = jax.nn.softmax(scores.astype(at_least_float32(scores.dtype)), axis=(1, 2)).astype(x.dtype)
    return (x * weights).sum((1, 2), keepdims=True)
