"""Tables, files and documents from made-up results."""

import csv
import dataclasses
import json

import pytest

from jeffnet.bench.report import Prices, device_of, document_of, notes_of, table_of, write_csv
from jeffnet.bench.settings import Settings
from jeffnet.errors import OutputError

pytestmark = pytest.mark.runs


def test_a_table_shows_what_differs_and_says_the_rest_once(result):
    shared, head, cells = table_of([result], Prices())
    assert shared == "tf_efficientnet_b0, inference, 224 px, float32, batch 4, cpu"
    assert head[0] == "contender" and "cost/M" not in head and "kWh/M" not in head
    rows = [dict(zip(head, row, strict=True)) for row in cells]
    assert [row["images/s"] for row in rows] == ["20.0", "40.0"]
    assert [row["speed"] for row in rows] == ["1.00", "4.00"]
    assert [row["(rounds)"] for row in rows] == ["", "(2.00 to 4.00)"]
    assert [row["% of peak"] for row in rows] == ["50.0", "100.0"]
    assert [row["MiB"] for row in rows] == ["1", "2"]
    larger = dataclasses.replace(result, case=dataclasses.replace(result.case, batch_size=8))
    shared, head, cells = table_of([result, larger], Prices(per_hour=3.6, watts=360))
    assert "batch" not in shared and len(cells) == 4
    rows = [dict(zip(head, row, strict=True)) for row in cells]
    assert [row["batch"] for row in rows] == ["4", "4", "8", "8"]
    assert [row["cost/M"] for row in rows] == ["50", "25", "25", "12.5"]
    assert [row["kWh/M"] for row in rows] == ["5", "2.5", "2.5", "1.25"]


def test_nothing_measured_is_an_empty_table(result):
    shared, _, cells = table_of([dataclasses.replace(result, measured=(), baseline=None)], Prices())
    assert not shared and not cells


def test_notes_say_what_ratios_are_to_and_what_was_not_measured_once(result):
    notes = notes_of([result, result])
    assert "speed: times as fast as linen" in notes[0]
    assert notes[1] == "peak, float32: 0.0 GMACs/s (matrix product), 2.0 GB/s (copy)"
    assert notes[2:] == [f"{each.contender}: {each.reason}" for each in result.failures]


def test_a_failure_of_some_cases_names_them(result):
    """All cases have a failure of openvino, half of them one of keras, too many to be listed."""
    cases = [dataclasses.replace(result.case, model=f"model{number}", batch_size=batch)
             for number in range(5) for batch in (1, 16)]  # fmt: skip
    openvino, keras = result.failures
    results = [
        dataclasses.replace(result, case=case, failures=(openvino, keras) if case.batch_size == 16 else (openvino,))
        for case in cases
    ]
    assert notes_of(results)[2:] == [
        f"openvino: {openvino.reason}",
        "keras: ended with status 3 (model0 batch 16, model1 batch 16, model2 batch 16, model3 batch 16 and 1 more)",
    ]


def test_a_file_has_a_line_for_each_row(result, tmp_path):
    write_csv(tmp_path / "rows.csv", [result], Prices(per_hour=3.6))
    with open(tmp_path / "rows.csv", newline="") as file:
        linen, timm = csv.DictReader(file)
    assert (linen["contender"], timm["contender"]) == ("linen", "timm")
    assert float(timm["images_per_second"]) == pytest.approx(40)
    assert float(timm["cost_per_million"]) == pytest.approx(25)
    assert timm["kwh_per_million"] == ""
    assert (linen["agrees"], timm["agrees"]) == ("True", "False")
    with pytest.raises(OutputError):
        write_csv(tmp_path / "missing" / "rows.csv", [result], Prices())


def test_a_document_is_json_whatever_was_measured(result):
    broken = dataclasses.replace(result.measured[1], difference=float("nan"))
    result = dataclasses.replace(result, measured=(result.measured[0], broken))
    text = json.dumps(document_of([result], Settings(), Prices()), allow_nan=False)
    (case,) = json.loads(text)["results"]
    linen, timm = case["measured"]
    assert linen["call_seconds"] == [[0.1, 0.2, 0.3], [0.4, 0.4], [0.2]]
    assert timm["versions"] == {"torch": "2"} and timm["agrees"] is False and timm["difference"] is None
    assert case["peak_macs_per_second"] == [40e6, 20e6, 80e6]
    assert [each["contender"] for each in case["failures"]] == ["openvino", "keras"]


def test_the_device_is_the_accelerator_or_else_the_processor(result):
    assert device_of([result], Settings()).endswith(("processor", "processors"))
    accelerated = dataclasses.replace(result.measured[0], platform="gpu", device="Some GPU")
    assert device_of([dataclasses.replace(result, measured=(accelerated,))], Settings()) == "Some GPU"
