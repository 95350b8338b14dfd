"""Activations by name equal torch's, by their formulas."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.arch.grammar import ACTIVATION_CODES
from jeffnet.arch.zoo import list_models, model_plan
from jeffnet.ops.activations import ACTIVATIONS

X = np.linspace(-8, 8, 161)

FORMULAS = {
    "relu": np.maximum(X, 0),
    "relu6": np.clip(X, 0, 6),
    "silu": X / (1 + np.exp(-X)),
    "gelu": X / 2 * (1 + np.vectorize(math.erf)(X / math.sqrt(2))),
    "hard_swish": X * np.clip(X + 3, 0, 6) / 6,
    "sigmoid": 1 / (1 + np.exp(-X)),
    "hard_sigmoid": np.clip(X + 3, 0, 6) / 6,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values(name, x64):
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(X)), FORMULAS[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_dtypes_stay(name):
    assert ACTIVATIONS[name](jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16


def test_every_activation_of_the_zoo_is_there():
    used = set(ACTIVATION_CODES.values())
    for model in list_models():
        for op in model_plan(model).operations:
            used |= {conv.act for conv in op.convolutions}
    assert used - {None} == set(ACTIVATIONS)
