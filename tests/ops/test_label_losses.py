"""Losses of several labels and of numbers: the papers' formulas, and gradients without NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.errors import ConfigError
from jeffnet.ops.loss import asymmetric_loss, binary_cross_entropy, regression_loss

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(RNG.normal(size=(6, 4)) * 3)
TARGETS = jnp.asarray(RNG.integers(0, 2, (6, 4)).astype(np.float32))


def reference(logits, targets, positive, negative, clip):
    """Equations 4 to 7 of arXiv:2009.14119."""
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    lowered = np.maximum(p - clip, 0)
    has, lacks = (1 - p) ** positive * np.log(p), lowered**negative * np.log(1 - lowered)
    return -(targets * has + (1 - targets) * lacks).mean(1)


@pytest.mark.parametrize(("positive", "negative", "clip"), [(0, 4, 0.05), (1, 4, 0.2), (2, 2, 0), (0, 0, 0)])
def test_it_is_the_papers_formula(positive, negative, clip):
    """The last two are the focal loss and binary cross entropy; mixed targets are weighted sums of both."""
    found = asymmetric_loss(LOGITS, TARGETS, positive=positive, negative=negative, clip=clip)
    np.testing.assert_allclose(found, reference(LOGITS, TARGETS, positive, negative, clip), rtol=1e-5)
    if not positive and not negative:
        np.testing.assert_allclose(found, binary_cross_entropy(LOGITS, TARGETS), rtol=1e-5)
    mixed = asymmetric_loss(
        LOGITS, 0.3 * TARGETS + 0.7 * TARGETS[::-1], positive=positive, negative=negative, clip=clip
    )
    other = asymmetric_loss(LOGITS, TARGETS[::-1], positive=positive, negative=negative, clip=clip)
    np.testing.assert_allclose(mixed, 0.3 * found + 0.7 * other, rtol=1e-5)
    summed = asymmetric_loss(LOGITS, TARGETS, positive=positive, negative=negative, clip=clip, sum_classes=True)
    np.testing.assert_allclose(summed, 4 * found, rtol=1e-5)


@pytest.mark.parametrize(("positive", "negative", "clip"), [(0, 4, 0.05), (1, 1, 0.05), (2, 2, 0), (0, 0, 0)])
def test_gradients_are_finite_wherever_logits_are(positive, negative, clip):
    logits = jnp.asarray([[-200.0, -20.0, -2.95, 0.0, 20.0, 200.0]])
    for targets in (jnp.zeros_like(logits), jnp.ones_like(logits)):

        def loss(logits, targets=targets):
            return asymmetric_loss(logits, targets, positive=positive, negative=negative, clip=clip).sum()

        assert jnp.isfinite(jax.grad(loss)(logits)).all() and jnp.isfinite(loss(logits))


def test_positive_weights_and_regression_are_pytorchs():
    torch = pytest.importorskip("torch")
    functional, weights = torch.nn.functional, np.array([1, 2, 0.5, 4], np.float32)
    logits, targets = (torch.from_numpy(np.asarray(x, np.float32).copy()) for x in (LOGITS, TARGETS))
    wanted = functional.binary_cross_entropy_with_logits(
        logits, targets, pos_weight=torch.from_numpy(weights), reduction="none"
    )
    found = asymmetric_loss(LOGITS, TARGETS, positive=0, negative=0, positive_weights=weights)
    np.testing.assert_allclose(found, wanted.mean(1), rtol=1e-5)
    for name, function in {"l1": functional.l1_loss, "l2": functional.mse_loss}.items():
        wanted = function(logits, targets, reduction="none").mean(1)
        np.testing.assert_allclose(regression_loss(LOGITS, TARGETS, name), wanted, rtol=1e-5)
    wanted = functional.huber_loss(logits, targets, delta=0.7, reduction="none").mean(1)
    np.testing.assert_allclose(regression_loss(LOGITS, TARGETS, "huber", 0.7), wanted, rtol=1e-5)


def test_other_shapes_and_names_are_errors():
    with pytest.raises(ConfigError, match="expected"):
        asymmetric_loss(LOGITS, TARGETS[:, 0], positive=0, negative=4)
    with pytest.raises(ConfigError, match="'l3' is not one of l1, l2, huber"):
        regression_loss(LOGITS, TARGETS, "l3")
