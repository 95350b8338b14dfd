"""Averages over time: against timm and plain means, and what they do to a constant."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.ops.average import average_arrays, ema_decay, update_average

RNG = np.random.default_rng(0)
VALUES = [{"kernel": RNG.normal(size=(3, 4)), "stats": [RNG.normal(size=5)]} for _ in range(6)]


def averaged(values, start, **options):
    """Over all values in turn, compiled, the number of updates being traced."""
    update = jax.jit(partial(update_average, **options))
    average = start
    for number, value in enumerate(values):
        average = update(average, value, jnp.int32(number))
    return average


def as_jax(tree, dtype=None):
    return jax.tree.map(lambda array: jnp.asarray(array, dtype), tree)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_exponential_form_equals_timm(decay, timm, x64):
    """Parameters and running statistics over some steps; the counter of batches is copied."""
    import torch
    from timm.utils.model_ema import ModelEmaV3

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).double()
    reference = ModelEmaV3(model, decay=decay)

    def arrays():
        return {name: jnp.asarray(array.detach().numpy().copy()) for name, array in model.state_dict().items()}

    start, values = arrays(), []
    for _ in range(5):
        model(torch.randn(8, 3, dtype=torch.float64))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        reference.update(model)
        values.append(arrays())
    actual = averaged(values, start, form="exponential", decay=decay, warmup=False)
    expected = reference.module.state_dict()
    assert actual.keys() == expected.keys()
    for name, array in actual.items():
        np.testing.assert_allclose(array, expected[name].numpy(), rtol=1e-12, atol=1e-14)
    assert actual["1.num_batches_tracked"] == 5


def test_exponential_form_with_warmup_is_the_formula(x64):
    expected = VALUES[0]["kernel"]
    for number, value in enumerate(VALUES[1:]):
        decay = min(0.3, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value["kernel"]
    average = averaged(as_jax(VALUES[1:]), as_jax(VALUES[0]), form="exponential", decay=0.3, warmup=True)
    np.testing.assert_allclose(average["kernel"], expected, rtol=1e-12)


def test_warmup_follows_a_constant_at_once_and_without_it_not():
    """Five updates leave 5! 9! / 14! of the initial value, 0.0005; without warm-up it would be 0.999 of it."""
    start, value = {"x": jnp.zeros(3)}, {"x": jnp.ones(3)}
    options = {"form": "exponential", "decay": 0.9998}
    np.testing.assert_allclose(averaged([value] * 5, start, **options, warmup=True)["x"], 1 - 1 / 2002, rtol=1e-6)
    np.testing.assert_allclose(averaged([value] * 5, start, **options, warmup=False)["x"], 0.001, rtol=1e-3)


def test_cumulative_form_is_the_mean_of_all_values_and_forgets_the_start(x64):
    average = averaged(as_jax(VALUES), as_jax(jax.tree.map(lambda x: x + 7, VALUES[0])), form="cumulative")
    expected = jax.tree.map(lambda *arrays: np.mean(arrays, axis=0), *VALUES)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), average, expected)


@pytest.mark.parametrize("form", ["exponential", "cumulative"])
def test_a_constant_stays_bit_for_bit(form):
    value = as_jax(VALUES[0], jnp.float32)
    average = averaged([value] * 50, value, form=form, decay=0.9, warmup=True)
    jax.tree.map(np.testing.assert_array_equal, average, value)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_averages_of_half_precision_are_float32_and_keep_small_steps(dtype):
    """In bfloat16 a thousandth of the way from 1 to 2 rounds to no step at all."""
    average = averaged([{"x": jnp.full(3, 2, dtype)}] * 10, {"x": jnp.ones(3, dtype)}, form="exponential", decay=0.999)
    assert average["x"].dtype == jnp.float32
    np.testing.assert_allclose(average["x"], 2 - 0.999**10, rtol=1e-5)


@pytest.mark.parametrize("leaf", [jnp.array(3), jnp.array([True, False])])
def test_what_is_no_float_is_copied(leaf):
    average = update_average({"x": jnp.zeros_like(leaf)}, {"x": leaf}, 4, form="exponential", decay=0.9)
    np.testing.assert_array_equal(average["x"], leaf)
    assert average["x"].dtype == leaf.dtype


@pytest.mark.parametrize("warmup", [True, False])
def test_decay(warmup, x64):
    counts = np.array([0, 1, 5, 100, 10**6])
    expected = np.minimum(0.99, (1 + counts) / (10 + counts)) if warmup else np.full(5, 0.99)
    np.testing.assert_allclose(jax.vmap(lambda count: ema_decay(count, 0.99, warmup))(counts), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("value", "form", "fault"),
    [
        ({"x": jnp.zeros(3)}, "polynomial", "polynomial"),
        ({"x": jnp.zeros(1)}, "exponential", r"\(3,\)"),
        ({"y": jnp.zeros(3)}, "exponential", "y"),
    ],
)
def test_what_does_not_fit_is_an_error_naming_it(value, form, fault):
    with pytest.raises(ValueError, match=fault):
        update_average({"x": jnp.zeros(3)}, value, 0, form=form, decay=0.9)


def test_mean_of_models_is_taken_in_float64():
    """In float32, adding 1 to 1e8 does nothing."""
    models = [
        {"x": np.array([value, 2.5], np.float32), "n": np.array(count)} for count, value in enumerate((1e8, 1, 1))
    ]
    mean = average_arrays(models)
    np.testing.assert_array_equal(mean["x"], np.array([(1e8 + 2) / 3, 2.5], np.float32))
    assert mean["x"].dtype == np.float32
    assert mean["n"] == 2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.float64])
@pytest.mark.parametrize("shape", [(4, 3), ()])
def test_mean_of_models_keeps_dtypes(dtype, shape):
    models = [{"x": np.asarray(RNG.normal(size=shape), dtype)} for _ in range(3)]
    mean = average_arrays(models)["x"]
    assert isinstance(mean, np.ndarray) and mean.dtype == dtype and mean.shape == shape
    expected = sum(model["x"].astype(np.float64) for model in models) / 3
    np.testing.assert_allclose(mean.astype(np.float64), expected, rtol=float(jnp.finfo(dtype).eps))


def test_mean_of_one_model_is_itself_in_other_memory():
    model = {"x": np.arange(3.0), "n": np.array([1])}
    mean = average_arrays([model])
    for name, array in model.items():
        np.testing.assert_array_equal(mean[name], array)
        assert not np.shares_memory(mean[name], array)


@pytest.mark.parametrize(
    ("models", "fault"),
    [
        ([], "no models"),
        ([{"x": np.zeros(2)}, {"y": np.zeros(2)}], "differ"),
        ([{"x": np.zeros(2)}, {"x": np.zeros(2), "y": np.zeros(2)}], "differ"),
        ([{"x": np.zeros(2)}, {"x": np.zeros(1)}], "differ"),
    ],
)
def test_models_that_cannot_be_averaged_are_errors(models, fault):
    with pytest.raises(ValueError, match=fault):
        average_arrays(models)
