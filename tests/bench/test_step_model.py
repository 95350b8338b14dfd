"""The paper model: its bytes against a compiled step's, and what each limit follows from."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jeffnet.arch.summary import array_specs, count_parameters
from jeffnet.arch.zoo import model_plan
from jeffnet.bench.step_model import MACHINES, model_step
from jeffnet.errors import ConfigError

pytestmark = pytest.mark.runs

GUIDE = Path(__file__).parents[2] / "docs" / "scaling.md"
MODEL = "mobilenetv3_small_100"
PROGRAM = """
import json
from jeffnet.bench.communication import collectives
from jeffnet.bench.scaling import ScalingJob, build_step
found = {}
for group in (None, 1, 2):
    job = ScalingJob(model="mobilenetv3_small_100", devices=4, batch_size=8, image_size=32, dtype="float32",
        backend="nnx", bn_devices=group, fsdp=1, seconds=0.1)
    step, state, batch = build_step(job)
    text = step.func.lower(*step.args, state, batch).compile().as_text()
    found[str(group)] = sum(each.bytes * each.times for each in collectives(text))
print(json.dumps(found))
"""

B0 = model_plan("tf_efficientnet_b0")


def test_no_sums_of_norms_in_a_device_of_its_own():
    for machine in MACHINES.values():
        assert model_step(B0, 224, machine, bn_devices=1).norms == 0
        assert model_step(B0, 224, machine).norms > 0


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        ({"flops": 1e9}, "compute"),
        ({"memory_bandwidth": 1e6}, "memory"),
        ({"link_bandwidth": 1e4}, "all-reduce"),
        ({"slice_latency": 100.0}, "BatchNorm"),
        ({"host_bandwidth": 1.0}, "input pipeline"),
    ],
)
def test_limits(change, limit):
    assert model_step(B0, 224, replace(MACHINES["v5e-256"], **change)).limit == limit


def test_groups_must_divide_the_devices():
    with pytest.raises(ConfigError, match="bn_devices 3"):
        model_step(B0, 224, MACHINES["8 x H100"], bn_devices=3)


def test_the_guide_has_the_figures_of_the_model():
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in GUIDE.read_text().splitlines()
        if any(f"| {name} |" in line for name in MACHINES)
    ]
    assert len(rows) >= 3 * len(MACHINES)
    for name, size, pictures, machine, *figures, limit in rows:
        fsdp = 8 if "_l2" in name else 1
        step = model_step(model_plan(name), int(size), MACHINES[machine], per_device=int(pictures), fsdp=fsdp)
        parts = (step.compute, step.memory, step.gradients, step.norms, step.input, step.step)
        assert ([f"{1e3 * part:.1f}" for part in parts], step.limit) == (figures, limit), (name, machine)


@pytest.mark.slow
def test_bytes_are_those_of_the_compiled_step():
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    # As on GPUs and TPUs: on one CPU BatchNorm is an operation of its own, which computes its statistics twice.
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JEFFNET_CONV": "xla"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    plan = model_plan(MODEL)
    channels = sum(spec.shape[0] for spec in array_specs(plan).values() if spec.leaf == "mean")
    for group, found in json.loads(done.stdout.splitlines()[-1]).items():
        # Per channel of a norm. Of the whole batch: mean and variance, and two sums in the backward pass beside those
        # that are gradients anyway. Of each device: the means of the running statistics. Of groups: both, and two sums
        # that are no gradients.
        sums = {"None": 4, "1": 2, "2": 8}[group]
        assert found == pytest.approx(4 * (count_parameters(plan) + sums * channels), abs=64), group
