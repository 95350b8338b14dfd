"""Exported files as contenders."""

import importlib.util

import numpy as np
import pytest

from jeffnet.bench.contenders import find_contender
from jeffnet.bench.measure import bench
from jeffnet.bench.program import Job, UnsupportedError, pictures_file
from jeffnet.bench.programs.with_exported import Exported
from jeffnet.bench.settings import Settings
from jeffnet.checkpoints import save_checkpoint
from jeffnet.export import export_model
from jeffnet.functional import create_model, from_pretrained
from jeffnet.validation.candidates import Candidate
from jeffnet.weights.card import card_json

pytestmark = pytest.mark.runs

SMALL = [["ds_r1_k3_s2_c8"], ["ir_r1_k3_s2_e2_c16"]]


@pytest.fixture
def files(tmp_path):
    """Weights, the same as an ONNX file, and the folder of a job."""
    for name in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    save_checkpoint(tmp_path / "a.safetensors", create_model(SMALL, num_classes=5), SMALL)
    *model, card = from_pretrained(tmp_path / "a.safetensors")
    (tmp_path / "card.json").write_text(card_json(card))
    np.save(pictures_file(tmp_path, 32), np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32))

    def export(name, **options):
        export_model(tmp_path / name, tuple(model), card, check=False, **{"image_size": 32, **options})
        return str(tmp_path / name)

    return tmp_path, model, card, export


def _program(folder, card, file, **changes):
    job = {"model": card.model, "task": "inference", "batch_size": 2, "dtype": "float32", "image_size": 32}
    paths = {"program": find_contender(file).program, "folder": str(folder), "answers": "", "exported": file}
    return Exported(Job(**{**job, **paths, "threads": 1, **changes}))


@pytest.mark.parametrize("options", [{}, {"layout": "nchw", "batch_size": 2, "dtype": "float16"}], ids=str)
def test_a_file_computes_what_its_model_does(files, options):
    folder, (model, variables), card, export = files
    program = _program(folder, card, export("a.onnx", **options))
    program.load()
    program.create()
    tolerance = 1e-5 if not options else 1e-2
    np.testing.assert_allclose(program.call(), model.apply(variables, program.job.pictures()), tolerance, tolerance)
    assert program.describe()["dtype"] == options.get("dtype", "float32")
    assert list(program.describe()["versions"]) == ["ONNX Runtime"]


def test_what_a_file_cannot_be_measured_at(files):
    folder, _, card, export = files
    for name, options, changes, reason in (
        ("b.onnx", {"batch_size": 4}, {}, "batches of 4, not 2"),
        ("c.onnx", {"image_size": 40}, {}, r"pictures of \(40, 40\), not 32"),
        ("d.onnx", {"include": ("preprocessing",)}, {}, "it normalises or has a softmax"),
        ("e.onnx", {}, {"dtype": "bfloat16"}, "its dtype is its own, not bfloat16"),
    ):
        program = _program(folder, card, export(name, **options), **changes)
        program.load()
        with pytest.raises(UnsupportedError, match=reason):
            program.create()


@pytest.mark.slow
def test_files_and_onnx_runtime_take_turns(files):
    folder, _, _, export = files
    file, half = export("a.onnx"), export("b.onnx", dtype="float16")
    settings = Settings(
        batch_sizes=(2,), image_sizes=(32,), repeats=2, seconds=1e-6, peak=False, fused=False, backends=(),
        compare=("onnxruntime", file, half),
    )  # fmt: skip
    (result,) = bench([Candidate(None, str(folder / "a.safetensors"))], settings)
    assert not result.failures and [each.contender for each in result.measured] == ["onnxruntime", file, half]
    assert [each.dtype for each in result.measured] == [None, "float32", "float16"]
    assert all(result.agrees(each) for each in result.measured)
    assert result.measured[1].difference < 1e-5 < result.measured[2].difference
