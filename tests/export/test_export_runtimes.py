"""The formats in their own runtimes: the check, the exported model, and the printed program agree with the model."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jeffnet.data.images import read_image
from jeffnet.data.preprocess import EvalTransform
from jeffnet.export import export_model, open_exported
from jeffnet.export.export import ExportReport
from jeffnet.export.metadata import BESIDE, ExportMetadata, labels, metadata_json
from jeffnet.export.options import ExportOptions
from jeffnet.export.savedmodel import DESCRIPTION
from jeffnet.export.snippet import described, model_card, snippet
from jeffnet.inference.forward import make_forward

PACKAGES = {
    "onnx": ("onnx", "onnxruntime"),
    "stablehlo": ("flatbuffers",),
    "tflite": ("ai_edge_litert", "litert_converter"),
    "savedmodel": ("tensorflow",),
}
ENDINGS = {"onnx": ".onnx", "stablehlo": ".stablehlo", "tflite": ".tflite", "savedmodel": ""}
OPTIONS = {
    "plain": {},
    "inside": {"include": ("preprocessing", "softmax"), "embed_labels": True},
    "fixed": {"layout": "nchw", "batch_size": 2, "image_size": (32, 48)},
}


def _skip_without(target):
    if missing := [name for name in PACKAGES[target] if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} is not installed")


SLOW = {
    ("savedmodel", "plain"),
    ("savedmodel", "inside"),
    ("savedmodel", "fixed"),
    ("tflite", "plain"),
    ("tflite", "fixed"),
}


@pytest.mark.parametrize(
    ("target", "options"),
    [
        pytest.param(target, options, marks=pytest.mark.slow if (target, options) in SLOW else ())
        for target in PACKAGES
        for options in OPTIONS
    ],
)
def test_a_file_and_its_program_give_what_the_model_gives(target, options, tiny, tmp_path, monkeypatch, capsys):
    """The program needs nothing of jeffnet, and prepares a picture to the same pixels."""
    _skip_without(target)
    model, card = tiny
    monkeypatch.chdir(tmp_path)
    report = export_model(f"a{ENDINGS[target]}", model, card, **OPTIONS[options])
    assert report.comparison.difference < 1e-5 and report.comparison.agreement == 1
    exported = open_exported(report.path)
    assert exported.target == target and exported.card == card
    height, width = exported.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8)
    Image.fromarray(pixels[0]).save("a.png")
    forward = make_forward(model[0].apply, card.preprocessing)
    expected = np.asarray(forward(model[1], pixels))
    scores = exported(pixels)
    np.testing.assert_allclose(scores - scores[:, :1], expected - expected[:, :1], rtol=1e-3, atol=1e-4)

    program = snippet(report.path, report.metadata)
    assert "import jeffnet" not in program and "from jeffnet" not in program and program in model_card(report)
    monkeypatch.setattr(sys, "argv", ["program.py", "a.png"])
    exec(compile(program, "program.py", "exec"), {})
    first, share = capsys.readouterr().out.splitlines()[0].split()
    names = card.classes if options == "inside" else ("0", "1", "2")
    probabilities = np.exp(expected[0]) / np.exp(expected[0]).sum()
    assert (first, share) == (names[expected[0].argmax()], f"{probabilities.max():.1%}")


@pytest.mark.parametrize(("target", "place"), [("stablehlo", BESIDE), ("savedmodel", f"/{DESCRIPTION}")])
def test_the_program_reads_names_where_the_description_is(target, place, tiny, tmp_path):
    """Without the runtime, which is slow."""
    metadata = ExportMetadata(target, tiny[1], ExportOptions(image_size=(32, 32), embed_labels=True))
    file = Path(f"{tmp_path}/a{place}")
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(metadata_json(metadata))
    program = snippet(f"{tmp_path}/a", metadata)
    names = {"json": json}
    exec(program[program.index("with open(", program.index("probabilities")) : program.index("for index")], names)
    assert names["labels"] == labels(metadata)


def test_what_a_file_takes_is_said_with_its_number(tiny):
    card = tiny[1]
    for batch_size, include, said in (
        (None, (), "any number of pictures of 32x48, normalised float32, NHWC"),
        (1, ("preprocessing",), "1 picture of 32x48, uint8 pixels, NHWC"),
        (4, (), "4 pictures at a time of 32x48, normalised float32, NHWC"),
    ):
        options = ExportOptions(batch_size, (32, 48), include=include)
        report = ExportReport("a.onnx", 1, ExportMetadata("onnx", card, options))
        assert f"takes {said}; gives logits; float32\n" in described(report)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_the_program_turns_a_photograph_as_the_camera_says(orientation, tiny, tmp_path, monkeypatch):
    options = ExportOptions(image_size=(32, 32), include=("preprocessing",))
    program = snippet("a", ExportMetadata("onnx", tiny[1], options))
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8))
    image.getexif()[274] = orientation
    image.save(tmp_path / "a.png", exif=image.getexif())
    monkeypatch.setattr(sys, "argv", ["program.py", str(tmp_path / "a.png")])
    names = {}
    exec(program[: program.index("session =")].replace("import onnxruntime", ""), names)
    expected = EvalTransform(tiny[1].preprocessing, (32, 32), exif=True)(read_image(tmp_path / "a.png"))
    np.testing.assert_array_equal(names["pixels"], expected)


def test_the_layer_that_differs_first_is_named(tiny, tmp_path, monkeypatch):
    """ONNX Runtime shows what is on the way."""
    _skip_without("onnx")
    from jeffnet.errors import JeffnetError
    from jeffnet.export import onnx as target

    model, card = tiny
    write = target.write

    def damaged(path, network, metadata):
        kernel = "blocks.1.0.conv.kernel"
        arrays = {**network.arrays, kernel: 1.5 * network.arrays[kernel]}
        write(path, type(network)(network.plan, network.execution, arrays, network.card, network.options), metadata)

    monkeypatch.setattr(target, "write", damaged)
    with pytest.raises(JeffnetError, match=r"first at 'blocks\.1\.0\.conv:sum'"):
        export_model(tmp_path / "a.onnx", model, card)
    assert list(tmp_path.iterdir()) == []
