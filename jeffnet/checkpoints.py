"""Models to files, from any backend: jeffnet's own format, what a module system's own tools read, or another library.

    from jeffnet.checkpoints import save_checkpoint

    save_checkpoint("b0.safetensors", (model, variables), "pt_efficientnet_b0")

Every `create_model(..., pretrained=...)` and `from_pretrained` reads all of them.
"""

import glob
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.arch.imagenet import imagenet_classes
from jeffnet.arch.lower import OUTPUT_STRIDES
from jeffnet.arch.plan import Plan, trunk
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import model_plan, model_preprocessing, resolve_name
from jeffnet.backends import load_backend, to_start
from jeffnet.errors import EndingError, OutputError, WeightsError
from jeffnet.system.files import written_atomically
from jeffnet.weights.card import ModelCard
from jeffnet.weights.fit import fit
from jeffnet.weights.formats import FORMATS, FORMS, formats_of
from jeffnet.weights.formats.interface import Contents
from jeffnet.weights.start import Start

_log = logging.getLogger("jeffnet")


def save_checkpoint(
    path: str | os.PathLike,
    model: Any,
    name: str | ModelCard,
    *,
    form: str | None = None,
    classes: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
) -> ModelCard:
    """Write a model.

    Args:
      path: to write to; see `write_checkpoint`.
      model: what any backend's `create_model` returns.
      name: of the model in the zoo, which the model must be; or the card that `from_pretrained` gave with it, whose
        classes (where their number is still the same) and preprocessing then hold where they are not given.
      form: one of `jeffnet.weights.formats.FORMS`; None takes the one that the path's ending means, see `form_of`.
      classes: names of the classes in the order of the logits.
      preprocessing: what the model expects of pictures; None takes the card's, or else the zoo's.

    Returns:
      What the file, if in jeffnet's own format, says of the model.

    Raises:
      UnknownModelError: no such model.
      WeightsError: the model is not one of this name, was changed so that the file would compute something else, or the
        form cannot hold it.
      OutputError: the path exists or cannot be written.
    """
    start, known = to_start(model), name if isinstance(name, ModelCard) else None
    name = known.model if known else str(name)
    num_classes = start.plan.num_classes
    names = (classes,) if isinstance(classes, str) else tuple(() if classes is None else classes)
    if not names and known and known.num_classes == num_classes:
        names = known.classes
    if wrong := [each for each in names if not isinstance(each, str)]:
        raise WeightsError(f"names of classes are text, and {wrong[0]!r} is a {type(wrong[0]).__name__}")
    if len(names) not in (0, num_classes):
        raise WeightsError(f"{len(names)} names of classes do not fit a model of {num_classes}")
    card = ModelCard(
        model=resolve_name(name),
        num_classes=num_classes,
        in_chans=start.plan.in_chans,
        preprocessing=preprocessing or (known.preprocessing if known else model_preprocessing(name)),
        classes=names,
        global_pool="none" if start.execution.test_window else start.plan.global_pool,
        output_stride=_output_stride(start.plan, name),
        test_window=start.execution.test_window,
    )
    arrays = fit(
        {key: np.asarray(array) for key, array in start.arrays.items()}, card.plan(), source="model", model=name
    )
    if trunk(start.plan) != trunk(card.plan()):
        raise WeightsError(f"the model is not a {name}, which would compute something else with its arrays")
    write_checkpoint(path, arrays, card, form)
    return card


# Endings of formats that jeffnet does not write.
_FOREIGN = (
    *(".onnx", ".tflite", ".pb", ".hdf5", ".mlmodel", ".mlpackage", ".gguf", ".engine", ".xml", ".jit", ".pt2"),
    *(".pkl", ".pickle", ".npy", ".zip", ".gz", ".json"),
)


def form_of(path: str | os.PathLike, form: str | None = None) -> str:
    """In which form to write a file, by the ending of its name.

    Args:
      path: of the file.
      form: which one is wanted; None takes the one that the ending means, and without one jeffnet's own.

    Returns:
      One of `jeffnet.backends.FORMS`.

    Raises:
      EndingError: what is wanted is not what a file of this name would be, or the ending is of a format that cannot be
        written.
    """
    path = Path(path)
    if form is not None and form not in FORMS:
        raise EndingError(f"form {form!r} is not one of {', '.join(FORMS)}")
    if path.suffix.lower() in _FOREIGN:
        written = ", ".join(
            f"*{ending} ({' or '.join(_forms(Path(ending)))})" for format in FORMATS for ending in format.endings
        )
        raise EndingError(f"cannot write {str(path)!r}: jeffnet writes no {path.suffix.lower()} files, but {written}")
    forms = _forms(path)
    if form is not None and form not in forms:
        raise EndingError(
            f"cannot write {str(path)!r} in the form {form!r}: a file of this name is {' or '.join(forms)}; give "
            "another name or form"
        )
    return form or forms[0]


def _forms(path: Path) -> tuple[str, ...]:
    return tuple(form for format in formats_of(path) for form in format.forms)


def write_checkpoint(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], card: ModelCard, form: str | None = None
) -> None:
    """Write a model's arrays; under the name there is never half a checkpoint.

    Args:
      path: a file, for 'nnx' a folder, for 'tensorflow' the prefix of several files. Must not exist; its own folder
        must.
      arrays: by canonical name.
      card: of the model. Only jeffnet's own format keeps it; what another loses of it is logged.
      form: None takes the one that the path's ending means, see `form_of`; or one of `jeffnet.weights.formats.FORMS`:
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
    """What of a card is not in the arrays, and not what is assumed of arrays without a card."""
    defaults = {"global_pool": "avg", "output_stride": 32, "test_window": 0}
    lost = [f"{name} {getattr(card, name)!r}" for name, default in defaults.items() if getattr(card, name) != default]
    if card.preprocessing != model_preprocessing(card.model):
        lost.append("the preprocessing")
    if card.classes and card.classes != tuple(imagenet_classes()):
        lost.append("the names of the classes")
    return lost


def _output_stride(plan: Plan, name: str) -> int:
    """With which `output_stride` a plan was lowered, told by the strides of its maps."""
    strides = [feature.stride for feature in plan.features]
    for output_stride in reversed(OUTPUT_STRIDES):
        if [feature.stride for feature in model_plan(name, output_stride=output_stride).features] == strides:
            return output_stride
    raise WeightsError(f"the model is not a {name}: its maps have the strides {strides}")
