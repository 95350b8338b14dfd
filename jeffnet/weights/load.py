"""Weights files, recognised by what is in them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from jeffnet.arch.imagenet import imagenet_classes
from jeffnet.arch.plan import Plan
from jeffnet.arch.zoo import model_preprocessing, resolve_name
from jeffnet.errors import WeightsError
from jeffnet.weights.fit import fit
from jeffnet.weights.native import is_orbax, read_msgpack, read_npz, read_orbax
from jeffnet.weights.store import METADATA_KEY, ModelCard, parse_card
from jeffnet.weights.timm import from_timm, is_timm


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds.

    Attributes:
      source: its path.
      arrays: by canonical name; of a timm state dict under its own names and layouts.
      card: what the file says of its model; None where it is not one of jeffnet's own.
      is_timm: whether it is a timm state dict.
    """

    source: str
    arrays: dict[str, np.ndarray]
    card: ModelCard | None = None
    is_timm: bool = False


def read_weights(path: str | os.PathLike) -> WeightsFile:
    """Read weights, recognised by what is in them.

    Args:
      path: of a safetensors file, jeffnet's own or a timm state dict; or of a checkpoint of our models that a module
        system's own tools wrote, see `jeffnet.weights.native`.

    Raises:
      WeightsError: it is missing, truncated, or holds something else.
    """
    path = Path(path)
    if path.is_dir():
        if not is_orbax(path):
            raise WeightsError(f"weights {str(path)!r}: is a folder, but no checkpoint of Orbax; give a weights file")
        return WeightsFile(str(path), read_orbax(path))
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        what = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise WeightsError(f"weights {str(path)!r}: {what}; give a weights file") from error
    if start.startswith(b"PK"):
        return WeightsFile(str(path), read_npz(path))
    # A map of two entries and its first key, as `flax.serialization` writes variables.
    if start[:1] == b"\x82" and start[2:8] in (b"params", b"batch_"):
        return WeightsFile(str(path), read_msgpack(path))
    return _read_safetensors(path)


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise WeightsError(
            f"weights {str(path)!r} are not a whole safetensors file, nor a checkpoint of another kind: {error}"
        ) from error
    if METADATA_KEY in metadata:
        return WeightsFile(str(path), arrays, parse_card(metadata[METADATA_KEY], str(path)))
    if is_timm(arrays):
        return WeightsFile(str(path), arrays, is_timm=True)
    raise WeightsError(
        f"weights {str(path)!r} are neither jeffnet's nor a timm state dict: no 'conv_stem.weight' among "
        f"{len(arrays)} arrays"
    )


def open_weights(path: str | os.PathLike, name: str | None = None) -> tuple[ModelCard, dict[str, np.ndarray]]:
    """A weights file with what is known of its model.

    Args:
      path: see `read_weights`.
      name: the model's, where the file does not say it.

    Returns:
      The model's card, and its arrays by canonical name.

    Raises:
      UnknownModelError: no such model.
      WeightsError: the file cannot be read, does not fit the model, or says another name.
    """
    file = read_weights(path)
    if file.card is None and name is None:
        raise WeightsError(f"weights {file.source!r} do not say of which model they are: give its name (--model NAME)")
    if file.card is not None and name is not None and resolve_name(name) != file.card.model:
        raise WeightsError(f"weights {file.source!r} are of {file.card.model}, not of {name}")
    card = file.card or _card_of_arrays(file, resolve_name(name or ""))
    return card, _fitted(file, card.plan(), card.model, None)


def _card_of_arrays(file: WeightsFile, model: str) -> ModelCard:
    """What the arrays tell of their model: its classes are ImageNet's where there are 1,000."""
    bias = file.arrays.get("classifier.bias")
    stem = file.arrays.get("conv_stem.weight" if file.is_timm else "conv_stem.kernel")
    # What is missing or has another rank than it should is left for `fit` to report.
    num_classes = 0 if bias is None else bias.size if bias.ndim == 1 else 1000
    in_chans = 3 if stem is None or stem.ndim != 4 else stem.shape[1 if file.is_timm else 2]
    classes = tuple(imagenet_classes()) if num_classes == len(imagenet_classes()) else ()
    return ModelCard(model, num_classes, in_chans, model_preprocessing(model), classes)


def load_weights(
    path: str | os.PathLike, plan: Plan, *, model: str = "the model", initial: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a weights file, by canonical name, for a model.

    Args:
      path: see `read_weights`.
      plan: the model.
      model: what to call it in messages.
      initial: where given, another number of classes or input channels is adapted; see `jeffnet.weights.fit.fit`.

    Raises:
      WeightsError: the file cannot be read or does not fit.
    """
    return _fitted(read_weights(path), plan, model, initial)


def _fitted(
    file: WeightsFile, plan: Plan, model: str, initial: Mapping[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    arrays_of = from_timm if file.is_timm else fit
    return arrays_of(file.arrays, plan, source=file.source, model=model, initial=initial)
