"""`jeffnet export`, and `validate` and `predict` of exported files."""

import csv
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from jeffnet.checkpoints import save_checkpoint
from jeffnet.cli.main import main


@pytest.fixture
def weights(tiny, tmp_path):
    """A file of weights in jeffnet's own format."""
    model, card = tiny
    save_checkpoint(tmp_path / "tiny.safetensors", model, card)
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def pictures(tmp_path):
    """An image folder of three classes."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "owl"):
        (tmp_path / "pictures" / "val" / name).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / "val" / name / f"{number}.png")
    return tmp_path / "pictures"


def run(capsys, *arguments):
    """Exit status, standard output and standard error of a command."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    output = capsys.readouterr()
    return status, output.out, output.err


def fails(capsys, *arguments, status=1):
    """The one line of a command that fails as it should."""
    found, out, err = run(capsys, *arguments)
    assert (found, out) == (status, ""), err
    assert err.splitlines()[-1].startswith("error: ") or status == 2, err
    return err.splitlines()[-1]


def test_export_says_what_it_wrote(fake, capsys, weights, pictures, tmp_path):
    status, out, err = run(capsys, "export", weights, "--output", tmp_path / "a.fake", "--check-with", pictures)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("tiny_flat in ") and "(fake, 0.0 MB)" in lines[0]
    assert lines[1] == "takes any number of pictures of 32x32, normalised float32, NHWC; gives logits; float32"
    assert lines[2].startswith("checked in fake 1.0 on 6 pictures: largest difference ")
    assert lines[2].endswith(", same first class for 100.0%")


def test_info_shows_what_a_file_says_of_itself(fake, capsys, weights, tmp_path):
    file = tmp_path / "a.fake"
    run(capsys, "export", weights, "--output", file, "--include", "softmax", "--no-check")
    status, out, _ = run(capsys, "info", file)
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (status, facts["model"], facts["classes"]) == (0, "tiny_flat", "3: cat, dog, owl")
    assert "normalised float32, NHWC; gives probabilities" in facts["images"] and "fake 1.0" in facts["file"]
    _, out, _ = run(capsys, "info", file, "--json")
    entries = json.loads(out)
    assert (entries["target"], entries["options"]["include"]) == ("fake", ["softmax"])


def test_an_exported_file_is_not_taken_for_weights(capsys, tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"\x08\x0a" * 100)
    assert "is a file for a runtime" in fails(capsys, "export", tmp_path / "a.onnx", "--output", tmp_path / "b.onnx")


def test_export_takes_options(fake, capsys, weights, tmp_path):
    options = ("--batch-size", 2, "--image-size", "32x40", "--layout", "nchw", "--include", "preprocessing,softmax")
    arguments = ("export", weights, "--to", "fake", "--output", tmp_path / "a.fake", *options, "--no-check", "--json")
    status, out, _ = run(capsys, *arguments)
    entries = json.loads(out)
    assert (status, entries["check"], entries["runtime"], entries["model"]) == (0, None, None, "tiny_flat")
    assert entries["options"] == {
        **{"batch_size": 2, "image_size": [32, 40], "layout": "nchw", "dtype": "float32", "opset": None},
        **{"include": ["preprocessing", "softmax"], "embed_labels": False},
    }
    assert entries["bytes"] == (tmp_path / "a.fake").stat().st_size


def test_a_card_lies_beside_the_file(fake, capsys, weights, tmp_path):
    """It has the program instead of standard output; another's is not overwritten."""
    arguments = ("export", weights, "--no-check", "--card", "--output")
    _, out, _ = run(capsys, *arguments, tmp_path / "a.fake")
    card = (tmp_path / "a.fake.md").read_text()
    assert card.startswith("# a.fake\n\n- tiny_flat in a.fake (fake") and "- not checked\n" in card
    assert "import fake_target" in card and "import fake_target" not in out
    (tmp_path / "b.fake.md").write_text("mine")
    assert "b.fake.md' exists" in fails(capsys, *arguments, tmp_path / "b.fake")
    assert not (tmp_path / "b.fake").exists() and (tmp_path / "b.fake.md").read_text() == "mine"


def test_mistakes_of_export(fake, capsys, weights, tmp_path):
    there, new = tmp_path / "there.fake", tmp_path / "new.fake"
    there.write_text("mine")
    for arguments, status, match in (
        ((weights, "--output", there), 1, "exists: remove it"),
        ((weights, "--output", tmp_path / "a.pdf"), 2, "give a name such as *.onnx (onnx)"),
        ((weights, "--output", tmp_path / "a.pb"), 2, "or one without an ending (savedmodel)"),
        (("no.such", "--output", tmp_path / "none" / "a.onnx"), 1, "its folder does not exist"),
        (("no.such", "--output", there), 1, "exists: remove it"),
        (("no.such", "--output", tmp_path / "a.tflite", "--batch-size", "any"), 2, "take a fixed number of pictures"),
        (("no.such", "--output", tmp_path / "a.tflite", "--opset", "18"), 2, "opset 18 is for ONNX files"),
        (("tf_efficientnet_lite9", "--output", new), 1, "near it: tf_efficientnet_lite"),
        ((weights, "--output", new, "--to", "pdf"), 2, "invalid choice: 'pdf'"),
        ((weights, "--output", new, "--batch-size", "0"), 2, "'0' is not a positive whole number"),
        ((weights, "--output", new, "--include", "sigmoid"), 2, "'sigmoid' is not one of preprocessing, softmax"),
        ((weights, "--output", new, "--check-with", tmp_path / "none"), 1, "none"),
        (("no_such_model", "--output", new), 1, "no_such_model"),
        (("tiny_flat", "--weights", tmp_path / "none.pth", "--output", new), 1, "none.pth"),
        ((weights,), 2, "--output"),
    ):
        assert match in fails(capsys, "export", *arguments, status=status)
    assert there.read_text() == "mine" and not new.exists()


def test_an_exported_file_is_validated_like_its_model(fake, capsys, weights, pictures, tmp_path):
    """Same scores, predictions and report; batches of another size than the file's."""
    run(capsys, "export", weights, "--output", tmp_path / "a.fake", "--batch-size", 4, "--layout", "nchw")
    common = ("validate", pictures, "--batch-size", 3, "--json")
    _, out, _ = run(capsys, *common, "--weights", weights)
    expected = json.loads(out)
    arguments = ("--save-predictions", tmp_path / "p.csv", "--report", tmp_path / "report")
    status, out, err = run(capsys, *common, "--model-file", tmp_path / "a.fake", *arguments)
    assert status == 0, err
    row = json.loads(out)
    assert (row["weights"], row["backend"]) == (str(tmp_path / "a.fake"), "fake 1.0")
    assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    for name in ("model", "top1", "top5", "num_examples", "preprocessing", "dtype"):
        assert row[name] == expected[name]
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 7
    assert list((tmp_path / "report").iterdir())
    _, text, _ = run(capsys, *common[:-1], "--weights", weights)
    of_file = run(capsys, *common[:-1], "--model-file", tmp_path / "a.fake")[1]
    assert text == of_file.replace("computed by fake 1.0", "computed by the fused model")


def test_results_of_files_are_rows_of_their_own(fake, capsys, weights, pictures, tmp_path):
    results = ("--results", tmp_path / "r.csv")
    for name in ("a.fake", "b.fake"):
        run(capsys, "export", weights, "--output", tmp_path / name, "--no-check")
        run(capsys, "validate", pictures, "--model-file", tmp_path / name, *results)
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 3
    err = run(capsys, "validate", pictures, "--model-file", tmp_path / "a.fake", *results)[2]
    assert "already in" in err and "changed" not in err
    with open(tmp_path / "r.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["backend"] for row in rows} == {"fake 1.0"} and "linen" not in rows[0]["settings"]
    hashes = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.fake", "b.fake")]
    assert [row["sha256"] for row in rows] == hashes
    # One that has changed is validated again, and has its row.
    (tmp_path / "a.fake").write_bytes((tmp_path / "b.fake").read_bytes())
    assert "already in" not in run(capsys, "validate", pictures, "--model-file", tmp_path / "a.fake", *results)[2]
    assert (tmp_path / "r.csv").read_text().count(hashes[1]) == 2 and hashes[0] not in (tmp_path / "r.csv").read_text()


def test_an_exported_file_predicts_like_its_model(fake, capsys, weights, pictures, tmp_path):
    run(capsys, "export", weights, "--output", tmp_path / "a.fake", "--include", "preprocessing,softmax")
    common = ("predict", pictures, "--json", "--crop-pct", 0.9)
    expected = json.loads(run(capsys, *common, "--weights", weights)[1])
    found = json.loads(run(capsys, *common, "--model-file", tmp_path / "a.fake")[1])
    assert [each["classes"] for each in found] == [each["classes"] for each in expected]
    np.testing.assert_allclose(
        [each["probabilities"] for each in found], [each["probabilities"] for each in expected], rtol=1e-3
    )


def test_options_that_contradict_an_exported_file(fake, capsys, weights, pictures, tmp_path):
    file = tmp_path / "a.fake"
    run(capsys, "export", weights, "--output", file, "--no-check")
    for command in ("validate", "predict"):
        for options, status, match in (
            (("--weights", weights), 2, "--model-file and --weights: give one of them"),
            (("--backend", "nnx"), 2, "--backend is not for --model-file, which runs in its own runtime"),
            (("--dtype", "bfloat16"), 2, "--dtype is not for --model-file, which has its own dtype"),
            (("--image-size", 48), None, "takes pictures of 32"),
            (("--model", "efficientnet_b0"), 1, "is of tiny_flat, not of efficientnet_b0"),
        ):
            status = status or {"validate": 1, "predict": 2}[command]
            assert match in fails(capsys, command, pictures, "--model-file", file, *options, status=status)
        assert "cannot be read" in fails(capsys, command, pictures, "--model-file", tmp_path / "none")
    assert "--test-pool" in fails(
        capsys, "validate", pictures, "--model-file", file, "--test-pool", "--img-size", 64, status=2
    )


def test_a_file_without_classes_predicts_nothing(fake, capsys, pictures, tiny_model, tmp_path):
    from jeffnet.export import export_model
    from jeffnet.functional import create_model

    export_model(tmp_path / "a.fake", create_model("tiny_flat", num_classes=0), "tiny_flat", check=False)
    for command in ("validate", "predict"):
        assert "have no classifier" in fails(capsys, command, pictures, "--model-file", tmp_path / "a.fake")
