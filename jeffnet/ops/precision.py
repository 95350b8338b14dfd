"""The dtypes of arithmetic that half precision is too coarse for."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


def at_least_float32(*dtypes: DTypeLike) -> np.dtype:
    """float64 if one of the dtypes is, otherwise float32.

    `jnp.promote_types` would say the same, but not where `jax_numpy_dtype_promotion` is 'strict'.
    """
    return jnp.dtype(jnp.float64 if any(jnp.result_type(dtype) == jnp.float64 for dtype in dtypes) else jnp.float32)
