"""Exported StableHLO: the same logits, in a process without models; and files that are something else."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from jeffnet.errors import InputError, OutputError, WeightsError
from jeffnet.export import load, stablehlo
from jeffnet.export.batches import in_batches

OPERATIONS = ("uir", "attention", "group_norm", "experts", "context", "packed", "blur", "average", "no_head", "v2_same")
OPTIONS = {
    "plain": {},
    "all": {"layout": "nchw", "include": ("preprocessing", "softmax"), "batch_size": 2},
    "float16": {"dtype": "float16"},
}


@pytest.mark.parametrize(
    "options", ["all", *(pytest.param(name, marks=pytest.mark.slow) for name in ("plain", "float16"))]
)
def test_the_program_computes_what_the_model_does(options, network_of, metadata_of, expected_of, pictures_of, tmp_path):
    """For any number of pictures, of any layout."""
    network = network_of("tiny_tf", **OPTIONS[options])
    path = tmp_path / "a.stablehlo"
    stablehlo.write(path, network, metadata_of("stablehlo", network))
    runner = stablehlo.open_runner(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.stablehlo", "a.stablehlo.json"]
    assert runner.metadata == metadata_of("stablehlo", network) and runner.runtime == f"jax {jax.__version__}"
    assert runner.shape[1:] == network.images(1).shape[1:] and runner.dtype == str(network.images(1).dtype)
    images, tolerance = pictures_of(network, 3), 2e-2 if options == "float16" else 1e-5
    expected = expected_of(network, images)
    assert np.std(expected, axis=0).min() > 1e-4  # the logits depend on the images
    np.testing.assert_allclose(runner(images), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(runner(images[:1]), expected[:1], rtol=tolerance, atol=tolerance)


def test_every_platform_has_its_convolutions(network_of, monkeypatch):
    """Shifted products on CPUs, XLA's elsewhere, whatever the platform of the exporting process; no call of ours."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cuda")
    exported = jax.export.deserialize(bytearray(stablehlo.serialized(network_of("tiny_of_packed"))))
    assert exported.platforms == ("cpu", "cuda", "tpu") and str(exported.in_avals[0].shape[0]) == "batch"
    module = exported.mlir_module()
    assert set(re.findall(r"custom_call @(\w+)", module)) == {"shape_assertion"}  # that there is a picture
    assert "stablehlo.dynamic_gather" not in module
    assert "feature_group_count = 16" in module and "stablehlo.dot_general" in module


@pytest.mark.parametrize("name", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in OPERATIONS)])
def test_every_operation(name, network_of, expected_of, pictures_of):
    network = network_of(name if name == "tiny" else f"tiny_of_{name}")
    images = pictures_of(network, 3)
    program = jax.export.deserialize(bytearray(stablehlo.serialized(network)))
    np.testing.assert_allclose(jax.jit(program.call)(images), expected_of(network, images), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def exported(network_of, metadata_of, tmp_path_factory):
    """A file that compiles in no time."""
    path = tmp_path_factory.mktemp("exported") / "flat.stablehlo"
    network = network_of("tiny_flat")
    stablehlo.write(path, network, metadata_of("stablehlo", network))
    return path


PROGRAM = """
import sys
import numpy as np
import jeffnet.export
assert "jax" not in sys.modules
program = jeffnet.export.load(sys.argv[1])
assert program.metadata["card"]["classes"] == list("abcdefg")
assert program(np.zeros((3, 32, 32, 3), np.float32)).shape == (3, 7)
print(*sorted(name for name in sys.modules if name.split(".")[0] in ("jeffnet", "flax")))
"""


def test_a_program_is_loaded_without_models(exported):
    answer = subprocess.run([sys.executable, "-c", PROGRAM, exported], capture_output=True, text=True, check=True)
    loaded = answer.stdout.split()
    assert "jeffnet.export.program" in loaded
    models = ("arch", "ops", "backends", "weights", "inference", "linen", "nnx", "functional")
    assert [name for name in loaded if name.startswith(("flax", *(f"jeffnet.{part}" for part in models)))] == []


def test_the_example_of_the_page(exported, run_example):
    names = run_example("deserialize", exported)
    np.testing.assert_allclose(names["logits"], load(exported)(names["images"]), rtol=1e-5, atol=1e-6)
    assert names["card"]["classes"] == list("abcdefg")


def test_pictures_that_a_program_does_not_take(exported):
    program = load(exported)
    assert program.shape == (None, 32, 32, 3) and program.dtype == np.float32
    for images in (np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 3, 32, 32)), np.zeros((32, 32, 3))):
        with pytest.raises(InputError, match=r"flat.stablehlo' takes normalised floats, \(N, 32, 32, 3\): given are"):
            program(images)
    assert program(np.zeros((2, 32, 32, 3))).shape == (2, 7)  # NumPy's 64 bits


def test_a_batch_is_filled():
    """Pictures are never left out, nor is what fills the last batch given back; of none there is nothing."""
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        return batch + 1

    images = np.arange(5.0)[:, None]
    for count in (5, 4, 1, 0):
        np.testing.assert_array_equal(in_batches(run, images[:count], 2), images[:count] + 1)
    assert {*sizes} == {2}
    assert in_batches(run, images, None).shape == (5, 1) and sizes[-1] == 5


def _damaged(path, folder, content=None, **entries):
    """A copy with other content, or other entries in its description."""
    copy = folder / "copy.stablehlo"
    copy.write_bytes(path.read_bytes() if content is None else content)
    description = json.loads((path.parent / f"{path.name}.json").read_text())
    (folder / "copy.stablehlo.json").write_text(json.dumps(description | entries))
    return copy


def test_files_that_cannot_be_loaded(exported, tmp_path):
    """One line each, which names the file."""
    content = exported.read_bytes()
    half, foreign = tmp_path / "half", tmp_path / "foreign"
    half.write_bytes(content[: len(content) // 2])
    foreign.write_bytes(b"PK" * 1000)
    (tmp_path / "malformed").write_bytes(content)
    (tmp_path / "malformed.json").write_text("[1")
    cases = {
        tmp_path / "nothing": "cannot read .*nothing': No such file",
        tmp_path: "cannot read .*: Is a directory",
        half: "half' is no StableHLO that this JAX",
        foreign: "foreign' is no StableHLO that this JAX",
        tmp_path / "malformed": "malformed.json' has a malformed description",
    }
    for path, message in cases.items():
        with pytest.raises(WeightsError, match=message) as error:
            load(path)
        assert "\n" not in str(error.value)
    with pytest.raises(
        WeightsError, match=r"is not the program that .*copy.stablehlo.json' describes: export it again"
    ):
        load(_damaged(exported, tmp_path, content[:-1]))
    with pytest.raises(WeightsError, match="another version of jeffnet than can be read: update"):
        load(_damaged(exported, tmp_path, export_format=2))
    with pytest.raises(WeightsError, match="has a malformed description of its model: lacks 'card'"):
        broken = json.loads((exported.parent / f"{exported.name}.json").read_text())
        del broken["card"]
        path = _damaged(exported, tmp_path)
        (tmp_path / "copy.stablehlo.json").write_text(json.dumps(broken))
        stablehlo.open_runner(path)


def test_a_program_that_was_written_by_others(tmp_path):
    """It has no description beside it."""
    like = jax.ShapeDtypeStruct((2, 3), np.float32)
    exported = jax.export.export(jax.jit(lambda x: 2 * x))(like)
    (tmp_path / "double").write_bytes(exported.serialize())
    runner = stablehlo.open_runner(tmp_path / "double")
    assert runner.metadata is None
    np.testing.assert_array_equal(runner(np.ones((3, 3), np.float32)), np.full((3, 3), 2))
    (tmp_path / "sum").write_bytes(jax.export.export(jax.jit(lambda x, y: x + y))(like, like).serialize())
    with pytest.raises(WeightsError, match="it has 2 inputs and 1 outputs"):
        load(tmp_path / "sum")


def test_a_folder_that_does_not_exist(network_of, metadata_of, tmp_path, monkeypatch):
    monkeypatch.setattr(stablehlo, "serialized", lambda network: b"")
    network = network_of("tiny_flat")
    with pytest.raises(OutputError, match="No such file or directory"):
        stablehlo.write(tmp_path / "none" / "a.stablehlo", network, metadata_of("stablehlo", network))
    assert list(tmp_path.iterdir()) == []
