"""Loading weights of any source and format, and fitting them to a model."""

import contextlib
import difflib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jeffnet.arch.class_names import class_difference, class_indices, order_doubt
from jeffnet.arch.imagenet import known_classes
from jeffnet.arch.lower import OUTPUT_STRIDES
from jeffnet.arch.plan import Plan, trunk
from jeffnet.arch.summary import ArraySpec
from jeffnet.arch.zoo import (
    ModelLike,
    find_model,
    is_known,
    list_models,
    model_plan,
    model_preprocessing,
    own_spec,
    resolve_name,
)
from jeffnet.errors import UnknownModelError, WeightsError
from jeffnet.system.reading import check_file
from jeffnet.text.names import listed
from jeffnet.weights.archive import open_zip
from jeffnet.weights.card import ModelCard
from jeffnet.weights.fit import fit
from jeffnet.weights.formats import EXPORTED, FORMATS, safetensors
from jeffnet.weights.formats.interface import Probe, WeightsFile, reading
from jeffnet.weights.hub import WEIGHTS_FILES, locate
from jeffnet.weights.hub_config import HubConfig, check_arguments, config_beside
from jeffnet.weights.known_classifiers import remember_classes
from jeffnet.weights.naming import CLASSIFIER, to_canonical_names
from jeffnet.weights.timm import EFFICIENTNET_PYTORCH, TIMM

# Where weights may be: a path, True for the published ones, `hf:owner/name`, a URL; or what `find_weights` returned.
Source = str | os.PathLike | Literal[True] | WeightsFile
# The name of a model's weights in a folder, for jeffnet and the hub.
MODEL_FILE = WEIGHTS_FILES[0]

_log = logging.getLogger("jeffnet")


def find_weights(source: Source, name: ModelLike | None = None) -> WeightsFile:
    """Weights from wherever they are.

    Args:
      source: a path, see `read_weights`; `hf:owner/name` or a URL, see `jeffnet.weights.hub.locate`; for published
        weights, True or the model's name, with or without a tag; or what this function returned.
      name: of the model whose published weights True means.

    Returns:
      The file; its arrays are read when they are used.

    Raises:
      WeightsError: they cannot be downloaded or read.
    """
    if isinstance(source, WeightsFile):
        return source
    if published := published_name(source, name):
        source, name = True, published
    located = locate(source, name)
    try:
        file = read_weights(located.path)
    except WeightsError as error:
        if located.is_verified or isinstance(error.__cause__, ModuleNotFoundError):
            raise
        # A download without a length may be cut, which only its content shows.
        located.path.unlink(missing_ok=True)
        raise WeightsError(
            f"weights {located.source!r}: what was downloaded is removed, since it is damaged, cut short or "
            f"something else: try again, or check the address ({error})"
        ) from error
    if located.config is not None:
        return replace(file, source=located.source, config=located.config)
    is_timms = file.card is None and file.naming in (TIMM, EFFICIENTNET_PYTORCH)
    config = config_beside(Path(file.source)) if is_timms else HubConfig()
    return replace(file, source=located.source, config=config)


def published_name(source: Source | bool | None, name: ModelLike | None = None) -> str | None:
    """The name of the model whose published weights a source means; None if it means others.

    Args:
      source: see `find_weights`; None or False for no weights.
      name: of the model whose published weights True means.

    Returns:
      A name for `jeffnet.arch.zoo.find_model`; None also where the model that True means has no published weights.
    """
    wanted = name if source is True else source
    if not isinstance(wanted, str):
        return None
    try:
        is_published = find_model(wanted).weights is not None
    except UnknownModelError:
        return None
    return wanted if is_published and (source is True or not Path(wanted).exists()) else None


def _near(path: Path) -> str:
    """What to add where a missing file may be meant as the name of a model."""
    if path.exists():
        return ""
    known = dict.fromkeys([*list_models(), *list_models(tags=True)])
    if near := difflib.get_close_matches(str(path), known, n=3, cutoff=0.8):
        return f", or the name of a model: near it: {', '.join(near)}"
    return "" if path.suffix or path.name != str(path) else ", or the name of a model, which `jeffnet list` prints"


def read_weights(path: str | os.PathLike) -> WeightsFile:
    """Read weights in any of `jeffnet.weights.formats.FORMATS`, detected by content; large arrays are read when used.

    Args:
      path: of a file; of a folder that is a checkpoint or has one of `jeffnet.weights.hub.WEIGHTS_FILES`; or the prefix
        of a TensorFlow checkpoint, see `jeffnet.weights.formats.tensorflow.find_checkpoint`.

    Returns:
      The file, with its arrays by the names that they have in it.

    Raises:
      WeightsError: it is missing or truncated, or holds something else.
    """
    path = Path(path)
    if "\0" in str(path):
        raise WeightsError(f"weights {str(path)!r}: no path, since it has a null character")
    try:
        probe = _probe(path)
        format = next((module for module in (format.load() for format in FORMATS) if module.sniff(probe)), None)
        if format is None and not path.is_dir():
            check_file(path, None)
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise WeightsError(f"weights {str(path)!r}: {what}; give a weights file{_near(path)}") from error
    if format:
        return format.read(path)
    if path.suffix.lower() in EXPORTED:
        raise WeightsError(
            f"weights {str(path)!r}: is a file for a runtime, whose arrays are not the model's any more: give the "
            "weights that it was exported from, or run it (--model-file; in Python Classifier.from_pretrained)"
        )
    if path.is_dir():
        if file := next((path / name for name in WEIGHTS_FILES if (path / name).is_file()), None):
            return read_weights(file)
        raise WeightsError(
            f"weights {str(path)!r}: is a folder, but no checkpoint of Orbax, and there is no "
            f"{' and no '.join(map(repr, WEIGHTS_FILES))} in it; give a weights file"
        )
    if probe.members:
        raise WeightsError(
            f"weights {str(path)!r} are an archive of no known kind: neither of torch.save, Keras nor npz, but "
            f"{', '.join(probe.members[:5])}"
        )
    return safetensors.read(path)  # which says why it cannot be


def _probe(path: Path) -> Probe:
    if path.is_dir() or not os.path.lexists(path):  # it may be the prefix of files
        return Probe(path)
    check_file(path, None)
    with open(path, "rb") as file:
        start = file.read(33)
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"weights {str(path)!r}: a pointer to a file of Git LFS: run `git lfs pull` in the clone")
    if not start.startswith(b"PK"):
        return Probe(path, start)
    with reading(path, "are a broken archive"), open_zip(path) as archive:
        return Probe(path, start, tuple(archive.namelist()))


def open_weights(
    source: Source,
    name: ModelLike | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    rng: Any = 0,
    put: Callable[[ArraySpec, np.ndarray], Any] = lambda spec, array: array,
) -> tuple[ModelCard, dict[str, Any]]:
    """Weights and the card of their model.

    Args:
      source: see `find_weights`.
      name: the model's, if the source does not state it; or its architecture, if it has no name.
      num_classes: starts a new classifier if it is another number than the source's.
      in_chans: sums or repeats the first convolution's kernel if it is another number than the source's.
      rng: a seed or a key of `jax.random` for a new classifier.
      put: called with every array as soon as it is read, see `jeffnet.weights.fit.fit`.

    Returns:
      The model's card, and its arrays by canonical name.

    Raises:
      UnknownModelError: no such model.
      WeightsError: the weights cannot be downloaded or read, do not fit, or are of another model.
    """
    file, card = describe_weights(source, name)
    stated_card = card
    if num_classes not in (None, card.num_classes):
        card = replace(card, num_classes=num_classes, classes=())
    if in_chans not in (None, card.in_chans):
        card = replace(card, in_chans=in_chans)
    initial = None
    if card != stated_card:
        from jeffnet.ops.init import new_classifier  # JAX, for which a missing file need not wait

        initial = new_classifier(card.plan(), rng)
    arrays = to_canonical_names(file.arrays, file.naming, card.plan())
    fitted = fit(arrays, card.plan(), source=file.source, model=card.model, initial=initial, put=put)
    remember_classes(fitted, card.classes)
    return card, fitted


def describe_weights(source: Source, name: ModelLike | None = None) -> tuple[WeightsFile, ModelCard]:
    """A weights file, without reading its arrays, and the card of its model.

    Args:
      source: see `find_weights`.
      name: the model's, if the source does not state it; or its architecture, if it has no name.

    Returns:
      The file, and the card.

    Raises:
      UnknownModelError: no such model.
      WeightsError: the weights cannot be downloaded or read, are of an unknown or another model, or do not belong to
        the `config.json` beside them.
    """
    published = published_name(source)
    if name is not None and published is not None and trunk(model_plan(published)) != trunk(model_plan(name)):
        raise _of_another_name(source, resolve_name(published), _label(name))  # before anything is downloaded
    file = find_weights(source, name)
    if isinstance(name, str) and name == file.stated_model and not is_known(name):
        name = None  # a model that was registered where the file was written
    if name is None and file.stated_model is None:
        raise WeightsError(
            f"weights {file.source!r} do not say of which model they are: give its name (--model NAME, "
            "--model.name NAME to train; in Python as the argument after the weights)"
        )
    model = name or file.stated_architecture or ""
    _check_model(file, model_plan(model), model)
    return file, _describe(file, model)


def _describe(file: WeightsFile, model: ModelLike) -> ModelCard:
    """The card of weights, or else one made from their arrays and their `config.json`."""
    if file.card is not None:
        return file.card
    config = file.config
    plan = model_plan(model, output_stride=config.output_stride)
    check_arguments(config, model, file.source)
    arrays = to_canonical_names(file.arrays, file.naming, plan)
    bias, stem = arrays.get("classifier.bias"), arrays.get("conv_stem.kernel")
    # `fit` reports what is missing or has another rank.
    num_classes = 0 if bias is None else bias.size if bias.ndim == 1 else 1000
    in_chans = 3 if stem is None or stem.ndim != 4 else stem.shape[2]
    for what, count, stated in (("classes", num_classes, config.num_classes), ("channels", in_chans, config.in_chans)):
        if stated not in (None, count):
            raise WeightsError(
                f"weights {file.source!r} have {count} {what}, their config.json says {stated}: the two do not belong "
                "together; correct the entry, or move the weights away from it"
            )
    # Of 1,000 classes without names, ImageNet's are assumed, and likewise for its larger sets.
    imagenet = known_classes(num_classes)
    if len(config.classes) not in (0, num_classes):
        _log.warning(
            "weights %r: config.json names %d classes, and they have %d: the names are left aside",
            file.source, len(config.classes), num_classes,
        )  # fmt: skip
    return ModelCard(
        resolve_name(model),
        num_classes,
        in_chans,
        config.preprocessing or file.preprocessing or model_preprocessing(model),
        config.classes if len(config.classes) == num_classes else imagenet,
        config.global_pool,
        config.output_stride,
        spec=own_spec(model),
    )


def _check_model(file: WeightsFile, plan: Plan, model: ModelLike) -> None:
    """Raises WeightsError where weights say that they are of a model whose arrays compute something else in `plan`."""
    stated = file.stated_architecture
    output_stride = min(max(plan.output_stride, OUTPUT_STRIDES[0]), OUTPUT_STRIDES[-1])
    if stated is not None and trunk(model_plan(stated, output_stride=output_stride)) != trunk(plan):
        raise _of_another(file, model)


def _of_another(file: WeightsFile, model: ModelLike) -> WeightsError:
    stated, ours = file.stated_model, _label(model)
    if stated == ours:
        return WeightsError(
            f"weights {file.source!r} are of another {ours} than the registered one, and have its architecture: load "
            "them by from_pretrained without a name"
        )
    return _of_another_name(file.source, stated, ours, has_spec=bool(file.card and file.card.spec))


def _of_another_name(source: Source, stated: str | None, ours: str, has_spec: bool = False) -> WeightsError:
    way_out = f"the name {stated} (--model, or --model.name to train)"
    if has_spec:
        way_out = "no name, since the weights have their architecture"
    return WeightsError(
        f"weights {source!r} are of {stated}, not of {ours}, which would compute something else with them: "
        f"give weights of {ours} (--weights, or --model.pretrained to train), or {way_out}"
    )


def _label(model: ModelLike) -> str:
    """A model's name for messages, as it was given."""
    return model if isinstance(model, str) else resolve_name(model)


def load_weights(
    source: Source,
    plan: Plan,
    *,
    model: ModelLike = "the model",
    initial: Mapping[str, np.ndarray] | None = None,
    classes: Sequence[str] = (),
    put: Callable[[ArraySpec, np.ndarray], Any] = lambda spec, array: array,
) -> dict[str, Any]:
    """The arrays of weights, by canonical name, for a model.

    Args:
      source: see `find_weights`.
      plan: the model.
      model: its name, also in messages, or the architecture of a model that has none.
      initial: if given, another number of classes or input channels is adapted, see `jeffnet.weights.fit.fit`, and
        another pooling or output stride than the weights were made with is only a warning.
      classes: names of the model's classes, for adapting: weights of the same names in another order get this one, and
        those of other classes a new classifier.
      put: called with every array as soon as it is read, see `jeffnet.weights.fit.fit`.

    Returns:
      What `put` makes of them; NumPy arrays unless given.

    Raises:
      WeightsError: they cannot be downloaded or read, do not fit, or are of another model, pooling or output stride.

    Example:
      from jeffnet.arch.zoo import model_plan

      plan = model_plan("efficientnet_b0")
      arrays = load_weights("b0.safetensors", plan, model="efficientnet_b0")
    """
    file = find_weights(source, model)
    _check_model(file, plan, model)
    card = None
    with contextlib.suppress(UnknownModelError):  # a plan may be of a model that has no name
        card = _describe(file, file.stated_architecture or model)
        _check_options(file, card, plan, _label(model), adapt=initial is not None)
    arrays = to_canonical_names(file.arrays, file.naming, plan)
    if initial is not None and classes:
        _match_classifier(arrays, card.classes if card else (), classes, initial, file.source)
    fitted = fit(arrays, plan, source=file.source, model=_label(model), initial=initial, put=put)
    if card and not classes and card.num_classes == plan.num_classes:
        remember_classes(fitted, card.classes)
    return fitted


def _check_options(file: WeightsFile, card: ModelCard, plan: Plan, model: str, adapt: bool) -> None:
    """Raises WeightsError where weights were made for other options than the defaults and than the model's."""
    for option, default in (("test_window", 0), ("global_pool", "avg"), ("output_stride", 32)):
        # Test-time pooling is an option of cards alone: a model made by name has none.
        stated, ours = getattr(card, option), getattr(plan, option, default)
        if stated == default or getattr(card.plan(), option, stated) == ours:
            continue
        if not adapt:
            way_out = f"pass {option}={stated!r}" if option != "test_window" else "load them by from_pretrained"
            raise WeightsError(
                f"weights {file.source!r} are of a model with {option} {stated!r}, this {model} has {ours!r} and would "
                f"compute something else: {way_out}, or adapt=True to have it so"
            )
        _log.warning("%s: made with %s %r, and used with %r", file.source, option, stated, ours)


def _match_classifier(
    arrays: dict[str, Any], known: Sequence[str], classes: Sequence[str], initial: Mapping[str, np.ndarray], source: str
) -> None:
    """Put a classifier's known classes into the order of `classes`, or a new one in place of one of other classes."""
    bias = arrays.get("classifier.bias")
    if bias is None or bias.shape != (len(classes),) or any(name not in initial for name in CLASSIFIER):
        return  # `fit` reports it or starts a new classifier
    indices = class_indices(classes, len(classes), known)
    if indices is None:
        difference = class_difference(known or known_classes(len(classes)), classes)
        _log.warning("%s: new classifier: its classes are %s", source, difference)
        arrays.update({name: initial[name] for name in CLASSIFIER})
    elif indices != tuple(range(len(classes))):
        _log.warning("%s: its classes are put into the order %s", source, listed(classes))
        for name in CLASSIFIER:
            arrays[name] = arrays[name].map(lambda values: values[..., list(indices)])
    elif doubt := order_doubt(classes, len(classes), known):
        _log.warning("%s: %s: name them if it is timm's (save_checkpoint(..., classes=...))", source, doubt)
