"""Files of torch, made by hand, so that what reads them is tested where torch is missing."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

_STORAGES = {
    "float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}  # fmt: skip


class _Call:
    """Pickled as a call of a function by its name, which need not exist here."""

    def __init__(self, name: str, *arguments: Any) -> None:
        self.name, self.arguments = name, arguments


class _Pickler(pickle._Pickler):  # the one in Python, since it can be told how to write names
    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Call):
            self._global(obj.name)
            super().save(obj.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(obj, tuple) and len(obj) == 5 and obj[0] == "storage":
            self.write(pickle.MARK)
            super().save("storage")
            self._global(obj[1])
            for part in obj[2:]:
                super().save(part)
            self.write(pickle.TUPLE + pickle.BINPERSID)
        else:
            super().save(obj, save_persistent_id)

    def _global(self, name):
        module, _, attribute = name.rpartition(".")
        self.write(pickle.GLOBAL + f"{module}\n{attribute}\n".encode())


class ByHand(NamedTuple):
    """What makes such files.

    Attributes:
      write: `(path, content, *storages, **members)` writes a zip archive as torch does, with raw storages, and returns
        the path. NumPy's arrays in the content become tensors of storages of their own.
      tensor: `(number, kind, count, offset, size, strides)` is a tensor of a storage, for the content.
      call: `(name, *arguments)` is a call of a function, for the content.
    """

    write: Callable[..., Path]
    tensor: Callable[..., Any]
    call: type


def _tensor(number, kind, count, offset, size, strides):
    storage = ("storage", f"torch.{kind}", str(number), "cpu", count)
    return _Call("torch._utils._rebuild_tensor_v2", storage, offset, size, strides, False, OrderedDict())


@dataclass
class _Storages:
    arrays: list

    def replaced(self, content: Any) -> Any:
        """The content with tensors for arrays."""
        if isinstance(content, Mapping):
            return {key: self.replaced(value) for key, value in content.items()}
        if isinstance(content, np.ndarray):
            self.arrays.append(content)
            strides = tuple(stride // content.itemsize for stride in np.ascontiguousarray(content).strides)
            kind = _STORAGES[content.dtype.name]
            return _tensor(len(self.arrays) - 1, kind, content.size, 0, content.shape, strides[: content.ndim])
        return content


def _write(path, content, *storages, **members):
    stored = _Storages(list(storages))
    stream = io.BytesIO()
    _Pickler(stream, 2).dump(stored.replaced(content))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", stream.getvalue())
        archive.writestr("a/version", "3\n")
        for number, values in enumerate(stored.arrays):
            archive.writestr(f"a/data/{number}", np.asarray(values).tobytes())
        for name, value in members.items():
            archive.writestr(f"a/{name}", value)
    return path


@pytest.fixture(scope="session")
def by_hand() -> ByHand:
    """See `ByHand`."""
    return ByHand(_write, _tensor, _Call)
