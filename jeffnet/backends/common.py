"""What the backends share: documentation, and models that hold their layers under the Plan's names."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar, assert_never

from jax import Array

from jeffnet.arch.operations import Conv, ConvPart, Dense, Norm, Op, SqueezeExcite
from jeffnet.arch.plan import FeatureInfo, Plan, with_classes
from jeffnet.arch.summary import array_specs
from jeffnet.backends import Backend
from jeffnet.errors import WeightsError
from jeffnet.ops.network import apply_conv, apply_squeeze
from jeffnet.weights.start import Start

_Function = TypeVar("_Function", bound=Callable[..., Any])


def documented(function: _Function) -> _Function:
    """Give a backend's function the docstring that `Backend` has for it."""
    function.__doc__ = getattr(Backend, function.__name__).__doc__
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

        Arguments are those of a pass for logits. In training, functional also returns the updated statistics.
        """

    def features(self, *args: Any, **kwargs: Any) -> Any:
        """Feature maps `(N, H / stride, W / stride, C)`, as a tuple.

        Args:
          args: as for logits; the argument after the images is `indices`: which of `feature_info`, in any order.
            Negative ones count from the end, None takes all.
          kwargs: as for logits.

        In training, functional also returns the updated statistics.

        Raises:
          ArchitectureError: no such map.
        """


class Layers(ABC):
    """Makes the layers of a framework whose modules hold their arrays.

    They get the arrays of a start, instead of drawing initial values and throwing them away.
    """

    list_class: type[Any]
    squeeze_excite_class: type[Any]

    def __init__(self, start: Start) -> None:
        self.start = start

    @abstractmethod
    def conv(self, op: Conv, part: ConvPart) -> Any:
        """One kernel of a convolution."""

    @abstractmethod
    def norm(self, norm: Norm) -> Any:
        """A norm."""

    @abstractmethod
    def dense(self, dense: Dense) -> Any:
        """The classifier."""

    def add(self, module: Any, op: Op) -> None:
        """Give a module the layers of an operation."""
        match op:
            case Conv():
                convs = [self.conv(op, part) for part in op.parts]
                setattr(module, local_name(op.name), convs[0] if len(convs) == 1 else self.list_class(convs))
                if op.norm:
                    setattr(module, local_name(op.norm.name), self.norm(op.norm))
            case SqueezeExcite():
                setattr(module, local_name(op.name), self.squeeze_excite_class(op, self))
            case _:
                assert_never(op)


class SqueezeExciteLayers:
    """Channels weighted by what the whole picture holds (arXiv:1709.01507); the base of NNX's and Objax's modules."""

    def __init__(self, op: SqueezeExcite, layers: Layers) -> None:
        self.op = op
        for conv in op.convolutions:
            layers.add(self, conv)

    def __call__(self, x: Array) -> Array:
        """`(N, H, W, C)` to the same."""
        return apply_squeeze(self.op, x, lambda op, x: apply_layers(self, op, x))


def apply_layers(module: Any, op: Op, x: Array, *norm_arguments: Any) -> Array:
    """An operation, by the layers that `Layers.add` gave a module.

    Args:
      module: the module.
      op: what to compute.
      x: `(N, H, W, C)`.
      norm_arguments: for norms, after their input.
    """
    prefix = len(op.name) - len(local_name(op.name))
    match op:
        case Conv():
            return apply_conv(
                op,
                x,
                lambda part, x: submodule(module, part.name[prefix:])(x),
                lambda norm, x, act: submodule(module, local_name(norm.name))(x, *norm_arguments, act=act),
            )
        case SqueezeExcite():
            return submodule(module, local_name(op.name))(x)
        case _:
            assert_never(op)


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


def start_of(model: Any, array: Callable[[str], Any]) -> Start:
    """From what a module can be built again, in any backend. A classifier that was replaced counts as it is.

    Args:
      model: one with `plan`, `dtype`, `param_dtype`, `remat` and `execution`.
      array: its arrays by canonical name; raises LookupError, AttributeError or TypeError where it has none.

    Raises:
      WeightsError: an array that the Plan has is missing.
    """

    def checked(name: str) -> Any:
        try:
            return array(name)
        except (LookupError, AttributeError, TypeError):
            raise WeightsError(f"the model has no array {name!r}") from None

    plan = with_classes(model.plan, checked("classifier.bias").shape[-1] if has_classifier(model) else 0)
    arrays = {name: checked(name) for name in array_specs(plan)}
    return Start(plan, arrays, model.dtype, model.param_dtype, model.remat, execution=model.execution)
