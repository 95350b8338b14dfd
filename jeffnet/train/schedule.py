"""Learning rate schedules: functions of the step whose peak is the base rate."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jeffnet.errors import ConfigError
from jeffnet.ops.precision import at_least_float32
from jeffnet.train.config import ScheduleConfig

Schedule = optax.Schedule

# Share of the base rate at a step, counted from the end of the warm-up.
_Shares = Callable[[Array], Array]


def _constant(steps: int) -> _Shares:
    return jnp.ones_like


def _step(
    steps: int,
    *,
    decay_rate: float,
    decay_every: float,
    decay_from_start: int,
    staircase: bool | None,
    milestones: Sequence[float],
) -> _Shares:
    if not milestones:
        return _geometric(steps, decay_rate, decay_every, decay_from_start, staircase is not False)
    if staircase is False:
        raise ConfigError("schedule.staircase False does not go with milestones, at which the rate drops at once")
    return _drops(decay_rate, milestones)


def _exponential(
    steps: int, *, decay_rate: float, decay_every: float, decay_from_start: int, staircase: bool | None
) -> _Shares:
    return _geometric(steps, decay_rate, decay_every, decay_from_start, staircase is True)


def _cosine(steps: int, *, final: float, cycle: float | None, cycle_growth: float, cycle_decay: float) -> _Shares:
    """Half a cosine, or several with restarts (arXiv:1608.03983)."""
    edges, peaks = [0], []
    end, length, peak = 0.0, cycle or steps, 1.0
    while edges[-1] < steps:
        end += length
        edges.append(max(round(end), edges[-1] + 1))
        peaks.append(max(peak, final))
        length, peak = length * cycle_growth, peak * cycle_decay

    def shares(step: Array) -> Array:
        bounds, tops = jnp.asarray(edges, step.dtype), jnp.asarray(peaks, step.dtype)
        number = jnp.searchsorted(bounds[1:-1], step, side="right")
        done = (step - bounds[number]) / (bounds[number + 1] - bounds[number])
        return _between(tops[number], final, _half_cosine(done))

    return shares


def _polynomial(steps: int, *, power: float, final: float) -> _Shares:
    return lambda step: _between(1.0, final, (1 - jnp.minimum(step / steps, 1)) ** power)


def _one_cycle(steps: int, *, rise: float, start: float, final: float) -> _Shares:
    """Up, then down (arXiv:1708.07120), both by half a cosine."""
    top = min(round(rise * steps), steps - 1)

    def shares(step: Array) -> Array:
        rising = _between(start, 1.0, _half_cosine(step / max(top, 1)))
        falling = _between(1.0, final, _half_cosine((step - top) / (steps - top)))
        return jnp.where(step < top, rising, falling)

    return shares


# Functions of the number of steps after the warm-up and of the schedule's entries in ScheduleConfig, times in steps.
SCHEDULES: dict[str, Callable[..., _Shares]] = {
    "constant": _constant,
    "step": _step,
    "exponential": _exponential,
    "cosine": _cosine,
    "polynomial": _polynomial,
    "one_cycle": _one_cycle,
}

_COMMON = ("name", "unit", "warmup", "warmup_start")


def make_schedule(config: ScheduleConfig, base: float, steps: int, steps_per_epoch: int) -> Schedule:
    """The learning rate by step.

    Args:
      config: of the schedule.
      base: the rate at the peak: exactly that of the first step after the warm-up, or of the step at `rise` of
        `one_cycle`. With `decay_from_start` it is that of the warm-up's last step, after which it has decayed already.
      steps: of the whole run, where schedules that end do so.
      steps_per_epoch: length of an epoch.

    Returns:
      A function from the step, counted from 0, to the rate: float32, or float64 for a float64 step. It works
      elementwise, inside and outside of `jit`.

    Raises:
      ConfigError: an entry of another schedule is set, the warm-up takes the whole run, or times do not fit the run.
    """
    unit = steps_per_epoch if config.unit == "epochs" else 1
    warmup = round(config.warmup * unit)
    if warmup >= steps:
        raise ConfigError(
            f"schedule.warmup {config.warmup:g} {config.unit} is not shorter than the run of {steps / unit:g}: set it "
            "to less, such as 0"
        )
    if warmup and config.name == "one_cycle":
        raise ConfigError("schedule 'one_cycle' rises by itself, see schedule.rise: set schedule.warmup to 0")
    shares = SCHEDULES[config.name](steps - warmup, **_schedule_entries(config, unit, warmup))
    # Where decay counts from the start, the step after the warm-up is below the base rate: the one before it has it.
    top = max(warmup - 1, 1) if config.decay_from_start else warmup
    # Not 0 by default, or the first step would do nothing.
    start = config.warmup_start or 1 / (top + 1)

    def schedule(count: ArrayLike) -> Array:
        step = jnp.asarray(count)
        step = step.astype(at_least_float32(step.dtype))
        share = shares(jnp.maximum(step - warmup, 0))
        return base * (jnp.where(step < warmup, _between(1.0, start, step / top), share) if warmup else share)

    return schedule


def _schedule_entries(config: ScheduleConfig, unit: int, warmup: int) -> dict[str, Any]:
    """The schedule's entries, with times in steps after the warm-up; ConfigError if one of another schedule is set."""
    names = _entries_of(config.name)
    for field in dataclasses.fields(config):
        if field.name not in (*_COMMON, *names) and getattr(config, field.name) != field.default:
            owners = ", ".join(name for name in SCHEDULES if field.name in _entries_of(name))
            raise ConfigError(
                f"schedule {config.name!r} has no {field.name!r}, which is of {owners}: leave it at {field.default!r}"
            )
    entries = {name: getattr(config, name) for name in names}
    for name in {"decay_every", "cycle"} & set(names):
        if entries[name] is not None:
            entries[name] *= unit
            if entries[name] < 1:
                raise ConfigError(f"schedule.{name} {getattr(config, name):g} {config.unit} is less than one step")
    if "decay_from_start" in names:
        entries["decay_from_start"] = warmup if config.decay_from_start else 0
    if "milestones" in names:
        entries["milestones"] = tuple(time * unit - warmup for time in config.milestones)
        if config.milestones and min(entries["milestones"]) <= 0:
            raise ConfigError(
                f"schedule.milestones {config.milestones} must be after the warm-up of {config.warmup:g} {config.unit}"
            )
    return entries


def _entries_of(schedule: str) -> list[str]:
    return list(inspect.signature(SCHEDULES[schedule]).parameters)[1:]


def _geometric(steps: int, rate: float, every: float, before: int, staircase: bool) -> _Shares:
    """Decay that began `before` steps earlier."""
    if staircase:
        return _drops(rate, [every * number - before for number in range(1, int((steps + before) / every) + 1)])
    return lambda step: rate ** ((step + before) / every)


def _drops(rate: float, times: Sequence[float]) -> _Shares:
    # Counted in whole steps: a quotient of floats may fall just short of the integer that it should be.
    starts = [math.ceil(round(time, 6)) for time in sorted(times)]

    def shares(step: Array) -> Array:
        dropped = jnp.searchsorted(jnp.asarray(starts, step.dtype), step, side="right")
        return rate ** dropped.astype(step.dtype)

    return shares


def _half_cosine(done: Array) -> Array:
    """From exactly 1 at 0 to 0 at 1 and after."""
    return (1 + jnp.cos(jnp.pi * jnp.minimum(done, 1))) / 2


def _between(first: float | Array, last: float | Array, weight: Array) -> Array:
    """`first` at weight 1 and `last` at weight 0, both exactly."""
    return first * weight + last * (1 - weight)
