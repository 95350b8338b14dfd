"""`jeffnet bench`: what it prints, and one line for every kind of bad input."""

import csv
import json

import pytest

from jeffnet.cli.main import main

pytestmark = pytest.mark.runs

QUICK = ("--no-fused", "--no-peak", "--repeats", "1", "--seconds", "1e-6", "--batch-size", "2")


def run(capsys, *arguments):
    """Exit status, standard output and standard error."""
    try:
        status = main(["bench", *map(str, arguments)])
    except SystemExit as stop:
        status = stop.code
    output = capsys.readouterr()
    return status, output.out, output.err


def test_help(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0 and "usage: jeffnet bench" in out and "--compare" in out


def test_a_table_a_file_and_a_picture(fakes, capsys, tmp_path):
    fakes(linen="Right", timm="Right")
    files = ("--csv", tmp_path / "rows.csv", "--plot", tmp_path / "plot.png")
    status, out, _ = run(capsys, "tf_efficientnet_b0", *QUICK, "--compare", "timm", "--price-per-hour", 2, *files)
    assert status == 0
    assert "images/s" in out and "cost/M" in out and "times as fast as linen" in out
    assert len(list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))) == 2
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_one_document(fakes, capsys):
    fakes(linen="Loud")
    status, out, _ = run(capsys, "tf_efficientnet_b[01]", *QUICK, "--json")
    assert status == 0
    document = json.loads(out)
    assert [each["case"]["model"] for each in document["results"]] == ["tf_efficientnet_b0", "tf_efficientnet_b1"]
    assert document["settings"]["repeats"] == 1 and document["machine"]["processors"] >= 1


def test_wildcards_mean_models_without_published_weights_too(fakes, capsys):
    fakes(linen="Right")
    _, out, _ = run(capsys, "tf_mnasnet_1*", *QUICK)
    assert "tf_mnasnet_100" in out


def test_another_answer_fails_and_is_named(fakes, capsys):
    fakes(linen="Right", timm="Wrong")
    status, out, err = run(capsys, "tf_efficientnet_b0", *QUICK, "--compare", "timm")
    assert status == 1 and "timm" in out
    assert err.splitlines()[-1] == "error: answers differ: timm (tf_efficientnet_b0, inference, float32) by 5.0e-01"


@pytest.mark.slow
def test_a_crash_fails_after_the_table_and_what_is_not_there_does_not(fakes, capsys):
    fakes(linen="Right", timm="Dies", keras="Missing")
    status, out, err = run(capsys, "tf_efficientnet_b0", *QUICK, "--compare", "timm,keras")
    assert status == 1 and "images/s" in out and "timm: ended with status 3" in out
    assert err.splitlines()[-1] == "error: failed: timm"
    status, out, _ = run(capsys, "tf_efficientnet_b0", *QUICK, "--compare", "keras")
    assert status == 0 and "keras: no such model" in out
    fakes(linen="Missing")
    status, _, err = run(capsys, "tf_efficientnet_b0", *QUICK)
    assert status == 1 and "nothing could be measured" in err


@pytest.mark.parametrize(
    ("usage", "arguments", "text"),
    [
        (True, (), "give the name of a model"),
        (False, ("resnet*",), "no model matches 'resnet*'"),
        (False, ("tf_eficientnet_b3",), "tf_efficientnet_b3"),
        (True, ("tf_efficientnet_b0", "--compare", "tensorrt"), "compare 'tensorrt' is not one of plain, timm"),
        (True, ("tf_efficientnet_b0", "--csv", "rows.txt"), "ends in .csv"),
        (False, ("tf_efficientnet_b0", "--csv", "missing/rows.csv"), "folder does not exist"),
        (True, ("tf_efficientnet_b0", "--plot", "plot.bmp"), "ends in .png"),
        (True, ("tf_efficientnet_b[01]", "--weights", "w.safetensors"), "put {model}"),
    ],
)
def test_bad_input_is_one_line(fakes, capsys, monkeypatch, tmp_path, usage, arguments, text):
    monkeypatch.chdir(tmp_path)
    fakes(linen="Right")
    status, out, err = run(capsys, *arguments)
    assert status == (2 if usage else 1) and not out
    assert len(err.splitlines()) == 1 and err.startswith("error: ") and text in err


def test_wrong_usage_has_status_2(capsys):
    assert run(capsys, "tf_efficientnet_b0", "--price-per-hour", "-1")[0] == 2
    assert run(capsys, "tf_efficientnet_b0", "--dtype", "int8")[0] == 2


def test_an_exported_file_needs_the_weights_that_it_has(capsys, tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"")
    status, out, err = run(capsys, "tf_efficientnet_b0", *QUICK, "--compare", tmp_path / "a.onnx")
    assert (status, out) == (2, "") and "a.onnx: also give --weights" in err
