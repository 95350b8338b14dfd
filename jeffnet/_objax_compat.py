"""Objax on a current JAX.

Objax 1.8.0 asks, at every assignment to a variable, whether the array is spread over devices by `jax.pmap`: it looks
for `jax.sharding.PmapSharding`, which JAX 0.10 no longer has, as `pmap` itself no longer makes such arrays. So every
`Var.assign` fails, and with it `objax.Jit`, `objax.GradValues`, `objax.Vectorize`, optimizers and loading.

Where JAX has no such sharding, no array can have it, and the question is answered with no. That is all that is changed.
`objax.Parallel` and `VarCollection.replicate` need more of the old `pmap` and stay broken: `objax.Jit` over a sharded
batch does their work.
"""

from types import ModuleType
from typing import Any

import jax

from jeffnet.system.extras import install

try:
    import objax
except ModuleNotFoundError as error:
    if error.name not in ("objax", "six"):  # six: Objax needs it without saying so
        raise
    raise ModuleNotFoundError(f"the Objax models need Objax: {install('objax')}", name=error.name) from error


def mend(package: ModuleType) -> bool:
    """Make assignments to Objax's variables work; does nothing where they do.

    Args:
      package: objax.

    Returns:
      Whether there was anything to mend.
    """
    if hasattr(jax.sharding, "PmapSharding"):
        return False
    package.util.check.split_shape_and_device = _shape_on_no_device
    return True


def _shape_on_no_device(array: Any) -> tuple[None, tuple[int, ...]]:
    """Objax's answer for an array that `pmap` did not make: the number of its devices, and its shape on each."""
    return None, array.shape


mend(objax)
