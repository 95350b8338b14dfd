"""Losses and top-k of a batch against torch, timm or plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.ops.loss import (
    binary_cross_entropy,
    cross_entropy,
    distillation,
    feature_distance,
    in_top,
    jensen_shannon_divergence,
    soft_cross_entropy,
    soft_targets,
)

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(6, 9)), RNG.integers(0, 9, 6)
TEACHER = 3 * RNG.normal(size=(6, 9))
TARGETS = RNG.dirichlet(np.ones(9), 6)  # as after mixing: every class has a share


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_formulas(x64, smoothing):
    log_shares = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    targets = (1 - smoothing) * np.eye(9)[LABELS] + smoothing / 9
    losses = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), smoothing)
    np.testing.assert_allclose(losses, -(targets * log_shares).sum(1), rtol=1e-12)


def value_and_gradient(loss, x):
    """Of the batch's mean, compiled."""
    return jax.jit(jax.value_and_grad(lambda x: loss(x).mean()))(jnp.asarray(x))


def assert_equals_torch(loss, reference, x):
    """The mean loss and its gradient to the inputs, in float64."""
    import torch

    inputs = torch.tensor(x, requires_grad=True)
    expected = reference(inputs)
    (expected_gradient,) = torch.autograd.grad(expected, inputs)
    value, gradient = value_and_gradient(loss, x)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient.numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_are_timms(smoothing, timm):
    import torch
    from timm.data.mixup import mixup_target

    expected = mixup_target(torch.tensor(LABELS), 9, 1.0, smoothing)
    targets = soft_targets(jnp.asarray(LABELS), 9, smoothing)
    assert targets.dtype == jnp.float32
    np.testing.assert_allclose(targets, expected.numpy(), rtol=1e-6)
    assert soft_targets(jnp.asarray(LABELS), 9, smoothing, jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_cross_entropy_equals_timm(smoothing, timm, x64):
    import torch
    from timm.loss.cross_entropy import LabelSmoothingCrossEntropy

    reference, labels = LabelSmoothingCrossEntropy(smoothing), torch.tensor(LABELS)
    assert_equals_torch(
        lambda x: cross_entropy(x, jnp.asarray(LABELS), smoothing), lambda x: reference(x, labels), LOGITS
    )


def test_soft_cross_entropy_equals_timm(timm, x64):
    import torch
    from timm.loss.cross_entropy import SoftTargetCrossEntropy

    reference, targets = SoftTargetCrossEntropy(), torch.tensor(TARGETS)
    assert_equals_torch(lambda x: soft_cross_entropy(x, jnp.asarray(TARGETS)), lambda x: reference(x, targets), LOGITS)


@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_binary_cross_entropy_equals_timm(hard, threshold, sum_classes, timm, x64):
    """Of soft targets, and of labels, which timm smooths itself."""
    import torch
    from timm.loss.binary_cross_entropy import BinaryCrossEntropy

    reference = BinaryCrossEntropy(0.1, target_threshold=threshold, sum_classes=sum_classes)
    targets = soft_targets(jnp.asarray(LABELS), 9, 0.1, jnp.float64) if hard else jnp.asarray(TARGETS)
    torch_targets = torch.tensor(LABELS if hard else TARGETS)
    assert_equals_torch(
        lambda x: binary_cross_entropy(x, targets, threshold, sum_classes),
        lambda x: reference(x, torch_targets),
        LOGITS,
    )


def test_a_target_at_the_threshold_counts_as_0():
    targets = jnp.array([[0.25, 0.5]])
    expected = binary_cross_entropy(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 1.0]]))
    np.testing.assert_array_equal(binary_cross_entropy(jnp.array([[1.0, 2.0]]), targets, 0.25), expected)


@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_jensen_shannon_loss_equals_timm(smoothing, scale, timm, x64):
    """Also where views are so sure that for some classes even their mean is below its lower limit."""
    import torch
    from timm.loss.jsd import JsdCrossEntropy

    views, labels = scale * RNG.normal(size=(18, 9)), torch.tensor(np.tile(LABELS, 3))
    views[:, 4] -= 3 * scale
    reference = JsdCrossEntropy(3, 12, smoothing)

    def loss(x):
        clean = cross_entropy(x[:6], jnp.asarray(LABELS), smoothing)
        return clean + 12 * jensen_shannon_divergence(x.reshape(3, 6, 9))

    assert_equals_torch(loss, lambda x: reference(x, labels), views)


def test_views_that_agree_do_not_diverge(x64):
    views = jnp.asarray(np.stack([LOGITS, LOGITS + 2.0]))
    np.testing.assert_allclose(jensen_shannon_divergence(views), 0, atol=1e-12)
    assert (jensen_shannon_divergence(jnp.asarray(np.stack([LOGITS, TEACHER]))) > 0.01).all()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_is_the_divergence_from_the_teacher(temperature, timm, x64):
    import torch
    from torch.nn import functional

    def reference(x):
        teacher = functional.log_softmax(torch.tensor(TEACHER) / temperature, dim=-1)
        student = functional.log_softmax(x / temperature, dim=-1)
        divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return divergence * temperature**2

    assert_equals_torch(lambda x: distillation(x, jnp.asarray(TEACHER), temperature), reference, LOGITS)


def test_hard_distillation_takes_the_teachers_guess_for_the_label(timm, x64):
    import torch
    from torch.nn import functional

    guess = torch.tensor(TEACHER.argmax(1))
    assert_equals_torch(
        lambda x: distillation(x, jnp.asarray(TEACHER), 3.0, hard=True),
        lambda x: functional.cross_entropy(x, guess),
        LOGITS,
    )


@pytest.mark.parametrize("hard", [False, True])
def test_a_teacher_learns_nothing(hard):
    gradient = jax.grad(lambda teacher: distillation(jnp.asarray(LOGITS), teacher, 2.0, hard).sum())
    np.testing.assert_array_equal(gradient(jnp.asarray(TEACHER)), 0)


@pytest.mark.parametrize("side", [5, 7, 12])
def test_the_distance_of_maps_is_torchs(side, timm, x64):
    """Of a teacher's map resized to the student's, which is 7 x 7: a smaller one, as large, and a larger one."""
    import torch
    from torch.nn import functional

    maps, other = RNG.normal(size=(6, 7, 7, 4)), RNG.normal(size=(6, side, side, 4))

    def reference(x):
        first = torch.tensor(other).permute(0, 3, 1, 2)
        resized = functional.interpolate(first, (7, 7), mode="bilinear", antialias=True, align_corners=False)
        return functional.mse_loss(x, resized.permute(0, 2, 3, 1))

    assert_equals_torch(lambda x: feature_distance(x, jnp.asarray(other)), reference, maps)
    gradient = jax.grad(lambda teacher: feature_distance(jnp.asarray(maps), teacher).sum())(jnp.asarray(other))
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("shape", "other"), [((6, 9), (6, 8)), ((6, 9), (1, 9)), ((6, 9), (6, 1, 1, 9)), ((6, 7, 9), (6, 7, 9))]
)
def test_features_of_other_shapes_are_refused(shape, other):
    with pytest.raises(ValueError, match="expected"):
        feature_distance(jnp.zeros(shape), jnp.zeros(other))


# Of logits, beside others and targets of a dtype.
LOSSES = {
    "cross_entropy": lambda x, dtype: cross_entropy(x, jnp.asarray(LABELS), 0.1),
    "soft_cross_entropy": lambda x, dtype: soft_cross_entropy(x, jnp.asarray(TARGETS, dtype)),
    "binary_cross_entropy": lambda x, dtype: binary_cross_entropy(x, jnp.asarray(TARGETS, dtype), 0.2),
    "jensen_shannon": lambda x, dtype: jensen_shannon_divergence(jnp.stack([x, jnp.asarray(TEACHER, dtype)])),
    "distillation": lambda x, dtype: distillation(x, jnp.asarray(TEACHER, dtype), 2.0),
    "hard distillation": lambda x, dtype: distillation(x, jnp.asarray(TEACHER, dtype), 2.0, hard=True),
    "features": lambda x, dtype: feature_distance(x, jnp.asarray(TEACHER, dtype)),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(name, dtype):
    logits = jnp.asarray(LOGITS, dtype)
    losses = LOSSES[name](logits, dtype)
    assert losses.shape == (6,) and losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, LOSSES[name](logits.astype(jnp.float32), dtype), rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_logits_that_are_very_sure_give_numbers(name):
    """Exponentials of them overflow float32, or vanish in it."""
    loss = jax.vmap(jax.value_and_grad(lambda x: LOSSES[name](x, jnp.float32).sum()))
    for values in loss(jnp.stack([jnp.asarray(scale * LOGITS) for scale in (0.0, 300.0, 1e4)])):
        assert jnp.isfinite(values).all()


@pytest.mark.parametrize("shape", [(6, 1, 1, 9), (6, 9, 1), (5, 9), (9,)])
def test_shapes_that_would_broadcast_are_refused(shape):
    """Logits of shape (N, 1, 1, classes) once made every example's loss an N x N affair."""
    with pytest.raises(ValueError, match="expected"):
        cross_entropy(jnp.zeros(shape), jnp.asarray(LABELS))


@pytest.mark.parametrize("loss", [soft_cross_entropy, binary_cross_entropy, distillation])
@pytest.mark.parametrize(
    ("shape", "other"), [((6, 9), (6, 1)), ((6, 9), (9,)), ((6, 9), (6,)), ((6, 1, 9), (6, 1, 9)), ((9,), (9,))]
)
def test_targets_that_would_broadcast_are_refused(loss, shape, other):
    with pytest.raises(ValueError, match="expected"):
        loss(jnp.zeros(shape), jnp.zeros(other))


def test_other_dimensions_of_views_and_labels_are_refused():
    with pytest.raises(ValueError, match="expected"):
        jensen_shannon_divergence(jnp.zeros((6, 9)))
    with pytest.raises(ValueError, match="expected"):
        soft_targets(jnp.zeros((6, 1), jnp.int32), 9)


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_in_top_is_what_sorting_says(k):
    expected = [label in np.argsort(-row)[:k] for row, label in zip(LOGITS, LABELS, strict=True)]
    assert in_top(jnp.asarray(LOGITS), jnp.asarray(LABELS), k).tolist() == expected


def test_ties_go_to_the_lower_class_and_nan_is_never_right():
    logits = jnp.array([[1.0, 1.0], [1.0, 1.0], [jnp.nan, jnp.nan], [2.0, jnp.nan]])
    assert in_top(logits, jnp.array([0, 1, 0, 0]), 1).tolist() == [True, False, False, False]
