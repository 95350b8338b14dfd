"""Damaged and crafted files of every kind: none is taken for what was written, all end in an error that names them."""

import io
import os
import random
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jeffnet.arch.zoo import model_preprocessing
from jeffnet.checkpoints import write_checkpoint
from jeffnet.errors import WeightsError
from jeffnet.ops.init import initial_arrays
from jeffnet.weights.card import ModelCard
from jeffnet.weights.load import open_weights, read_weights

# Reads of Orbax's that fail leave callbacks for an event loop that is closed by then.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning")

NAME = "mnasnet_small"
CARD = ModelCard(NAME, 3, 3, model_preprocessing(NAME))
FORMS = {
    "jeffnet": "a.safetensors",
    "timm": "a.pth",
    "timm-safetensors": "a.safetensors",
    "npz": "a.npz",
    "linen": "a.msgpack",
    "nnx": "folder",
}
NEEDS = {"timm": "torch"}


@pytest.fixture(scope="module")
def arrays():
    """Random in every place, so that no damage can hide."""
    generator = np.random.default_rng(0)
    initial = initial_arrays(CARD.plan(), 0)
    return {name: generator.uniform(0.5, 1.5, array.shape).astype(np.float32) for name, array in initial.items()}


@pytest.fixture(scope="module", params=FORMS)
def written(request, arrays, tmp_path_factory):
    """A file or folder of each kind."""
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param])
    path = tmp_path_factory.mktemp("written") / FORMS[request.param]
    write_checkpoint(path, arrays, CARD, request.param.partition("-")[0])
    return path


def silent_flips(path: Path, arrays, times: int, folder: Path) -> int:
    """How many of so many single flipped bits, each in a copy, change an array and are no WeightsError."""
    chance, silent = random.Random(0), 0
    copy = folder / path.name
    for _ in range(times):
        shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
        files = [file for file in copy.rglob("*") if file.is_file()] if copy.is_dir() else [copy]
        # A file by its share of the bytes.
        (file,) = chance.choices(files, [file.stat().st_size for file in files])
        content = bytearray(file.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
        try:
            _, found = open_weights(copy, NAME)
        except WeightsError:
            pass
        else:
            silent += any(not np.array_equal(found[name], array) for name, array in arrays.items())
        shutil.rmtree(copy) if copy.is_dir() else copy.unlink()
    return silent


def mangled(content: bytes, chance: random.Random) -> bytes:
    """A file's content, cut or with other bytes at its beginning, at its end, or anywhere."""
    content, most = bytearray(content), min(len(content), chance.choice([64, 4096, len(content)]))
    place = chance.randrange(most)
    match chance.randrange(6):
        case 0:
            del content[chance.choice([0, 1, 8, place]) :]
        case 1:
            content[place : place + 8] = chance.choice([2**31, 2**40, 2**63 - 1]).to_bytes(8, "little")
        case 2:
            content[place : place + chance.randrange(300)] = chance.randbytes(chance.randrange(300))
        case 3:
            content[place:place] = chance.randbytes(chance.randrange(1, 64))
        case 4:
            content[place : place + 2000] = bytes(2000)
        case 5:
            content[-place - 1 :] = chance.randbytes(place)
    return bytes(content)


def check_mangled(path: Path, times: int, folder: Path) -> None:
    chance = random.Random(0)
    for _ in range(times):
        copy = folder / path.name
        shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
        file = chance.choice([file for file in copy.rglob("*") if file.stat().st_size]) if copy.is_dir() else copy
        if file.is_file():
            file.write_bytes(mangled(file.read_bytes(), chance))
        try:
            open_weights(copy, NAME)
        except WeightsError as error:
            assert copy.name in str(error) and len(str(error)) < 2000
        shutil.rmtree(copy) if copy.is_dir() else copy.unlink()


@pytest.mark.filterwarnings("ignore")
def test_a_few_mangled_files(written, tmp_path):
    """Any other exception than a WeightsError fails the test."""
    check_mangled(written, 5 if written.is_dir() else 12, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_many_mangled_files(written, tmp_path):
    check_mangled(written, 500, tmp_path)


def _zip_of_zeros(path: Path, *members: str) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members:
            with archive.open(member, "w", force_zip64=True) as file:
                for _ in range(80):
                    file.write(bytes(2**20))


def _npy(shape: tuple[int, ...], size: int = 8) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + bytes(size)


def _npz(path: Path, shape: tuple[int, ...]) -> None:
    names = io.BytesIO()
    np.save(names, np.array(["conv_stem.weight"]))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("names.npy", names.getvalue())
        archive.writestr("types.npy", names.getvalue())
        archive.writestr("0.npy", _npy(shape))


def _hdf5(path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.create_dataset("layers/Conv1/vars/0", (10**6, 10**6), "f4", chunks=(100, 100))  # which takes no room


@pytest.mark.parametrize(
    "craft",
    [
        lambda path: _zip_of_zeros(path, "a/data.pkl"),
        lambda path: _zip_of_zeros(path, "names.npy"),
        lambda path: _zip_of_zeros(path, "config.json", "model.weights.h5"),
        lambda path: _npz(path, (10**6, 10**6)),
        lambda path: _npz(path, (-1, 2)),
        lambda path: _npz(path, (1,)),
        _hdf5,
        lambda path: path.write_bytes((2**62).to_bytes(8, "little") + b"{}"),
        lambda path: path.write_bytes(b"\x82\xa6params\xdf\xff\xff\xff\xff"),
        lambda path: path.write_bytes(b"\x81\xa6params" + b"\x81\xa1a" * 10**5 + b"\xc0"),
        lambda path: path.write_bytes(b"\x80\x02" + b"]" * 10**5 + b"."),
        lambda path: path.write_bytes(b"\x80\x04\x8e" + b"\xff" * 8),
    ],
)
def test_a_file_that_claims_to_be_huge_is_an_error_before_memory_is_taken(craft, tmp_path):
    craft(tmp_path / "crafted")
    if (tmp_path / "crafted").read_bytes()[:1] == b"\x80":
        pytest.importorskip("torch")
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match="crafted"):
            open_weights(tmp_path / "crafted", NAME)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_a_tensor_that_repeats_one_value_without_end_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    state = {"conv_stem.weight": torch.zeros(3, 3), "classifier.bias": torch.zeros(1).expand(10**12)}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a.pth' .* would unpack to"):
        open_weights(tmp_path / "a.pth", NAME)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
def test_a_pipe_or_a_device_is_not_read(tmp_path):
    """It would wait for ever, or never end; in a folder too."""
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(WeightsError, match=r"pipe.safetensors': .*it is a pipe"):
        read_weights(tmp_path / "pipe.safetensors")
    with pytest.raises(WeightsError, match=r"/dev/zero': .*it is a device"):
        read_weights("/dev/zero")
    os.mkfifo(tmp_path / "model.ckpt.index")
    with pytest.raises(WeightsError, match="is a folder, but"):
        read_weights(tmp_path)


def test_files_of_ours_have_checksums(written):
    assert read_weights(written).checksums


@pytest.mark.filterwarnings("ignore")  # of threads that read what is broken
def test_a_few_flipped_bits(written, arrays, tmp_path):
    assert silent_flips(written, arrays, 5, tmp_path) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_hundred_flipped_bits(written, arrays, tmp_path):
    assert silent_flips(written, arrays, 200, tmp_path) == 0


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_file_of_the_framework_alone_is_read_without_checksums(kind, arrays, tmp_path):
    """As others wrote it, and we did before: also a training state, of which the model's variables are taken."""
    from flax.serialization import msgpack_restore, to_bytes

    write_checkpoint(tmp_path / "ours", arrays, CARD, kind)
    if kind == "linen":
        tree = msgpack_restore((tmp_path / "ours").read_bytes())
        assert tree.pop("checksums").keys() == arrays.keys()
        (tmp_path / "theirs").write_bytes(to_bytes({"step": 3, **tree, "opt_state": {"0": {"mu": tree["params"]}}}))
    else:
        shutil.copytree(tmp_path / "ours", tmp_path / "theirs")
        (tmp_path / "theirs" / "_CHECKPOINT_METADATA").unlink()
    assert not read_weights(tmp_path / "theirs").checksums
    _, found = open_weights(tmp_path / "theirs", NAME)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_a_file_of_torch_without_crcs_is_read(arrays, tmp_path):
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        write_checkpoint(tmp_path / "a.pth", arrays, CARD, "timm")
    finally:
        torch.serialization.set_crc32_options(True)
    assert not read_weights(tmp_path / "a.pth").checksums
    _, found = open_weights(tmp_path / "a.pth", NAME)
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
