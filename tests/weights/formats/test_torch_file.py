"""Files of `torch.save` read without torch: what torch reads, and nothing but data."""

import argparse
import random
import re
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jeffnet.errors import WeightsError
from jeffnet.weights.formats.torch_file import UnsafeContentError, load
from jeffnet.weights.load import read_weights

# Whatever a damaged file may raise; the reader of weights turns it into a WeightsError.
FAULTS = (
    ValueError,
    LookupError,
    TypeError,
    OSError,
    EOFError,
    OverflowError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


VALUES = np.arange(24, dtype=np.float32)


def test_views_of_one_storage(by_hand, tmp_path):
    content = {
        "whole": by_hand.tensor(0, "FloatStorage", 24, 0, (2, 3, 4), (12, 4, 1)),
        "transposed": by_hand.tensor(0, "FloatStorage", 24, 0, (4, 6), (1, 4)),
        "part": by_hand.tensor(0, "FloatStorage", 24, 5, (2, 2), (12, 2)),
        "repeated": by_hand.tensor(0, "FloatStorage", 24, 3, (5,), (0,)),
        "empty": by_hand.tensor(0, "FloatStorage", 24, 0, (0, 3), (3, 1)),
        "scalar": by_hand.tensor(0, "FloatStorage", 24, 7, (), ()),
    }
    found = load(by_hand.write(tmp_path / "a.pth", content, VALUES))
    assert {name: array.shape for name, array in found.items()} == {
        "whole": (2, 3, 4), "transposed": (4, 6), "part": (2, 2), "repeated": (5,), "empty": (0, 3), "scalar": (),
    }  # fmt: skip
    np.testing.assert_array_equal(found["whole"], VALUES.reshape(2, 3, 4))
    np.testing.assert_array_equal(found["transposed"], VALUES.reshape(6, 4).T)
    np.testing.assert_array_equal(found["part"], [[5, 7], [17, 19]])
    np.testing.assert_array_equal(found["repeated"], np.full(5, 3, np.float32))
    assert np.asarray(found["scalar"]) == 7 and np.asarray(found["empty"]).size == 0


@pytest.mark.parametrize(
    ("offset", "size", "strides"),
    [
        (0, (25,), (1,)),
        (1, (24,), (1,)),
        (24, (1,), (1,)),
        (0, (2, 3), (24, 1)),
        (0, (2,), (2**61,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (2, 3), (1,)),
        (0, (2.0,), (1,)),
        (0, [2], (1,)),
        (True, (2,), (1,)),
        (0, (2**40,), (0,)),
        (0, (1,) * 40, (1,) * 40),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(by_hand, offset, size, strides, tmp_path):
    path = by_hand.write(tmp_path / "a.pth", [by_hand.tensor(0, "FloatStorage", 24, offset, size, strides)], VALUES)
    with pytest.raises(ValueError, match=r"storage|stride|whole number|unpack"):
        load(path)


@pytest.mark.parametrize(("count", "values"), [(23, VALUES), (25, VALUES), (24, VALUES[:-1]), (-1, VALUES)])
def test_a_storage_of_another_size_is_refused(by_hand, count, values, tmp_path):
    with pytest.raises(ValueError, match="storage"):
        load(by_hand.write(tmp_path / "a.pth", [by_hand.tensor(0, "FloatStorage", count, 0, (1,), (1,))], values))


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "torch._utils._rebuild_qtensor", "numpy.core.multiarray._reconstruct"]
)
def test_other_calls_are_refused_by_name(by_hand, name, tmp_path):
    with pytest.raises(UnsafeContentError, match=re.escape(name)):
        load(by_hand.write(tmp_path / "a.pth", {"a": 1, "b": [by_hand.call(name, "touch /tmp/never")]}))


@pytest.mark.parametrize(("storage", "dtype"), [("QInt8Storage", "QInt8Storage"), ("ComplexFloatStorage", "complex64")])
def test_tensors_of_other_dtypes_are_refused_by_name(by_hand, storage, dtype, tmp_path):
    """They are no danger, so nothing is said of one."""
    path = by_hand.write(tmp_path / "a.pth", by_hand.tensor(0, storage, 24, 0, (1,), (1,)), VALUES)
    with pytest.raises(WeightsError, match=rf"have tensors of torch\.{dtype}, .*as torch\.float32 or without them"):
        read_weights(path)


@pytest.mark.parametrize("is_older", [False, True])
def test_tensors_of_eight_bits_are_refused_by_name(is_older, tmp_path):
    torch = pytest.importorskip("torch")
    content = {"a": torch.zeros(3).to(torch.float8_e4m3fn)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not is_older)
    with pytest.raises(WeightsError, match=r"have tensors of torch\.float8_e4m3fn"):
        read_weights(tmp_path / "a.pth")


def test_objects_and_opcodes_are_refused_by_name(by_hand, tmp_path):
    for number, (pickled, opcode) in enumerate([(b"\x80\x02I12\n.", "INT"), (b"\x80\x02(ios\nsystem\n.", "INST")]):
        path = tmp_path / f"{number}.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", pickled)
        with pytest.raises(UnsafeContentError, match=opcode):
            load(path)


def test_keys_and_copies_cannot_fill_the_memory(tmp_path):
    """The hash of a tuple nested a million deep would end the process; five bytes ask for another copy of a text."""
    deep = b"\x80\x02}N" + b"\x85" * 1_000_000 + b"Ns."
    text, calls = b"\x8c\xff" + b"a" * 255, b"h\x00(h\x01X\x06\x00\x00\x00latin1tR" * 5000
    copies = b"\x80\x02c_codecs\nencode\nq\x00" + text + b"q\x01" + calls + b"."
    for pickled, fault in ((deep, "key of type tuple"), (copies, "too many copies")):
        with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
            archive.writestr("a/data.pkl", pickled)
        with pytest.raises(ValueError, match=fault):
            load(tmp_path / "a.pth")


def test_big_endian_files_are_refused(by_hand, tmp_path):
    with pytest.raises(ValueError, match="big-endian"):
        load(by_hand.write(tmp_path / "a.pth", {}, byteorder="big"))


@pytest.fixture
def content():
    torch = pytest.importorskip("torch")
    values = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    return {
        "model": OrderedDict(
            values=values,
            permuted=values.permute(2, 0, 1),
            part=values[1:, ::2],
            parameter=torch.nn.Parameter(values),
            nothing=torch.zeros(0, 3),
            expanded=torch.ones(1).expand(5),
            **{str(kind): (values * 10).to(kind) for kind in (*kinds, torch.uint8, torch.bool)},
        ),
        "sparse": (values > 1).float().to_sparse(),
        "module": torch.nn.BatchNorm2d(3).state_dict(),
        "args": argparse.Namespace(lr=0.1, layers=[1, (2, 3)], name=None, size=torch.Size([1, 2])),
        "epoch": 3,
        "big": 2**80,
        "names": ("a", b"b", "\u00e9"),
    }


@pytest.mark.parametrize("form", [True, False], ids=["zip", "pickles"])
def test_what_torch_wrote(form, content, tmp_path):
    import torch

    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=form)
    found = load(tmp_path / "a.pth")
    assert found.keys() == content.keys()
    for name, tensor in content["model"].items():
        array = found["model"][name]
        assert array.shape == tuple(tensor.shape)
        wanted = tensor.detach()
        if tensor.dtype == torch.bfloat16:
            assert array.dtype == ml_dtypes.bfloat16
            wanted = wanted.float()
        else:
            assert array.dtype == wanted.numpy().dtype
        np.testing.assert_array_equal(np.asarray(array).astype(wanted.numpy().dtype), wanted.numpy())
    np.testing.assert_array_equal(found["sparse"], content["sparse"].to_dense().numpy())
    assert found["module"].keys() == content["module"].keys()
    assert found["args"] == {"lr": 0.1, "layers": [1, (2, 3)], "name": None, "size": (1, 2)}
    assert (found["epoch"], found["big"], found["names"]) == (3, 2**80, ("a", b"b", "\u00e9"))


@pytest.mark.parametrize("form", [True, False], ids=["zip", "pickles"])
def test_modules_are_refused(form, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=form)
    with pytest.raises(UnsafeContentError, match=r"torch\.nn\.modules\.linear\.Linear"):
        load(tmp_path / "a.pth")


def test_a_tar_archive_is_refused(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(FAULTS):
        load(tmp_path / "a.pth")


def _read_all(value, depth=0):
    if depth > 8:
        return
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            _read_all(part, depth + 1)
    elif hasattr(value, "shape"):
        np.asarray(value)


def _damaged(path: Path, whole: bytes, seed: int) -> None:
    chance = random.Random(seed)
    content = bytearray(whole)
    match chance.randrange(3):
        case 0:
            for _ in range(chance.randint(1, 4)):
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        case 1:
            del content[chance.randrange(len(content)) :]
        case _:
            start = chance.randrange(len(content))
            content[start : start + chance.randint(1, 40)] = chance.randbytes(chance.randint(0, 40))
    path.write_bytes(bytes(content))


def _fuzz(tmp_path, whole, count):
    path = tmp_path / "damaged.pth"
    read = 0
    for seed in range(count):
        _damaged(path, whole, seed)
        try:
            _read_all(load(path))
            read += 1
        except FAULTS:
            pass
    return read


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # of pickletools
def test_damage_is_an_error_and_nothing_else(by_hand, tmp_path):
    content = {"a": by_hand.tensor(0, "FloatStorage", 24, 0, (2, 3, 4), (12, 4, 1)), "b": [1, 2.5, "text", None, True]}
    whole = by_hand.write(tmp_path / "a.pth", content, VALUES).read_bytes()
    assert _fuzz(tmp_path, whole, 300) < 300


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("form", [True, False], ids=["zip", "pickles"])
def test_damage_of_what_torch_wrote(form, content, tmp_path):
    import torch

    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=form)
    assert _fuzz(tmp_path, (tmp_path / "a.pth").read_bytes(), 5_000) < 5_000
