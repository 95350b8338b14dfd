"""Optimizers and schedules: values computed by hand, and options refused where they do not belong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jeffnet.errors import ConfigError
from jeffnet.train.config import OptimizerConfig, ScheduleConfig
from jeffnet.train.optim import OPTIMIZERS, make_optimizer
from jeffnet.train.schedule import SCHEDULES, make_schedule

PARAMS = {"kernel": np.array([[1.0, -2.0], [3.0, 0.5]]), "bias": np.array([0.3, -0.7]), "scale": np.array([1.0, 1.1])}
GRADIENTS = [jax.tree.map(lambda array, k=k: np.cos(array + k), PARAMS) for k in range(5)]


def run(config, rate=0.1):
    optimizer = make_optimizer(config, optax.constant_schedule(rate))
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = optimizer.init(params)
    for gradients in GRADIENTS:
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradients), state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(params, expected):
    for name, array in expected.items():
        np.testing.assert_allclose(params[name], array, rtol=1e-12, err_msg=name)


def decay(name, rate):
    return rate if name == "kernel" else 0.0


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_pytorchs(x64, nesterov):
    """v = m v + (g + wd p); p -= rate v, or with Nesterov p -= rate (g + wd p + m v)."""
    expected = {}
    for name, start in PARAMS.items():
        value, velocity = start.copy(), np.zeros_like(start)
        for gradients in GRADIENTS:
            gradient = gradients[name] + decay(name, 0.01) * value
            velocity = 0.8 * velocity + gradient
            value = value - 0.1 * (gradient + 0.8 * velocity if nesterov else velocity)
        expected[name] = value
    assert_close(run(OptimizerConfig(name="sgd", momentum=0.8, nesterov=nesterov, weight_decay=0.01)), expected)


def test_rmsprop_is_tensorflows(x64):
    """ms starts at 1, epsilon is inside the root, momentum accumulates what the rate was applied to."""
    expected = {}
    for name, start in PARAMS.items():
        value, square, moment = start.copy(), np.ones_like(start), np.zeros_like(start)
        for gradients in GRADIENTS:
            gradient = gradients[name] + decay(name, 0.01) * value
            square = 0.95 * square + 0.05 * gradient**2
            moment = 0.7 * moment + 0.1 * gradient / np.sqrt(square + 0.002)
            value = value - moment
        expected[name] = value
    config = OptimizerConfig(name="rmsprop", momentum=0.7, decay=0.95, epsilon=0.002, weight_decay=0.01)
    assert_close(run(config), expected)


def test_adamw_decays_kernels_apart_from_the_gradient(x64):
    expected = {}
    for name, start in PARAMS.items():
        value, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
        for count, gradients in enumerate(GRADIENTS, 1):
            first = 0.9 * first + 0.1 * gradients[name]
            second = 0.99 * second + 0.01 * gradients[name] ** 2
            step = (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.99**count)) + 1e-8)
            value = value - 0.1 * (step + decay(name, 0.05) * value)
        expected[name] = value
    assert_close(run(OptimizerConfig(name="adamw", b2=0.99, weight_decay=0.05)), expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_takes_its_own_options_only(name):
    own = {"sgd": "nesterov", "adamw": "b1", "rmsprop": "decay"}
    for owner, option in own.items():
        config = OptimizerConfig(name=name, **{option: 0.5})
        if owner == name:
            make_optimizer(config, optax.constant_schedule(0.1))
        else:
            with pytest.raises(ConfigError, match=option):
                make_optimizer(config, optax.constant_schedule(0.1))


def test_gradients_are_clipped_by_their_common_norm(x64):
    clipped = run(OptimizerConfig(name="sgd", momentum=0.0, clip_norm=1e-3))
    moved = np.sqrt(sum(float(((clipped[name] - PARAMS[name]) ** 2).sum()) for name in PARAMS))
    assert 0 < moved <= 5 * 0.1 * 1e-3 * (1 + 1e-9)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="adamw, rmsprop, sgd"):
        make_optimizer(OptimizerConfig(name="adam"), optax.constant_schedule(0.1))
    with pytest.raises(ConfigError, match="cosine"):
        make_schedule(ScheduleConfig(name="linear"), 0.1, 10, 5)


@pytest.mark.parametrize("warmup", [0.0, 2.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_peaks_exactly_at_the_base_rate(name, warmup):
    schedule = make_schedule(ScheduleConfig(name=name, warmup_epochs=warmup, final=0.1), 0.3, 100, 10)
    rates = np.array([float(schedule(step)) for step in range(100)], np.float32)
    assert rates.max() == np.float32(0.3)
    assert rates.argmax() == warmup * 10
    assert (np.diff(rates[: int(warmup * 10) + 1]) > 0).all()
    assert rates[0] > 0


def test_cosine_ends_at_its_final_rate_and_is_half_way_in_the_middle():
    schedule = make_schedule(ScheduleConfig(name="cosine", final=0.1), 1.0, 100, 10)
    np.testing.assert_allclose([schedule(50), schedule(100)], [0.55, 0.1], rtol=1e-6)


def test_exponential_multiplies_every_so_many_epochs():
    schedule = make_schedule(ScheduleConfig(name="exponential", decay_rate=0.5, decay_epochs=2), 1.0, 100, 10)
    np.testing.assert_allclose([schedule(20), schedule(40)], [0.5, 0.25], rtol=1e-6)


@pytest.mark.parametrize("epochs", [-1.0, 10.0])
def test_a_warm_up_that_leaves_nothing_is_refused(epochs):
    with pytest.raises(ConfigError, match="warmup"):
        make_schedule(ScheduleConfig(warmup_epochs=epochs), 0.1, 100, 10)
