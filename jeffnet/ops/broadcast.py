"""Arrays made to fit others without JAX's silent promotion of ranks, which `jax_numpy_rank_promotion` can forbid."""

from jax import Array, lax


def over_channels(values: Array, x: Array) -> Array:
    """A value for each channel, `(C,)`, as `(1, ..., 1, C)` with as many axes as `x` has."""
    return lax.expand_dims(values, tuple(range(x.ndim - 1)))
