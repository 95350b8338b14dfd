"""Result files that a series goes on from, tables of predictions, and reports."""

import csv
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from jeffnet.arch.zoo import model_preprocessing
from jeffnet.errors import OutputError
from jeffnet.validation.answers import Answers, Mistake
from jeffnet.validation.metrics import Predictions, calibration, confusion
from jeffnet.validation.report import write_report
from jeffnet.validation.results import ResultsFile, save_predictions
from jeffnet.validation.validate import Outcome

CLASSES = ("n01440764", "cat", "dog")
SETTINGS = {"data": "pictures", "size": (32, 40), "batch_size": "auto", "dtype": "float32"}


def row(model, top1=50.0, weights=None, **settings):
    return {
        "model": model,
        "weights": weights,
        "top1": top1,
        "top5": 99.0,
        "loss": 0.5,
        "num_examples": 10,
        "images_per_second": 5.5,
        "published_top1": None,
        "top1_difference": None,
        "preprocessing": {
            **{"image_size": 32, "crop_pct": 1, "crop_mode": "center", "interpolation": "bicubic"},
            **{"mean": [0, 0, 0], "std": [1, 1, 1]},
        },
        "data": 'a "b", c',
        "split": "5",
        "settings": SETTINGS | settings,
    }


def outcome(predictions, classes=CLASSES, name=str):
    return Outcome(row("model"), Answers(predictions), classes, name)


@pytest.fixture
def predictions():
    """Six pictures of three classes; the fourth and the last are wrong."""
    probabilities = np.array(
        [[0.9, 0.1, 0.0], [0.75, 0.15, 0.1], [0.7, 0.2, 0.1], [0.95, 0.05, 0.0], [0.55, 0.35, 0.1], [0.5, 0.4, 0.1]]
    )
    label, guess = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 1, 2, 1, 1, 0])
    rest = np.array([[(first + 1) % 3, (first + 2) % 3] for first in guess])
    return Predictions(
        np.arange(6), label, np.column_stack([guess, rest]), probabilities.astype(np.float32),
        np.linspace(0, 1, 6, dtype=np.float32), guess == label, np.ones(6, np.bool_),
    )  # fmt: skip


def test_rows_of_earlier_names_are_those_of_the_model(tmp_path):
    """If its pictures are the same now: B1's were of 240 px."""

    def older(name, image_size, crop_pct, **settings):
        pre = model_preprocessing(name)
        pictures = {"image_size": image_size, "crop_pct": crop_pct, "mean": list(pre.mean), "std": list(pre.std)}
        entry = row(name, **settings)
        return entry | {"preprocessing": entry["preprocessing"] | pictures}

    (tmp_path / "a.json").write_text(
        json.dumps(
            [
                older("pt_efficientnet_b0", 224, 0.875, size=None),
                older("tf_efficientnet_b0_ns", 224, 0.875, size=None),
                older("pt_efficientnet_b1", 240, 0.875, size=None),
                older("pt_efficientnet_b2", [32, 40], 1.0),
                row("gone", size=None),
            ]
        )
    )
    results, default = ResultsFile(tmp_path / "a.json"), SETTINGS | {"size": None}
    assert results.find("efficientnet_b0", None, default)["model"] == "pt_efficientnet_b0"
    assert results.find("tf_efficientnet_b0.ns_jft_in1k", None, default)["model"] == "tf_efficientnet_b0_ns"
    assert results.find("tf_efficientnet_b0", None, default) is None
    assert results.find("efficientnet_b0", "a.pth", default) is None
    assert results.find("efficientnet_b1", None, default) is None
    assert results.find("efficientnet_b2", None, SETTINGS)["model"] == "pt_efficientnet_b2"


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_rows_come_back_as_what_they_were(tmp_path, suffix):
    path = tmp_path / f"results.{suffix}"
    results = ResultsFile(path)
    results.add(row("a", 50.5))
    results.add(row("b", 60.0, weights="w.safetensors") | {"more": [1, 2]})
    again = ResultsFile(path)
    assert again.rows[0] == json.loads(json.dumps(row("a", 50.5))) | ({"more": None} if suffix == "csv" else {})
    assert again.rows[1]["more"] == [1, 2] and again.rows[1]["weights"] == "w.safetensors"
    if suffix == "csv":
        assert [each["top1"] for each in csv.DictReader(io.StringIO(path.read_text()))] == ["50.5", "60.0"]


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_a_model_is_found_again_by_what_decides_its_score(tmp_path, suffix):
    results = ResultsFile(tmp_path / f"results.{suffix}")
    results.add(row("a"))
    results = ResultsFile(tmp_path / f"results.{suffix}")
    assert results.find("a", None, SETTINGS) == results.rows[0]
    assert results.find("a", None, SETTINGS | {"batch_size": 7})
    assert not results.find("a", None, SETTINGS | {"dtype": "bfloat16"})
    assert not results.find("a", None, SETTINGS | {"size": (32, 41)})
    assert not results.find("b", None, SETTINGS) and not results.find("a", "w", SETTINGS)
    results.add(row("a", 70.0, batch_size=3))
    assert [each["top1"] for each in ResultsFile(results.path).rows] == [70.0]
    results.add(row("c", weights="w"))
    assert results.find(None, "w", SETTINGS) == results.rows[1]


def test_published_weights_have_their_name_and_rows_of_earlier_versions_none(tmp_path):
    results = ResultsFile(tmp_path / "results.json")
    results.add(row("mnasnet_small"))
    for weights in (None, "mnasnet_small.lamb_in1k"):
        assert results.find("mnasnet_small", weights, SETTINGS) == results.rows[0]
    assert not results.find("mnasnet_small", "w", SETTINGS)
    results.add(row("mnasnet_small", 70.0, weights="mnasnet_small.lamb_in1k"))
    assert [each["top1"] for each in results.rows] == [70.0]
    for model, weights in (("mnasnet_small", None), (None, "mnasnet_small.lamb_in1k")):
        assert results.find(model, weights, SETTINGS) == results.rows[0]


def test_several_processes_add_to_one_file(tmp_path):
    """What each adds stays, and the models that others validated are found. Locks hold for threads as for processes."""
    first, second = ResultsFile(tmp_path / "results.csv"), ResultsFile(tmp_path / "results.csv")
    first.add(row("a"))
    second.add(row("b"))
    assert second.find("a", None, SETTINGS) and [each["model"] for each in first.rows] == ["a"]

    def add_some(number):
        results = ResultsFile(tmp_path / "results.csv")
        for count in range(8):
            results.add(row(f"{number}_{count}"))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add_some, range(4)))
    found = [each["model"] for each in ResultsFile(tmp_path / "results.csv").rows]
    assert sorted(found) == sorted(["a", "b", *(f"{number}_{count}" for number in range(4) for count in range(8))])
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_what_is_no_results_file_is_left_alone(tmp_path):
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    for name in ("notes.json", "table.csv"):
        with pytest.raises(OutputError, match="no results of jeffnet"):
            ResultsFile(tmp_path / name)
    with pytest.raises(OutputError, match=r"\.csv or \.json"):
        ResultsFile(tmp_path / "results.txt")
    with pytest.raises(OutputError, match="does not exist"):
        ResultsFile(tmp_path / "none" / "results.csv")
    assert (tmp_path / "notes.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize("suffix", ["csv", "json"])
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"preprocessing": {"image_size": 3}}, "'preprocessing' of row 1 lacks 'crop_pct'"),
        ({"top1": "much"}, "row 1 says 'much' as 'top1'"),
        ({"loss": 10**400}, "row 1 says '1000"),
        ({"published_top1": 3.5}, "row 1 has one of"),
    ],
)
def test_rows_with_other_values_are_no_results(tmp_path, suffix, change, fault):
    path = tmp_path / f"results.{suffix}"
    ResultsFile(path).add(row("a") | change)
    with pytest.raises(OutputError, match=f"no results of jeffnet .*{fault}"):
        ResultsFile(path)


@pytest.mark.parametrize("suffix", ["csv", "json"])
@pytest.mark.parametrize("data", [os.fsdecode(b"caf\xe9"), "a\r\nb\tc", "$x$", '"1"', "null", "\ud800", "日本, ä"])
def test_any_name_comes_back_from_a_file_of_results(tmp_path, suffix, data):
    results = ResultsFile(tmp_path / f"results.{suffix}")
    results.add(row("a", data=data) | {"data": data})
    (again,) = ResultsFile(results.path).rows
    assert again["data"] == again["settings"]["data"] == data
    assert ResultsFile(results.path).find("a", None, SETTINGS | {"data": data})
    results.path.read_bytes().decode()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predictions_of_odd_names_are_in_utf8(tmp_path, predictions, suffix):
    path, names = tmp_path / f"p.{suffix}", ["$_a$.png", os.fsdecode(b"caf\xe9.png"), "a\nb", "\ud800", "ä", '"']
    save_predictions(path, outcome(predictions, (os.fsdecode(b"\xff"), "cat", "dog"), names.__getitem__))
    if suffix == "csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    assert [each["name"] for each in rows] == ["$_a$.png", r"caf\xe9.png", "a\nb", r"\ud800", "ä", '"']
    assert rows[0]["label"] == r"\xff"


def test_predictions_as_a_table(tmp_path, predictions):
    save_predictions(tmp_path / "p.csv", outcome(predictions, name=lambda index: f"{index}.jpg"))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))
    assert len(rows) == 6
    assert rows[3] | {"loss": ""} == {
        "name": "3.jpg", "index": "3", "label": "n01440764", "right1": "False", "right5": "True", "loss": "",
        "class1": "cat", "probability1": "0.949999988079071", "class2": "dog", "probability2": "0.05000000074505806",
        "class3": "n01440764", "probability3": "0.0",
    }  # fmt: skip
    for name, fault in (("p.txt", "parquet"), ("none/p.csv", "folder does not exist")):
        with pytest.raises(OutputError, match=fault):
            save_predictions(tmp_path / name, outcome(predictions))


def test_predictions_as_parquet_are_the_same(tmp_path, predictions):
    parquet = pytest.importorskip("pyarrow.parquet")
    save_predictions(tmp_path / "p.csv", outcome(predictions))
    save_predictions(tmp_path / "p.parquet", outcome(predictions))
    table = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))
    assert [{key: str(value) for key, value in each.items()} for each in table] == rows
    assert table[0]["right1"] is True and table[0]["loss"] == 0.0


def test_calibration_by_hand(predictions):
    """Bins (0.4, 0.6], (0.6, 0.8], (0.8, 1]: accuracies 1/2, 1, 1/2 with confidences 0.525, 0.725, 0.925."""
    found = calibration(predictions, 5)
    np.testing.assert_array_equal(found.counts, [0, 0, 2, 2, 2])
    np.testing.assert_allclose(found.confidence[2:], [0.525, 0.725, 0.925], rtol=1e-6)
    np.testing.assert_allclose(found.accuracy[2:], [0.5, 1, 0.5])
    assert found.error == pytest.approx((0.025 + 0.275 + 0.425) / 3)


def test_confusion_counts_classes_by_guesses(predictions):
    np.testing.assert_array_equal(confusion(predictions, 3), [[1, 1, 0], [0, 2, 0], [1, 0, 1]])


@pytest.mark.parametrize("classes", [3, 60])
def test_a_report_has_all_its_pictures_and_tables(tmp_path, predictions, classes):
    names = (*CLASSES, *(f"class {number}" for number in range(3, classes)))
    mistakes = [
        Mistake(0.95, 3, 0, 1, np.zeros((8, 8, 3), np.uint8)),
        Mistake(0.5, 5, 2, 0, np.zeros((8, 8, 1), np.uint8)),
    ]
    result = row("model") | {"top1": 66.7}
    answers = Answers(predictions, mistakes)
    write_report(tmp_path / "report", Outcome(result, answers, names, lambda index: f"val/{index}.jpg"))
    for name in ("confusion.png", "reliability.png", "mistakes.jpg"):
        with Image.open(tmp_path / "report" / name) as drawn:
            assert min(drawn.size) > 200 and np.unique(drawn.convert("L")).size > 10
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report/per_class.csv").read_text())))
    assert [(each["title"], each["pictures"], each["top1"], each["precision"]) for each in rows] == [
        ("tench", "2", "50.00", "50.00"), ("cat", "2", "100.00", "66.67"), ("dog", "2", "50.00", "100.00"),
    ]  # fmt: skip
    assert [each["most_confused_with"] for each in rows] == ["cat", "", "tench"]
    summary = json.loads((tmp_path / "report/report.json").read_text())
    assert summary["most_confused"][0] == {"label": "tench", "guess": "cat", "pictures": 1}
    assert summary["expected_calibration_error"] == pytest.approx(calibration(predictions).error)
    assert summary["top1"] == 66.7


def test_a_report_that_cannot_be_written_is_an_error(tmp_path, predictions):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make folder"):
        write_report(tmp_path / "file", outcome(predictions))
