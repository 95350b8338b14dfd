"""Everything needed to build a model, in any module system: its Plan, options and arrays."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jeffnet.arch.execution import Execution
from jeffnet.arch.plan import Plan
from jeffnet.arch.summary import STATISTICS, ArraySpec, array_specs
from jeffnet.arch.zoo import ModelLike as ModelLike
from jeffnet.arch.zoo import default_num_classes, model_plan
from jeffnet.errors import ArchitectureError, UnknownOptionError
from jeffnet.ops.init import initial_arrays, new_classifier
from jeffnet.ops.precision import at_least_float32
from jeffnet.weights.card import ModelCard
from jeffnet.weights.load import Source, load_weights, open_weights, published_name

_Model = TypeVar("_Model")


class ModelOptions(TypedDict, total=False):
    """The options of every backend's `create_model`.

    Attributes:
      num_classes: width of the logits; None, the default, takes that of the published weights that `pretrained` means,
        else of those of the model's name: 1000, but 11,221, 11,821 or 21,843 for tags such as `in21k`. 0 makes a call
        return the pooled features.
      in_chans: channels of the pictures, 3 unless given.
      drop_rate: dropout before the classifier, in [0, 1); None, the default, takes the paper's.
      drop_path_rate: stochastic depth of the last block, in [0, 1); None, the default, takes the paper's.
      global_pool: 'avg' (the default), 'max', 'avgmax' (mean of both) or 'none' (logits for every position of the last
        map).
      output_stride: 32 (the default), or 16 or 8, where later strides become dilations.
      bn_momentum: share of the old running statistics that a training step keeps, as in Flax and TensorFlow; timm and
        PyTorch call the rest momentum: their 0.1 is 0.9 here. None, the default, takes the architecture's.
      dtype: in which layers compute, float32 unless given. Logits have it too.
      param_dtype: of parameters, float32 unless given. Running statistics are at least float32.
      remat: keep only the blocks' inputs for the backward pass and compute the rest again (less memory, more time).
      rng: a seed (0 unless given) or a key of `jax.random`, for the initial values and, where a model draws its own
        random numbers, for dropout and drop path.
      pretrained: True for the published weights, or where others are: a path, `hf:owner/name` or a URL, see
        `jeffnet.weights.load.find_weights`. None or False, the default, draws initial values.
      adapt: where the file has other classes or input channels, start the classifier anew and sum or repeat the first
        convolution's kernels, and where it was made for another pooling or output stride warn, instead of an error.
      abstract: have `jax.ShapeDtypeStruct`s for arrays, which allocate nothing.
    """

    num_classes: int | None
    in_chans: int
    drop_rate: float | None
    drop_path_rate: float | None
    global_pool: str
    output_stride: int
    bn_momentum: float | None
    dtype: DTypeLike
    param_dtype: DTypeLike
    remat: bool
    rng: int | Array
    pretrained: Source | bool | None
    adapt: bool
    abstract: bool


class PretrainedOptions(TypedDict, total=False):
    """The options of every backend's `from_pretrained`. What else a model computes is its weights' own.

    Attributes:
      num_classes: width of the logits; None, the default, takes that of the weights, another number starts a new
        classifier. 0 makes a call return the pooled features.
      in_chans: channels of the pictures; None, the default, takes those of the weights, another number sums or repeats
        the first convolution's kernels.
      drop_rate: dropout before the classifier, in [0, 1); None, the default, takes the paper's.
      drop_path_rate: stochastic depth of the last block, in [0, 1); None, the default, takes the paper's.
      bn_momentum: share of the old running statistics that a training step keeps, as in Flax and TensorFlow; timm and
        PyTorch call the rest momentum: their 0.1 is 0.9 here. None, the default, takes the architecture's.
      dtype: in which layers compute, float32 unless given. Logits have it too.
      param_dtype: of parameters, float32 unless given. Running statistics are at least float32.
      remat: keep only the blocks' inputs for the backward pass and compute the rest again (less memory, more time).
      rng: a seed (0 unless given) or a key of `jax.random`, for a new classifier and, where a model draws its own
        random numbers, for dropout and drop path.
    """

    num_classes: int | None
    in_chans: int | None
    drop_rate: float | None
    drop_path_rate: float | None
    bn_momentum: float | None
    dtype: DTypeLike
    param_dtype: DTypeLike
    remat: bool
    rng: int | Array


class Pretrained(NamedTuple, Generic[_Model]):
    """What `from_pretrained` of Linen and functional returns: `model, variables, card = from_pretrained(...)`.

    Functions that take a model take it as it is.

    Attributes:
      model: a module without arrays, or functions.
      variables: its arrays, `{'params': ..., 'batch_stats': ...}`.
      card: its preprocessing, the names of its classes.
    """

    model: _Model
    variables: dict[str, Any]
    card: ModelCard

    @property
    def created(self) -> tuple[_Model, dict[str, Any]]:
        """What `create_model` returns."""
        return self.model, self.variables


class PretrainedModule(NamedTuple, Generic[_Model]):
    """What `from_pretrained` of NNX and Objax returns: `model, card = from_pretrained(...)`.

    Functions that take a model take it as it is.

    Attributes:
      model: a module with its arrays.
      card: its preprocessing, the names of its classes.
    """

    model: _Model
    card: ModelCard

    @property
    def variables(self) -> None:
        """None: the module holds its arrays."""

    @property
    def created(self) -> _Model:
        """What `create_model` returns."""
        return self.model


@dataclass(frozen=True)
class Start:
    """What a backend needs to build a model: its Plan, all arrays by canonical name, and options.

    For `dtype`, `param_dtype` and `remat` see `ModelOptions`. `rng` is the seed or key of the random numbers that the
    model draws itself.
    """

    plan: Plan
    arrays: Mapping[str, Any]
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: bool = False
    rng: int | Array = 0
    execution: Execution = Execution()


def start_model(
    name: ModelLike,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    rng: int | Array = 0,
    pretrained: Source | bool | None = None,
    adapt: bool = False,
    abstract: bool = False,
    **architecture: Any,
) -> Start:
    """The start of a model, by its name or its architecture; takes no forward pass. Options: see `ModelOptions`.

    Raises:
      UnknownModelError: no such model.
      ArchitectureError: an option outside its range.
      WeightsError: `pretrained` cannot be read or does not fit.
      UnknownOptionError: no such option.
    """
    _check_known(architecture, ModelOptions)
    _check_float("dtype", dtype)
    _check_float("param_dtype", param_dtype)
    if architecture.get("num_classes", 0) is None:
        del architecture["num_classes"]
    published = published_name(pretrained, name)
    if published:
        architecture.setdefault("num_classes", default_num_classes(published))
    plan = model_plan(name, **architecture)
    if abstract:
        arrays = {
            name: jax.ShapeDtypeStruct(spec.shape, array_dtype(spec, param_dtype))
            for name, spec in array_specs(plan).items()
        }
    else:
        arrays = start_arrays(plan, rng, param_dtype, model=name, pretrained=pretrained, adapt=adapt)
    # NNX and Objax take no integers of NumPy.
    return Start(plan, arrays, dtype, param_dtype, remat, int(rng) if isinstance(rng, Integral) else rng)


def start_pretrained(
    source: Source,
    name: ModelLike | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    rng: int | Array = 0,
    place: Callable[[np.ndarray], Any] = jax.device_put,
    **training: Any,
) -> tuple[Start, ModelCard]:
    """The start of the model of these weights, and its card. Options: see `PretrainedOptions`.

    Args:
      source: see `jeffnet.weights.load.find_weights`.
      name: the model's, if the source does not state it; or its architecture, if it has no name.
      num_classes: of the logits, as in `PretrainedOptions`, with all the following.
      in_chans: of the pictures.
      dtype: in which layers compute.
      param_dtype: of parameters.
      remat: compute blocks again in the backward pass.
      rng: of a new classifier, and of the model.
      place: puts an array on devices, before the next is read.
      **training: `drop_rate`, `drop_path_rate` and `bn_momentum`.

    Raises:
      UnknownModelError: no such model.
      UnknownOptionError: no such option.
      ArchitectureError: an option outside its range.
      WeightsError: the file cannot be read, does not fit, or states another name.
    """
    _check_known(training, PretrainedOptions)
    _check_float("dtype", dtype)
    _check_float("param_dtype", param_dtype)

    put = _put(place, param_dtype)
    card, arrays = open_weights(source, name, num_classes=num_classes, in_chans=in_chans, rng=rng, put=put)
    seed = int(rng) if isinstance(rng, Integral) else rng
    return Start(card.plan(**training), arrays, dtype, param_dtype, remat, seed, card.execution), card


def with_test_pooling(start: Start, image_size: int) -> Start:
    """The same model for larger pictures than those of its training, which had this height and width.

    The windows (`Execution.test_window`) are as large as the last map of the training pictures.
    """
    window = -(-image_size // start.plan.output_stride)
    return replace(start, execution=replace(start.execution, test_window=window))


def _check_known(options: Mapping[str, Any], kind: type) -> None:
    """Raises UnknownOptionError where there is an option that a TypedDict does not have."""
    if unknown := sorted(options.keys() - kind.__annotations__.keys()):
        raise UnknownOptionError(
            f"no option {', '.join(map(repr, unknown))}; there are {', '.join(kind.__annotations__)}"
        )


def _check_float(option: str, dtype: DTypeLike) -> None:
    """Raises ArchitectureError where something is no dtype of floating point numbers."""
    with contextlib.suppress(TypeError):
        if jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            return
    raise ArchitectureError(f"{option} {dtype!r} is no dtype of floating point numbers, such as 'bfloat16'")


def array_dtype(spec: ArraySpec, param_dtype: DTypeLike) -> DTypeLike:
    """Parameters have `param_dtype`, running statistics at least float32."""
    return param_dtype if spec.is_parameter else at_least_float32(param_dtype)


def _put(place: Callable[[np.ndarray], Any], param_dtype: DTypeLike) -> Callable[[ArraySpec, np.ndarray], Array]:
    # A copy: JAX may use the memory of a NumPy array as it is, and `jnp.asarray` compiles a program for every shape.
    return lambda spec, array: place(np.array(array, array_dtype(spec, param_dtype)))


def statistics(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The running statistics among arrays by canonical name."""
    return {name: array for name, array in arrays.items() if name.rpartition(".")[2] in STATISTICS}


def start_arrays(
    plan: Plan,
    rng: int | Array,
    param_dtype: DTypeLike,
    *,
    model: ModelLike = "the model",
    pretrained: Source | bool | None = None,
    adapt: bool = False,
    classes: Sequence[str] = (),
    place: Callable[[np.ndarray], Any] = jax.device_put,
) -> dict[str, Array]:
    """Every array of a model by canonical name: initial values, or those of a weights file.

    For `rng`, `param_dtype`, `pretrained` and `adapt` see `ModelOptions`, for `model` and `classes`
    `jeffnet.weights.load.load_weights`. `place` puts an array on devices, before the next is read.

    Raises:
      WeightsError: the file cannot be read or does not fit.
    """
    put = _put(place, param_dtype)
    if pretrained is None or pretrained is False:
        arrays = initial_arrays(plan, rng, param_dtype)
        return {name: put(spec, arrays[name]) for name, spec in array_specs(plan).items()}
    initial = new_classifier(plan, rng, param_dtype) if adapt else None
    return load_weights(pretrained, plan, model=model, initial=initial, classes=classes, put=put)
