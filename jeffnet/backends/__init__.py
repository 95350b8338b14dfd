"""The module systems by name, and models from one to another.

    from jeffnet.backends import convert

    model = convert((linen_model, variables), "nnx")

A backend is a module with the functions of `Backend`. Nothing of one is imported before it is asked for.
"""

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from jeffnet.errors import JeffnetError, check_choice

if TYPE_CHECKING:  # the command line names backends in its help, for which JAX is not needed
    from jeffnet.arch.zoo import ModelLike
    from jeffnet.weights.start import Start

BACKENDS = {
    "linen": "jeffnet.linen",
    "nnx": "jeffnet.nnx",
    "objax": "jeffnet.objax",
    "functional": "jeffnet.functional",
}
# Of commands that run a model: it imports no module system, and is traced in half the time.
RUNNING_BACKEND = "functional"
# Dtypes in which layers can compute.
DTYPES = ("float32", "bfloat16", "float16")


class Backend(Protocol):
    """The functions of a backend, besides its classes; the backends' functions have these docstrings.

    A model is what `create_model` returns: `(model, variables)` of Linen and functional, a module of NNX and Objax.
    `jeffnet.backends.convert` and what else takes a model of any backend also take what `from_pretrained` returns.
    Functions that take a model take a pair as two arguments.
    """

    def create_model(self, name: "ModelLike", **options: Any) -> Any:
        """A model with initial or pretrained arrays; runs no forward pass.

        Args:
          name: of an architecture, or `architecture.tag`; `jeffnet list` shows them. Or one of
            `jeffnet.register_model`; or an architecture itself: a `jeffnet.arch.spec.ModelSpec`, or its stages of block
            strings.
          options: see `jeffnet.weights.start.ModelOptions`.

        Returns:
          Linen and functional: the model, and its variables `{'params': ..., 'batch_stats': ...}`. NNX and Objax: a
          module that holds its arrays.

        Raises:
          UnknownModelError: no such model.
          UnknownOptionError: no such option.
          ArchitectureError: an option outside its range, or an architecture that is no network.
          WeightsError: `pretrained` cannot be read or does not fit.
        """
        ...

    def from_pretrained(self, source: Any, name: "ModelLike | None" = None, **options: Any) -> Any:
        """A model from its weights, as they say that it is.

        Args:
          source: any that `jeffnet.weights.load.find_weights` takes: a path, `hf:owner/name`, a URL, or the name of a
            model for its published weights.
          name: of the model, or its architecture; not needed where the weights state it.
          options: see `jeffnet.weights.start.PretrainedOptions`.

        Returns:
          A tuple with the attributes `model`, `variables` and `card` in all backends; the card has the model's
          preprocessing and the names of its classes. Linen and functional: `(model, variables, card)`. NNX and Objax:
          `(model, card)`; `variables` is None, since the module holds its arrays.

        Raises:
          UnknownModelError: no such model.
          UnknownOptionError: no such option.
          ArchitectureError: an option outside its range.
          WeightsError: the weights cannot be found or read, do not fit, or state another name.
        """
        ...

    def build(self, start: "Start") -> Any:
        """A model from everything needed for it.

        Args:
          start: plan, options and arrays.

        Returns:
          What `create_model` returns.
        """
        ...

    def to_start(self, *model: Any) -> "Start":
        """The plan, options and arrays of a model, from which any backend can build it; the inverse of `build`.

        Args:
          model: what `create_model` returns; a pair as two arguments.

        Returns:
          The argument of `build`.
        """
        ...

    def inference(self, *model: Any) -> tuple[Callable[[Any, Any], Any], Any]:
        """A model as a pure function for evaluation, to be compiled with `jax.jit`.

        Args:
          model: what `create_model` returns; a pair as two arguments.

        Returns:
          A function of variables and images `(N, H, W, C)` that returns logits, and the variables, a pytree.
        """
        ...

    def training(self, start: "Start", images: Any, indices: Sequence[int] | None = None) -> tuple[Any, dict[str, Any]]:
        """A pass in training mode: logits, and the updated running statistics by canonical name.

        Builds the model of `start`. Inside `jax.jit` that happens once, while the function is traced.

        Args:
          start: plan, options and arrays, which may be tracers; its `rng` is the key of dropout and drop path.
          images: `(N, H, W, C)`, normalised.
          indices: of the maps to return too, see `features` of the model; None returns logits alone.

        Returns:
          Logits `(N, num_classes)`, or with `indices` `jeffnet.ops.network.Outputs`; and the running statistics.
        """
        ...


def load_backend(name: str) -> Backend:
    """A backend by name.

    Args:
      name: one of `BACKENDS`.

    Returns:
      Its module.

    Raises:
      JeffnetError: no such backend, or what it needs is not installed.
    """
    check_choice("backend", name, BACKENDS, JeffnetError)
    try:
        return cast(Backend, importlib.import_module(BACKENDS[name]))
    except ModuleNotFoundError as error:
        raise JeffnetError(f"backend {name!r} is not installed: {error}") from error


def backend_of(model: Any) -> str:
    """The backend whose `create_model` made a model, or of whose class it is.

    Args:
      model: what any backend's `create_model` returns.

    Returns:
      Its name in `BACKENDS`.

    Raises:
      JeffnetError: none did.
    """
    module = model[0] if isinstance(model, tuple) and model else model
    classes = {(kind.__module__, kind.__name__) for kind in type(module).__mro__}
    for name, path in BACKENDS.items():
        if (path, "ImageClassifier") in classes:
            return name
    raise JeffnetError(f"{type(module).__name__} is no model of jeffnet: give what create_model returned")


def to_start(model: Any, training: bool = False) -> "Start":
    """What is needed to build the same model in any backend.

    Args:
      model: what any backend's `create_model` or `from_pretrained` returns. A classifier of another width may
        have been put into it.
      training: whether training must be the same too, not only inference.

    Returns:
      Plan, options and arrays.

    Raises:
      JeffnetError: it is something else, lacks an array, or its plan does not say what it computes.
    """
    from jeffnet.weights.start import Pretrained, PretrainedModule

    if isinstance(model, Pretrained | PretrainedModule):
        model = model.created
    name = backend_of(model)
    backend, arguments = load_backend(name), model if isinstance(model, tuple) else (model,)
    signature = inspect.signature(backend.to_start)
    try:
        signature.bind(*arguments)
    except TypeError:
        raise JeffnetError(f"a model of {name} is ({', '.join(signature.parameters)}): give both") from None
    start = backend.to_start(*arguments)
    from jeffnet.backends.modified import check_unchanged

    check_unchanged(name, model, start, training)
    return start


def convert(model: Any, to: str) -> Any:
    """A model of one backend as one of another: the same arrays to the bit, the same function, the same options.

    Args:
      model: what any backend's `create_model` returns.
      to: 'linen', 'nnx', 'objax' or 'functional'.

    Returns:
      What that backend's `create_model` returns. Random numbers that the model draws itself start anew.

    Raises:
      JeffnetError: no such backend, no such model, or one whose plan does not say what it computes.
    """
    return load_backend(to).build(to_start(model, training=True))
