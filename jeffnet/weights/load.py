"""Weights files, recognised by what is in them, and fitted to a model."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jeffnet.arch.imagenet import imagenet_classes
from jeffnet.arch.plan import Plan
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.pretrained import PRETRAINED
from jeffnet.arch.summary import ArraySpec, array_specs
from jeffnet.arch.zoo import model_plan, model_preprocessing, resolve_name
from jeffnet.errors import UnknownModelError, WeightsError, first_line
from jeffnet.ops.init import initial_arrays
from jeffnet.reading import check_file
from jeffnet.weights.archive import check_members, open_zip
from jeffnet.weights.checksum import CHECKSUMS_KEY, checked_by_metadata
from jeffnet.weights.fit import fit
from jeffnet.weights.hub import locate
from jeffnet.weights.keras import KERAS, is_hdf5, is_keras_archive, read_keras
from jeffnet.weights.naming import Naming, to_canonical_names
from jeffnet.weights.native import from_objax, is_msgpack, is_orbax, read_msgpack, read_orbax
from jeffnet.weights.npz import is_npz, read_npz
from jeffnet.weights.pytorch import read_torch
from jeffnet.weights.state_dict import find_state_dict
from jeffnet.weights.store import METADATA_KEY, ModelCard, parse_card
from jeffnet.weights.stored import Stored, read_safetensors
from jeffnet.weights.tensorflow import find_checkpoint, naming_of, read_tensorflow
from jeffnet.weights.timm import EFFICIENTNET_PYTORCH, RELEASE, TIMM, is_timm

# Where weights may be: a path, True for the published ones, `hf:owner/name`, a URL.
Source = str | os.PathLike | Literal[True]
OURS = Naming("jeffnet", lambda plan, present: {name: name for name in (*array_specs(plan), *_CLASSIFIER)})
_CLASSIFIER = ("classifier.kernel", "classifier.bias")
# What files have at the name under which jeffnet and the model hub keep a model's weights in a folder.
MODEL_FILE = "model.safetensors"
_OF_ARRAYS, _OF_MEMBERS = "of every array", "of every member of the archive"
# The beginning of a file of `torch.save` in its older format: a pickle's protocol. The newer one is a zip archive.
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds.

    Attributes:
      source: its path, or from where it came.
      arrays: under the source's own names and in its layouts.
      naming: which these are.
      card: what the file says of its model; None where it is not one of jeffnet's own.
      model: the model's name where the file tells it otherwise.
      preprocessing: what the weights expect of pictures, where it is not what the zoo says.
      classes: names of the classes, where they are known and not ImageNet's.
      checksums: of what the file has checksums, which are compared when arrays are read; empty where it has none.
    """

    source: str
    arrays: Mapping[str, Stored]
    naming: Naming = OURS
    card: ModelCard | None = None
    model: str | None = None
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] = ()
    checksums: str = ""


def find_weights(source: Source, name: str | None = None) -> WeightsFile:
    """Weights from wherever they are.

    Args:
      source: a path, see `read_weights`; `hf:owner/name` or a URL, see `jeffnet.weights.hub.locate`; or, for published
        weights, True or the model's name, ours or timm's.
      name: of the model whose published weights True means.

    Raises:
      WeightsError: they cannot be had, or not be read.
    """
    if isinstance(source, str) and _is_published(source) and not Path(source).exists():
        source, name = True, source
    located = locate(source, name)
    try:
        file = read_weights(located.path)
    except WeightsError as error:
        if located.is_verified or isinstance(error.__cause__, ModuleNotFoundError):
            raise
        # Of an answer without a length only its content tells that it was cut.
        located.path.unlink(missing_ok=True)
        raise WeightsError(
            f"weights {located.source!r}: what was downloaded is removed, since it came damaged or cut short, or is "
            f"something else: try again, or check the address ({error})"
        ) from error
    return replace(
        file,
        source=located.source,
        model=file.model or located.model,
        preprocessing=located.preprocessing or file.preprocessing,
        classes=located.classes,
    )


def _is_published(name: str) -> bool:
    try:
        return resolve_name(name) in PRETRAINED
    except UnknownModelError:
        return False


def read_weights(path: str | os.PathLike) -> WeightsFile:
    """Read weights, recognised by what is in them; large arrays are read when they are used.

    Args:
      path: of jeffnet's own file or of a folder with it; of a timm or `efficientnet_pytorch` state dict, in safetensors
        or by `torch.save`; of an npz file of efficientnet-jax; of a TensorFlow checkpoint of the papers' authors, see
        `jeffnet.weights.tensorflow.find_checkpoint`; of a `.keras` or `.h5` file of `keras.applications`; or of a
        checkpoint of our models that a module system's own tools wrote, see `jeffnet.weights.native`.

    Raises:
      WeightsError: it is missing, truncated, or holds something else.
    """
    path = Path(path)
    try:
        checkpoint = find_checkpoint(path)
        if checkpoint:
            return _read_tensorflow(checkpoint)
        if path.is_dir():
            return _read_folder(path)
        check_file(path, None)
        with open(path, "rb") as file:
            start = file.read(33)
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise WeightsError(f"weights {str(path)!r}: {what}; give a weights file") from error
    if start.startswith(b"PK"):
        return _read_zip(path)
    if is_hdf5(start):
        return _read_keras(path)
    if start.startswith(_PICKLES):
        return _recognised(path, read_torch(path))
    if is_msgpack(start):
        arrays, has_checksums = read_msgpack(path)
        return WeightsFile(str(path), arrays, checksums=_OF_ARRAYS if has_checksums else "")
    arrays, metadata = read_safetensors(path)
    arrays, checksums = checked_by_metadata(arrays, metadata, str(path)), CHECKSUMS_KEY in metadata and _OF_ARRAYS
    if METADATA_KEY in metadata:
        card = parse_card(metadata[METADATA_KEY], str(path))
        return WeightsFile(str(path), arrays, card=card, checksums=checksums or "")
    return _recognised(path, find_state_dict(arrays, str(path)), checksums or "")


def _read_folder(path: Path) -> WeightsFile:
    if is_orbax(path):
        arrays, has_checksums = read_orbax(path)
        return WeightsFile(str(path), arrays, checksums=_OF_ARRAYS if has_checksums else "")
    if (path / MODEL_FILE).is_file():
        return read_weights(path / MODEL_FILE)
    raise WeightsError(
        f"weights {str(path)!r}: is a folder, but no checkpoint of Orbax, and there is no {MODEL_FILE!r} in it; give a "
        "weights file"
    )


def _read_tensorflow(prefix: Path) -> WeightsFile:
    arrays, model, preprocessing = read_tensorflow(prefix)
    naming = naming_of(arrays)
    if naming is None:
        raise WeightsError(
            f"weights {str(prefix)!r} are a checkpoint of TensorFlow, but not of the authors' code: no "
            f"'stem/conv2d/kernel' or 'MobilenetV3/Conv/weights' among {len(arrays)} variables "
            f"({', '.join(list(arrays)[:3])}, ...)"
        )
    return WeightsFile(str(prefix), arrays, naming, model=model, preprocessing=preprocessing, checksums=_OF_ARRAYS)


def _read_zip(path: Path) -> WeightsFile:
    try:
        with open_zip(path) as archive:
            members = archive.namelist()
            is_torch = any(member.endswith("data.pkl") for member in members)
            # torch itself does not look at them.
            has_checksums = not is_torch or check_members(archive)
    except Exception as error:  # a broken archive makes zipfile and zlib raise almost anything
        raise WeightsError(
            f"weights {str(path)!r} are a broken archive: {first_line(error)}; fetch the file again"
        ) from error
    if is_npz(members):
        arrays, is_release = read_npz(path)
        naming, arrays = (RELEASE, arrays) if is_release else (OURS, from_objax(arrays))
        return WeightsFile(str(path), arrays, naming, checksums=_OF_MEMBERS)
    if is_torch:
        return _recognised(path, read_torch(path), _OF_MEMBERS if has_checksums else "")
    if is_keras_archive(members):
        return _read_keras(path)
    raise WeightsError(
        f"weights {str(path)!r} are an archive of no known kind: neither of torch.save, Keras nor npz, but "
        f"{', '.join(members[:5]) or 'empty'}"
    )


def _read_keras(path: Path) -> WeightsFile:
    file = read_keras(path)
    checksums = _OF_ARRAYS if file.has_checksums else ""
    return WeightsFile(
        str(path), file.arrays, KERAS, model=file.model, preprocessing=file.preprocessing, checksums=checksums
    )


def _recognised(path: Path, arrays: Mapping[str, Stored], checksums: str = "") -> WeightsFile:
    naming = TIMM if is_timm(arrays) else EFFICIENTNET_PYTORCH
    return WeightsFile(str(path), arrays, naming, checksums=checksums)


def open_weights(
    source: Source,
    name: str | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    put: Callable[[ArraySpec, np.ndarray], Any] = lambda spec, array: array,
) -> tuple[ModelCard, dict[str, Any]]:
    """Weights with what is known of their model.

    Args:
      source: see `find_weights`.
      name: the model's, where the source does not say it.
      num_classes: where given and another number than the source has, the classifier starts anew.
      in_chans: where given and another number than the source has, the first convolution's kernel is summed or
        repeated.
      put: what to do with each array as soon as it is read; see `jeffnet.weights.fit.fit`.

    Returns:
      The model's card, and its arrays by canonical name.

    Raises:
      UnknownModelError: no such model.
      WeightsError: the weights cannot be had or read, do not fit the model, or say another name.
    """
    file = find_weights(source, name)
    said = file.card.model if file.card else file.model
    if said is None and name is None:
        raise WeightsError(f"weights {file.source!r} do not say of which model they are: give its name (--model NAME)")
    model = resolve_name(name or said or "")
    if file.card is not None and model != file.card.model:
        raise WeightsError(f"weights {file.source!r} are of {file.card.model}, not of {name}")
    card = said_card = file.card or _card_of_arrays(file, model)
    if num_classes not in (None, card.num_classes):
        card = replace(card, num_classes=num_classes, classes=())
    if in_chans not in (None, card.in_chans):
        card = replace(card, in_chans=in_chans)
    initial = initial_arrays(card.plan(), 0) if card != said_card else None
    return card, _fitted(file, card.plan(), card.model, initial, put)


def _card_of_arrays(file: WeightsFile, model: str) -> ModelCard:
    """What the arrays tell of their model: its classes are ImageNet's where there are 1,000."""
    arrays = to_canonical_names(file.arrays, file.naming, model_plan(model))
    bias, stem = arrays.get("classifier.bias"), arrays.get("conv_stem.kernel")
    # What is missing or has another rank than it should is left for `fit` to report.
    num_classes = 0 if bias is None else bias.size if bias.ndim == 1 else 1000
    in_chans = 3 if stem is None or stem.ndim != 4 else stem.shape[2]
    classes = file.classes if len(file.classes) == num_classes else ()
    if not classes and num_classes == len(imagenet_classes()):
        classes = tuple(imagenet_classes())
    return ModelCard(model, num_classes, in_chans, file.preprocessing or model_preprocessing(model), classes)


def load_weights(
    source: Source,
    plan: Plan,
    *,
    model: str = "the model",
    initial: Mapping[str, np.ndarray] | None = None,
    put: Callable[[ArraySpec, np.ndarray], Any] = lambda spec, array: array,
) -> dict[str, Any]:
    """The arrays of weights, by canonical name, for a model.

    Args:
      source: see `find_weights`.
      plan: the model.
      model: its name, which is also what messages call it.
      initial: where given, another number of classes or input channels is adapted; see `jeffnet.weights.fit.fit`.
      put: what to do with each array as soon as it is read; see `jeffnet.weights.fit.fit`.

    Raises:
      WeightsError: they cannot be had or read, or do not fit.
    """
    return _fitted(find_weights(source, model), plan, model, initial, put)


def _fitted(
    file: WeightsFile,
    plan: Plan,
    model: str,
    initial: Mapping[str, np.ndarray] | None,
    put: Callable[[ArraySpec, np.ndarray], Any],
) -> dict[str, Any]:
    arrays = to_canonical_names(file.arrays, file.naming, plan)
    return fit(arrays, plan, source=file.source, model=model, initial=initial, put=put)
