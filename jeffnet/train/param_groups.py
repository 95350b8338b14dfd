"""The learning rate and weight decay of every parameter.

Parameters go by their canonical names, `jeffnet.arch.summary.ArraySpec.name`.
"""

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jeffnet.errors import ConfigError
from jeffnet.train.config import OptimizerConfig, ParamGroup


@dataclass(frozen=True)
class Treatment:
    """How one parameter is trained.

    Attributes:
      rate: factor on the learning rate.
      weight_decay: of this parameter.
    """

    rate: float
    weight_decay: float


def treatments(config: OptimizerConfig, params: Mapping[str, Any], frozen: Iterable[str] = ()) -> dict[str, Treatment]:
    """The treatment of every trained parameter.

    Arrays of one axis, which are scales and biases, decay only with `decay_all` or in a group that says so. The factors
    of `layer_decay` and of a group multiply.

    Args:
      config: of the optimizer.
      params: trained parameters, arrays or their shapes, by canonical name.
      frozen: names of the model's other parameters, whose layers count for `layer_decay`.

    Raises:
      ConfigError: the pattern of a group matches no trained parameter.
    """
    frozen = tuple(frozen)
    for group in config.groups:
        _check_matches(group, params, frozen)
    factors = layer_factors((*params, *frozen), config.layer_decay) if config.layer_decay else {}
    result = {}
    for name, param in params.items():
        group = next((group for group in config.groups if fnmatch.fnmatchcase(name, group.pattern)), None)
        weight_decay = config.weight_decay if param.ndim > 1 or config.decay_all else 0.0
        if group is not None and group.weight_decay is not None:
            weight_decay = group.weight_decay
        rate = factors.get(name, 1.0) * (group.learning_rate if group else 1.0)
        result[name] = Treatment(rate, weight_decay)
    return result


def layer_factors(names: Iterable[str], decay: float) -> dict[str, float]:
    """Factors on the learning rate: 1 in the last layer, and `decay` times less from every layer to the one before it.

    The stem is a layer, then every block, then the classifier, together with the projections of features. The last
    convolution belongs to the last block, but to the classifier where it comes after the pooling, as in MobileNetV3 and
    MobileNetV4. That is timm's fine grouping.

    Source: Clark et al., "ELECTRA", arXiv:2003.10555.
    """
    names = tuple(names)
    layers = {name: _layer(name) for name in names}
    last_block = max((layer for layer in layers.values() if layer < _HEAD), default=_STEM)
    # After the pooling it has a norm of another name, or none.
    head = last_block if "bn2.scale" in layers else _CLASSIFIER
    layers = {name: head if layer == _HEAD else layer for name, layer in layers.items()}
    depth = {layer: place for place, layer in enumerate(sorted(set(layers.values()), reverse=True))}
    return {name: decay ** depth[layers[name]] for name in names}


# In the order of a forward pass; blocks are `(1, stage, place)`.
_STEM, _HEAD, _CLASSIFIER = (0,), (2,), (3,)
_ENDS = {
    "conv_stem": _STEM, "bn1": _STEM, "conv_head": _HEAD, "bn2": _HEAD, "norm_head": _HEAD, "classifier": _CLASSIFIER,
    "projection": _CLASSIFIER,
}  # fmt: skip


def _layer(name: str) -> tuple[int, ...]:
    first, *rest = name.split(".")
    return (1, int(rest[0]), int(rest[1])) if first == "blocks" else _ENDS[first]


def _check_matches(group: ParamGroup, params: Iterable[str], frozen: Iterable[str]) -> None:
    if fnmatch.filter(params, group.pattern):
        return
    if fnmatch.filter(frozen, group.pattern):
        raise ConfigError(f"optimizer.groups: {group.pattern!r} matches frozen parameters only: see model.freeze")
    near = ", ".join(difflib.get_close_matches(group.pattern, params, n=3, cutoff=0.0))
    raise ConfigError(f"optimizer.groups: {group.pattern!r} matches no parameter; the nearest are {near}")
