"""Folded norms: the same function in a plan without norms, for every kind of convolution."""

import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.arch.summary import array_specs
from jeffnet.functional import ImageClassifier, to_variables
from jeffnet.inference.folding import fold_norms
from jeffnet.weights.start import start_model

MODELS = ("tiny", "tiny_flat", "tiny_tf")


def start_of(name, dtype):
    """Every array random, so that a norm that is left out, or another's, changes the logits."""
    start, rng = start_model(name, num_classes=7, dtype=dtype, param_dtype=dtype), np.random.default_rng(0)
    arrays = {key: array + 0.3 * rng.uniform(size=array.shape) for key, array in start.arrays.items()}
    return start.plan, arrays


@pytest.mark.parametrize("name", MODELS)
def test_the_folded_plan_computes_the_same(name, tiny_model, x64):
    plan, arrays = start_of(name, jnp.float64)
    images = np.random.default_rng(1).normal(size=(2, 32, 48, 3))
    expected = ImageClassifier(plan, jnp.float64).apply(to_variables(arrays), images)
    folded, less = fold_norms(plan, arrays, np.float64)
    found = ImageClassifier(folded, jnp.float64).apply(to_variables(less), images)
    assert np.std(expected, axis=0).min() > 1e-6  # the logits depend on the images
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_nothing_of_the_norms_is_left(name, tiny_model):
    plan, arrays = start_of(name, jnp.float32)
    folded, less = fold_norms(plan, arrays, jnp.bfloat16)
    assert all(conv.bias and conv.norm is None for conv in folded.convolutions)
    assert {key: array.shape for key, array in less.items()} == {
        key: spec.shape for key, spec in array_specs(folded).items()
    }
    assert list(less) == list(array_specs(folded))
    assert {array.dtype for array in less.values()} == {jnp.dtype(jnp.bfloat16)}
