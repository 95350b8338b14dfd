"""Files of `torch.save`: state dicts, alone or in a training checkpoint.

Reading and writing them needs torch. No pickle is ever run: torch's own unpickler for tensors reads them.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jeffnet.errors import OutputError, WeightsError, first_line
from jeffnet.weights.archive import check_growth
from jeffnet.weights.state_dict import find_state_dict
from jeffnet.weights.stored import Stored


def read_torch(path: Path) -> dict[str, Stored]:
    """The arrays of a network's state dict; see `jeffnet.weights.state_dict.find_state_dict`.

    Raises:
      WeightsError: torch is not installed, the file is broken, or has more than tensors and plain data in it.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"weights {str(path)!r} are a file of torch.save, and torch is not installed: install it, or give a "
            "safetensors file"
        ) from error
    try:
        # timm's training checkpoints have its options in them: plain data that no code runs for.
        # Given the name instead of the file, torch would choose a format by the name's ending.
        with open(path, "rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
        return {name: _stored(tensor) for name, tensor in find_state_dict(content, str(path)).items()}
    except WeightsError:
        raise
    except Exception as error:  # whatever a broken file makes the unpickler raise
        text = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), None)
        if text:
            raise WeightsError(
                f"weights {str(path)!r} have more than tensors in them, and unpickling it might run a program: refused "
                f"({text.strip()})"
            ) from error
        reason = first_line(error)
        raise WeightsError(f"weights {str(path)!r} are no whole file of torch.save: {reason}") from error


def write_torch(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a state dict with `torch.save`.

    Raises:
      OutputError: torch is not installed.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise OutputError(f"{str(path)!r} needs torch to be written: install it, or write safetensors") from error
    tensors = {}
    for name, array in arrays.items():
        array = np.array(array, order="C")  # a copy, since torch takes no read-only arrays
        if array.dtype == ml_dtypes.bfloat16:
            tensors[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            tensors[name] = torch.from_numpy(array)
    # Of a full disk torch itself says nothing, but the file does.
    with open(path, "wb") as file:
        torch.save(tensors, file)


def _stored(tensor: Any) -> Stored:
    import torch

    if tensor.is_sparse or tensor.is_quantized:
        raise ValueError("sparse or quantized tensors cannot be read: save the model with dense float tensors")
    # One value may stand for any number of them.
    check_growth(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
    if tensor.dtype == torch.bfloat16:
        return Stored(
            tuple(tensor.shape),
            np.dtype(ml_dtypes.bfloat16),
            lambda: tensor.detach().contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16),
        )
    values = tensor.detach().numpy()
    return Stored(values.shape, values.dtype, lambda: values)
