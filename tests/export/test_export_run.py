"""Exported files as models: which format a file has, what it says of itself, and what is wrong with it."""

import dataclasses
import json
import os

import numpy as np
import pytest

from jeffnet.errors import WeightsError
from jeffnet.export import export_model, open_exported
from jeffnet.export.run import exported_model, find_target


@pytest.fixture
def exported(fake, tiny, tmp_path):
    """A file of the format of the tests."""
    model, card = tiny
    export_model(tmp_path / "a.fake", model, card, check=False)
    return tmp_path / "a.fake"


@pytest.mark.parametrize(
    ("content", "target"),
    [
        (b"\x1c\0\0\0TFL3\x14\0", "tflite"),
        (b"\x08\x08\x12\x07jeffnet:", "onnx"),
        (b"\x08\x0a:\x04main", "onnx"),
    ],
)
def test_formats_are_found_by_content(content, target, tmp_path):
    (tmp_path / "model.bin").write_bytes(content)
    assert find_target(str(tmp_path / "model.bin")) == target


def test_formats_with_files_beside_them_are_found(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"x")
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "a.bin.json").write_text('{"target": "stablehlo"}')
    assert (find_target(str(tmp_path / "saved")), find_target(str(tmp_path / "a.bin"))) == ("savedmodel", "stablehlo")


def test_what_is_no_exported_file(tmp_path):
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.onnx").write_text("ONNX")
    for name, match in {
        "none.onnx": r"none.onnx' cannot be read: No such file",
        "empty.onnx": r"empty.onnx' is no exported model: give an ONNX, TFLite",
        "text.onnx": r"text.onnx' is no exported model",
        ".": r"is a folder without a saved_model.pb",
    }.items():
        with pytest.raises(WeightsError, match=match):
            open_exported(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_nothing_waits_for_a_pipe(tmp_path):
    """As the file, and as what lies beside it; descriptions that are nested without end are none."""
    os.mkfifo(tmp_path / "a.onnx")
    (tmp_path / "b.bin").write_bytes(b"x")
    os.mkfifo(tmp_path / "b.bin.json")
    (tmp_path / "c.bin").write_bytes(b"x")
    (tmp_path / "c.bin.json").write_text("[" * 100_000)
    for name, match in {
        "a.onnx": "cannot be read: it is a pipe",
        "b.bin": "is no exported model",
        "c.bin": "is no exported model",
        "d\0.onnx": "cannot be read: its name has a null character",
    }.items():
        with pytest.raises(WeightsError, match=match):
            open_exported(tmp_path / name)


class _Foreign:
    """A file of another program, that gives the same whatever it is given."""

    metadata, runtime = None, "foreign 1.0"

    def __init__(self, outputs, dtype="float32", sides=(8, 8)):
        self.outputs, self.dtype, self.shape = outputs, dtype, (None, *sides, 3)

    def __call__(self, images):
        return np.repeat(self.outputs, len(images), axis=0)


@pytest.mark.parametrize(
    ("runner", "match"),
    [
        (_Foreign(np.zeros((1, 3)), "int8"), "takes pictures of int8: export it for float32 or uint8"),
        (_Foreign(np.zeros((1, 3)), "tensor(bfloat16)"), r"takes pictures of tensor\(bfloat16\)"),
        (_Foreign(np.zeros((1, 3, 1, 1))), r"gives arrays of shape \(3, 1, 1\) for a picture, not a score"),
        (_Foreign(np.zeros(1)), r"gives arrays of shape \(\) for a picture, not a score"),
        (_Foreign(np.zeros((1, 1), np.int64)), "gives int64, not scores"),
        (_Foreign(np.zeros((1, 3)), sides=(100_000, 8)), "100000x8: none have over 32,768 a side"),
    ],
)
def test_files_of_other_programs_that_are_no_classifiers(runner, match):
    with pytest.raises(WeightsError, match=match):
        exported_model("a.onnx", "onnx", runner, "efficientnet_b0")


def test_a_description_of_another_network_is_noticed(fake, exported):
    """Before classes are read off the wrong scores."""
    text = exported.read_text()
    classes = text.replace('["cat", "dog", "owl"]', '["cat", "dog"]').replace('"num_classes": 3', '"num_classes": 2')
    exported.write_text(classes)
    with pytest.raises(WeightsError, match=r"gives arrays of shape \(3,\) for a picture, but is described as .* 2 cl"):
        open_exported(exported)(np.zeros((1, 32, 32, 3), np.uint8))
    for size in ("[32]", "[32, 32, 3]", '["32", "32"]', "[32.5, 32]", "null"):
        exported.write_text(text.replace('"image_size": [32, 32]', f'"image_size": {size}'))
        with pytest.raises(WeightsError, match="malformed description of its model"):
            open_exported(exported)


def test_damaged_files_are_errors_of_one_line(fake, exported):
    text = exported.read_text()
    for content, match in {
        "FAKE x\n": "cannot be opened as fake, it may be damaged: invalid literal",
        text.replace('"export_format": 1', '"export_format": 2'): "another version of jeffnet",
        text.replace('"options"', '"choices"'): "malformed description of its model: lacks 'options'",
    }.items():
        exported.write_text(content)
        with pytest.raises(WeightsError, match=match) as error:
            open_exported(exported)
        assert "\n" not in str(error.value) and "a.fake" in str(error.value)


def test_a_file_of_another_program_needs_the_name_of_a_model(fake, tiny, tmp_path):
    """Its layout, sides and classes are found by its input and its output, also whether it ends in a softmax."""
    model, card = tiny
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    export_model(tmp_path / "a.fake", model, card, check=False)
    expected = open_exported(tmp_path / "a.fake")(pixels)
    for name, options in {"b.fake": {"layout": "nchw"}, "c.fake": {"include": ("softmax",), "batch_size": 4}}.items():
        export_model(tmp_path / name, model, card, check=False, **options)
        (tmp_path / name).write_text((tmp_path / name).read_text().partition("\n")[0])  # without its metadata
        with pytest.raises(WeightsError, match=rf"{name}' does not say how.*--model NAME"):
            open_exported(tmp_path / name)
        foreign = open_exported(tmp_path / name, "tiny_flat")
        assert (foreign.card.num_classes, foreign.image_size, foreign.runner.metadata) == (3, (32, 32), None)
        scores = foreign(pixels)
        np.testing.assert_allclose(scores - scores[:, :1], expected - expected[:, :1], rtol=1e-4, atol=1e-5)


def test_the_name_of_a_file_cannot_be_another(fake, exported, tiny):
    assert open_exported(exported, "tiny_flat").card == tiny[1]
    with pytest.raises(WeightsError, match=r"a.fake' is of tiny_flat, not of efficientnet_b0: give no name"):
        open_exported(exported, "efficientnet_b0")


def test_grey_pictures_take_the_mean_of_three_channels(fake, tiny_model, tmp_path):
    from jeffnet.functional import create_model

    export_model(tmp_path / "a.fake", create_model("tiny_flat", in_chans=1, num_classes=3), "tiny_flat", check=False)
    exported = open_exported(tmp_path / "a.fake")
    preprocessing = exported.card.preprocessing
    pixels = np.full((1, 32, 32, 1), 51, np.uint8)
    value = (0.2 - sum(preprocessing.mean) / 3) / (sum(preprocessing.std) / 3)
    np.testing.assert_allclose(exported.prepare(pixels), np.full((1, 32, 32, 1), value), rtol=1e-5)


def test_metadata_survives_a_round_trip(exported):
    metadata = open_exported(exported).runner.metadata
    text = exported.read_text().partition("\n")[2]
    assert json.loads(text)["card"]["classes"] == ["cat", "dog", "owl"]
    assert dataclasses.replace(metadata) == metadata
