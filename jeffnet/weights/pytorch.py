"""Files of `torch.save`: state dicts, alone or in a training checkpoint.

Reading and writing them needs torch. No pickle is ever run: torch's own unpickler for tensors reads them.
"""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jeffnet.errors import OutputError, WeightsError, first_line
from jeffnet.weights.stored import Stored

_log = logging.getLogger("jeffnet")
# Where training loops keep what they want to be used: averaged weights before the last ones.
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_PLAIN = ("state_dict", "model", "model_state_dict", "net", "module")
# What `DataParallel`, `torch.compile` and timm's and Lightning's wrappers put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_torch(path: Path) -> dict[str, Stored]:
    """The arrays of a state dict.

    Averaged (EMA) weights are taken where the file has them beside others, which is said in the log.

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
    except Exception as error:  # whatever a broken file makes the unpickler raise
        text = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), None)
        if text:
            raise WeightsError(
                f"weights {str(path)!r} have more than tensors in them, and unpickling it might run a program: refused "
                f"({text.strip()})"
            ) from error
        reason = first_line(error)
        raise WeightsError(f"weights {str(path)!r} are no whole file of torch.save: {reason}") from error
    return {name: _stored(tensor) for name, tensor in _state_dict(content, str(path)).items()}


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
    torch.save(tensors, path)


def _state_dict(content: Any, source: str) -> dict[str, Any]:
    """The state dict in whatever a training loop wrote around it."""
    taken = []
    while isinstance(content, Mapping) and not _tensors(content):
        found = next((key for key in (*_AVERAGED, *_PLAIN) if isinstance(content.get(key), Mapping)), None)
        if found is None:
            break
        taken.append(found)
        if found in _AVERAGED and any(key in content for key in _PLAIN):
            _log.warning("%s: took the averaged weights, %r", source, found)
        content = content[found]
    if not isinstance(content, Mapping) or not _tensors(content):
        raise WeightsError(f"weights {source!r} have no state dict in them: what was saved is {_described(content)}")
    if taken:
        _log.info("%s: took %s", source, " / ".join(taken))
    tensors = _tensors(content)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _tensors(content: Mapping) -> dict[str, Any]:
    return {str(name): value for name, value in content.items() if hasattr(value, "numpy")}


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary of {', '.join(map(str, list(content)[:8])) or 'nothing'}"
    return f"a {type(content).__name__}"


def _stored(tensor: Any) -> Stored:
    import torch

    if tensor.is_sparse or tensor.is_quantized:
        raise WeightsError("sparse or quantized tensors cannot be read: save the model with dense float tensors")
    if tensor.dtype == torch.bfloat16:
        return Stored(
            tuple(tensor.shape),
            np.dtype(ml_dtypes.bfloat16),
            lambda: tensor.detach().contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16),
        )
    values = tensor.detach().numpy()
    return Stored(values.shape, values.dtype, lambda: values)
