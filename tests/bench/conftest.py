"""Made-up contenders and results."""

from pathlib import Path

import numpy as np
import pytest

from jeffnet.bench import measure
from jeffnet.bench.contenders import CONTENDERS, Contender
from jeffnet.bench.program import reference_file
from jeffnet.bench.results import CaseResult, Failure, Measured
from jeffnet.bench.settings import Case


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    """Has names of contenders stand for fakes, and no model prepared; gives the file of whose calls there were.

    Nor are devices counted, for which another process would import JAX each time: `test_devices.py` does.
    """
    turns = tmp_path / "turns"
    turns.touch()
    monkeypatch.setenv("TURNS", str(turns))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def prepare(candidate, settings, folder):
        cases = []
        for task in settings.tasks:
            for batch in settings.batch_sizes:
                reference = np.array(7.0) if task == "training" else np.array([[1.0, -2.0], [0.5, 0.0]])
                np.save(reference_file(folder, task, 32, batch), reference)
                cases += [Case(candidate.name, task, batch, dtype, 32, 10, 1000) for dtype in settings.dtypes]
        return cases

    monkeypatch.setattr(measure, "_prepare", prepare)
    monkeypatch.setattr(measure, "count_devices", lambda settings: ("cpu", 1))
    monkeypatch.setattr(measure, "_REST", 0)

    def stand_in(**names):
        for name, fake in names.items():
            contender = fake if isinstance(fake, Contender) else Contender(f"bench_fakes:{fake}")
            monkeypatch.setitem(CONTENDERS, name, contender)
        return turns

    return stand_in


@pytest.fixture
def result():
    """Two contenders in three rounds, of which the second slows both down, and two that were not measured."""
    case = Case("tf_efficientnet_b0", "inference", 4, "float32", 224, 5_000_000, 1_000_000)
    common = {"platform": "cpu", "device": "cpu", "import_seconds": 1.0, "create_seconds": 2.0, "compile_seconds": 3.0}
    return CaseResult(
        case,
        (
            Measured(
                contender="linen", versions={"jax": "1"}, peak_bytes=2**20, difference=0.0,
                rounds=((0.1, 0.2, 0.3), (0.4, 0.4), (0.2,)), **common,
            ),
            Measured(
                contender="timm", versions={"torch": "2"}, peak_bytes=2**21, difference=5e-3,
                rounds=((0.1,), (0.1,), (0.05,)), **common,
            ),
        ),
        (
            Failure("openvino", "not installed (openvino): pip install openvino", True),
            Failure("keras", "ended with status 3", False),
        ),
        "linen",
        (40e6, 20e6, 80e6),
        (1e9, 2e9, 4e9),
    )  # fmt: skip
