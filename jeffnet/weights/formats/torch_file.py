"""What `torch.save` wrote, read without torch: mappings, sequences, numbers, strings and tensors.

A pickle is a program. Here nothing of it is called: every opcode that plain data needs is interpreted, every global
name is compared with the few that tensors need, and all else is refused by name.

Both forms of file are read: the zip archive, and the sequence of pickles that torch wrote until version 1.6.

Source of the forms: torch/serialization.py and torch/_utils.py of PyTorch; of the opcodes, Python's pickletools.
"""

import io
import math
import mmap
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jeffnet.weights.archive import check_growth, open_zip
from jeffnet.weights.stored import Stored

# The first pickle of the older form.
_MAGIC = 0x1950A86A20F9469CFC6C

# A pickle may ask for any number of copies of what it has once: so many characters and pairs are made of them at most.
_MOST_COPIED = 2**20

_STORAGES = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
    "torch.storage.UntypedStorage": np.dtype("u1"),  # of tensors that name their dtype
}
_UNKNOWN = {"torch.ComplexFloatStorage": "torch.complex64", "torch.ComplexDoubleStorage": "torch.complex128"}


class UnsafeContentError(ValueError):
    """A file has something in it that is neither plain data nor a dense or sparse tensor."""


class UnknownDtypeError(ValueError):
    """A file has tensors of a dtype that no model's arrays have."""


def load(path: Path) -> Any:
    """What a file holds; tensors are `Stored` arrays, whose values are read when they are used.

    Args:
      path: of a file of `torch.save`.

    Raises:
      UnsafeContentError: it has other objects in it; the message names the first.
      UnknownDtypeError: it has tensors of another dtype, such as complex ones or of 8 bits; the message names it.
      Exception: it is damaged, or no such file: whatever zipfile, pickletools and NumPy raise then.
    """
    if zipfile.is_zipfile(path):
        return _load_archive(path)
    # Mapped, since a file would make room for as many bytes as a damaged length says, before it reads them.
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _load_pickles(content, path)


def _load_archive(path: Path) -> Any:
    archive = open_zip(path)
    try:
        members = archive.namelist()
        if not any(member.CRC for member in archive.infolist() if member.file_size):
            # torch can be told to write zeros. zipfile compares nothing where it has no CRC.
            for member in archive.infolist():
                del member.CRC
        pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"the archive has {len(pickles)} members data.pkl, not one")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder").strip() != b"little":
            raise ValueError("its bytes are in big-endian order: save it on a little-endian machine")

        # All tensors may be views of one storage, which is then not read again for each.
        latest: dict[str, bytes] = {}

        def read(member: str) -> bytes:
            if member not in latest:
                latest.clear()
                latest[member] = archive.read(member)
            return latest[member]

        def storage(key: str, dtype: np.dtype, count: int) -> "_Storage":
            member = f"{folder}data/{key}"
            size = archive.getinfo(member).file_size
            if size != count * dtype.itemsize:
                raise ValueError(f"storage {key!r} has {size:,} bytes, not {count * dtype.itemsize:,}")
            return _Storage(dtype, count, lambda: read(member))

        return _interpret(io.BytesIO(archive.read(pickles[0])), storage)
    except BaseException:
        archive.close()
        raise


def _load_pickles(file: mmap.mmap, path: Path) -> Any:
    def no_storage(key: str, dtype: np.dtype, count: int) -> "_Storage":
        raise ValueError("a storage before the content")

    magic = _interpret(file, no_storage)
    if magic != _MAGIC:
        raise ValueError("it does not begin as a file of torch.save")
    _interpret(file, no_storage)  # the version
    system = _interpret(file, no_storage)
    if not isinstance(system, Mapping) or system.get("little_endian") is not True:
        raise ValueError("its bytes are in big-endian order: save it on a little-endian machine")
    # Storages follow their keys at the end of the file.
    places: dict[str, int] = {}
    latest: dict[str, bytes] = {}
    declared: dict[str, _Storage] = {}

    def storage(key: str, dtype: np.dtype, count: int) -> "_Storage":
        def read() -> bytes:
            if key not in latest:
                latest.clear()
                with open(path, "rb") as again:
                    again.seek(places[key])
                    latest[key] = again.read(count * dtype.itemsize)
            return latest[key]

        found = declared.setdefault(key, _Storage(dtype, count, read))
        if (found.dtype, found.count) != (dtype, count):
            raise ValueError(f"storage {key!r} is declared twice, as another each time")
        return found

    content = _interpret(file, storage)
    keys = _interpret(file, no_storage)
    if not isinstance(keys, list) or set(keys) != set(declared) or len(keys) != len(declared):
        raise ValueError("its storages are not those of its tensors")
    for key in keys:
        header = file.read(8)
        if len(header) < 8 or struct.unpack("<q", header)[0] != declared[key].count:
            raise ValueError(f"storage {key!r} is missing or of another size")
        places[key] = file.tell()
        size = declared[key].count * declared[key].dtype.itemsize
        if len(file) - file.tell() < size:
            raise ValueError("the file ends too early")
        file.seek(size, os.SEEK_CUR)
    return content


@dataclass(frozen=True)
class _Storage:
    """A flat array that tensors are views of."""

    dtype: np.dtype
    count: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class _Global:
    """A name of a module in a pickle, which stands for itself."""

    name: str


class _Namespace(dict):
    """What an `argparse.Namespace` holds: timm's training checkpoints have their options in one."""


_MARK = object()


def _interpret(file: io.BytesIO | mmap.mmap, storage: Callable[[str, np.dtype, int], _Storage]) -> Any:
    """The value of one pickle, of which the file is read to its end."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    copied = 0

    def pop(count: int) -> list[Any]:
        if len(stack) < count or any(value is _MARK for value in stack[-count:]):
            raise ValueError("its pickle takes values that are not there")
        taken = stack[-count:]
        del stack[-count:]
        return taken

    def pop_to_mark() -> list[Any]:
        for place in range(len(stack) - 1, -1, -1):
            if stack[place] is _MARK:
                taken = stack[place + 1 :]
                del stack[place:]
                return taken
        raise ValueError("its pickle takes values that are not there")

    def top(kind: type) -> Any:
        if not stack or not isinstance(stack[-1], kind):
            raise ValueError(f"its pickle adds to something that is no {kind.__name__}")
        return stack[-1]

    argument: Any
    for opcode, argument, _ in pickletools.genops(file):  # pyright: ignore[reportArgumentType]
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE"
                | "BINUNICODE8" | "BINSTRING" | "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8"
            ):  # fmt: skip
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_SET":
                stack.append(set())
            case "MARK":
                stack.append(_MARK)
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(int(opcode.name[-1]))))
            case "LIST":
                stack.append(pop_to_mark())
            case "DICT":
                items = pop_to_mark()
                stack.append(_dict(items))
            case "APPEND":
                (value,) = pop(1)
                top(list).append(value)
            case "APPENDS":
                values = pop_to_mark()
                top(list).extend(values)
            case "ADDITEMS":
                values = pop_to_mark()
                top(set).update(map(_key, values))
            case "SETITEM":
                items = pop(2)
                top(dict).update(_dict(items))
            case "SETITEMS":
                items = pop_to_mark()
                top(dict).update(_dict(items))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_Global(".".join(argument.split(" ", 1))))
            case "STACK_GLOBAL":
                stack.append(_Global(".".join(map(str, pop(2)))))
            case "BINPERSID":
                (identity,) = pop(1)
                stack.append(_storage(identity, storage))
            case "REDUCE" | "NEWOBJ":
                function, arguments = pop(2)
                copied += sum(len(part) for part in list(arguments) if isinstance(part, str | list))
                if copied > _MOST_COPIED:
                    raise ValueError("its pickle makes too many copies")
                stack.append(_rebuild(function, arguments))
            case "BUILD":
                (state,) = pop(1)
                _build(top(object), state)
            case "POP":
                stack.pop()
            case "STOP":
                (value,) = pop(1)
                if stack:
                    raise ValueError("its pickle ends with values left over")
                return value
            case name:
                raise UnsafeContentError(f"its pickle has the opcode {name}, which plain data do not need")
    raise ValueError("its pickle does not end")


def _dict(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("its pickle has a key without a value")
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _key(value: Any) -> Any:
    """A key of a mapping or a member of a set: the hash of nested tuples could fill the C stack."""
    if not isinstance(value, str | bytes | int | float | None):
        raise UnsafeContentError(f"it has a key of type {type(value).__name__}")
    return value


def _storage(identity: Any, storage: Callable[[str, np.dtype, int], _Storage]) -> _Storage:
    """A storage from its persistent identity: `('storage', type, key, device, count)`, and a view in the older form."""
    match identity:
        case ("storage", _Global(name), str(key), str(), int(count)) | (
            "storage", _Global(name), str(key), str(), int(count), None,
        ) if count >= 0:  # fmt: skip
            if name not in _STORAGES:
                raise UnknownDtypeError(_UNKNOWN.get(name, name))
            return storage(key, _STORAGES[name], count)
        case ("module", _Global(name), *_):
            raise UnsafeContentError(f"it has {name} in it, which is neither plain data nor a tensor")
    raise ValueError("its pickle names a storage in an unknown way")


def _rebuild(function: Any, arguments: Any) -> Any:
    """What a call in the pickle would make, for the few that make plain data or tensors."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise ValueError("its pickle calls something that is no name")
    match function.name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list(pairs),):
            return {_key(key): value for key, value in pairs}
        case "argparse.Namespace", ():
            return _Namespace()
        case "_codecs.encode", (str(text), "latin1"):  # bytes, as Python 2 reads them
            return text.encode("latin1")
        case "torch.Size", (tuple(size),):
            return size
        case ("torch.device", tuple()) | ("torch.serialization._get_layout", (str(),)):
            return arguments[0]
        case "torch._utils._rebuild_tensor_v2", (_Storage() as storage, offset, size, strides, *_):
            return _tensor(storage, offset, size, strides)
        case "torch._utils._rebuild_tensor", (_Storage() as storage, offset, size, strides):
            return _tensor(storage, offset, size, strides)
        case "torch._utils._rebuild_tensor_v3", (_Storage(), _, _, _, _, _, _Global(dtype), *_):
            raise UnknownDtypeError(dtype)
        case "torch._utils._rebuild_parameter", (Stored() as tensor, _, _):
            return tensor
        case "torch._utils._rebuild_sparse_tensor", (
            "torch.sparse_coo",
            (Stored() as indices, Stored() as values, *size),
        ):
            return _sparse(indices, values, size[0] if size else None)
    raise UnsafeContentError(f"it has {function.name} in it, which is neither plain data nor a tensor")


def _build(value: Any, state: Any) -> None:
    """What the pickle would set on an object: options are kept; versions of a state dict's modules are not needed."""
    if isinstance(value, _Namespace) and isinstance(state, dict):
        value.update(state)
    elif not isinstance(value, dict):
        raise UnsafeContentError(f"it has an object of {type(value).__name__} with a state in it")


def _tensor(storage: _Storage, offset: Any, size: Any, strides: Any) -> Stored:
    shape, steps = _whole_numbers(size), _whole_numbers(strides)
    (start,) = _whole_numbers((offset,))
    if len(shape) != len(steps) or len(shape) > 32:
        raise ValueError("a tensor of it has another number of strides than of dimensions")
    last = start + sum((length - 1) * step for length, step in zip(shape, steps, strict=True))
    if 0 not in shape and last >= storage.count:
        raise ValueError(f"a tensor of it reaches to value {last:,} of a storage of {storage.count:,}")
    # One value may stand for any number of them.
    check_growth(math.prod(shape) * storage.dtype.itemsize, storage.count * storage.dtype.itemsize)

    def read() -> np.ndarray:
        values = np.frombuffer(storage.read(), storage.dtype)
        if values.size < storage.count:
            raise ValueError("a storage has fewer values than it says")
        if 0 in shape:
            return np.empty(shape, storage.dtype)
        itemsize = storage.dtype.itemsize
        view = np.lib.stride_tricks.as_strided(
            values[start:], shape, [step * itemsize for step in steps], writeable=False
        )
        return np.ascontiguousarray(view).reshape(shape)

    return Stored(shape, storage.dtype, read)


def _sparse(indices: Stored, values: Stored, size: Any) -> Stored:
    """A sparse tensor as a dense one, which must fit in 64 times the memory of its values."""
    shape = _whole_numbers(size)
    if indices.ndim != 2 or indices.dtype.kind not in "iu" or values.ndim != 1:
        raise ValueError("a sparse tensor of it is of an unknown form")
    if indices.shape != (len(shape), values.shape[0]):
        raise ValueError("a sparse tensor of it has another number of indices than of values")
    check_growth(math.prod(shape) * values.dtype.itemsize, values.size * values.dtype.itemsize)

    def read() -> np.ndarray:
        dense = np.zeros(shape, values.dtype)
        places = indices.read()
        if places.size and (places.min() < 0 or (places.max(axis=1) >= np.array(shape)).any()):
            raise ValueError("a sparse tensor has indices outside its shape")
        np.add.at(dense, tuple(places), values.read())
        return dense

    return Stored(shape, values.dtype, read)


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or any(type(value) is not int or not 0 <= value < 2**62 for value in values):
        raise ValueError("a size, stride or offset of it is no whole number from 0 on")
    return values
