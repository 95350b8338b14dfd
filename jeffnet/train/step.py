"""One training step."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.ops.image import normalize
from jeffnet.ops.loss import cross_entropy, in_top


@flax.struct.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
      step: how many steps were taken, int32.
      params: trained arrays.
      batch_stats: running statistics.
      opt_state: the optimizer's.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Mapping[str, Any]], tuple[TrainState, Metrics]]


def initial_state(variables: Mapping[str, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    params = variables["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], optimizer.init(params))


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    preprocessing: Preprocessing,
    label_smoothing: float,
    seed: int,
) -> TrainStep:
    """A compiled step.

    Args:
      model: a Linen module of `jeffnet.linen`.
      optimizer: of its parameters.
      preprocessing: mean and standard deviation of the pictures.
      label_smoothing: see `cross_entropy`.
      seed: of dropout and drop path. Each step's key depends on it and on the step alone, so that a resumed run draws
        what an uninterrupted one would have.

    Returns:
      A function from the state and a batch (`image` uint8 `(N, H, W, C)`, `label` `(N,)`) to the next state and the
      batch's metrics: `loss`, `top1` in per cent. The old state's buffers are given up.
    """

    def loss_of(params: Any, batch_stats: Any, images: Array, labels: Array, key: Array) -> tuple[Array, tuple]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, labels, label_smoothing).mean(), (logits, updated["batch_stats"])

    # The key is an argument, not a constant of the program: runs of several seeds share one compiled step.
    @partial(jax.jit, donate_argnums=1)
    def step(root: Array, state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Metrics]:
        images = normalize(batch["image"], preprocessing.mean, preprocessing.std)
        key = jax.random.fold_in(root, state.step)
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (logits, batch_stats)), gradients = gradient(
            state.params, state.batch_stats, images, batch["label"], key
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "top1": 100 * in_top(logits, batch["label"], 1).mean()}
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    return partial(step, jax.random.key(seed))
