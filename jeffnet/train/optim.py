"""Optimizers by name, composed of optax's transformations."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax import Array

from jeffnet.errors import ConfigError
from jeffnet.train.config import OptimizerConfig
from jeffnet.train.param_groups import treatments
from jeffnet.train.schedule import Schedule

_Transformation = optax.GradientTransformation
_ByName = Mapping[str, float]

_OPTIONS = ("momentum", "nesterov", "decay", "b1", "b2", "epsilon", "trust_coefficient")


@dataclass(frozen=True)
class Optimizer:
    """An optimizer without its learning rate and weight decay.

    Attributes:
      make: a function from the transformation that multiplies by the negative learning rate, and from options with
        defaults, to the transformation from gradients to updates.
      decoupled: by default weights decay beside the gradient's step, instead of by L2 in the loss.
      decays_inside: by default weights decay within `make`, which takes `decays` by name.
    """

    make: Callable[..., _Transformation]
    decoupled: bool
    decays_inside: bool = False


def _sgd(rate: _Transformation, *, momentum: float = 0.9, nesterov: bool = False) -> _Transformation:
    """PyTorch's: the momentum is not damped, and the learning rate applies to it as it is at each step."""
    return optax.chain(_trace(momentum, nesterov), rate)


def _momentum(rate: _Transformation, *, momentum: float = 0.9) -> _Transformation:
    return _sgd(rate, momentum=momentum)


def _nesterov(rate: _Transformation, *, momentum: float = 0.9) -> _Transformation:
    return _sgd(rate, momentum=momentum, nesterov=True)


def _adam(rate: _Transformation, *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8) -> _Transformation:
    """Kingma and Ba, arXiv:1412.6980."""
    return optax.chain(optax.scale_by_adam(b1, b2, epsilon), rate)


def _nadamw(rate: _Transformation, *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8) -> _Transformation:
    """Adam with Nesterov momentum (Dozat, 2016) whose share is the same at every step."""
    return optax.chain(optax.scale_by_adam(b1, b2, epsilon, nesterov=True), rate)


def _adabelief(rate: _Transformation, *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-16) -> _Transformation:
    """Zhuang et al., arXiv:2010.07468; as in the authors' code, epsilon joins the variance as well as its root."""
    return optax.chain(optax.scale_by_belief(b1, b2, epsilon, eps_root=epsilon), rate)


def _lion(rate: _Transformation, *, b1: float = 0.9, b2: float = 0.99) -> _Transformation:
    """Chen et al., arXiv:2302.06675."""
    return optax.chain(optax.scale_by_lion(b1, b2), rate)


def _rmsprop(
    rate: _Transformation, *, momentum: float = 0.0, decay: float = 0.99, epsilon: float = 1e-8
) -> _Transformation:
    """PyTorch's: epsilon is outside the root, squares start at 0, the learning rate applies to the momentum."""
    return optax.chain(optax.scale_by_rms(decay, epsilon, eps_in_sqrt=False), _trace(momentum), rate)


def _rmsproptf(
    rate: _Transformation, *, momentum: float = 0.9, decay: float = 0.9, epsilon: float = 1e-3
) -> _Transformation:
    """TensorFlow's: epsilon is inside the root, squares start at 1, the momentum sums what the rate was applied to."""
    squares = optax.scale_by_rms(decay, epsilon, initial_scale=1.0, eps_in_sqrt=True)
    return optax.chain(squares, rate, _trace(momentum))


def _lamb(
    rate: _Transformation, *, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-6, decays: _ByName | None = None
) -> _Transformation:
    """You et al., arXiv:1904.00962. As in the authors' code, norms and biases keep the learning rate as it is."""
    parts = [optax.scale_by_adam(b1, b2, epsilon)]
    if decays:
        parts.append(_add_decay(decays))
    return optax.chain(*parts, optax.masked(optax.scale_by_trust_ratio(), _are_kernels), rate)


def _lars(
    rate: _Transformation,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    epsilon: float = 0.0,
    trust_coefficient: float = 1e-3,
    decays: _ByName | None = None,
) -> _Transformation:
    """You et al., arXiv:1708.03888. Norms and biases keep the learning rate as it is."""

    def adapt(name: str, gradient: Array, param: Array) -> Array:
        decay = decays[name] if decays else 0.0
        step = gradient + decay * param
        if param.ndim <= 1:
            return step
        length, steepness = jnp.sqrt(jnp.sum(param**2)), jnp.sqrt(jnp.sum(gradient**2))
        ratio = trust_coefficient * length / (steepness + decay * length + epsilon)
        return step * jnp.where((length > 0) & (steepness > 0), ratio, 1)

    return optax.chain(_each(adapt), rate, _trace(momentum, nesterov))


def _adafactor(
    rate: _Transformation, *, momentum: float = 0.0, decay: float = 0.8, epsilon: float = 1e-30
) -> _Transformation:
    """Shazeer and Stern, arXiv:1804.04235; the learning rate is relative to the root mean square of each parameter.

    `decay` is the exponent by which the share of the old squares, 1 - step ** -decay, approaches 1.
    """
    average = optax.ema(momentum, debias=False) if momentum else optax.identity()
    squares = optax.scale_by_factored_rms(decay_rate=decay, epsilon=epsilon)
    return optax.chain(squares, optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms(), rate, average)


def _muon(
    rate: _Transformation,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
) -> _Transformation:
    """Jordan et al., kellerjordan.github.io/posts/muon: kernels move by orthogonal matrices.

    A kernel is the matrix from all inputs of a position, `height * width * in channels`, to the output channels. Its
    updates have the root mean square of Adam's (arXiv:2502.16982), so that both share a learning rate and a decay. Adam
    moves the rest: norms, biases, the classifier, and depthwise kernels, whose columns filter unrelated channels.
    """
    orthogonal = optax.contrib.scale_by_muon(
        beta=momentum, eps=epsilon, nesterov=nesterov, weight_dimension_numbers=partial(jax.tree.map, _matrix)
    )
    scaled = optax.chain(orthogonal, optax.stateless(lambda updates, _: jax.tree.map(_like_adam, updates)))
    by_label: Any = {"muon": scaled, "adam": optax.scale_by_adam(b1, b2, epsilon)}
    return optax.chain(optax.partition(by_label, _muon_labels), rate)


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(_sgd, decoupled=False),
    "momentum": Optimizer(_momentum, decoupled=False),
    "nesterov": Optimizer(_nesterov, decoupled=False),
    "adam": Optimizer(_adam, decoupled=False),
    "adamw": Optimizer(_adam, decoupled=True),
    "nadamw": Optimizer(_nadamw, decoupled=True),
    "adabelief": Optimizer(_adabelief, decoupled=True),
    "lion": Optimizer(_lion, decoupled=True),
    "rmsprop": Optimizer(_rmsprop, decoupled=False),
    "rmsproptf": Optimizer(_rmsproptf, decoupled=False),
    "lamb": Optimizer(_lamb, decoupled=True, decays_inside=True),
    "lars": Optimizer(_lars, decoupled=False, decays_inside=True),
    "adafactor": Optimizer(_adafactor, decoupled=True),
    "muon": Optimizer(_muon, decoupled=True),
}
"""By name. Shampoo (arXiv:1802.09568) is missing: optax does not have it, and no JAX library of it is maintained."""


def make_optimizer(
    config: OptimizerConfig, schedule: Schedule, params: Mapping[str, Any], frozen: Iterable[str] = ()
) -> _Transformation:
    """The optimizer of a configuration.

    Gradients are clipped first: by value, by global norm, then by unit. With L2, decay times parameter is then added to
    the gradient. With decoupled decay, the parameter is multiplied by 1 - learning rate * decay beside the optimizer's
    update (PyTorch's AdamW), at the learning rate of the step and of the group; LAMB decays within its trust ratio.

    Args:
      config: of the optimizer.
      schedule: learning rate by step.
      params: trained parameters, arrays or their shapes, as a flat dict by canonical name; the optimizer takes dicts
        with exactly these names.
      frozen: names of the model's other parameters, see `jeffnet.train.param_groups.treatments`.

    Raises:
      ConfigError: an option that this optimizer does not have, or a group without parameters.
    """
    optimizer = OPTIMIZERS[config.name]
    options = _options(config)
    treated = treatments(config, params, frozen)
    rates = {name: treatment.rate for name, treatment in treated.items()}
    decays = {name: treatment.weight_decay for name, treatment in treated.items()}
    decoupled = optimizer.decoupled if config.decoupled is None else config.decoupled

    parts = _clippings(config, params)
    rate = optax.scale_by_learning_rate(schedule)
    if set(rates.values()) != {1.0}:
        rate = optax.chain(_each(lambda name, update, _: rates[name] * update), rate)
    if not any(decays.values()):
        parts.append(optimizer.make(rate, **options))
    elif optimizer.decays_inside and decoupled == optimizer.decoupled:
        parts.append(optimizer.make(rate, **options, decays=decays))
    elif decoupled:
        parts += [optimizer.make(rate, **options), _decay_beside(schedule, rates, decays)]
    else:
        parts += [_add_decay(decays), optimizer.make(rate, **options)]
    return optax.chain(*parts)


def _options(config: OptimizerConfig) -> dict[str, Any]:
    options = {name: getattr(config, name) for name in _OPTIONS if getattr(config, name) is not None}
    known = inspect.signature(OPTIMIZERS[config.name].make).parameters
    if foreign := [name for name in options if name not in known]:
        available = ", ".join(name for name in _OPTIONS if name in known)
        raise ConfigError(f"optimizer {config.name!r} has no option {foreign[0]!r}; it has {available}")
    return options


def _clippings(config: OptimizerConfig, params: Mapping[str, Any]) -> list[_Transformation]:
    parts = []
    if config.clip_value is not None:
        parts.append(optax.clip(config.clip_value))
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if config.clip_adaptive is not None:
        # All but the classifier, as in the paper.
        inner = {name: not name.startswith("classifier.") for name in params}
        parts.append(optax.masked(optax.adaptive_grad_clip(config.clip_adaptive), inner))
    return parts


def _trace(momentum: float, nesterov: bool = False) -> _Transformation:
    return optax.trace(momentum, nesterov) if momentum else optax.identity()


def _each(change: Callable[[str, Array, Array], Array]) -> _Transformation:
    """Changes every update by a function of its name, the update and the parameter."""

    def change_all(updates: Any, params: Any) -> Any:
        return {name: change(name, update, params[name]) for name, update in updates.items()}

    return optax.stateless(change_all)


def _add_decay(decays: _ByName) -> _Transformation:
    """Adds decay times parameter to the updates."""
    return _each(lambda name, update, param: update + decays[name] * param if decays[name] else update)


def _decay_beside(schedule: Schedule, rates: _ByName, decays: _ByName) -> _Transformation:
    """Subtracts decay times parameter times the learning rate of the step from the updates."""
    factors = {name: rates[name] * decays[name] for name in rates}
    rate_of_step = optax.scale_by_learning_rate(schedule)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        moves: Any = {name: factor * params[name] for name, factor in factors.items() if factor}
        moves, state = rate_of_step.update(moves, state)
        return updates | {name: updates[name] + move for name, move in moves.items()}, state

    return optax.GradientTransformation(rate_of_step.init, update)


def _are_kernels(arrays: Any) -> Any:
    return jax.tree.map(lambda array: array.ndim > 1, arrays)


def _muon_labels(arrays: Mapping[str, Any]) -> dict[str, str]:
    def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
        return len(shape) > 1 and shape[-2] > 1 and not name.startswith("classifier.")

    return {name: "muon" if is_matrix(name, array.shape) else "adam" for name, array in arrays.items()}


def _matrix(array: Any) -> optax.contrib.MuonDimensionNumbers:
    """Which axes of a kernel are the rows of a matrix, and which the columns."""
    return optax.contrib.MuonDimensionNumbers(tuple(range(array.ndim - 1)), array.ndim - 1)


def _like_adam(update: Array) -> Array:
    """An orthogonal matrix, scaled so that its values have the root mean square of Adam's updates, about 0.2."""
    return 0.2 * math.sqrt(max(math.prod(update.shape[:-1]), update.shape[-1])) * update
