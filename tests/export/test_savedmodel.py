"""SavedModel folders: the same logits in TensorFlow, by their signature; and folders that are something else."""

import importlib.util
import shutil

import numpy as np
import pytest

from jeffnet.errors import InputError, OutputError, WeightsError
from jeffnet.export import savedmodel

pytestmark = [
    # Not imported, which takes seconds in each of the processes that share the tests.
    pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="tensorflow is not installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

OPERATIONS = ("uir", "attention", "group_norm", "experts", "context", "packed", "blur", "average", "no_head", "v2_same")
ALL = {"layout": "nchw", "include": ("preprocessing", "softmax"), "batch_size": 2}
slow = pytest.mark.slow


def check(network, metadata, expected_of, pictures_of, path, tolerance=1e-5):
    savedmodel.write(path, network, metadata)
    runner = savedmodel.open_runner(path)
    assert runner.metadata == metadata and runner.runtime.startswith("tensorflow 2.")
    assert runner.shape[1:] == network.images(1).shape[1:] and runner.dtype == str(network.images(1).dtype)
    assert runner.shape[0] == network.options.batch_size
    images = pictures_of(network, 3)
    expected = expected_of(network, images)
    np.testing.assert_allclose(runner(images), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(runner(images[:1]), expected[:1], rtol=tolerance, atol=tolerance)
    return runner


def test_the_folder_computes_what_the_model_does(
    network_of, metadata_of, expected_of, pictures_of, run_example, tmp_path
):
    """For any number of pictures; other pictures, a copy without its program and a broken description are refused."""
    network, path = network_of("tiny_flat"), tmp_path / "flat"
    runner = check(network, metadata_of("savedmodel", network), expected_of, pictures_of, path)
    with pytest.raises(InputError, match=r"flat' takes normalised floats, \(N, 32, 32, 3\): given are uint8"):
        runner(np.zeros((1, 32, 32, 3), np.uint8))
    names = run_example("import tensorflow", path)
    np.testing.assert_allclose(names["logits"], runner(np.zeros((2, 32, 32, 3), np.float32)), rtol=1e-5, atol=1e-6)
    assert names["card"]["classes"] == list("abcdefg")
    loaded = names["model"]
    names["tf"].saved_model.save(loaded, str(tmp_path / "again"), loaded.signatures)
    assert savedmodel.open_runner(tmp_path / "again").metadata == runner.metadata
    copy = shutil.copytree(path, tmp_path / "copy")
    (copy / savedmodel.DESCRIPTION).write_text("{}")
    with pytest.raises(WeightsError, match="copy' has a malformed description of its model: it has no export_format"):
        savedmodel.open_runner(copy)
    (copy / savedmodel.DESCRIPTION).unlink()
    (copy / "saved_model.pb").write_bytes(b"PK" * 1000)
    for folder in (copy, tmp_path / "nothing"):
        with pytest.raises(WeightsError, match=f"TensorFlow cannot load '{folder}': ") as error:
            savedmodel.open_runner(folder)
        assert "\n" not in str(error.value)
    with pytest.raises(OutputError, match="No such file or directory"):
        savedmodel.write(tmp_path / "none" / "a", network, metadata_of("savedmodel", network))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again", "copy", "flat"]


@slow
@pytest.mark.parametrize("options", [ALL, {"dtype": "float16"}], ids=["all", "float16"])
def test_options(options, network_of, metadata_of, expected_of, pictures_of, tmp_path):
    network, tolerance = network_of("tiny_tf", **options), 2e-2 if "dtype" in options else 1e-5
    check(network, metadata_of("savedmodel", network), expected_of, pictures_of, tmp_path / "a", tolerance)


@slow
@pytest.mark.parametrize("name", ["tiny", *OPERATIONS])
def test_every_operation(name, network_of, metadata_of, expected_of, pictures_of, tmp_path):
    network = network_of(name if name == "tiny" else f"tiny_of_{name}")
    check(network, metadata_of("savedmodel", network), expected_of, pictures_of, tmp_path / "a")
