"""Models whose norms do nothing but add a bias hold the arrays of the folded network, to the bit."""

import numpy as np
import pytest

from jeffnet.arch.summary import array_specs
from jeffnet.inference.folding import fold_norms
from jeffnet.inference.plain_norms import fixed_parameters, folded_arrays, folded_plan, with_plain_norms
from jeffnet.weights.start import start_model


def check(name):
    start, rng = start_model(name, num_classes=5), np.random.default_rng(0)
    arrays = {
        key: np.asarray(array) * rng.uniform(0.5, 2, array.shape).astype(np.float32)
        + (rng.uniform(0.1, 0.3, array.shape).astype(np.float32) if array.ndim == 1 else 0)
        for key, array in start.arrays.items()
    }
    plan, expected = fold_norms(start.plan, arrays)
    plain = with_plain_norms(start.plan, arrays)
    assert folded_plan(start.plan) == plan
    assert {key: array.shape for key, array in plain.items()} == {
        key: spec.shape for key, spec in array_specs(start.plan).items()
    }
    assert {array.dtype for array in plain.values()} == {np.dtype(np.float32)}
    assert any((plain[key] != arrays[key]).any() for key in plain if key.endswith("kernel"))
    for found in (folded_arrays(start.plan, plain), fold_norms(start.plan, plain)[1]):
        assert found.keys() == expected.keys()
        for key, array in expected.items():
            np.testing.assert_array_equal(found[key], array, err_msg=key)
    # What training may change is in the folded network too: no other number of the model has a say.
    for key in fixed_parameters(start.plan):
        changed = folded_arrays(start.plan, {**plain, key: plain[key] + 1})
        assert all((changed[name] == expected[name]).all() for name in expected), key


@pytest.mark.parametrize("name", ["tiny", "tiny_tf", "tiny_flat"])
def test_nothing_is_lost(name, tiny_model):
    check(name)


def test_nothing_is_lost_of_every_operation(one_operation):
    check(one_operation)
