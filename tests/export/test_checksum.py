"""Damaged ONNX and TFLite files give no answer; those that other programs have written again do."""

import zipfile

import numpy as np
import pytest

from jeffnet.errors import WeightsError
from jeffnet.export import export_model, open_exported
from jeffnet.export.checksum import CHECKSUM_KEY, check_tflite, tflite_archive

PIXELS = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "tflite": ("ai_edge_litert", "litert_converter")}
# With which the part of a file begins that is its checksum.
STARTS = {"onnx": b"\x72\xd4\0\x0a\x10jeffnet_checksum", "tflite": b"PK\3\4"}


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    """The path of an exported file of a format, and its logits."""
    from jeffnet.functional import create_model

    files = {}

    def export(target):
        for package in PACKAGES[target]:
            pytest.importorskip(package)
        if target not in files:
            path = tmp_path_factory.mktemp("exported") / f"a.{target}"
            model = create_model("tiny_flat", num_classes=7)
            export_model(path, model, "tiny_flat", image_size=32, check=False)
            files[target] = path, open_exported(path)(PIXELS)
        return files[target]

    return export


def damaged_copies(content, end, count):
    """A bit changed anywhere before a place, some bytes changed in a row, or the rest cut off, in turns."""
    rng = np.random.default_rng(0)
    for number in range(count):
        damaged, place = bytearray(content), int(rng.integers(end))
        if number % 3 == 0:
            damaged[place] ^= 1 << int(rng.integers(8))
        elif number % 3 == 1:
            damaged[place : place + 50] = rng.bytes(len(damaged[place : place + 50]))
        else:
            del damaged[place:]
        yield place, bytes(damaged)


@pytest.mark.parametrize("count", [20, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", PACKAGES)
def test_damaged_files_give_no_answer(target, count, exported, tmp_path):
    path, _ = exported(target)
    content = path.read_bytes()
    for place, damaged in damaged_copies(content, content.index(STARTS[target]), count):
        (tmp_path / path.name).write_bytes(damaged)
        with pytest.raises(WeightsError):
            print(place, open_exported(tmp_path / path.name)(PIXELS))


@pytest.mark.parametrize("target", PACKAGES)
def test_damage_to_the_checksum_itself(target, exported, tmp_path):
    """What has lost one is a file that another program has written again, of TFLite: its answer is the right one."""
    path, logits = exported(target)
    content, copy = path.read_bytes(), tmp_path / path.name
    for place in range(content.index(STARTS[target]), len(content), 5):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        for damaged in (flipped, content[:place]):
            copy.write_bytes(damaged)
            try:
                answer = open_exported(copy)(PIXELS)
            except WeightsError:
                continue
            assert target == "tflite"
            np.testing.assert_array_equal(answer, logits)


@pytest.mark.parametrize("target", PACKAGES)
def test_what_is_damaged_is_said(target, exported, tmp_path):
    path, _ = exported(target)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / path.name).write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged: its bytes are not those that were written: export or copy it"):
        open_exported(tmp_path / path.name)


def test_onnx_files_that_another_program_has_written_again(exported, tmp_path):
    """The format's own checker takes the checksum for an entry of the metadata, and other weights are no damage."""
    onnx = pytest.importorskip("onnx")
    path, logits = exported("onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.key for entry in model.metadata_props][-1] == CHECKSUM_KEY
    onnx.save(model, tmp_path / "same.onnx")
    np.testing.assert_array_equal(open_exported(tmp_path / "same.onnx")(PIXELS), logits)
    bias = next(array for array in model.graph.initializer if array.name == "classifier.bias")
    other = onnx.numpy_helper.to_array(bias) + np.float32(1)
    bias.CopyFrom(onnx.numpy_helper.from_array(other, bias.name))
    onnx.save(model, tmp_path / "other.onnx")
    assert path.stat().st_size - (tmp_path / "other.onnx").stat().st_size == 1
    np.testing.assert_allclose(open_exported(tmp_path / "other.onnx")(PIXELS), logits + 1, rtol=1e-4)


def test_archives_of_tflite_files(tmp_path):
    """Labels lie beside the checksum; that of a model of another length is not its own."""
    model = b"a model" * 9
    archive = tflite_archive(model, {"labels.txt": "cat\ndog"})
    (tmp_path / "a").write_bytes(model + archive)
    with zipfile.ZipFile(tmp_path / "a") as read:
        assert read.read("labels.txt") == b"cat\ndog"
    for content in (model, model + archive, model[:-1] + archive):
        check_tflite(content, "a")
    with pytest.raises(WeightsError, match="'a' is damaged: its bytes are not those"):
        check_tflite(b"A" + model[1:] + archive, "a")
    with pytest.raises(WeightsError, match="'a' is damaged: its archive cannot be read"):
        check_tflite(model + archive.replace(b"dog", b"cog"), "a")
