"""Loss and top-k of a batch against torch or plain NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.ops.loss import cross_entropy, in_top

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(6, 9)), RNG.integers(0, 9, 6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_formulas(x64, smoothing):
    log_shares = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    targets = (1 - smoothing) * np.eye(9)[LABELS] + smoothing / 9
    losses = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), smoothing)
    np.testing.assert_allclose(losses, -(targets * log_shares).sum(1), rtol=1e-12)


def test_half_precision_logits_give_a_float32_loss():
    assert cross_entropy(jnp.asarray(LOGITS, jnp.bfloat16), jnp.asarray(LABELS)).dtype == jnp.float32


@pytest.mark.parametrize("shape", [(6, 1, 1, 9), (6, 9, 1), (5, 9), (9,)])
def test_shapes_that_would_broadcast_are_refused(shape):
    """Logits of shape (N, 1, 1, classes) once made every example's loss an N x N affair."""
    with pytest.raises(ValueError, match="expected"):
        cross_entropy(jnp.zeros(shape), jnp.asarray(LABELS))


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_in_top_is_what_sorting_says(k):
    expected = [label in np.argsort(-row)[:k] for row, label in zip(LOGITS, LABELS, strict=True)]
    assert in_top(jnp.asarray(LOGITS), jnp.asarray(LABELS), k).tolist() == expected


def test_ties_go_to_the_lower_class_and_nan_is_never_right():
    logits = jnp.array([[1.0, 1.0], [1.0, 1.0], [jnp.nan, jnp.nan], [2.0, jnp.nan]])
    assert in_top(logits, jnp.array([0, 1, 0, 0]), 1).tolist() == [True, False, False, False]
