"""Files of `torch.save`: state dicts, alone or in a training checkpoint.

Reading and writing them needs torch. No pickle is ever run: torch's own unpickler for tensors reads them.
"""

import argparse
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jeffnet.errors import OutputError, WeightsError, first_line
from jeffnet.weights.archive import check_growth, check_members, open_zip
from jeffnet.weights.formats.interface import OF_MEMBERS, Contents, Probe, WeightsFile, reading
from jeffnet.weights.state_dict import find_state_dict
from jeffnet.weights.stored import Stored
from jeffnet.weights.timm import state_dict, state_dict_naming

# The beginning of a file in torch's older format: a pickle's protocol. The newer one is a zip archive.
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def sniff(probe: Probe) -> bool:
    """A pickle, or a zip archive with one."""
    return probe.start.startswith(_PICKLES) or any(member.endswith("data.pkl") for member in probe.members)


def read(path: Path) -> WeightsFile:
    """See `jeffnet.weights.formats.FormatModule`; arrays are those that `find_state_dict` takes."""
    has_checksums = False
    if zipfile.is_zipfile(path):
        with reading(path, "are a broken archive"), open_zip(path) as archive:
            has_checksums = check_members(archive)  # which torch itself does not compare
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
        arrays = {name: _stored(tensor) for name, tensor in find_state_dict(content, str(path)).items()}
    except WeightsError:
        raise
    except Exception as error:  # whatever a broken file makes the unpickler raise
        text = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), None)
        if text:
            raise WeightsError(
                f"weights {str(path)!r} have more than tensors in them, and unpickling it might run a program: refused "
                f"({text.strip()})"
            ) from error
        raise WeightsError(f"weights {str(path)!r} are no whole file of torch.save: {first_line(error)}") from error
    return WeightsFile(str(path), arrays, state_dict_naming(arrays), checksums=OF_MEMBERS if has_checksums else "")


def write(path: Path, contents: Contents) -> None:
    """See `jeffnet.weights.formats.FormatModule`."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise OutputError(f"{path.name!r} needs torch to be written: install it, or write safetensors") from error
    tensors = {}
    for name, array in state_dict(contents).items():
        array = np.array(array, order="C")  # a copy, since torch takes no read-only arrays
        if array.dtype == ml_dtypes.bfloat16:
            tensors[name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            tensors[name] = torch.from_numpy(array)
    # torch does not report a full disk, but the file does.
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
