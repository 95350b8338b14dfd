"""Exported files as models: which format a file has, what it says of itself, and what is wrong with it."""

import dataclasses
import json

import numpy as np
import pytest

from jeffnet.errors import WeightsError
from jeffnet.export import export_model, open_exported
from jeffnet.export.run import find_target


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
