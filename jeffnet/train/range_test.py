"""The learning rate range test: short training at rates from low to high, to see which of them lower the loss."""

import math
from collections import deque
from contextlib import closing
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jeffnet.errors import ConfigError, TrainingError
from jeffnet.parallel.distributed import compile_together
from jeffnet.system.progress import progress_bar
from jeffnet.train.config import Config, EmaConfig
from jeffnet.train.distillation import teacher_fault
from jeffnet.train.pretrained import settled
from jeffnet.train.setup import make_setup
from jeffnet.train.teacher import Teacher

# The test stops where the mean loss of so many steps is so many times the lowest of such means.
_MEAN_OF, _DIVERGED = 5, 4.0
_FEWEST_STEPS = 20
# Single batches are noise: losses are averaged over neighbouring steps, by a Gaussian of this share of all steps.
_SMOOTHING = 0.03
# The loss must fall by this share, or what is seen is noise.
_LEAST_FALL = 0.02


@dataclass(frozen=True)
class RangeTest:
    """What a range test found.

    Attributes:
      rates: float64 `(N,)`, learning rate of each step, rising.
      losses: float64 `(N,)`, loss of each step's batch before the step.
      smoothed: float64 `(N,)`, the same, averaged over neighbouring steps.
      steepest: the rate at which the smoothed loss falls fastest with the logarithm of the rate; None if it never falls
        by 2 per cent. A rate to train with.
      lowest: the rate of the lowest smoothed loss, likewise; a tenth of it is a rate to train with too.
      diverged: whether the test stopped early because the loss had grown or was no finite number.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    steepest: float | None
    lowest: float | None
    diverged: bool


def find_learning_rate(
    config: Config,
    *,
    start: float = 1e-6,
    end: float = 10.0,
    steps: int = 100,
    progress: bool = False,
    teacher: Teacher | None = None,
) -> RangeTest:
    """Train for a few steps, each at a higher learning rate than the one before, and suggest one.

    The model, data, augmentation, loss and optimizer are the configuration's, its learning rate and schedule are not.
    Nothing is written, and a run of the configuration starts as if there had been no test.

    Args:
      config: of the run.
      start: rate of the first step.
      end: rate of the last step, unless the loss has diverged before.
      steps: how many, at least 20.
      progress: show how far it is on standard error.
      teacher: as for `jeffnet.train.loop.train`.

    Returns:
      Rates, losses and a suggestion.

    Raises:
      ConfigError: the range or the number of steps will not do, or the configuration will not.
      TrainingError: the teacher's outputs are not finite.
      JeffnetError: as `jeffnet.train.loop.train`.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186, section 3.3.
    """
    if not 0 < start < end < math.inf or steps < _FEWEST_STEPS:
        raise ConfigError(
            f"a range test from {start:g} to {end:g} in {steps} steps: give rates that rise, and {_FEWEST_STEPS} steps "
            "or more"
        )

    def rising(step: ArrayLike) -> Array:
        return start * (end / start) ** (jnp.asarray(step, jnp.float32) / (steps - 1))

    setup = make_setup(settled(replace(config, ema=EmaConfig())), schedule=rising, teacher=teacher)
    phase, state = setup.phases[0], setup.start()
    step, losses = setup.step(phase), []
    recent: deque[float] = deque(maxlen=_MEAN_OF)
    least, diverged = math.inf, False
    with (
        closing(setup.batches(phase)) as loader,
        progress_bar("learning rate", steps, "step", shown=progress) as bar,
    ):
        while len(losses) < steps and not diverged:
            batch = setup.layout.place_batch(dict(next(loader)))
            if not losses:
                compile_together(step, state, batch)
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
            if fault := teacher_fault(setup.lesson, metrics):
                raise TrainingError(fault)
            recent.append(losses[-1])
            mean = sum(recent) / len(recent)
            diverged = not math.isfinite(mean) or mean > _DIVERGED * least
            least = min(least, mean) if len(recent) == _MEAN_OF else least
            bar.update()
    rates = np.geomspace(start, end, steps)[: len(losses)]
    return _result(rates, np.array(losses), diverged, sigma=_SMOOTHING * steps)


def _result(rates: np.ndarray, losses: np.ndarray, diverged: bool, sigma: float) -> RangeTest:
    smoothed = _smoothed(losses, sigma)
    lowest = int(np.nanargmin(smoothed)) if np.isfinite(smoothed).any() else 0
    fall = smoothed[: lowest + 1]
    steepest = None
    if lowest > 1 and fall[-1] < (1 - _LEAST_FALL) * fall.max():
        steepest = float(rates[np.gradient(fall, np.log(rates[: lowest + 1])).argmin()])
    return RangeTest(rates, losses, smoothed, steepest, float(rates[lowest]) if steepest else None, diverged)


def _smoothed(losses: np.ndarray, sigma: float) -> np.ndarray:
    """Weighted means over neighbours; what is not finite counts as nothing, and very high losses as not so high."""
    finite = np.isfinite(losses)
    if not finite.any():
        return np.full(len(losses), np.nan)
    kept = np.where(finite, np.minimum(losses, _DIVERGED * losses[finite].min()), 0)
    places = np.arange(len(losses))
    weights = np.exp(-((places[:, None] - places) ** 2) / (2 * sigma**2)) * finite
    return np.where(finite, weights @ kept / weights.sum(1), np.nan)
