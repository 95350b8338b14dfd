"""Files of `torch.save`: state dicts, alone or in a training checkpoint.

Reading them needs no torch, and never runs a pickle (`jeffnet.weights.formats.torch_file`). Writing them needs torch.
"""

import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from jeffnet.errors import OutputError, WeightsError
from jeffnet.weights.archive import check_members, open_zip
from jeffnet.weights.formats.interface import OF_MEMBERS, Contents, Probe, WeightsFile, guarded, reading
from jeffnet.weights.formats.state_dicts import state_dict_file
from jeffnet.weights.formats.torch_file import UnknownDtypeError, UnsafeContentError, load
from jeffnet.weights.state_dict import find_state_dict
from jeffnet.weights.timm import state_dict

# The beginning of a file in torch's older format: a pickle's protocol. The newer one is a zip archive.
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_FAULT = "are no whole file of torch.save"


def sniff(probe: Probe) -> bool:
    """A pickle, or a zip archive with one."""
    return probe.start.startswith(_PICKLES) or any(member.endswith("data.pkl") for member in probe.members)


def read(path: Path) -> WeightsFile:
    """See `jeffnet.weights.formats.FormatModule`; arrays are those that `find_state_dict` takes."""
    has_checksums = False
    if zipfile.is_zipfile(path):
        with reading(path, "are a broken archive"), open_zip(path) as archive:
            has_checksums = check_members(archive)
    with reading(path, _FAULT):
        try:
            content = load(path)
        except UnknownDtypeError as error:
            raise WeightsError(
                f"weights {str(path)!r} have tensors of {error}, which no model here has: save the file in PyTorch "
                "again, with these as torch.float32 or without them"
            ) from error
        except UnsafeContentError as error:
            raise WeightsError(
                f"weights {str(path)!r} have more than tensors in them, and unpickling it might run a program: refused "
                f"({error})"
            ) from error
    found = find_state_dict(content, str(path))
    arrays = {name: guarded(array, path, _FAULT) for name, array in found.items()}
    return state_dict_file(str(path), arrays, OF_MEMBERS if has_checksums else "")


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
