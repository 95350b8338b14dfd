"""`jeffnet validate` in two processes: what one process says, each picture counted once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.ops.init import initial_arrays
from jeffnet.weights.card import ModelCard
from jeffnet.weights.formats.safetensors import save_model

pytestmark = pytest.mark.runs

PROGRAM = Path(__file__).parents[1] / "train" / "small_run.py"
CLASSES = ("bird", "cat", "dog")
PICTURES = 15  # which neither 2 processes nor 4 devices divide


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in CLASSES:
        (root / "val" / name).mkdir(parents=True)
        for index in range(PICTURES // len(CLASSES)):
            pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC).save(
                root / "val" / name / f"{index}.png"
            )
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory, small_model):
    card = ModelCard(small_model, 3, 3, Preprocessing(32, 1.0), CLASSES)
    arrays = initial_arrays(card.plan(), 0)
    # Initial logits are nearly zero; these tell classes apart.
    arrays["classifier.kernel"] = np.random.default_rng(0).normal(size=arrays["classifier.kernel"].shape) * 3
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(path, {key: np.asarray(value, np.float32) for key, value in arrays.items()}, card)
    return path


@pytest.fixture(scope="module")
def validate(pictures, weights):
    """Status, standard output and standard error of each process."""

    def run(processes, devices, *arguments, of_last=()):
        with socket.socket() as listening:
            listening.bind(("localhost", 0))
            port = listening.getsockname()[1]
        command = [sys.executable, PROGRAM, "validate", pictures, "--weights", weights, "--json", *arguments]
        started = []
        for number in range(processes):
            own = ("--coordinator", f"localhost:{port}", "--num-processes", str(processes), "--process-id", str(number))
            flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
            started.append(
                subprocess.Popen(
                    [*command, *(own if processes > 1 else ()), *(of_last if number == processes - 1 else ())],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=os.environ | {"XLA_FLAGS": flags},
                )
            )
        try:
            outputs = [process.communicate(timeout=300) for process in started]
        finally:
            for process in started:
                process.kill()
        return [(process.returncode, *output) for process, output in zip(started, outputs, strict=True)]

    return run


@pytest.mark.slow
def test_two_processes_say_what_one_does(validate, tmp_path):
    ((status, out, err),) = validate(1, 1, "--batch-size", "4", "--save-predictions", str(tmp_path / "one.csv"))
    assert status == 0, err
    one = json.loads(out.splitlines()[-1])
    first, second = validate(2, 2, "--batch-size", "4", "--save-predictions", str(tmp_path / "two.csv"))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    two = json.loads(first[1].splitlines()[-1])
    # Gloo writes there too, from several threads at once.
    assert not [line for line in second[1].splitlines() if "Gloo" not in line and "peer ranks" not in line]
    assert two["num_examples"] == one["num_examples"] == PICTURES
    # Sums of float32 in the same order in each picture, but in batches of another size.
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["device"].startswith("4 x ") and one["device"].startswith("1 x ")
    own = ("loss", "device", "images_per_second")
    assert {key: value for key, value in two.items() if key not in own} == {
        key: value for key, value in one.items() if key not in own
    }
    names = [
        [line.split(",")[0] for line in (tmp_path / name).read_text().splitlines()] for name in ("one.csv", "two.csv")
    ]
    assert names[0] == names[1] and len(set(names[1])) == PICTURES + 1


def test_processes_with_other_options_refuse(validate):
    for status, out, err in validate(2, 1, of_last=("--crop-pct", "0.9")):
        assert status == 1
        assert "process 1 differs from process 0: --crop-pct 0.9 instead of None" in err.splitlines()[-1]
        assert "{" not in out
