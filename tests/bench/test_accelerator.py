"""`benchmarks/accelerator.sh`: its order, its time, its rows of what fails, and that its table and its JSON agree."""

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from jeffnet.arch.summary import count_macs
from jeffnet.arch.zoo import model_plan
from jeffnet.bench.contenders import Contender
from jeffnet.bench.program import reference_file
from jeffnet.errors import JeffnetError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = ["--models", "mobilenetv2_035", "--image-size", "32", "--seconds", "0.01"]
ONE_CASE = [
    *TINY,
    "--batch-sizes",
    "2",
    "--dtypes",
    "float32",
    "--tasks",
    "inference",
    "--layers",
    "0",
    "--variants",
    "0",
]


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("accelerator")


@pytest.fixture
def bench(program, fakes, monkeypatch, tmp_path):
    """Measures rows of fakes, which answer at once, sleep or fail; gives their outcomes and how often it wrote."""

    def measure(names, minutes=1.0, **options):
        fakes(**names)
        given = program.parse([*ONE_CASE, "--contenders", *names])
        vars(given).update(options)
        deadline = time.monotonic() + 60 * minutes
        runner = program.Bench(given, deadline, "cpu", str(tmp_path))
        monkeypatch.setattr(runner, "_prepare", lambda row: None)
        (tmp_path / TINY[1]).mkdir(exist_ok=True)
        np.save(reference_file(tmp_path / TINY[1], "inference", 32, 2), np.ones((2, 3)))
        rows, writes = program.plan_rows(given), []
        runner.measure(rows, lambda: writes.append([row.outcome for row in rows]))
        return rows, writes

    return measure


def parsed(table: str) -> list[dict[str, str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def agree(document: dict, table: str) -> bool:
    """Whether they have the same rows, with the same figures to three digits."""
    rows = parsed(table)
    assert len(rows) == len(document["rows"])
    for row, entry in zip(rows, document["rows"], strict=True):
        assert row["what"].startswith(entry["what"]) and row["by"].startswith(entry["by"])
        assert (row["note"] or "measured") == entry["outcome"]
        for column, name, factor in (
            ("ms", "seconds", 1e3), ("GB/s", "gigabytes_per_second", 1), ("% of bound", "share_of_bound", 100),
            ("speed", "speed", 1),
        ):  # fmt: skip
            assert (row[column] == "") == (entry[name] is None)
            if entry[name] is not None:
                assert float(row[column]) == pytest.approx(factor * entry[name], rel=6e-3)
    return True


def test_the_first_model_comes_first_and_ours_and_torch_alternate(program):
    options = program.parse(["--image-size", "64"])
    vars(options).update(program.DEFAULTS)
    rows = program.plan_rows(options)
    assert len({row.key for row in rows}) == len(rows)
    models = [row for row in rows if row.kind == "model" and not row.environment and row.by != "fused"]
    assert len(models) == 4 * 2 * 2 * 3 * 2
    assert {row.by for row in models[::2]} == {"functional"} and {row.by for row in models[1::2]} == {"torch-compile"}
    assert all(ours.case == torch.case for ours, torch in zip(models[::2], models[1::2], strict=True))
    assert [(row.what, row.dtype, row.batch_size) for row in models[:4]] == [("efficientnet_b0", "bfloat16", 128)] * 4
    assert [row.kind for row in rows[:5]] == ["model"] * 4 + ["layer"]
    variants = [row for row in rows if row.environment or row.by == "fused"]
    assert len(variants) == len(program.VARIANTS) and {row.case for row in variants} == {models[0].case}


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv3_large_100"])
def test_the_layers_are_those_of_the_model(program, name):
    plan = model_plan(name)
    cases = import_module("accelerator_layers").layer_cases(plan, 224)
    assert sum(case.macs * case.count for case in cases) == count_macs(plan, 224)
    moved = [case.elements * case.count for case in cases]
    assert moved == sorted(moved, reverse=True)


def test_all_forms_of_a_layer_compute_the_same(program):
    import jax

    layers = import_module("accelerator_layers")
    cases = layers.layer_cases(model_plan("tf_efficientnet_b0"), 32)
    kinds = {(case.name.split()[1], getattr(case.op, "stride", None)): case for case in reversed(cases)}
    assert len(kinds) == 6  # stem, depthwise with and without stride, 1x1, squeeze-and-excitation, classifier
    for case in kinds.values():
        weights = layers.layer_weights(case.op, "float32")
        x = jax.random.normal(jax.random.key(0), (1, case.size, case.size, case.channels))
        first, *others = [np.asarray(layers.apply_layer(case.op, x, weights, form)) for form in case.forms]
        assert first.std() > 0
        if case.name.split()[1] != "squeeze":
            assert first.size + x.size == case.elements
        for other in others:
            np.testing.assert_allclose(other, first, atol=1e-5)


def test_a_layer_is_measured(program):
    layers = import_module("accelerator_layers")
    case = layers.layer_cases(model_plan("mobilenetv2_035"), 32)[-1]
    assert 0 < layers.layer_seconds(case, case.forms[0], 1, "float32", 1e-6) < 1


@pytest.mark.runs
def test_what_fails_is_a_row_and_the_rest_goes_on(bench):
    rows, writes = bench({"linen": "Right", "nnx": "Dies", "functional": "Missing", "timm": "Wrong"})
    assert [row.outcome for row in rows] == [
        "measured", "failed: ended with status 3: what it said last", "no such model", "measured",
    ]  # fmt: skip
    assert rows[0].seconds > 0 and rows[1].seconds is None
    assert rows[3].difference == pytest.approx(0.5)
    # After each: what comes later is in the file already, as not measured.
    assert len(writes) == 4 and writes[0] == ["measured"] + ["not measured: out of time"] * 3


@pytest.mark.runs
def test_the_time_of_one_measurement_and_of_all_is_limited(bench):
    began = time.monotonic()
    rows, _ = bench({"linen": "Sleeps", "nnx": "Right"}, limit=1.0)
    assert rows[0].outcome == "took longer than 1 s"
    rows, writes = bench({"linen": "Sleeps", "nnx": "Right"}, minutes=4 / 60)
    assert [row.outcome for row in rows] == ["not measured: out of time"] * 2 and len(writes) == 1
    assert time.monotonic() - began < 30


@pytest.mark.runs
def test_the_flags_that_are_tried_exist(program):
    """An unknown one would be a row that says so, on every machine."""
    flags = {environment.get("XLA_FLAGS", "") for _, environment in program.VARIANTS}
    environment = {**os.environ, "XLA_FLAGS": " ".join(sorted(flags)), "JAX_PLATFORMS": "cpu"}
    code = "import jax; jax.numpy.zeros(1)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.runs
def test_torch_is_not_measured_on_another_device(program, fakes, tmp_path):
    fakes(timm=Contender("bench_fakes:Right", ("torch",), "torch"))
    options = program.parse([*ONE_CASE, "--contenders", "timm"])
    runner, rows = program.Bench(options, time.monotonic() + 60, "gpu", str(tmp_path)), program.plan_rows(options)
    runner.torch = "cpu"
    runner.measure(rows, lambda: None)
    assert [row.outcome for row in rows] == ["torch runs on the cpu here, JAX on the gpu"]


def test_shares_are_of_the_data_sheet_and_table_and_json_agree(program, tmp_path):
    report = program.report
    common = {"kind": "model", "what": "m", "image_size": 8, "task": "inference", "dtype": "bfloat16", "batch_size": 4}
    rows = [
        report.Row(**common, by="functional", bytes=48 * 10**9, macs=10**9, outcome="measured", seconds=0.02),
        report.Row(**common, by="torch-compile", macs=10**13, outcome="measured", seconds=0.04, peak_bytes=2**30),
        report.Row(**common, by="timm", outcome="failed: a | b"),
        report.Row(**common, by="functional", environment={"XLA_FLAGS": "--x"}),
    ]
    by_memory, by_arithmetic, *_ = report.entries(rows, "NVIDIA H200")
    assert by_memory["share_of_bound"] == pytest.approx(0.5)
    assert by_arithmetic["share_of_bound"] == pytest.approx(2e13 / 989e12 / 0.04)
    assert by_memory["images_per_second"] == 200 and by_arithmetic["speed"] == 0.5
    assert report.entries(rows, "a device of tomorrow")[0]["share_of_bound"] is None
    rows[2].outcome = "failed: no memory"
    found = {"device": "NVIDIA H200", "platform": "gpu", "cuda": {"driver": "580.0", "nccl": None}}
    report.write(tmp_path, report.header(found, {}), {}, rows)
    document = json.loads((tmp_path / "accelerator.json").read_text())
    assert agree(document, (tmp_path / "accelerator.md").read_text())


def test_earlier_results_are_taken_over_from_the_same_machine_alone(program, tmp_path):
    options = program.parse([*TINY, "--batch-sizes", "1", "--dtypes", "float32", "--layers", "1", "--variants", "1"])
    rows, head = (
        program.plan_rows(options),
        program.report.header({"device": "cpu", "platform": "cpu", "cuda": None}, {}),
    )
    rows[0].outcome, rows[0].seconds = "measured", 0.5
    rows[1].outcome = "failed: once"
    program.report.write(tmp_path, head, {}, rows)
    anew = program.plan_rows(options)
    program.report.take_over(anew, tmp_path / "accelerator.json", head)
    assert anew == rows
    with pytest.raises(JeffnetError, match="another device or other versions: measure anew"):
        program.report.take_over(anew, tmp_path / "accelerator.json", {**head, "device": "other"})
    with pytest.raises(JeffnetError, match="cannot be continued: give an accelerator"):
        program.report.take_over(anew, tmp_path / "accelerator.md", head)


@pytest.mark.slow
@pytest.mark.runs
def test_the_script_runs_to_its_end_without_an_accelerator(tmp_path):
    command = [BENCHMARKS / "accelerator.sh", *TINY, "--tasks", "inference", "--batch-sizes", "1", "2", "--layers", "1",
               "--variants", "1", "--contenders", "functional", "timm", "--output", tmp_path]  # fmt: skip
    environment = {**os.environ, "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(list(map(str, command)), env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "accelerator.json").read_text())
    table = (tmp_path / "accelerator.md").read_text()
    assert agree(document, table) and table in done.stdout
    assert "no GPU was found" in table and document["header"]["versions"]["jax"]
    assert [entry["outcome"] for entry in document["rows"]] == ["measured"] * 7
    timm = [entry for entry in document["rows"] if entry["by"] == "timm"]
    assert all(entry["difference"] < 1e-3 for entry in timm)
