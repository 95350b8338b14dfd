"""Training in several processes, over loopback: the same run as in one, whoever is killed or told to stop."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import jeffnet
from jeffnet.train.config import (
    AugmentConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EmaConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from jeffnet.train.recipe import to_json
from jeffnet.train.run import Run, read_config
from jeffnet.train.setup import make_setup

pytestmark = pytest.mark.runs

# The command line with a model of its own: two blocks, which compile soon, and a head wide enough to be split.
PROGRAM = """
import sys

from jeffnet.arch import zoo
from jeffnet.arch.model import Model
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec
from jeffnet.cli.main import main

STAGES = (("ds_r1_k3_s1_c8_se0.25",), ("ir_r1_k3_s2_e3_c16",))
SPEC = ModelSpec(stages=STAGES, stem=8, features=256, drop_path_rate=0.1)
zoo.MODELS["wide"] = Model(SPEC, Preprocessing(32, 1.0))
if __name__ == "__main__":
    sys.exit(main())
"""
STEPS, PER_EPOCH = 9, 3
LOST, STOPPED = 76, 75
# For what takes seconds where nothing else runs.
PATIENCE = 300


@dataclass
class Team:
    """Processes that work as one, and the folder in which they and their run are."""

    folder: Path
    processes: list[subprocess.Popen]

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def wait(self, seconds=PATIENCE):
        """Until all ended, which is what with."""
        end = time.monotonic() + seconds
        return [process.wait(max(end - time.monotonic(), 0)) for process in self.processes]

    def wait_for_step(self, step):
        """Until the run has logged a step."""
        end = time.monotonic() + PATIENCE
        while not any(row["step"] >= step for row in rows(self.run)):
            assert time.monotonic() < end and all(process.poll() is None for process in self.processes), self.said()
            time.sleep(0.01)

    def out(self, number):
        """What a process wrote to standard output; Gloo writes there too, from several threads at once."""
        lines = (self.folder / f"{number}.out").read_text().splitlines()
        return [line for line in lines if line and "Gloo" not in line and "peer ranks" not in line]

    def err(self, number):
        return (self.folder / f"{number}.err").read_text().splitlines()

    def said(self):
        return "\n".join(line for number in range(len(self.processes)) for line in self.err(number))


def rows(run):
    """The metrics of a run, but for how fast it was; the line that is being written not yet."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    read = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in read]


def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def children(process):
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def flags(devices):
    quick = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    return f"{quick} --xla_force_host_platform_device_count={devices}"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture(scope="module")
def config(painted):
    """Three epochs of three steps with whatever draws at random, or looks at a batch as a whole.

    With SGD: Adam divides by gradients, and so makes much of rounding where they are small.
    """
    root = painted(16, 3, deviation=60)  # for validation 9 pictures, which neither 2 nor 8 divides
    return Config(
        model=ModelConfig(name="wide", bn_momentum=0.5),
        data=DataConfig(path=str(root), threads=2),
        augment=AugmentConfig(scale=(0.5, 1.0), erase_prob=0.3, mixup=0.2),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.01, momentum=0.9),
        schedule=ScheduleConfig(warmup=1),
        ema=EmaConfig(decay=0.9),
        checkpoint=CheckpointConfig(every_steps=2),
        log=LogConfig(steps=1, tensorboard=False),
        epochs=STEPS // PER_EPOCH,
        batch_size=16,
        accumulate=2,
    )


@pytest.fixture(scope="module")
def launch(program, config, tmp_path_factory):
    """Starts processes with a run; whatever is left of them at the end is killed."""
    teams = []

    def start(processes=2, devices=2, arguments=(), folder=None, of_last=(), path_of_last=None, before=""):
        folder = folder or tmp_path_factory.mktemp("team")
        (folder / "config.json").write_text(to_json(config))
        path = program
        if before:
            path = folder / "program.py"
            path.write_text(PROGRAM.replace("if __name__", f"{before}if __name__"))
        command = [sys.executable, path, "train", "--config", "config.json", "--output", "run", *arguments]
        if processes > 1:
            command += ["--coordinator", f"localhost:{free_port()}", "--num-processes", str(processes), "--process-id"]
        team = Team(folder, [])
        teams.append(team)
        for number in range(processes):
            is_last = number == processes - 1
            own = [str(number)] * (processes > 1) + list(of_last) * is_last
            # What one team compiled, the next finds.
            environment = os.environ | {"XLA_FLAGS": flags(devices), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            if path_of_last and is_last:
                environment["PYTHONPATH"] = str(path_of_last)
            with open(folder / f"{number}.out", "w") as out, open(folder / f"{number}.err", "w") as err:
                started = subprocess.Popen([*command, *own], cwd=folder, env=environment, stdout=out, stderr=err)
            team.processes.append(started)
        return team

    yield start
    for team in teams:
        for process in team.processes:
            if process.poll() is None:
                for pid in children(process):
                    os.kill(pid, signal.SIGKILL)
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def whole(launch):
    """Two processes of two devices, which nothing disturbs."""
    team = launch(arguments=("--log.tensorboard", "true"))
    assert team.wait() == [0, 0], team.said()
    return team


def assert_equal(run, expected):
    """To the bit."""
    assert rows(run) == rows(expected)
    for name in ("model.safetensors", "model_ema.safetensors"):
        assert (run / name).read_bytes() == (expected / name).read_bytes()


def assert_close(run, expected):
    """But for the order in which float32 sums are taken, and what nine steps of SGD make of that.

    Some 1e-7 where processors have AVX-512; where they do not, 2e-5 in the norm of a gradient and in a loss near zero.
    """
    found, wanted = rows(run), rows(expected)
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            exact = "top" in name or name in ("step", "epoch", "val_examples", "ema_val_examples")
            near = pytest.approx(other[name], rel=2e-4 if "grad_norm" in name else 1e-5, abs=1e-6)
            assert value == (other[name] if exact else near), (one["step"], name)
    for name in ("model.safetensors", "model_ema.safetensors"):
        ours, theirs = load_file(run / name), load_file(expected / name)
        assert ours.keys() == theirs.keys()
        for key, array in ours.items():
            np.testing.assert_allclose(array, theirs[key], rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(
    ("processes", "devices", "arguments"),
    [
        pytest.param(1, 1, (), marks=pytest.mark.slow),
        pytest.param(1, 8, (), marks=pytest.mark.slow),
        pytest.param(4, 1, (), marks=pytest.mark.slow),
        pytest.param(2, 2, ("--mesh", "data=1,fsdp=4"), marks=pytest.mark.slow),
    ],
)
def test_a_batch_teaches_the_same_however_it_is_shared(processes, devices, arguments, launch, whole):
    team = launch(processes, devices, arguments)
    assert set(team.wait()) == {0}, team.said()
    assert_close(team.run, whole.run)


def test_one_process_writes_and_tells(whole):
    logged = rows(whole.run)
    assert [row["step"] for row in logged if "train_loss" in row] == list(range(1, STEPS + 1))
    scored = [row for row in logged if "val_loss" in row]
    assert [(row["step"], row["val_examples"]) for row in scored] == [(3, 9), (6, 9), (9, 9)]
    assert len(list(whole.run.glob("events.out.tfevents.*"))) == 1
    # A machine that is slow enough adds lines that tell how far an epoch is.
    assert whole.out(0)[0].startswith("best top-1")
    assert sum("validation loss" in line for line in whole.err(0)) == len(scored), whole.said()
    assert whole.out(1) == [] and whole.err(1) == []


@pytest.fixture(scope="module")
def killed(launch):
    """Two processes, the second of which was killed."""
    team = launch()
    team.wait_for_step(4)
    team.processes[1].kill()
    team.wait(60)
    return team


def test_a_killed_process_stops_the_other(killed):
    assert [process.returncode for process in killed.processes] == [LOST, -signal.SIGKILL]
    assert_told_of_loss(killed, 0)
    assert 4 <= rows(killed.run)[-1]["step"] < STEPS


@pytest.mark.slow
def test_started_again_they_come_to_the_same(killed, launch, whole):
    again = launch(arguments=("--continue",), folder=killed.folder)
    assert again.wait() == [0, 0], again.said()
    assert "continuing after step" in again.err(0)[0]
    assert_equal(killed.run, whole.run)


@pytest.mark.slow
def test_so_does_the_first_process_when_it_is_killed(launch, whole):
    """It is the one that the others ask who is there."""
    team = launch()
    team.wait_for_step(4)
    team.processes[0].kill()
    assert team.wait(60) == [-signal.SIGKILL, LOST]
    assert_told_of_loss(team, 1)
    again = launch(arguments=("--continue",), folder=team.folder)
    assert again.wait() == [0, 0], again.said()
    assert_equal(team.run, whole.run)


def assert_told_of_loss(team, number):
    """At the end, after what JAX may log of it."""
    pattern = r"error: another of the 2 processes is gone or does not answer.*: start all of them again"
    assert re.fullmatch(pattern, team.err(number)[-1]), team.said()
    assert "Traceback" not in team.said() and "stack trace" not in team.said()


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_frozen_process_stops_the_other_and_ends_when_it_goes_on(number, launch):
    team = launch()
    team.wait_for_step(4)
    team.processes[number].send_signal(signal.SIGSTOP)
    assert team.processes[1 - number].wait(PATIENCE) == LOST, team.said()
    team.processes[number].send_signal(signal.SIGCONT)
    assert team.wait() == [LOST, LOST]
    for either in (0, 1):
        assert_told_of_loss(team, either)


# Makes one process wait, for longer than JAX's service and Gloo wait for it: where an epoch is to begin, which is
# before a step is compiled, where a checkpoint is written, and at the very end.
SLOW = """
import time
from jeffnet.train.epochs import Epochs
from jeffnet.train.checkpoint import Checkpoints
from jeffnet.train.reports.journal import Journal

def delay(owner, name):
    whole = getattr(owner, name)
    def slow(*arguments, **options):
        setattr(owner, name, whole)
        time.sleep(40)
        return whole(*arguments, **options)
    setattr(owner, name, slow)
"""


@pytest.mark.slow
@pytest.mark.parametrize("delays", ["(Epochs, '_train_epoch'), (Checkpoints, 'save')", "(Journal, 'close'),"])
@pytest.mark.parametrize("number", [0, 1])
def test_processes_of_uneven_speed_wait_for_each_other(delays, number, launch, whole):
    slow = f"{SLOW}\nif sys.argv[-1] == '{number}':\n    for owner, name in ({delays}):\n        delay(owner, name)\n"
    team = launch(arguments=("--log.tensorboard", "true"), before=slow)
    assert team.wait() == [0, 0], team.said()
    assert_equal(team.run, whole.run)


@pytest.fixture(scope="module")
def stopped(launch):
    """Two processes, the second of which was sent SIGTERM; they had to save every 6 ms, that is as soon as they can."""
    team = launch(
        arguments=(
            "--checkpoint.every_minutes", "0.0001", "--checkpoint.every_steps", "none", "--checkpoint.keep_last", "99",
        )
    )  # fmt: skip
    team.wait_for_step(5)
    team.processes[1].terminate()
    team.wait(60)
    return team


@pytest.mark.slow
def test_checkpoints_by_time_are_of_one_step_in_all_processes_and_complete(stopped, program, monkeypatch, tmp_path):
    from jeffnet.arch import zoo

    monkeypatch.setattr(zoo, "MODELS", dict(zoo.MODELS))
    exec(PROGRAM, {"__name__": "program"})
    shutil.copytree(stopped.run, tmp_path / "run")
    folders = {int(path.name): path for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert len(folders.keys() - {3, 6, max(folders)}) >= 1, folders
    config = read_config(tmp_path / "run")
    template = make_setup(replace(config, mesh="data=1")).template()
    for step in sorted(folders, reverse=True):
        run = Run(tmp_path / "run", config)
        try:
            found = run.checkpoints.restore(template)
        finally:
            run.checkpoints.close()
        assert found is not None and int(found[0].step) == step
        shutil.rmtree(folders[step])


@pytest.mark.slow
def test_asked_to_stop_one_process_stops_all_and_another_layout_goes_on(stopped, launch, whole):
    assert [process.returncode for process in stopped.processes] == [STOPPED, STOPPED], stopped.said()
    told = [stopped.err(number)[-1] for number in (0, 1)]
    patterns = (r"stopped by SIGTERM of another process after step (\d+)", r"stopped by SIGTERM after step (\d+)")
    (first,), (second,) = (re.findall(pattern, line) for pattern, line in zip(patterns, told, strict=True))
    assert first == second and "continue with `jeffnet train --resume run`" in told[0]
    step = int(first)
    assert step < STEPS and rows(stopped.run)[-1]["step"] == step
    assert (stopped.run / "checkpoints" / first).is_dir()
    again = launch(1, 2, ("--continue", "--mesh", "data=1,fsdp=2"), stopped.folder)
    assert again.wait() == [0], again.said()
    assert f"continuing after step {step}" in again.err(0)[0]
    assert_close(stopped.run, whole.run)


def test_processes_that_would_not_do_the_same_refuse_to_begin(launch, tmp_path):
    """The second with another recipe, and with sources that differ in a comment."""
    package = Path(jeffnet.__file__).parent
    shutil.copytree(package, tmp_path / "jeffnet", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "jeffnet" / "errors.py", "a") as file:
        file.write("# One more comment.\n")
    team = launch(devices=1, of_last=("--optimizer.learning_rate", "0.3"), path_of_last=tmp_path)
    assert team.wait() == [1, 1], team.said()
    for number in (0, 1):
        last = team.err(number)[-1]
        assert last.startswith("error: process 1 differs from process 0: ")
        assert re.search(r"code of jeffnet '\w+' instead of '\w+'; optimizer.learning_rate 0.3 instead of 0.01", last)
    assert not team.run.exists()


@pytest.mark.slow
def test_supervised_processes_start_again_when_one_is_killed(launch, whole):
    team = launch(arguments=("--max-restarts", "1"))
    team.wait_for_step(4)
    (pid,) = children(team.processes[1])
    os.kill(pid, signal.SIGKILL)
    assert team.wait() == [0, 0], team.said()
    for number in (0, 1):
        (line,) = [line for line in team.err(number) if line.startswith("restarts: ")]
        assert "for the 1. of 1 times" in line
    assert "ended with status 137" in team.said()
    assert_equal(team.run, whole.run)
