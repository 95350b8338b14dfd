"""Weights files, recognised by what is in them, and fitted to a model."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jeffnet.arch.class_names import class_difference, class_indices, order_doubt
from jeffnet.arch.imagenet import imagenet_classes
from jeffnet.arch.lower import OUTPUT_STRIDES
from jeffnet.arch.plan import Plan, trunk
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.summary import ArraySpec, array_specs
from jeffnet.arch.zoo import find_model, model_plan, model_preprocessing, resolve_name
from jeffnet.errors import UnknownModelError, WeightsError, first_line
from jeffnet.ops.init import initial_arrays
from jeffnet.system.reading import check_file
from jeffnet.text.names import listed
from jeffnet.weights.archive import check_members, open_zip
from jeffnet.weights.card import METADATA_KEY, ModelCard, parse_card
from jeffnet.weights.checksum import CHECKSUMS_KEY, checked_by_metadata
from jeffnet.weights.fit import fit
from jeffnet.weights.formats.keras import KERAS, is_hdf5, is_keras_archive, read_keras
from jeffnet.weights.formats.native import from_objax, is_msgpack, is_orbax, read_msgpack, read_orbax
from jeffnet.weights.formats.npz import is_npz, read_npz
from jeffnet.weights.formats.pytorch import read_torch
from jeffnet.weights.formats.tensorflow import find_checkpoint, naming_of, read_tensorflow
from jeffnet.weights.hub import WEIGHTS_FILES, locate
from jeffnet.weights.hub_config import HubConfig, check_arguments, config_beside
from jeffnet.weights.naming import Naming, to_canonical_names
from jeffnet.weights.state_dict import find_state_dict
from jeffnet.weights.stored import Stored, read_safetensors
from jeffnet.weights.timm import EFFICIENTNET_PYTORCH, RELEASE, TIMM, is_timm

# Where weights may be: a path, True for the published ones, `hf:owner/name`, a URL.
Source = str | os.PathLike | Literal[True]
OURS = Naming("jeffnet", lambda plan, present: {name: name for name in (*array_specs(plan), *_CLASSIFIER)})
_CLASSIFIER = ("classifier.kernel", "classifier.bias")
# The name under which jeffnet and the model hub keep a model's weights in a folder.
MODEL_FILE = WEIGHTS_FILES[0]
_OF_ARRAYS, _OF_MEMBERS = "of every array", "of every member of the archive"
# The beginning of a file of `torch.save` in its older format: a pickle's protocol. The newer one is a zip archive.
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

_log = logging.getLogger("jeffnet")


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds.

    Attributes:
      source: its path, or from where it came.
      arrays: under the source's own names and in its layouts.
      naming: which these are.
      card: what the file says of its model; None where it is not one of jeffnet's own.
      model: the model's name where the file tells it otherwise.
      preprocessing: what the weights expect of pictures, where the file tells it otherwise and it is not what the zoo
        says.
      config: what the `config.json` beside the file, or else the place where it was found, says.
      checksums: of what the file has checksums, which are compared when arrays are read; empty where it has none.
    """

    source: str
    arrays: Mapping[str, Stored]
    naming: Naming = OURS
    card: ModelCard | None = None
    model: str | None = None
    preprocessing: Preprocessing | None = None
    config: HubConfig = field(default_factory=HubConfig)
    checksums: str = ""

    @property
    def stated_model(self) -> str | None:
        """The name of the model where anything says it."""
        return self.card.model if self.card else self.model or self.config.model


def find_weights(source: Source, name: str | None = None) -> WeightsFile:
    """Weights from wherever they are.

    Args:
      source: a path, see `read_weights`; `hf:owner/name` or a URL, see `jeffnet.weights.hub.locate`; or, for published
        weights, True or the model's name, ours or timm's.
      name: of the model whose published weights True means.

    Returns:
      The file; its arrays are read when they are used.

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
    if located.config is not None:
        return replace(file, source=located.source, config=located.config)
    is_timms = file.card is None and file.naming in (TIMM, EFFICIENTNET_PYTORCH)
    config = config_beside(Path(file.source)) if is_timms else HubConfig()
    return replace(file, source=located.source, config=config)


def _is_published(name: str) -> bool:
    try:
        return find_model(name).weights is not None
    except UnknownModelError:
        return False


def read_weights(path: str | os.PathLike) -> WeightsFile:
    """Read weights, recognised by what is in them; large arrays are read when they are used.

    Args:
      path: of jeffnet's own file; a folder with one of `jeffnet.weights.hub.WEIGHTS_FILES`; a timm or
        `efficientnet_pytorch` state dict, in safetensors or by `torch.save`; an npz file of efficientnet-jax; a
        TensorFlow checkpoint of the papers' authors, see `jeffnet.weights.formats.tensorflow.find_checkpoint`; a
        `.keras` or `.h5` file of `keras.applications`; or a checkpoint of our models that a module system's own tools
        wrote, see `jeffnet.weights.formats.native`.

    Returns:
      The file, with its arrays by the names that they have in it.

    Raises:
      WeightsError: it is missing, truncated, or holds something else.
    """
    path = Path(path)
    if "\0" in str(path):
        raise WeightsError(f"weights {str(path)!r}: no path, since it has a null character")
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
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"weights {str(path)!r}: a pointer to a file of Git LFS: run `git lfs pull` in the clone")
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
    for name in WEIGHTS_FILES:
        if (path / name).is_file():
            return read_weights(path / name)
    raise WeightsError(
        f"weights {str(path)!r}: is a folder, but no checkpoint of Orbax, and there is no "
        f"{' and no '.join(map(repr, WEIGHTS_FILES))} in it; give a weights file"
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
    file, card = describe_weights(source, name)
    stated_card = card
    if num_classes not in (None, card.num_classes):
        card = replace(card, num_classes=num_classes, classes=())
    if in_chans not in (None, card.in_chans):
        card = replace(card, in_chans=in_chans)
    initial = initial_arrays(card.plan(), 0) if card != stated_card else None
    arrays = to_canonical_names(file.arrays, file.naming, card.plan())
    return card, fit(arrays, card.plan(), source=file.source, model=card.model, initial=initial, put=put)


def describe_weights(source: Source, name: str | None = None) -> tuple[WeightsFile, ModelCard]:
    """Weights, none of whose arrays has been read, and what is known of their model.

    Args:
      source: see `find_weights`.
      name: the model's, where the source does not say it.

    Returns:
      The file, and the model's card.

    Raises:
      UnknownModelError: no such model.
      WeightsError: the weights cannot be had or read, nobody says of which model they are, they say that they are
        of one that computes something else, or they do not belong to the `config.json` beside them.
    """
    file = find_weights(source, name)
    if name is None and file.stated_model is None:
        raise WeightsError(
            f"weights {file.source!r} do not say of which model they are: give its name (--model NAME, or --model.name "
            "NAME to train)"
        )
    model = resolve_name(name or file.stated_model or "")
    _check_model(file, model_plan(model), model)
    return file, _describe(file, model)


def _describe(file: WeightsFile, model: str) -> ModelCard:
    """The card of weights, or else what their arrays and their `config.json` tell."""
    if file.card is not None:
        return file.card
    config = file.config
    plan = model_plan(model, output_stride=config.output_stride)
    check_arguments(config, model, file.source)
    arrays = to_canonical_names(file.arrays, file.naming, plan)
    bias, stem = arrays.get("classifier.bias"), arrays.get("conv_stem.kernel")
    # What is missing or has another rank than it should is left for `fit` to report.
    num_classes = 0 if bias is None else bias.size if bias.ndim == 1 else 1000
    in_chans = 3 if stem is None or stem.ndim != 4 else stem.shape[2]
    for what, own, said in (("classes", num_classes, config.num_classes), ("channels", in_chans, config.in_chans)):
        if said not in (None, own):
            raise WeightsError(
                f"weights {file.source!r} have {own} {what}, their config.json says {said}: the two do not belong "
                "together; correct the entry, or move the weights away from it"
            )
    # Of 1,000 classes without names, ImageNet's are assumed.
    imagenet = tuple(imagenet_classes()) if num_classes == len(imagenet_classes()) else ()
    if len(config.classes) not in (0, num_classes):
        _log.warning(
            "weights %r: config.json names %d classes, and they have %d: the names are left aside",
            file.source, len(config.classes), num_classes,
        )  # fmt: skip
    return ModelCard(
        model,
        num_classes,
        in_chans,
        config.preprocessing or file.preprocessing or model_preprocessing(model),
        config.classes if len(config.classes) == num_classes else imagenet,
        config.global_pool,
        config.output_stride,
    )


def _check_model(file: WeightsFile, plan: Plan, model: str) -> None:
    """Raises WeightsError where weights say that they are of a model whose arrays compute something else in `plan`."""
    stated = file.stated_model
    if stated is None:
        return
    output_stride = min(max(plan.output_stride, OUTPUT_STRIDES[0]), OUTPUT_STRIDES[-1])
    if trunk(model_plan(stated, output_stride=output_stride)) != trunk(plan):
        raise WeightsError(
            f"weights {file.source!r} are of {stated}, not of {model}, which would compute something else with them: "
            f"give weights of {model}, or the name {stated} (--model, or --model.name to train)"
        )


def load_weights(
    source: Source,
    plan: Plan,
    *,
    model: str = "the model",
    initial: Mapping[str, np.ndarray] | None = None,
    classes: Sequence[str] = (),
    put: Callable[[ArraySpec, np.ndarray], Any] = lambda spec, array: array,
) -> dict[str, Any]:
    """The arrays of weights, by canonical name, for a model.

    Args:
      source: see `find_weights`.
      plan: the model.
      model: its name, which is also what messages call it.
      initial: where given, another number of classes or input channels is adapted, see `jeffnet.weights.fit.fit`, and
        another pooling or output stride than the weights were made with is only a warning.
      classes: names of the model's classes, for adapting: weights of the same names in another order get this one, and
        those of other classes a new classifier.
      put: what to do with each array as soon as it is read; see `jeffnet.weights.fit.fit`.

    Returns:
      What `put` makes of them; NumPy arrays unless given.

    Raises:
      WeightsError: they cannot be had or read, do not fit, or say that they are of another model, or made for another
        pooling or output stride.

    Example:
      from jeffnet.arch.zoo import model_plan

      plan = model_plan("pt_efficientnet_b0")
      arrays = load_weights("b0.safetensors", plan, model="pt_efficientnet_b0")
    """
    file = find_weights(source, model)
    _check_model(file, plan, model)
    card = _description(file, model)
    if card:
        _check_options(file, card, plan, model, adapt=initial is not None)
    arrays = to_canonical_names(file.arrays, file.naming, plan)
    if initial is not None and classes:
        _match_classifier(arrays, card.classes if card else (), classes, initial, file.source)
    return fit(arrays, plan, source=file.source, model=model, initial=initial, put=put)


def _description(file: WeightsFile, model: str) -> ModelCard | None:
    """See `_describe`; None where the model is one that nobody has named."""
    try:
        return _describe(file, file.stated_model or resolve_name(model))
    except UnknownModelError:
        return None


def _check_options(file: WeightsFile, card: ModelCard, plan: Plan, model: str, adapt: bool) -> None:
    """Raises WeightsError where weights were made for other options than the defaults and than the model's."""
    for option, default in (("test_window", 0), ("global_pool", "avg"), ("output_stride", 32)):
        # Test-time pooling is an option of cards alone: a model made by name has none.
        stated, own = getattr(card, option), getattr(plan, option, default)
        if stated == default or getattr(card.plan(), option, stated) == own:
            continue
        if not adapt:
            way_out = f"pass {option}={stated!r}" if option != "test_window" else "load them by from_pretrained"
            raise WeightsError(
                f"weights {file.source!r} are of a model with {option} {stated!r}, this {model} has {own!r} and would "
                f"compute something else: {way_out}, or adapt=True to have it so"
            )
        _log.warning("%s: made with %s %r, and used with %r", file.source, option, stated, own)


def _match_classifier(
    arrays: dict[str, Any],
    own: Sequence[str],
    classes: Sequence[str],
    initial: Mapping[str, np.ndarray],
    source: str,
) -> None:
    """Put a classifier's classes into the order of the model's, or a new one in place of one of other classes."""
    bias = arrays.get("classifier.bias")
    if bias is None or bias.shape != (len(classes),) or any(name not in initial for name in _CLASSIFIER):
        return  # what there is to do about that is for `fit`
    indices = class_indices(classes, len(classes), own)
    if indices is None:
        difference = class_difference(own or tuple(imagenet_classes()), classes)
        _log.warning("%s: new classifier: its classes are %s", source, difference)
        arrays.update({name: initial[name] for name in _CLASSIFIER})
    elif indices != tuple(range(len(classes))):
        _log.warning("%s: its classes are put into the order %s", source, listed(classes))
        for name in _CLASSIFIER:
            arrays[name] = arrays[name].map(lambda values: values[..., list(indices)])
    elif doubt := order_doubt(classes, len(classes), own):
        _log.warning("%s: %s: name them if it is timm's (save_checkpoint(..., classes=...))", source, doubt)
