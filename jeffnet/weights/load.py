"""Weights files, recognised by what is in them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from jeffnet.arch.plan import Plan
from jeffnet.errors import WeightsError
from jeffnet.weights.fit import fit
from jeffnet.weights.store import METADATA_KEY, ModelCard, parse_card
from jeffnet.weights.timm import from_timm, is_timm


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds.

    Attributes:
      source: its path.
      arrays: under the file's own names and layouts.
      card: what the file says of its model; None where it is not one of jeffnet's own.
    """

    source: str
    arrays: dict[str, np.ndarray]
    card: ModelCard | None


def read_weights(path: str | os.PathLike) -> WeightsFile:
    """Read a safetensors file: jeffnet's own, or a timm state dict.

    Raises:
      WeightsError: it is missing, truncated, not a safetensors file, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a weights file" if path.is_dir() else "does not exist"
        raise WeightsError(f"weights {str(path)!r}: {what}; give a .safetensors file")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise WeightsError(f"weights {str(path)!r} are not a whole safetensors file: {error}") from error
    card = parse_card(metadata[METADATA_KEY], str(path)) if METADATA_KEY in metadata else None
    if card is None and not is_timm(arrays):
        raise WeightsError(
            f"weights {str(path)!r} are neither jeffnet's nor a timm state dict: no 'conv_stem.weight' among "
            f"{len(arrays)} arrays"
        )
    return WeightsFile(str(path), arrays, card)


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
    file = read_weights(path)
    if file.card is not None:
        return fit(file.arrays, plan, source=file.source, model=model, initial=initial)
    return from_timm(file.arrays, plan, source=file.source, model=model, initial=initial)
