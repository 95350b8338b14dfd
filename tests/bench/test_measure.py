"""Processes that take turns: fakes of every temper, and jeffnet itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jeffnet.bench.contenders import CONTENDERS, PEERS, Contender
from jeffnet.bench.measure import bench
from jeffnet.bench.settings import Settings
from jeffnet.errors import ConfigError, JeffnetError
from jeffnet.system.processor import processors
from jeffnet.validation.candidates import Candidate

pytestmark = pytest.mark.runs

# The quickest of the zoo to compile, of pictures that leave its last map 2x2 positions: in training, norms of fewer
# values would enlarge every rounding.
SMALL, SIZE = "tf_mobilenetv2_035", 64


def settings_of(**options):
    return Settings(**{"batch_sizes": (2,), "fused": False, "repeats": 2, "seconds": 1e-6, "peak": False} | options)


def one(**options):
    (result,) = bench([Candidate("any")], settings_of(**options))
    return result


def test_contenders_take_turns_and_another_begins_each_round(fakes):
    turns = fakes(linen="Right", nnx="Loud")
    result = one(backends=("linen", "nnx"), repeats=3)
    # Two calls of each as it starts; a turn is a call that does not count, and one that does.
    calls = [name for pair in turns.read_text().split() for name in [pair]][4:]
    assert (
        calls == ["Right", "Right", "Loud", "Loud"] + ["Loud", "Loud", "Right", "Right"] + ["Right"] * 2 + ["Loud"] * 2
    )
    assert [len(each.rounds) for each in result.measured] == [3, 3]
    assert all(call >= 0.002 for each in result.measured for calls in each.rounds for call in calls)
    assert result.baseline == "linen"


@pytest.mark.parametrize("task", ["inference", "training"])
def test_a_wrong_answer_is_found(fakes, task):
    """Also one that is no number."""
    fakes(linen="Right", nnx="Wrong", functional="NotANumber")
    result = one(backends=("linen", "nnx", "functional"), tasks=(task,))
    right, wrong, broken = result.measured
    assert right.difference == 0 and result.agrees(right)
    assert wrong.difference == pytest.approx(0.5) and not result.agrees(wrong)
    assert not result.agrees(broken)


def test_a_step_that_leads_elsewhere_is_found(fakes):
    """By the loss after it, in which the first contender is the reference."""
    fakes(linen="Right", nnx="Drifts")
    result = one(backends=("linen", "nnx"), tasks=("training",))
    assert [each.difference for each in result.measured] == pytest.approx([0, 0.1])


def test_a_contender_that_fails_is_reported_and_the_rest_goes_on(fakes):
    fakes(
        linen="Missing",
        nnx="Fails",
        functional="Dies",
        plain="Killed",
        timm="Right",
        keras=Contender("a:B", ("nowhere",), "bench,torch"),
    )
    result = one(backends=("linen", "nnx", "functional"), compare=("plain", "timm", "keras"), repeats=3)
    assert [each.contender for each in result.measured] == ["timm"]
    assert len(result.measured[0].rounds) == 3 and result.baseline == "timm"
    failures = {each.contender: each for each in result.failures}
    assert (
        failures["keras"].reason
        == "not installed (nowhere): pip install onnx onnxruntime openvino torch torchvision timm"
    )
    assert failures["linen"].reason == "no such model"
    assert failures["nnx"].reason == "ValueError: first line"
    assert failures["functional"].reason == "ended with status 3: what it said last"
    assert failures["plain"].reason.startswith("killed by SIGKILL")
    assert {name for name, each in failures.items() if each.expected} == {"keras", "linen"}


def test_a_task_that_a_contender_does_not_have_is_no_defect(fakes):
    fakes(linen="Right", fused=Contender("bench_fakes:Right", tasks=("inference",)))
    result = one(fused=True, tasks=("training",))
    (failure,) = result.failures
    assert (failure.contender, failure.reason, failure.expected) == ("fused", "no training", True)


def test_all_get_the_same_processors_and_their_own_environment(fakes):
    fakes(linen="Right", nnx=Contender("bench_fakes:Right", environment={"JEFFNET_CONV": "xla"}))
    result = one(backends=("linen", "nnx"), threads=1)
    linen, nnx = (each.versions for each in result.measured)
    assert linen["OMP_NUM_THREADS"] == nnx["OMP_NUM_THREADS"] == "1"
    assert linen["processors"] == nnx["processors"] == str([processors()[0]])
    assert (linen["JEFFNET_CONV"], nnx["JEFFNET_CONV"]) == ("", "xla")


def test_cases_are_all_combinations(fakes):
    fakes(linen="Right")
    settings = settings_of(
        tasks=("inference", "training"), batch_sizes=(1, 2), dtypes=("float32", "bfloat16"), repeats=1
    )
    cases = [result.case for result in bench([Candidate("one")], settings)]
    assert len(cases) == len({*cases}) == 8


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"compare": ("tensorrt",)}, f"compare 'tensorrt' is not one of {', '.join(PEERS)}"),
        ({"compare": ("plain", "plain")}, "each once"),
        ({"backends": ("torch",)}, "backend 'torch' is not one of"),
        ({"backends": ()}, "nothing to measure"),
        ({"baseline": "timm"}, "baseline 'timm' is not measured"),
        ({"tasks": ("training",), "dtypes": ("float16",)}, "bfloat16"),
        ({"threads": 10_000}, "threads 10000"),
        ({"seconds": 0.0}, "seconds"),
        ({"repeats": 0}, "1 or more"),
    ],
)
def test_settings_that_will_not_do_are_named(options, text):
    with pytest.raises(ConfigError, match=text.replace("(", r"\(")):
        settings_of(**options)


KILLED = """
import os, signal, sys
from jeffnet.bench.child import Child, Setting
Child("bench_fakes:waits", {"pipe": sys.argv[1]}, Setting(os.environ, (min(os.sched_getaffinity(0)),))).receive()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_ends_with_a_benchmark_that_is_killed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "pipe")], env=environment)
    assert (tmp_path / "pipe").read_text() == "waits\n"  # which ends when the process has
    assert process.wait() == -signal.SIGKILL


def test_every_contender_has_a_program_and_says_how_to_install_it():
    from jeffnet.bench.child import resolve
    from jeffnet.bench.program import Program

    for contender in CONTENDERS.values():
        assert issubclass(resolve(contender.program), Program)
        assert contender.prepares is None or callable(resolve(contender.prepares))
        assert bool(contender.packages) == bool(contender.extra)


def test_weights_that_cannot_be_had_are_an_error(tmp_path):
    """Of several models, the others are measured."""
    missing = Candidate(SMALL, str(tmp_path / "missing.safetensors"))
    with pytest.raises(JeffnetError, match="does not exist"):
        list(bench([missing], settings_of()))
    for result in bench([missing, missing], settings_of()):
        (failure,) = result.failures
        assert failure.contender == SMALL and "does not exist" in failure.reason and not failure.expected


@pytest.mark.parametrize("task", ["inference", pytest.param("training", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_jeffnet_computes_what_the_reference_is(task):
    """In float32 to rounding, in processes as a user has them; `plain` by other convolutions than `functional`."""
    settings = settings_of(
        tasks=(task,),
        batch_sizes=(4,),
        backends=("functional",) if task == "inference" else ("linen", "nnx"),
        compare=("plain",),
        image_sizes=(SIZE,),
        repeats=1,
        peak=True,
    )
    (result,) = bench([Candidate(SMALL)], settings)
    assert not result.failures
    assert len(result.measured) == len(settings.contenders)
    for each in result.measured:
        assert each.difference < (1e-4 if task == "inference" else 1e-3)
        assert each.platform == "cpu" and each.peak_bytes > 2**20
        assert min(each.import_seconds, each.create_seconds, each.compile_seconds) > 0
        assert "jax" in each.versions
    assert result.peak_macs[0] > 1e8 and result.peak_bytes[0] > 1e8
    case = result.case
    assert (case.parameters, case.macs) == (1_677_128, 6_015_168 * (3 if task == "training" else 1))


def test_random_weights_tell_pictures_apart_and_no_array_is_constant():
    """Otherwise a contender that gave every picture one answer, or forgot an array, would agree."""
    from jeffnet.arch.zoo import model_preprocessing
    from jeffnet.bench.prepare import _logits, random_arrays
    from jeffnet.weights.card import ModelCard

    card = ModelCard(SMALL, 10, 3, model_preprocessing(SMALL))
    arrays = random_arrays(card)
    assert all(array.std() > 1e-4 for array in arrays.values())
    pictures = np.random.default_rng(0).standard_normal((2, SIZE, SIZE, 3)).astype(np.float32)
    one, other = _logits(card, arrays, pictures)
    assert np.abs(one - other).max() > 0.1 * np.abs(one).max()
