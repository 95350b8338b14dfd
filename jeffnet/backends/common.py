"""What the backends share: documentation, and models that hold their layers under the Plan's names."""

import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from inspect import Parameter, cleandoc, signature
from typing import Any, TypeVar, assert_never, get_args

from jax import Array

from jeffnet.arch.lower import lower
from jeffnet.arch.operations import (
    Attention,
    Composite,
    Conv,
    ConvPart,
    Dense,
    Downsample,
    ExpertConv,
    GlobalContext,
    LayerScale,
    Norm,
    Normalize,
    Op,
    Routing,
    SqueezeExcite,
)
from jeffnet.arch.plan import FeatureInfo, Plan, with_classes
from jeffnet.arch.summary import STATISTICS, array_specs
from jeffnet.backends import Backend
from jeffnet.errors import WeightsError
from jeffnet.ops.network import Output, apply_composite, apply_conv, apply_network, apply_routing
from jeffnet.ops.pool import downsample
from jeffnet.weights.start import ModelOptions, Start, start_model, start_pretrained

_Function = TypeVar("_Function", bound=Callable[..., Any])


def documented(function: _Function) -> _Function:
    """Give a function the docstring that `Backend` has for one of its name, and the names of its options.

    `help` and `inspect.signature` then show every option, in place of `**options`.
    """
    function.__doc__ = getattr(Backend, function.__name__).__doc__
    return with_options(function) if "options" in function.__annotations__ else function


def with_options(function: _Function) -> _Function:
    """Show a function's options, `**options: Unpack[...]`, in its signature, and describe them in its docstring."""
    (kind,) = get_args(function.__annotations__["options"])
    starts = (lower, start_model) if kind is ModelOptions else (start_pretrained,)
    defaults = {name: each.default for start in starts for name, each in signature(start).parameters.items()}
    # What these functions leave open, or settle by the model's name.
    defaults |= dict.fromkeys(("num_classes", "drop_rate", "drop_path_rate", "bn_momentum"))
    plain = signature(function)
    shown = [each for each in plain.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    shown += [Parameter(name, Parameter.KEYWORD_ONLY, default=defaults[name]) for name in kind.__annotations__]
    described = cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2].rstrip()
    text = re.sub(r"^  options: see .*$", lambda _: described, cleandoc(function.__doc__ or ""), flags=re.MULTILINE)
    facts: Any = function
    facts.__doc__, facts.__signature__ = text, plain.replace(parameters=shown)
    return function


class ImageModel:
    """What the models of all backends offer; their methods inherit these docstrings."""

    plan: Plan

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Name, channels and stride of each map that `features` can return; needs no variables."""
        return self.plan.features

    def pre_logits(self, *args: Any, **kwargs: Any) -> Any:
        """The classifier's input: pooled features `(N, F)`; with `global_pool='none'` `(N, H', W', F)`.

        Args:
          args: as for logits.
          kwargs: as for logits.

        Returns:
          The array; in training, functional also returns the updated statistics.
        """

    def features(self, *args: Any, **kwargs: Any) -> Any:
        """Feature maps `(N, H / stride, W / stride, C)`, as a tuple.

        Args:
          args: as for logits; the argument after the images is `indices`: which of `feature_info`, in any order.
            Negative ones count from the end, None takes all.
          kwargs: as for logits.

        Returns:
          The maps; in training, functional also returns the updated statistics.

        Raises:
          ArchitectureError: no such map.
        """

    def outputs(self, *args: Any, **kwargs: Any) -> Any:
        """Logits, the classifier's input and feature maps of one pass.

        Args:
          args: as for `features`.
          kwargs: as for logits.

        Returns:
          `jeffnet.ops.network.Outputs`; in training, functional also returns the updated statistics.

        Raises:
          ArchitectureError: no such map.
        """


def conversions(
    place: Callable[[str], Sequence[str]],
) -> tuple[Callable[[Mapping[str, Any]], dict[str, Any]], Callable[[Mapping[str, Any], Plan], dict[str, Any]]]:
    """`to_variables` and `to_canonical` of a backend, where `place` says under which keys a collection has an array."""

    def keys_of(name: str) -> tuple[str, ...]:
        return "batch_stats" if name.rpartition(".")[2] in STATISTICS else "params", *place(name)

    def to_variables(arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Variables from arrays by canonical name; `to_canonical` is the inverse.

        Args:
          arrays: such as `blocks.2.1.conv_dw.kernel`.

        Returns:
          `{'params': ..., 'batch_stats': ...}`.
        """
        variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
        for name, array in arrays.items():
            *parents, leaf = keys_of(name)
            reduce(lambda tree, key: tree.setdefault(key, {}), parents, variables)[leaf] = array
        return variables

    def to_canonical(variables: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
        """The arrays of `variables` by canonical name, in the Plan's order.

        Args:
          variables: `{'params': ..., 'batch_stats': ...}`.
          plan: of their model.

        Returns:
          The arrays, as they are.

        Raises:
          WeightsError: an array that the Plan has is missing.
        """
        arrays: dict[str, Any] = {}
        for name in array_specs(plan):
            try:
                arrays[name] = reduce(operator.getitem, keys_of(name), variables)
            except (LookupError, TypeError):
                path = "/".join(place(name))
                at = "" if path == name else f" (at {path})"
                raise WeightsError(f"variables have no {name!r}{at}") from None
        return arrays

    return to_variables, to_canonical


class Layers(ABC):
    """Makes the layers of a framework.

    Where modules hold their arrays, layers get those of a start, instead of drawing initial values and throwing them
    away.
    """

    list_class: type[Any]

    @abstractmethod
    def conv(self, op: Conv, part: ConvPart) -> Any:
        """One kernel of a convolution."""

    @abstractmethod
    def norm(self, norm: Norm) -> Any:
        """A norm."""

    @abstractmethod
    def dense(self, dense: Dense) -> Any:
        """The classifier."""

    @abstractmethod
    def layer_scale(self, op: LayerScale) -> Any:
        """A factor for each channel."""

    @abstractmethod
    def expert_conv(self, op: ExpertConv) -> Any:
        """A convolution with a mixture of kernels; called with the map and the weights of the experts."""

    @abstractmethod
    def composite(self, op: Composite) -> Any:
        """A module with the convolutions of an operation, called with a map and with what norms are called with."""

    def add(self, module: Any, *ops: Op) -> None:
        """Give a module the layers of operations."""
        for op in ops:
            match op:
                case Conv():
                    convs = [self.conv(op, part) for part in op.parts]
                    setattr(module, local_name(op.name), convs[0] if len(convs) == 1 else self.list_class(convs))
                    self._add_norm(module, op.norm)
                case ExpertConv():
                    setattr(module, local_name(op.name), self.expert_conv(op))
                    self._add_norm(module, op.conv.norm)
                case SqueezeExcite() | GlobalContext() | Attention():
                    setattr(module, local_name(op.name), self.composite(op))
                case Normalize():
                    self._add_norm(module, op.norm)
                case LayerScale():
                    setattr(module, local_name(op.name), self.layer_scale(op))
                case Routing():
                    setattr(module, local_name(op.name), self.dense(Dense(op.name, op.channels, op.experts)))
                case Downsample():
                    pass
                case _:
                    assert_never(op)

    def _add_norm(self, module: Any, norm: Norm | None) -> None:
        if norm:
            setattr(module, local_name(norm.name), self.norm(norm))


class CompositeLayers:
    """An operation that consists of convolutions; the base of NNX's and Objax's modules."""

    def __init__(self, op: Composite, layers: Layers) -> None:
        self.op = op
        layers.add(self, *op.convolutions)

    def __call__(self, x: Array, *norm_arguments: Any) -> Array:
        """`(N, H, W, C)` to `(N, H, W, C')`."""
        return apply_composite(self.op, x, lambda op, x: apply_layers(self, op, x, None, *norm_arguments))


def apply_layers(module: Any, op: Op, x: Array, weights: Array | None = None, *norm_arguments: Any) -> Array:
    """An operation, by the layers that `Layers.add` gave a module.

    Args:
      module: the module.
      op: what to compute.
      x: `(N, H, W, C)`.
      weights: of the block's experts, see `jeffnet.ops.network.apply_block`.
      norm_arguments: what norms are called with after their input.
    """
    prefix = len(op.name) - len(local_name(op.name))

    def norm(norm: Norm, x: Array, act: str | None) -> Array:
        return submodule(module, local_name(norm.name))(x, *norm_arguments, act=act)

    match op:
        case Conv():
            return apply_conv(op, x, lambda part, x: submodule(module, part.name[prefix:])(x), norm)
        case ExpertConv():
            return apply_conv(op.conv, x, lambda part, x: submodule(module, part.name[prefix:])(x, weights), norm)
        case SqueezeExcite() | GlobalContext() | Attention():
            return submodule(module, local_name(op.name))(x, *norm_arguments)
        case Normalize():
            return norm(op.norm, x, op.act)
        case LayerScale():
            return submodule(module, local_name(op.name))(x)
        case Routing():
            return apply_routing(x, submodule(module, local_name(op.name)))
        case Downsample():
            return downsample(x, op.taps, op.padding)
        case _:
            assert_never(op)


def apply_model(
    model: Any,
    images: Array,
    call_block: Callable[[Any, Array], Array],
    dropout: Callable[[Array], Array],
    output: Output,
    indices: Sequence[int] | None,
    *norm_arguments: Any,
) -> Any:
    """The outputs of `apply_network`, by the layers of a model; `call_block` calls the module of a block."""
    return apply_network(
        model.plan,
        images,
        model.dtype,
        lambda op, x: apply_layers(model, op, x, None, *norm_arguments),
        lambda block, x: call_block(submodule(model, block.name), x),
        # The classifier of the Plan, or the one that its user has put in its place.
        (lambda x: model.classifier(dropout(x))) if has_classifier(model) else None,
        execution=model.execution,
        output=output,
        indices=indices,
    )


def submodule(module: Any, name: str) -> Any:
    """What a canonical name leads to from a module: words are attributes, numbers are places in lists."""
    for word in name.split("."):
        module = module[int(word)] if word.isdecimal() else getattr(module, word)
    return module


def local_name(name: str) -> str:
    """The last word of a canonical name, by which a module has a layer."""
    return name.rpartition(".")[2]


def has_classifier(model: Any) -> bool:
    """Whether a module classifies: users may add a classifier that the Plan does not have, or remove it."""
    return getattr(model, "classifier", None) is not None


def start_of(model: Any, array: Callable[[Any, str], Any]) -> Start:
    """From what a module can be built again, in any backend. A classifier that was replaced counts as it is.

    Args:
      model: one with `plan`, `dtype`, `param_dtype`, `remat` and `execution`.
      array: the array of a layer, such as its `kernel`.

    Raises:
      WeightsError: an array that the Plan has is missing.
    """

    def checked(name: str) -> Any:
        path, _, leaf = name.rpartition(".")
        try:
            return array(submodule(model, path), leaf)
        except (LookupError, AttributeError, TypeError):
            raise WeightsError(f"the model has no array {name!r}") from None

    plan = with_classes(model.plan, checked("classifier.bias").shape[-1] if has_classifier(model) else 0)
    arrays = {name: checked(name) for name in array_specs(plan)}
    return Start(plan, arrays, model.dtype, model.param_dtype, model.remat, execution=model.execution)
