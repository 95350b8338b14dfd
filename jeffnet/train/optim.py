"""Optimizers by name, through optax."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax

from jeffnet.errors import ConfigError
from jeffnet.train.config import OptimizerConfig
from jeffnet.train.schedule import Schedule

_OPTIONS = ("momentum", "nesterov", "decay", "b1", "b2", "epsilon")


def _sgd(
    schedule: Schedule, weight_decay: float, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    """Weight decay joins the gradient, as L2 in the loss would (PyTorch's convention)."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decays), optax.sgd(schedule, momentum or None, nesterov)
    )


def _adamw(
    schedule: Schedule, weight_decay: float, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8
) -> optax.GradientTransformation:
    """Decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101)."""
    return optax.adamw(schedule, b1, b2, epsilon, weight_decay=weight_decay, mask=decays)


def _rmsprop(
    schedule: Schedule, weight_decay: float, momentum: float = 0.9, decay: float = 0.9, epsilon: float = 1e-3
) -> optax.GradientTransformation:
    """TensorFlow's: epsilon inside the root, squared gradients start at 1, momentum after the learning rate."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=decays),
        optax.rmsprop(schedule, decay, epsilon, initial_scale=1.0, eps_in_sqrt=True, momentum=momentum),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": _adamw,
    "rmsprop": _rmsprop,
    "sgd": _sgd,
}


def decays(params: Any) -> Any:
    """Which parameters weight decay applies to: kernels; not biases, nor a norm's scales."""
    return jax.tree.map(lambda array: array.ndim > 1, params)


def make_optimizer(config: OptimizerConfig, schedule: Schedule) -> optax.GradientTransformation:
    """The optimizer of a configuration.

    Raises:
      ConfigError: an unknown name, or an option that this optimizer does not have.
    """
    if config.name not in OPTIMIZERS:
        raise ConfigError(f"optimizer.name {config.name!r} is not one of {', '.join(OPTIMIZERS)}")
    make = OPTIMIZERS[config.name]
    options = {name: getattr(config, name) for name in _OPTIONS if getattr(config, name) is not None}
    known = inspect.signature(make).parameters
    foreign = [name for name in options if name not in known]
    if foreign:
        own = ", ".join(name for name in _OPTIONS if name in known)
        raise ConfigError(f"optimizer {config.name!r} has no option {foreign[0]!r}; it has {own}")
    optimizer = make(schedule, config.weight_decay, **options)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer) if config.clip_norm else optimizer
