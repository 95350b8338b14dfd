"""Schedules: their peak is exactly the base rate, their values are those of formulas, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.errors import ConfigError
from jeffnet.train import config as configuration
from jeffnet.train.config import ScheduleConfig
from jeffnet.train.schedule import SCHEDULES, make_schedule

STEPS, EPOCH = 200, 20
# Every entry of every schedule away from its default.
SCHEDULES_IN_USE = {
    "constant": {},
    "step": {"decay_rate": 0.3, "decay_every": 3.0},
    "milestones": {"name": "step", "decay_rate": 0.1, "milestones": (4.0, 8.0)},
    "smooth step": {"name": "step", "decay_every": 3.0, "staircase": False},
    "exponential": {"decay_rate": 0.5},
    "exponential staircase": {"name": "exponential", "staircase": True},
    "cosine": {"final": 0.01},
    "cycles": {"name": "cosine", "cycle": 2.0, "cycle_growth": 1.5, "cycle_decay": 0.7, "final": 0.1},
    "polynomial": {"power": 2.0, "final": 0.05},
    "one_cycle": {"rise": 0.25, "start": 0.1, "final": 0.001},
}

WARMED = [name for name in SCHEDULES_IN_USE if name != "one_cycle"]  # which rises by itself


def config_of(name, **entries):
    return ScheduleConfig(**{"name": name, **SCHEDULES_IN_USE[name], **entries})


def rates(config, base=1.0, steps=STEPS, at=None):
    schedule = make_schedule(config, base, steps, EPOCH)
    return np.asarray(schedule(np.arange(steps) if at is None else np.asarray(at)))


def test_every_schedule_is_tested():
    assert {config_of(name).name for name in SCHEDULES_IN_USE} == set(SCHEDULES)
    assert tuple(SCHEDULES) == configuration.SCHEDULES


@pytest.mark.parametrize("base", [0.3, 1e-3, 0.016])
@pytest.mark.parametrize(
    ("name", "warmup"), [*((name, 0.0) for name in SCHEDULES_IN_USE), *((name, 1.5) for name in WARMED)]
)
def test_the_peak_is_exactly_the_base_rate(name, base, warmup):
    """Exactly as float32, and nothing is above it; the first step does something."""
    values = rates(config_of(name, warmup=warmup), base)
    peak = 50 if name == "one_cycle" else int(warmup * EPOCH)
    assert values.dtype == np.float32
    assert values.max() == values[peak] == np.float32(base)
    assert (np.diff(values[: peak + 1]) > 0).all()
    assert values.min() > 0


@pytest.mark.parametrize("name", SCHEDULES_IN_USE)
def test_the_same_in_jit_step_by_step_and_in_steps_instead_of_epochs(name):
    config = config_of(name)
    times = {
        entry: jax.tree.map(lambda time: time * EPOCH, getattr(config, entry))
        for entry in ("decay_every", "cycle", "milestones")
        if getattr(config, entry) != ScheduleConfig.__dataclass_fields__[entry].default
    }
    if config.name == "exponential":
        times["decay_every"] = config.decay_every * EPOCH
    in_steps = jax.jit(make_schedule(dataclasses.replace(config, unit="steps", **times), 0.3, STEPS, EPOCH))
    values = rates(config, 0.3)
    for step in (0, 1, 49, 50, 51, 60, 100, 199):
        np.testing.assert_allclose(in_steps(jnp.int32(step)), values[step], rtol=1e-6)


def test_warm_up_is_linear_from_its_start_to_the_base_rate():
    values = rates(ScheduleConfig(name="constant", warmup=0.5, warmup_start=0.2), 3.0, at=range(12))
    np.testing.assert_allclose(values, 3 * np.array([*np.linspace(0.2, 1, 11), 1]), rtol=1e-6)
    values = rates(ScheduleConfig(name="constant", warmup=9, unit="steps"), 1.0, at=range(11))
    np.testing.assert_allclose(values, [*np.linspace(0.1, 1, 10), 1], rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 10])
def test_values_are_those_of_the_formulas(x64, warmup):
    """In float64, which a schedule returns for a step of that type."""
    steps = np.arange(STEPS + warmup, dtype=np.float64)
    done = np.maximum(steps - warmup, 0) / STEPS
    cosine = (1 + np.cos(np.pi * done)) / 2
    expected = {
        "constant": np.ones_like(done),
        "step": 0.3 ** np.floor(done * STEPS / 60),
        "milestones": 0.1 ** ((steps >= 80).astype(int) + (steps >= 160)),
        "smooth step": 0.97 ** (done * STEPS / 60),
        "exponential": 0.5 ** (done * STEPS / 48),
        "exponential staircase": 0.97 ** np.floor(done * STEPS / 48),
        "cosine": 0.01 + 0.99 * cosine,
        "polynomial": 0.05 + 0.95 * (1 - done) ** 2,
    }
    for name, shares in expected.items():
        values = rates(config_of(name, warmup=warmup / EPOCH), 0.3, STEPS + warmup, at=steps)
        assert values.dtype == np.float64
        np.testing.assert_allclose(values[warmup:], 0.3 * shares[warmup:], rtol=1e-12, err_msg=name)


def test_staircases_drop_at_the_very_step():
    """Of whole and of broken numbers, over a run so long that a rounded quotient would be off by one somewhere."""
    for every in (7, 1.7, 59.9):
        config = ScheduleConfig(name="step", decay_rate=0.9999, decay_every=every, unit="steps")
        values = rates(config, steps=400_000)
        drops = 1 + np.flatnonzero(np.diff(values))
        expected = np.ceil(np.round(np.arange(1, len(drops) + 1) * every, 6))
        np.testing.assert_array_equal(drops, expected)
        assert len(drops) == (400_000 - 1) // every


def test_cycles_restart_and_grow_while_their_peaks_fall():
    """Lengths of 40, 60 and 90 steps (the last is cut off), peaks of 1, 0.7 and 0.49, down to 0.1."""
    values = rates(config_of("cycles"), at=[0, 20, 39, 40, 70, 99, 100, 145, 190, 199])
    last = [0.1 + (peak - 0.1) * (1 + np.cos(np.pi * (1 - 1 / length))) / 2 for peak, length in ((1, 40), (0.7, 60))]
    fourth = 0.1 + 0.243 * (1 + np.cos(np.pi * 9 / 135)) / 2
    expected = [1, 0.55, last[0], 0.7, 0.4, last[1], 0.49, 0.295, 0.343, fourth]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_a_peak_that_falls_below_the_final_rate_stays_there():
    values = rates(ScheduleConfig(name="cosine", cycle=1.0, cycle_decay=0.1, final=0.5))
    np.testing.assert_allclose(values[EPOCH:], 0.5)


def test_one_cycle_rises_and_falls_by_half_a_cosine():
    values = rates(config_of("one_cycle"), at=[0, 25, 50, 125, 200])
    np.testing.assert_allclose(values, [0.1, 0.55, 1, 0.5005, 0.001], rtol=1e-5)


@pytest.mark.parametrize("name", ["cosine", "polynomial", "one_cycle"])
def test_what_ends_ends_exactly_at_its_final_rate(name):
    config = config_of(name, final=1e-5)
    np.testing.assert_allclose(rates(config, at=[STEPS, STEPS + 50]), 1e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"name": "linear"}, "constant, step, exponential, cosine, polynomial, one_cycle"),
        ({"warmup": 10.0}, "warmup 10 epochs is not shorter than the run of 10"),
        ({"warmup": 200.0, "unit": "steps"}, "warmup 200 steps is not shorter than the run of 200"),
        ({"name": "one_cycle", "warmup": 1.0}, "rises by itself"),
        ({"power": 2.0}, "'cosine' has no 'power', which is of polynomial: leave it at 1.0"),
        ({"name": "constant", "final": 0.1}, "'final', which is of cosine, polynomial, one_cycle"),
        ({"name": "exponential", "milestones": (1.0,)}, "'milestones', which is of step"),
        ({"name": "step", "milestones": (1.0, 5.0), "warmup": 1.0}, "after the warm-up of 1 epochs"),
        ({"name": "step", "milestones": (1.0,), "staircase": False}, "at which the rate drops at once"),
        ({"name": "step", "decay_every": 0.01}, "decay_every 0.01 epochs is less than one step"),
        ({"cycle": 0.5, "unit": "steps"}, "cycle 0.5 steps is less than one step"),
    ],
)
def test_what_does_not_fit_is_refused(entries, message):
    with pytest.raises(ConfigError, match=message):
        make_schedule(ScheduleConfig(**entries), 0.1, STEPS, EPOCH)


@pytest.mark.parametrize(
    ("entry", "values"),
    {
        "unit": ["hours"],
        "warmup": [-1.0, float("nan")],
        "warmup_start": [-0.1, 1.1],
        "final": [-0.1, 1.1],
        "start": [-0.1, 1.1],
        "decay_rate": [0.0, 1.1],
        "cycle_decay": [0.0, 1.1],
        "decay_every": [0.0, float("inf")],
        "power": [0.0],
        "cycle": [0.0, -1.0],
        "cycle_growth": [0.9],
        "rise": [-0.1, 1.0],
    }.items(),
)
def test_values_out_of_range_are_refused(entry, values):
    for value in values:
        with pytest.raises(ConfigError, match=rf"schedule\.{entry} "):
            ScheduleConfig(**{entry: value})


@pytest.mark.parametrize("name", ["step", "smooth step", "exponential", "exponential staircase"])
def test_decay_may_count_from_the_start_of_the_run(name):
    """As in TensorFlow and timm: a warm-up then hides the beginning of the schedule, and shifts nothing."""
    config = config_of(name, warmup=4.0, decay_from_start=True)
    whole = rates(config_of(name))
    warmed = rates(config)
    np.testing.assert_allclose(warmed[80:], whole[80:], rtol=1e-6)
    assert (np.diff(warmed[:80]) > 0).all()
    assert warmed[79] == 1 > warmed[80]
