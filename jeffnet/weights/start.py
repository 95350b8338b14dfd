"""The arrays with which a model starts, in whatever module system it will be."""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jeffnet.arch.plan import Plan
from jeffnet.arch.summary import ArraySpec, array_specs
from jeffnet.ops.init import initial_arrays
from jeffnet.ops.norm import statistics_dtype
from jeffnet.weights.load import load_weights


def array_dtype(spec: ArraySpec, param_dtype: DTypeLike) -> DTypeLike:
    """Parameters have `param_dtype`, running statistics at least float32."""
    return param_dtype if spec.is_parameter else statistics_dtype(param_dtype)


def abstract_arrays(plan: Plan, param_dtype: DTypeLike) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every array by canonical name; allocates nothing."""
    specs = array_specs(plan)
    return {name: jax.ShapeDtypeStruct(spec.shape, array_dtype(spec, param_dtype)) for name, spec in specs.items()}


def starting_arrays(
    plan: Plan,
    *,
    model: str,
    rng: int | Array,
    param_dtype: DTypeLike,
    pretrained: str | os.PathLike | None,
    adapt: bool,
) -> dict[str, Array]:
    """Every array of a model by canonical name: initial values, or those of a weights file.

    Args:
      plan: the model.
      model: its name, for messages.
      rng: seed or key of the initial values.
      param_dtype: of parameters.
      pretrained: a weights file; None starts from initial values.
      adapt: start the classifier anew, and sum or repeat input channels, where the file has other numbers of them.

    Raises:
      WeightsError: the file cannot be read or does not fit.
    """
    arrays: Mapping[str, Any]
    if pretrained is None:
        arrays = initial_arrays(plan, rng, param_dtype)
    else:
        initial = initial_arrays(plan, rng, param_dtype) if adapt else None
        arrays = load_weights(pretrained, plan, model=model, initial=initial)
    specs = array_specs(plan)
    return {name: jnp.asarray(arrays[name], array_dtype(spec, param_dtype)) for name, spec in specs.items()}
