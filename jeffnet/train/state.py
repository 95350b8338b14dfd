"""All that a training step changes."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jeffnet.weights.start import statistics

Arrays = dict[str, Any]

# Micikevicius et al., arXiv:1710.03740, section 3.2: from a large scale on, halved at every overflow, doubled after
# many steps without one.
_FIRST_SCALE, _LEAST_SCALE = 2.0**15, 1.0
_STEPS_TO_DOUBLE = 2000


@flax.struct.dataclass
class LossScale:
    """The factor on the loss that keeps float16 gradients from vanishing.

    Attributes:
      scale: the factor.
      good_steps: since it last changed.
    """

    scale: Array
    good_steps: Array

    @classmethod
    def initial(cls) -> "LossScale":
        """Before the first step."""
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
    """All that a step changes; arrays by canonical name.

    Attributes:
      step: how many steps were taken, int32.
      params: what is trained.
      frozen: parameters that are not.
      batch_stats: running statistics.
      opt_state: the optimizer's.
      average: moving average of `params` and `batch_stats`, or None.
      average_updates: how often it was updated, int32.
      loss_scale: with float16, or None.
      skipped: steps in a row whose gradients were no numbers, int32.
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
        """All of the model's."""
        return {**self.frozen, **self.params, **self.batch_stats}

    @property
    def averaged_arrays(self) -> Arrays:
        """All of the averaged model's."""
        assert self.average is not None
        return {**self.frozen, **self.average}


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
      arrays: all of the model's. A step gives up the buffers of the state it gets.
      optimizer: of the parameters that are not frozen.
      frozen: names of parameters that are.
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
        # Copies: no buffer can be given up twice.
        average=jax.tree.map(jnp.array, {**params, **stats}) if averaged else None,
        average_updates=jnp.int32(0),
        loss_scale=LossScale.initial() if scaled else None,
        skipped=jnp.int32(0),
    )
