"""Models by name or from weights, in any backend.

    import jeffnet

    model = jeffnet.create_model("efficientnet_b0", num_classes=10)
    model, card = jeffnet.from_pretrained("b0.safetensors")
    model, variables, card = jeffnet.from_pretrained("b0.safetensors", backend="linen")

The package offers both functions as its own. Weights are found before a module system is imported: where they cannot be
had, nobody waits for it.
"""

from typing import Any, Unpack

from jeffnet.arch.zoo import default_num_classes
from jeffnet.backends import BACKENDS, load_backend
from jeffnet.backends.common import with_options
from jeffnet.weights.load import Source, find_weights, published_name
from jeffnet.weights.start import ModelLike, ModelOptions, Pretrained, PretrainedModule, PretrainedOptions

# Flax's interface for new programs: a model is one object, which is called with images and can be changed in place.
DEFAULT_BACKEND = "nnx"


@with_options
def create_model(name: ModelLike, backend: str = DEFAULT_BACKEND, **options: Unpack[ModelOptions]) -> Any:
    """A model with initial or pretrained arrays; runs no forward pass.

    Args:
      name: of an architecture, or `architecture.tag`; `jeffnet.list_models()` has them. Or one of
        `jeffnet.register_model`; or an architecture itself: a `jeffnet.arch.spec.ModelSpec`, or its stages of block
        strings.
      backend: 'nnx', 'linen', 'objax' or 'functional'.
      options: see `jeffnet.weights.start.ModelOptions`.

    Returns:
      NNX and Objax: a module that holds its arrays. Linen and functional: the model, and its variables `{'params': ...,
      'batch_stats': ...}`.

    Raises:
      JeffnetError: no such backend, or what it needs is not installed.
      UnknownModelError: no such model.
      UnknownOptionError: no such option.
      ArchitectureError: an option outside its range, or an architecture that is no network.
      WeightsError: `pretrained` cannot be read or does not fit.
    """
    pretrained = options.get("pretrained")
    if backend in BACKENDS and pretrained is not None and pretrained is not False:
        published = published_name(pretrained, name)
        if published and options.get("num_classes") is None:
            options["num_classes"] = default_num_classes(published)
        options["pretrained"] = find_weights(pretrained, name)
    return load_backend(backend).create_model(name, **options)


@with_options
def from_pretrained(
    source: Source,
    name: ModelLike | None = None,
    backend: str = DEFAULT_BACKEND,
    **options: Unpack[PretrainedOptions],
) -> Pretrained[Any] | PretrainedModule[Any]:
    """A model from its weights, as they say that it is.

    Args:
      source: any that `jeffnet.weights.load.find_weights` takes: a path, `hf:owner/name`, a URL, or the name of a model
        for its published weights.
      name: of the model, or its architecture; not needed where the weights state it.
      backend: 'nnx', 'linen', 'objax' or 'functional'.
      options: see `jeffnet.weights.start.PretrainedOptions`.

    Returns:
      A tuple with the attributes `model`, `variables` and `card` in all backends; the card has the model's
      preprocessing and the names of its classes. NNX and Objax: `(model, card)`; `variables` is None, since the module
      holds its arrays. Linen and functional: `(model, variables, card)`.

    Raises:
      JeffnetError: no such backend, or what it needs is not installed.
      UnknownModelError: no such model.
      UnknownOptionError: no such option.
      ArchitectureError: an option outside its range.
      WeightsError: the weights cannot be found or read, do not fit, or state another name.
    """
    source = source if backend not in BACKENDS else find_weights(source, name)
    return load_backend(backend).from_pretrained(source, name, **options)
