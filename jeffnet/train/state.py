"""The state of training: everything that a step changes."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jeffnet.weights.start import statistics

Arrays = dict[str, Any]

# How names of arrays begin that are trained with a model and are no part of it, see `jeffnet.train.distillation`.
PROJECTION = "projection."

# Micikevicius et al., arXiv:1710.03740, section 3.2: from a large scale on, halved at every overflow, doubled after
# many steps without one.
_FIRST_SCALE, _LEAST_SCALE = 2.0**15, 1.0
_STEPS_TO_DOUBLE = 2000


@flax.struct.dataclass
class LossScale:
    """The factor on the loss that keeps float16 gradients from vanishing.

    Attributes:
      scale: the factor.
      good_steps: steps since the factor last changed.
    """

    scale: Array
    good_steps: Array

    @classmethod
    def initial(cls) -> "LossScale":
        """The scale of the first step."""
        return cls(jnp.float32(_FIRST_SCALE), jnp.int32(0))

    def after(self, finite: Array) -> "LossScale":
        """The scale for the next step, where this one's gradients were finite or not."""
        grown = self.good_steps + 1 >= _STEPS_TO_DOUBLE
        scale = jnp.where(
            finite, jnp.where(grown, 2 * self.scale, self.scale), jnp.maximum(self.scale / 2, _LEAST_SCALE)
        )
        return LossScale(scale, jnp.where(finite & ~grown, self.good_steps + 1, 0))


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes; arrays by canonical name.

    Attributes:
      step: how many steps were taken, int32.
      params: trained parameters; with a teacher also the projections of features.
      frozen: other parameters.
      batch_stats: running statistics.
      opt_state: the optimizer's state.
      average: moving average of the model's `params` and of `batch_stats`, or None.
      average_updates: how often the average was updated, int32.
      loss_scale: with float16, or None.
      skipped: how many steps in a row had gradients that are not finite, int32.
    """

    step: Array
    params: Arrays
    frozen: Arrays
    batch_stats: Arrays
    opt_state: Any
    average: Arrays | None
    average_updates: Array
    loss_scale: LossScale | None
    skipped: Array

    @property
    def arrays(self) -> Arrays:
        """All arrays of the model."""
        return {**self.frozen, **of_model(self.params), **self.batch_stats}


def of_model(arrays: Arrays) -> Arrays:
    """Arrays without the projections among them."""
    return {name: array for name, array in arrays.items() if not name.startswith(PROJECTION)}


def initial_state(
    arrays: Mapping[str, Array],
    optimizer: optax.GradientTransformation,
    *,
    frozen: frozenset[str] = frozenset(),
    averaged: bool = False,
    scaled: bool = False,
) -> TrainState:
    """The state before the first step.

    Args:
      arrays: of the model, and projections. A step donates the buffers of its state, so these are lost with the first
        one.
      optimizer: of the parameters that are not frozen.
      frozen: names of frozen parameters.
      averaged: keep a moving average.
      scaled: scale the loss.
    """
    stats = statistics(arrays)
    params = {name: array for name, array in arrays.items() if name not in stats and name not in frozen}
    return TrainState(
        step=jnp.int32(0),
        params=params,
        frozen={name: arrays[name] for name in arrays if name in frozen},
        batch_stats=stats,
        opt_state=optimizer.init(params),
        # Copies, since no buffer can be donated twice.
        average=jax.tree.map(jnp.array, {**of_model(params), **stats}) if averaged else None,
        average_updates=jnp.int32(0),
        loss_scale=LossScale.initial() if scaled else None,
        skipped=jnp.int32(0),
    )
