"""Objax on a current JAX.

At every assignment to a variable, Objax 1.8.0 checks for `jax.sharding.PmapSharding`, which JAX 0.10 no longer has:
every `Var.assign` fails, and with it `objax.Jit`, `objax.GradValues`, `objax.Vectorize`, optimizers and loading. Where
JAX has no such sharding, no array can have it, so only this check is replaced. `objax.Parallel` and
`VarCollection.replicate` need more of the old `pmap` and stay broken: use `objax.Jit` over a sharded batch instead.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jeffnet.system.extras import install

try:
    import objax
except ModuleNotFoundError as error:
    if error.name not in ("objax", "six"):  # six: Objax needs it without saying so
        raise
    raise ModuleNotFoundError(f"the Objax models need Objax: {install('objax')}", name=error.name) from error


def repair(package: ModuleType) -> bool:
    """Make assignments to Objax's variables work; returns whether there was anything to repair."""
    if hasattr(jax.sharding, "PmapSharding"):
        return False
    package.util.check.split_shape_and_device = _shape_on_no_device
    return True


def _shape_on_no_device(array: Any) -> tuple[None, tuple[int, ...]]:
    """Objax's answer for an array that `pmap` did not make: the number of its devices, and its shape on each."""
    return None, array.shape


def with_tensors(
    variables: objax.VarCollection, tensors: list[Array], function: Callable[[], Array]
) -> tuple[Array, list[Array]]:
    """What a function returns while the variables have other values, and what it leaves in them."""
    before = variables.tensors()
    try:
        variables.assign(tensors)
        return function(), variables.tensors()
    finally:
        for var, tensor in zip(variables, before, strict=True):
            # Unchecked: what was there may stand there again, shapes without arrays too.
            var.assign(tensor, check=False)  # pyright: ignore[reportAttributeAccessIssue]


def generator_of(rng: int | Array) -> objax.random.Generator:
    """A generator of Objax that starts with a seed, or with a key of `jax.random` of any kind."""
    if isinstance(rng, int):
        return objax.random.Generator(rng)
    generator = objax.random.Generator(0)
    if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        if jax.random.key_impl(rng) != jax.random.key_impl(jax.random.key(0)):
            # Objax's keys are bare numbers, which JAX takes for a key of its default kind.
            rng = jax.random.key(jax.random.bits(rng, (), jnp.uint32))
        rng = jax.random.key_data(rng)
    generator.key.assign(rng)
    return generator


repair(objax)
