"""Batch statistics and normalisation: formulas, precision, dtypes, several devices, and which form they take."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.backends import BACKENDS, load_backend
from jeffnet.ops import native
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.conv import use_lowering
from jeffnet.ops.norm import batch_norm, batch_statistics, norm_inference, norm_train
from jeffnet.ops.precision import at_least_float32
from jeffnet.weights.start import start_model


def _draw(*shape):
    return np.random.default_rng(0).normal(2.0, 3.0, shape)


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (7, 3), (2, 1, 1, 3)])
def test_statistics(shape, x64):
    """The biased variance normalises, the unbiased one is what running statistics keep."""
    x = _draw(*shape)
    axes = tuple(range(len(shape) - 1))
    mean, var, unbiased = batch_statistics(jnp.asarray(x))
    np.testing.assert_allclose(mean, x.mean(axes), rtol=1e-13)
    np.testing.assert_allclose(var, x.var(axes), rtol=1e-13)
    np.testing.assert_allclose(unbiased, x.var(axes, ddof=1), rtol=1e-13)


def test_a_single_value_has_no_variance():
    """The unbiased variance of one value is undefined: it is 0, not a division by zero."""
    mean, var, unbiased = batch_statistics(jnp.full((1, 1, 1, 2), 5.0))
    np.testing.assert_array_equal(mean, [5, 5])
    np.testing.assert_array_equal(var, [0, 0])
    np.testing.assert_array_equal(unbiased, [0, 0])


def test_a_large_mean_does_not_cancel():
    """In float32 E[x^2] - E[x]^2 would lose all digits of a deviation of 1 around 10,000."""
    x = 1e4 + np.random.default_rng(0).normal(size=(64, 4, 4, 1))
    _, var, _ = batch_statistics(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_statistics_are_float32(dtype):
    assert {value.dtype for value in batch_statistics(jnp.ones((2, 2, 2, 3), dtype))} == {jnp.dtype(jnp.float32)}
    assert at_least_float32(dtype) == jnp.float32


def test_statistics_of_float64_are_float64(x64):
    assert {value.dtype for value in batch_statistics(jnp.ones((2, 3), jnp.float64))} == {jnp.dtype(jnp.float64)}
    assert at_least_float32(jnp.bfloat16, jnp.float64) == jnp.float64


def test_float16_statistics_do_not_overflow():
    """The sum of 60,000 values of 10, and the squares of 1,000, are beyond float16."""
    mean, var, _ = batch_statistics(jnp.asarray([[1000.0], [-1000.0]] * 30_000, jnp.float16))
    np.testing.assert_allclose(mean, [0], atol=1e-3)
    np.testing.assert_allclose(var, [1e6], rtol=1e-5)


def test_members_of_a_mapped_axis_form_one_batch(x64):
    x = _draw(4, 2, 3, 3, 5)
    mapped = jax.vmap(lambda part: batch_statistics(part, "batch"), axis_name="batch")(jnp.asarray(x))
    whole = batch_statistics(jnp.asarray(x.reshape(8, 3, 3, 5)))
    for parts, value in zip(mapped, whole, strict=True):
        np.testing.assert_allclose(parts, np.broadcast_to(value, parts.shape), rtol=1e-12)


def test_normalisation(x64):
    x, rng = _draw(4, 5, 6, 3), np.random.default_rng(1)
    mean, scale, bias = rng.normal(size=(3, 3))
    var = rng.uniform(0.5, 2, 3)
    normalized = norm_inference(*map(jnp.asarray, (x, mean, var, scale, bias)), 1e-3, jnp.float64)
    np.testing.assert_allclose(normalized, (x - mean) / np.sqrt(var + 1e-3) * scale + bias, rtol=1e-12, atol=1e-12)


def test_normalisation_rounds_only_its_result():
    """bfloat16 has 8 bits: subtracting a mean of 100 in it would leave an error of 0.25."""
    x = jnp.asarray([[100.5], [99.5]], jnp.bfloat16)
    ones = jnp.ones(1)
    y = norm_inference(x, 100 * ones, 0.25 * ones, ones, 0 * ones, 0.0, jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(y, np.float32), [[1], [-1]])


# ------------------------------------------------------------------------------------------------ with its activation

EPSILON = 1e-3


def _arguments(*shape, dtype=jnp.float32):
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(each, dtype) for each in (_draw(*shape), *rng.normal(1, 0.3, (2, shape[-1]))))


@pytest.mark.parametrize("act", [None, "silu", "relu6"])
def test_training_equals_its_parts(act, x64):
    """What goes into the running statistics is the unbiased variance."""
    x, scale, bias = _arguments(4, 3, 2, 17, dtype=jnp.float64)
    y, mean, var = norm_train(x, scale, bias, EPSILON, jnp.float64, act)
    normal = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + EPSILON) * scale + bias
    np.testing.assert_allclose(y, ACTIVATIONS[act](normal) if act else normal, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(var, np.var(x, (0, 1, 2), ddof=1), rtol=1e-12)


@pytest.mark.parametrize("act", [None, "silu", "relu6"])
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_training_in_cpp_equals_the_composition(rows, act):
    if not native.available():
        pytest.skip(f"no C++ kernels: {native.failure()}")
    arguments = _arguments(rows, 64)
    assert _form(*arguments, act=act) == "cpp"
    ours = norm_train(*arguments, EPSILON, jnp.float32, act)
    with use_lowering("xla"):
        wanted = norm_train(*arguments, EPSILON, jnp.float32, act)
    for value, reference in zip(ours, wanted, strict=True):
        assert (value.shape, value.dtype) == (reference.shape, reference.dtype)
        np.testing.assert_allclose(value, reference, rtol=1e-5, atol=2e-6)


def test_inference_equals_its_parts(x64):
    x, scale, bias = _arguments(4, 3, 2, 17, dtype=jnp.float64)
    mean, var = scale / 2, bias**2
    for act in (None, "silu"):
        normal = (x - mean) / np.sqrt(var + EPSILON) * scale + bias
        wanted = ACTIVATIONS[act](normal) if act else normal
        y, moved = batch_norm(x, (mean, var, scale, bias), EPSILON, x.dtype, act, keep=None)
        np.testing.assert_allclose(y, wanted, rtol=1e-12)
        assert moved is None


def _form(x, scale, bias, dtype=jnp.float32, **options):
    """'cpp' where the C++ kernels are called, 'primitive' where they could be, 'plain' elsewhere."""
    function = jax.jit(lambda *inputs: norm_train(*inputs, EPSILON, dtype, **options))
    if "custom_call @jeffnet" in function.lower(x, scale, bias).as_text():
        return "cpp"
    return "primitive" if "norm_act_train" in str(jax.make_jaxpr(function)(x, scale, bias)) else "plain"


def test_where_cpp_computes():
    """Float32 from a vector's channels up, and where nothing is asked of it that it does not do."""
    cpp, lanes = ("cpp", native.load().jeffnet_vector_floats()) if native.available() else ("plain", 16)
    assert _form(*_arguments(2, 3, 3, lanes)) == _form(*_arguments(2, lanes), act="silu") == cpp
    assert _form(*_arguments(2, 3, 3, lanes - 1)) == "plain"
    x, scale, bias = _arguments(2, 3, 3, lanes)
    half = x.astype(jnp.bfloat16)
    assert (
        _form(half, scale, bias, jnp.bfloat16)
        == _form(half, scale, bias)
        == _form(x, scale, bias, jnp.bfloat16)
        == "plain"
    )
    assert _form(x, scale.astype(jnp.bfloat16), bias) == "plain"
    with use_lowering("native"):
        assert _form(x, scale, bias) == cpp
    for name in ("shifted", "xla"):
        with use_lowering(name):
            assert _form(x, scale, bias) == "plain"
    with jax.enable_x64(True):
        assert _form(*_arguments(2, 3, 3, lanes, dtype=jnp.float64), jnp.float64) == "plain"
        assert _form(x, scale, bias) == cpp


def test_a_mapped_axis_is_left_to_the_composition():
    """Its members' sums must meet in the middle."""
    x, scale, bias = _arguments(2, 3, 5, 5, 32)
    mapped = jax.vmap(lambda part: norm_train(part, scale, bias, EPSILON, x.dtype, "silu", "batch"), axis_name="batch")
    assert "custom_call @jeffnet" not in jax.jit(mapped).lower(x).as_text()
    assert "norm_act_train" not in str(jax.make_jaxpr(mapped)(x))
    wanted = norm_train(x.reshape(6, 5, 5, 32), scale, bias, EPSILON, x.dtype, "silu")
    y, mean, var = mapped(x)
    np.testing.assert_allclose(y.reshape(6, 5, 5, 32), wanted[0], rtol=1e-4, atol=1e-5)
    for parts, whole in ((mean, wanted[1]), (var, wanted[2])):
        np.testing.assert_allclose(parts, np.broadcast_to(whole, parts.shape), rtol=1e-5)


def test_other_platforms_take_the_composition(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert _form(*_arguments(2, 3, 3, 64)) == "plain"


# ------------------------------------------------------------------------------------------------- a step in training


def _step(backend, dtype, form):
    """Gradients of a small network's loss, and its updated statistics, by canonical name."""
    start = start_model("small_of_the_tests", num_classes=5, drop_rate=0.0, drop_path_rate=0.0)
    arrays = {name: jnp.asarray(array, dtype) for name, array in start.arrays.items()}
    draw = np.random.default_rng(0).normal
    images, weights = jnp.asarray(draw(size=(8, 16, 16, 3)), dtype), jnp.asarray(draw(size=(8, 5)), dtype)

    def loss(arrays):
        changed = replace(start, arrays=arrays, dtype=dtype, param_dtype=dtype, rng=jax.random.key(0))
        logits, updated = load_backend(backend).training(changed, images)
        return (logits * weights).sum(), updated

    with use_lowering(form):
        step = jax.jit(jax.grad(loss, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})
        lowered = step.lower(arrays)
    gradients, updated = lowered.compile()(arrays)
    outputs = {f"gradient of {name}": array for name, array in gradients.items() if name not in updated} | updated
    return jax.tree.map(np.asarray, outputs), "custom_call @jeffnet_normalize_gradient" in lowered.as_text()


@pytest.fixture(scope="module")
def exact(small_model):
    with jax.enable_x64(True):
        return _step("functional", jnp.float64, "xla")[0]


def _error(ours, exact):
    """The largest difference over the largest magnitude of an array; of some, which are 0, over what others have."""
    assert ours.keys() == exact.keys() and any(name.endswith("var") for name in ours)
    least = 0.01 * max(np.abs(array).max() for array in exact.values())
    return max(np.abs(ours[name] - array).max() / max(np.abs(array).max(), least) for name, array in exact.items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_of_every_backend(backend, exact):
    """In float64, where nothing of it is in C++, and in float32, where all wide norms are."""
    with jax.enable_x64(True):
        ours, in_cpp = _step(backend, jnp.float64, "auto")
    assert not in_cpp and _error(ours, exact) < 1e-10
    ours, in_cpp = _step(backend, jnp.float32, "auto")
    # XLA's float32 is off by 1.5e-5 too.
    assert in_cpp == native.available() and _error(ours, exact) < 5e-5
