"""Randomness inside a network."""

import jax
import jax.numpy as jnp
from jax import Array

from jeffnet.errors import ArchitectureError


def drop_path(x: Array, rate: float, rng: Array) -> Array:
    """Stochastic depth: zero whole examples of a residual branch, scale the others to keep the mean.

    Args:
      x: `(N, ...)`, any float dtype.
      rate: probability in [0, 1) that an example is dropped; 0 returns `x` itself.
      rng: one key; examples draw independently.

    Returns:
      Array shaped and typed like `x`.

    Raises:
      ArchitectureError: `rate` outside [0, 1).

    Source: Huang et al., "Deep Networks with Stochastic Depth", arXiv:1603.09382.
    """
    if not 0 <= rate < 1:
        raise ArchitectureError(f"drop path rate {rate} is outside [0, 1)")
    return _dropped(x, rate, rng, (x.shape[0],) + (1,) * (x.ndim - 1))


def dropout(x: Array, rate: float, rng: Array) -> Array:
    """Zero single values, scale the others to keep the mean.

    Args:
      x: any shape and float dtype.
      rate: probability in [0, 1) that a value is dropped; 0 returns `x` itself.
      rng: one key.

    Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", JMLR 15, 2014.
    """
    return _dropped(x, rate, rng, x.shape)


def _dropped(x: Array, rate: float, rng: Array, draws: tuple[int, ...]) -> Array:
    if rate == 0:
        return x
    kept = jax.random.bernoulli(rng, 1 - rate, draws)
    return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)
