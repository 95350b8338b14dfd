"""What users changed in a model: what a conversion, a file or a fused model would lose is an error."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any

import jax

from jeffnet.arch.operations import Conv, Downsample, ExpertConv, Norm, Op
from jeffnet.arch.plan import Block, Plan
from jeffnet.backends import BACKENDS, load_backend
from jeffnet.backends.common import submodule
from jeffnet.errors import WeightsError
from jeffnet.weights.start import Start

_METHODS = ("__call__", "apply", "pre_logits", "features", "_forward")
# Attributes of layers that say whether a model trains, and those on which only training depends.
_OF_MODE = frozenset({"deterministic", "use_running_average"})
_OF_TRAINING = frozenset({"momentum", "frozen", "rate", "keep", "axis_name"})
_WAY_OUT = "describe the architecture by block strings (jeffnet.register_model), or set it back"
_COMPARED = (bool, int, float, str, tuple, type(None), type, FunctionType, Block, Op, Norm)


def check_unchanged(backend: str, model: Any, start: Start, training: bool) -> None:
    """Check that a model computes what its plan and its arrays say; another classifier of the same class does.

    Args:
      backend: its backend.
      model: what the backend's `create_model` returns.
      start: what `to_start` makes of it.
      training: whether training is to be the same too, not only inference.

    Raises:
      WeightsError: a class or a layer of it is another, or an option of a layer.
    """
    module = model[0] if isinstance(model, tuple) else model
    _check_methods(module, next(kind for kind in type(module).__mro__ if kind.__module__ == BACKENDS[backend]))
    if isinstance(model, tuple):
        return  # what it computes is its plan, the arrays are beside it
    expected, ignored = load_backend(backend).build(start), _OF_MODE | (frozenset() if training else _OF_TRAINING)
    for name in _layers(start.plan):
        own, other = submodule(module, name), submodule(expected, name)
        # Our classifier may be the framework's own but for its dtype: theirs is as good.
        if not (issubclass(type(other), type(own)) if name == "classifier" else type(own) is type(other)):
            raise WeightsError(
                f"the model's {name} is a {type(own).__name__} in place of a {type(other).__name__}, which would be "
                "lost: only layers of the same class can be replaced where a model is converted, saved, fused or "
                f"exported; {_WAY_OUT}"
            )
        if name != "classifier":
            _check_options(name, own, other, ignored)


def _check_methods(module: Any, expected: type) -> None:
    for name in _METHODS:
        if _owner(type(module), name) is not _owner(expected, name):
            raise WeightsError(
                f"{type(module).__name__} has a {name} of its own, which would be lost: only what jeffnet's own class "
                f"computes can be converted, saved, fused or exported; {_WAY_OUT}"
            )


def _owner(kind: type, name: str) -> type | None:
    return next((base for base in kind.__mro__ if name in vars(base)), None)


def _check_options(name: str, own: Any, other: Any, ignored: frozenset[str]) -> None:
    for attribute, expected in vars(other).items():
        # A norm's groups are of the batch in training, a convolution's of its channels.
        skipped = attribute in ignored or (attribute == "groups" and "momentum" in ignored and hasattr(own, "momentum"))
        if skipped or attribute.startswith("_") or attribute.endswith("_init"):
            continue
        value = getattr(own, attribute, None)
        if "rate" in ignored and isinstance(value, Block) and isinstance(expected, Block):
            value = replace(value, drop_path_rate=expected.drop_path_rate)
        if isinstance(expected, _COMPARED) and not _is_same(attribute, value, expected, own):
            raise WeightsError(
                f"the model's {name} has {attribute} {value!r}, and its plan {expected!r}: the change would be lost; "
                "set it back, or build a model of another plan"
            )


def _is_same(attribute: str, value: Any, expected: Any, layer: Any) -> bool:
    if attribute == "conv_general_dilated":
        return value in (expected, jax.lax.conv_general_dilated)
    if attribute == "padding" and set(getattr(layer, "kernel_size", ())) == {1}:
        return value in (expected, "SAME", "VALID")
    if attribute in ("strides", "kernel_dilation", "input_dilation") and isinstance(value, Sequence):
        return value == expected or all(number == expected for number in value)
    return value is expected or value == expected or (attribute == "dtype" and value is None)


def _layers(plan: Plan) -> Iterator[str]:
    """The names of all modules of a plan, but for the stochastic depth of its blocks."""
    yield "dropout"
    for block in plan.blocks:
        yield block.name
        # What `Downsample` computes, no module holds.
        yield from (op.name for op in block.ops if not isinstance(op, Conv | Downsample))
        yield from (op.conv.norm.name for op in block.ops if isinstance(op, ExpertConv) and op.conv.norm)
    for conv in plan.convolutions:
        yield from (part.name for part in conv.parts)
        if conv.norm:
            yield conv.norm.name
    if plan.classifier:
        yield plan.classifier.name
