"""Learning rates over time: functions of the step, each at its base rate at the peak."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jeffnet.errors import ConfigError
from jeffnet.train.config import ScheduleConfig

Schedule = optax.Schedule


def _constant(config: ScheduleConfig, base: float, steps: int, steps_per_epoch: int) -> Schedule:
    return optax.constant_schedule(base)


def _cosine(config: ScheduleConfig, base: float, steps: int, steps_per_epoch: int) -> Schedule:
    return optax.cosine_decay_schedule(base, steps, alpha=config.final)


def _exponential(config: ScheduleConfig, base: float, steps: int, steps_per_epoch: int) -> Schedule:
    return optax.exponential_decay(base, round(config.decay_epochs * steps_per_epoch), config.decay_rate)


SCHEDULES: dict[str, Callable[[ScheduleConfig, float, int, int], Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "exponential": _exponential,
}


def make_schedule(config: ScheduleConfig, base: float, steps: int, steps_per_epoch: int) -> Schedule:
    """The learning rate of each step.

    Args:
      config: which.
      base: the rate at the peak, which the first step after the warm-up has exactly.
      steps: of the whole run; the decay ends there.
      steps_per_epoch: what an epoch is.

    Returns:
      A function from the step, counted from 0, to the rate.

    Raises:
      ConfigError: an unknown name, or a warm-up that takes the whole run.
    """
    if config.name not in SCHEDULES:
        raise ConfigError(f"schedule.name {config.name!r} is not one of {', '.join(SCHEDULES)}")
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if not 0 <= warmup < steps:
        raise ConfigError(f"schedule.warmup_epochs {config.warmup_epochs} is not shorter than the run, or negative")
    decay = SCHEDULES[config.name](config, base, steps - warmup, steps_per_epoch)
    if not warmup:
        return decay

    def schedule(count: ArrayLike) -> Array:
        step = jnp.asarray(count)
        # The first step learns something too: its rate is one part of the way up, not 0.
        rising = base * (step + 1) / (warmup + 1)
        return jnp.where(step < warmup, rising, decay(jnp.maximum(step - warmup, 0)))

    return schedule
