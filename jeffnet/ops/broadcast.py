"""Broadcasting without JAX's implicit rank promotion, which `jax_numpy_rank_promotion` can forbid."""

from jax import Array, lax


def over_channels(values: Array, x: Array) -> Array:
    """Values per channel, `(C,)`, reshaped to `(1, ..., 1, C)` with as many axes as `x`."""
    return lax.expand_dims(values, tuple(range(x.ndim - 1)))
