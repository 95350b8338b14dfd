"""Initial values: their distribution, and what they depend on."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.arch.lower import lower
from jeffnet.arch.spec import ModelSpec
from jeffnet.arch.summary import array_specs
from jeffnet.arch.zoo import model_plan
from jeffnet.linen import ImageClassifier, to_canonical
from jeffnet.ops.init import conv_kernel_init, dense_kernel_init, initial_arrays, new_classifier

PLAN = model_plan("mnasnet_small", num_classes=100)

# Every kind of layer once, wide enough to tell deviations.
WIDE = lower(
    ModelSpec(stages=(("er_r1_k3_s1_e4_c32",), ("ir_r1_k3.5.7_a1.1_p1.1_s2_e6_c64_se0.5",)), stem=32, features=1536),
    num_classes=100,
)


def _deviation(spec):
    """`sqrt(2 / fan_out)`, the fan-out of a depthwise kernel being its height times its width."""
    height, width, _, features = spec.shape
    return math.sqrt(2 / (height * width * features / spec.groups))


@pytest.fixture(scope="module", params=["ours", "linen"])
def arrays(request):
    """Ours, and what Linen's own initialisation draws."""
    if request.param == "ours":
        return initial_arrays(WIDE, 0)
    return to_canonical(jax.jit(ImageClassifier(WIDE).init)(jax.random.key(0), jnp.ones((1, 8, 8, 3))), WIDE)


def test_convolutions_are_normal_with_the_papers_variance(arrays):
    """Each kernel on its own, depthwise ones included: mean, deviation and tails within six standard errors."""
    kinds = set()
    for name, spec in array_specs(WIDE).items():
        if len(spec.shape) != 4 or spec.leaf != "kernel":
            continue
        values = np.asarray(arrays[name], np.float64) / _deviation(spec)
        error = 1 / math.sqrt(values.size)
        assert abs(values.mean()) < 6 * error, name
        assert abs(values.std() - 1) < 6 * error, name
        kinds.add(spec.groups > 1)
    assert kinds == {True, False}
    head = np.asarray(arrays["conv_head.kernel"], np.float64) / _deviation(array_specs(WIDE)["conv_head.kernel"])
    # A normal distribution has 4.55 % beyond two deviations and a few in 300,000 beyond four: no truncation.
    assert abs((np.abs(head) > 2).mean() - 0.0455) < 0.003
    assert 4 < np.abs(head).max() < 6


def test_the_classifier_is_uniform(arrays):
    """Within 1 / sqrt(classes)."""
    values = np.asarray(arrays["classifier.kernel"], np.float64)
    reach = 1 / math.sqrt(100)
    assert values.shape == (1536, 100)
    assert reach * 0.999 < values.max() <= reach and -reach <= values.min() < -reach * 0.999
    shares = np.histogram(values, 10, (-reach, reach))[0] / values.size
    np.testing.assert_allclose(shares, 0.1, atol=0.01)


def test_the_rest_is_0_or_1(arrays):
    for name, spec in array_specs(WIDE).items():
        if spec.leaf != "kernel":
            expected = {"bias": 0, "mean": 0, "scale": 1, "var": 1}[spec.leaf]
            assert (np.asarray(arrays[name]) == expected).all(), name


@pytest.mark.parametrize(("shape", "groups"), [((3, 3, 1, 4096), 4096), ((3, 3, 64, 512), 4), ((1, 1, 256, 128), 1)])
def test_initialisers_know_their_groups(shape, groups):
    values = conv_kernel_init(groups)(jax.random.key(0), shape)
    fan_out = shape[0] * shape[1] * shape[3] / groups
    assert float(values.std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)


def test_initialisers_keep_the_dtype():
    assert conv_kernel_init(1)(jax.random.key(0), (1, 1, 8, 8), jnp.bfloat16).dtype == jnp.bfloat16
    assert dense_kernel_init(jax.random.key(0), (8, 8), jnp.bfloat16).dtype == jnp.bfloat16


def test_names_shapes_and_order_are_the_plans():
    arrays = initial_arrays(PLAN, 0)
    assert [(name, array.shape) for name, array in arrays.items()] == [
        (name, spec.shape) for name, spec in array_specs(PLAN).items()
    ]


def test_another_classifier_leaves_the_trunk_alone():
    """Each array depends on the seed and on its own name alone."""
    wide, narrow = initial_arrays(PLAN, 3), initial_arrays(model_plan("mnasnet_small", num_classes=10), 3)
    for name in wide:
        if not name.startswith("classifier"):
            np.testing.assert_array_equal(wide[name], narrow[name])
    assert narrow["classifier.kernel"].shape == (1280, 10)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0, 1),
        (0, 2**40),
        (jax.random.key(0), jax.random.key(1)),
        (jax.random.key(1), jax.random.fold_in(jax.random.key(1), 0)),
        (jax.random.PRNGKey(0), jax.random.PRNGKey(1)),
    ],
    ids=["seeds", "large-seed", "keys", "folded", "raw-keys"],
)
def test_the_seed_decides(one, other):
    first, again, second = (initial_arrays(PLAN, rng)["conv_stem.kernel"] for rng in (one, one, other))
    np.testing.assert_array_equal(first, again)
    assert (first != second).mean() > 0.99


def test_a_key_and_its_raw_form_are_one_seed():
    first, second = (
        initial_arrays(PLAN, key)["conv_stem.kernel"] for key in (jax.random.key(7), jax.random.PRNGKey(7))
    )
    np.testing.assert_array_equal(first, second)


def test_kernels_of_one_shape_differ():
    """Names are part of the seed: otherwise all repetitions of a block would start alike."""
    arrays = initial_arrays(model_plan("efficientnet_b0"), 0)
    kernels = [arrays[f"blocks.5.{index}.conv_dw.kernel"] for index in (1, 2, 3)]
    assert (kernels[0] != kernels[1]).mean() > 0.99 and (kernels[1] != kernels[2]).mean() > 0.99


@pytest.mark.parametrize("rng", [-1, "0", 1.5, None, jnp.ones(2)], ids=repr)
def test_what_is_no_seed_is_an_error(rng):
    with pytest.raises(ValueError, match="rng"):
        initial_arrays(PLAN, rng)


@pytest.mark.parametrize(
    ("dtype", "statistics"), [(jnp.bfloat16, "float32"), (jnp.float16, "float32"), (np.float32, "float32")]
)
def test_parameters_have_the_dtype_and_statistics_at_least_float32(dtype, statistics):
    for name, array in initial_arrays(PLAN, 0, dtype).items():
        assert array.dtype == (statistics if array_specs(PLAN)[name].leaf in ("mean", "var") else np.dtype(dtype)), name


def test_float64_is_drawn_in_float64():
    arrays = initial_arrays(PLAN, 0, np.float64)
    assert {array.dtype for array in arrays.values()} == {np.dtype("float64")}
    kernel = arrays["conv_head.kernel"]
    assert (kernel != kernel.astype(np.float32)).mean() > 0.9


def test_a_new_classifier_starts_small():
    """So that the first loss is that of equally probable classes, whatever their number."""
    plan = model_plan("efficientnet_b0", num_classes=10)
    arrays = new_classifier(plan, 0)
    assert list(arrays) == ["classifier.kernel", "classifier.bias"]
    kernel = arrays["classifier.kernel"]
    assert kernel.shape == (1280, 10) and kernel.dtype == np.float32
    assert kernel.std() == pytest.approx(0.01, rel=0.03) and not arrays["classifier.bias"].any()
    np.testing.assert_array_equal(new_classifier(plan, 0)["classifier.kernel"], kernel)
    assert (new_classifier(plan, 1)["classifier.kernel"] != kernel).any()
    assert not new_classifier(model_plan("efficientnet_b0", num_classes=0), 0)
