"""Single flipped bits in every kind of file that jeffnet writes: none is taken for what was written."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from jeffnet.arch.zoo import model_preprocessing
from jeffnet.checkpoints import write_checkpoint
from jeffnet.errors import WeightsError
from jeffnet.ops.init import initial_arrays
from jeffnet.weights.load import open_weights, read_weights
from jeffnet.weights.store import ModelCard

NAME = "pt_mnasnet_small"
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
