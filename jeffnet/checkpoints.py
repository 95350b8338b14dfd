"""Models of any backend to files: jeffnet's format, or one that a module system's tools or another library reads.

    from jeffnet.checkpoints import save_checkpoint

    save_checkpoint("b0.safetensors", (model, variables), "efficientnet_b0")

Every `create_model(..., pretrained=...)` and `from_pretrained` reads all of them.
"""

import glob
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jeffnet.arch.imagenet import LABEL_SETS, known_classes
from jeffnet.arch.lower import OUTPUT_STRIDES
from jeffnet.arch.plan import Plan, trunk
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import ModelLike, model_plan, model_preprocessing, own_spec, resolve_name
from jeffnet.backends import load_backend, to_start
from jeffnet.errors import EndingError, OutputError, WeightsError
from jeffnet.system.files import written_atomically
from jeffnet.weights.card import ModelCard
from jeffnet.weights.fit import fit
from jeffnet.weights.formats import EXPORTED, FORMATS, FORMS, formats_of
from jeffnet.weights.formats.interface import Contents
from jeffnet.weights.known_classifiers import remembered_classes
from jeffnet.weights.start import Start

_log = logging.getLogger("jeffnet")


def save_checkpoint(
    path: str | os.PathLike,
    model: Any,
    name: ModelLike | ModelCard,
    *,
    form: str | None = None,
    classes: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
) -> ModelCard:
    """Write a model.

    Args:
      path: to write to; see `write_checkpoint`.
      model: what any backend's `create_model` returns.
      name: the model's name, or the architecture that was given to `create_model`; or the card from `from_pretrained`,
        whose preprocessing and classes (if their number is the same) are then the defaults.
      form: see `form_of`.
      classes: names of the classes in the order of the logits. Unless they or a card are given, those of the weights
        that this process loaded, published ones for example, if the classifier still has their values; else none, since
        a classifier that was trained further may be one of other classes.
      preprocessing: what the model expects of pictures; the card's or the model's by default.

    Returns:
      The card that a file in jeffnet's own format has.

    Raises:
      UnknownModelError: no such model.
      WeightsError: the model is not the one of this name, was changed so that the file would compute something else, or
        does not fit the form.
      OutputError: the path exists or cannot be written.
    """
    card, arrays = describe_model(to_start(model), name, classes, preprocessing)
    if not card.classes and card.num_classes in LABEL_SETS.values() and form_of(path, form) == "jeffnet":
        _log.warning(
            "%s: written without names of its classes, since its classifier is not that of loaded weights: if they are "
            "ImageNet's, give classes=jeffnet.arch.imagenet.known_classes(%d)", path, card.num_classes,
        )  # fmt: skip
    write_checkpoint(path, arrays, card, form)
    return card


def describe_model(
    start: Start,
    name: ModelLike | ModelCard,
    classes: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
) -> tuple[ModelCard, dict[str, np.ndarray]]:
    """The card of a model, and its arrays.

    Args:
      start: of `jeffnet.backends.to_start`.
      name: see `save_checkpoint`, as for `classes` and `preprocessing`.
      classes: names of the classes.
      preprocessing: what the model expects of pictures.

    Returns:
      The card, and the arrays by canonical name.

    Raises:
      UnknownModelError: no such model.
      WeightsError: the model is not the one of this name, or the names are not of its classes.
    """
    if any(isinstance(array, jax.ShapeDtypeStruct) for array in start.arrays.values()):
        raise WeightsError("the model has shapes instead of arrays: create it without abstract=True")
    known = name if isinstance(name, ModelCard) else None
    architecture: ModelLike = known.architecture if known else name  # pyright: ignore[reportAssignmentType]
    num_classes = start.plan.num_classes
    names = _checked_names(classes, num_classes)
    if not names:
        names = known.classes if known and known.num_classes == num_classes else remembered_classes(start.arrays)
    card = ModelCard(
        model=known.model if known else resolve_name(architecture),
        num_classes=num_classes,
        in_chans=start.plan.in_chans,
        preprocessing=preprocessing or (known.preprocessing if known else model_preprocessing(architecture)),
        classes=names,
        global_pool="none" if start.execution.test_window else start.plan.global_pool,
        output_stride=_output_stride(start.plan, architecture),
        test_window=start.execution.test_window,
        spec=known.spec if known else own_spec(architecture),
        quantization=known.quantization if known else None,
        task=known.task if known else "single_label",
        thresholds=known.thresholds if known and known.num_classes == num_classes else (),
    )
    arrays = fit(
        {key: np.asarray(array) for key, array in start.arrays.items()}, card.plan(), source="model", model=card.model
    )
    if trunk(start.plan) != trunk(card.plan()):
        raise WeightsError(f"the model is not a {card.model}, which would compute something else with its arrays")
    return card, arrays


def _checked_names(classes: Sequence[str], num_classes: int) -> tuple[str, ...]:
    """Names of classes that a user gives, or none; raises WeightsError where they are no names or not as many."""
    names = (classes,) if isinstance(classes, str) else tuple(() if classes is None else classes)
    if wrong := [entry for entry in names if not isinstance(entry, str)]:
        raise WeightsError(f"names of classes are text, and {wrong[0]!r} is a {type(wrong[0]).__name__}")
    if len(names) not in (0, num_classes):
        raise WeightsError(f"{len(names)} names of classes do not fit a model of {num_classes}")
    return names


# Endings of formats that jeffnet does not write.
_FOREIGN = (
    *(".pb", ".hdf5", ".mlmodel", ".mlpackage", ".gguf", ".engine", ".xml", ".jit", ".pt2"),
    *(".pkl", ".pickle", ".npy", ".zip", ".gz", ".json"),
)


def form_of(path: str | os.PathLike, form: str | None = None) -> str:
    """The form in which to write a file.

    Args:
      path: of the file.
      form: one of `jeffnet.weights.formats.FORMS`; None takes the default of the path's ending, or 'jeffnet'.

    Returns:
      One of `jeffnet.weights.formats.FORMS`.

    Raises:
      EndingError: no file with this ending has the form, or jeffnet cannot write files with this ending.
    """
    path = Path(path)
    if form is not None and form not in FORMS:
        raise EndingError(f"form {form!r} is not one of {', '.join(FORMS)}")
    if path.suffix.lower() in EXPORTED:
        raise EndingError(f"cannot write {str(path)!r} as weights: `jeffnet export` writes {path.suffix.lower()} files")
    if path.suffix.lower() in _FOREIGN:
        endings = dict.fromkeys(ending for format in FORMATS for ending in format.endings)
        written = ", ".join(f"*{ending} ({' or '.join(_forms(f'a{ending}'))})" for ending in endings)
        raise EndingError(f"cannot write {str(path)!r}: jeffnet writes no {path.suffix.lower()} files, but {written}")
    forms = _forms(path.name)
    if form is not None and form not in forms:
        raise EndingError(
            f"cannot write {str(path)!r} in the form {form!r}: a file of this name is {' or '.join(forms)}; give "
            "another name or form"
        )
    return form or forms[0]


def _forms(name: str) -> tuple[str, ...]:
    return tuple(form for format in formats_of(Path(name)) for form in format.forms)


def write_checkpoint(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], card: ModelCard, form: str | None = None
) -> None:
    """Write a model's arrays; half a checkpoint never has the final name.

    Args:
      path: a file, for 'nnx' a folder, for 'tensorflow' the prefix of several files. Must not exist; its own folder
        must.
      arrays: by canonical name.
      card: of the model. Only jeffnet's own format keeps it; a warning says what another loses.
      form: see `form_of`.
        'jeffnet': safetensors with the card.
        'linen': MessagePack of the variables, for `flax.serialization.from_bytes`.
        'nnx': the state, for `orbax.checkpoint.StandardCheckpointer`.
        'objax': npz, for `objax.io.load_var_collection`.
        'timm', 'efficientnet_pytorch': a state dict, by `torch.save` where the path ends in `.pth`, `.pt`, `.tar` or
        `.bin`, else in safetensors.
        'npz': as of efficientnet-jax's release.
        'tensorflow': a checkpoint with the authors' names.
        'keras': of `keras.applications`, by Keras itself; the path ends in `.keras` or `.weights.h5`.

    Raises:
      WeightsError: the form cannot hold the arrays.
      OutputError: the path exists, has an ending of another form, or cannot be written.
    """
    path, form = Path(path), form_of(path, form)
    if form != "jeffnet" and (lost := _lost(card)):
        _log.warning("form %r does not keep %s: who loads it must give them again", form, ", ".join(lost))
    there = [path, *path.parent.glob(f"{glob.escape(path.name)}.index")]
    if any(file.exists() for file in there):
        raise OutputError(f"{str(path)!r} exists: remove it, or give another name")
    format = next(format for format in formats_of(path) if form in format.forms)
    contents = Contents(arrays, card, form, lambda backend: load_backend(backend).build(Start(card.plan(), arrays)))
    # A checkpoint of TensorFlow is several files; its index, without which it is none, is the last in their order.
    with written_atomically(path) as partial:
        format.load().write(Path(partial), contents)


def _lost(card: ModelCard) -> list[str]:
    """The entries of a card that differ from those of arrays without a card."""
    defaults = {"global_pool": "avg", "output_stride": 32, "test_window": 0}
    lost = [f"{name} {getattr(card, name)!r}" for name, default in defaults.items() if getattr(card, name) != default]
    if card.spec:
        lost.append("the architecture")
    if card.preprocessing != model_preprocessing(card.architecture):
        lost.append("the preprocessing")
    if card.classes and card.classes != known_classes(card.num_classes):
        lost.append("the names of the classes")
    return lost


def _output_stride(plan: Plan, model: ModelLike) -> int:
    """The `output_stride` of a plan, from the strides of its maps."""
    strides = [feature.stride for feature in plan.features]
    for output_stride in reversed(OUTPUT_STRIDES):
        if [feature.stride for feature in model_plan(model, output_stride=output_stride).features] == strides:
            return output_stride
    raise WeightsError(f"the model is not a {resolve_name(model)}: its maps have the strides {strides}")
