"""Runs that are killed, asked to stop, or cannot write or read: they say so, and go on as if nothing had been."""

import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jeffnet.arch import zoo
from jeffnet.arch.zoo import resolve_name
from jeffnet.errors import ConfigError, ImageError, OutputError, TrainingError
from jeffnet.train import loop, run
from jeffnet.train.config import Config, DataConfig, ModelConfig, OptimizerConfig
from jeffnet.train.interrupt import stop_requests
from jeffnet.train.loop import resume, train
from jeffnet.train.recipe import to_json
from jeffnet.train.reports.journal import Journal
from jeffnet.train.reports.preview import plot_augment
from jeffnet.train.run import locked_run
from jeffnet.train.setup import run_preprocessing
from jeffnet.weights.card import ModelCard

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("undrawn")]

SCRIPT = Path(__file__).with_name("small_run.py")


def start(*arguments):
    command = [sys.executable, str(SCRIPT), "train", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(process, folder, count):
    """Until a run has logged so many rows, or ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        path = folder / "metrics.jsonl"
        if path.exists() and len(path.read_text().splitlines()) >= count:
            return
        time.sleep(0.005)


def kill(process):
    process.send_signal(signal.SIGKILL)
    return process.communicate(timeout=60)


def write_config(config, folder):
    path = folder / "config.json"
    path.write_text(to_json(config))
    return path


def test_a_run_that_was_killed_and_resumed_equals_one_that_was_not(config, finished, assert_same_run, tmp_path):
    process = start("--config", write_config(config, tmp_path), "--output", tmp_path / "run")
    wait_for_rows(process, tmp_path / "run", 5)
    out = kill(process)
    assert process.returncode == -signal.SIGKILL, out
    left = [
        tmp_path / "run" / ".model.safetensors.0123456789abcdef.partial" / "content",
        tmp_path / "run" / "best" / ".epoch_0001.safetensors.0123456789abcdef.partial",
        tmp_path / "run" / "checkpoints" / "99.orbax-checkpoint-tmp" / "arrays",
    ]
    for folder in left:
        folder.mkdir(parents=True)
    resume(tmp_path / "run", progress=False)
    assert_same_run(tmp_path / "run", finished[0])
    assert not any(folder.exists() for folder in left)
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".") or "lock" in path.name]


@pytest.mark.slow
def test_a_run_that_was_killed_at_many_moments_equals_one_that_was_not(config, finished, assert_same_run, tmp_path):
    """Also while checkpoints, models and curves are written: after a random number of rows, and of milliseconds."""
    rng = np.random.default_rng(0)
    process, kills = start("--config", write_config(config, tmp_path), "--output", tmp_path / "run"), 0
    for _ in range(40):
        written = tmp_path / "run" / "metrics.jsonl"
        before = len(written.read_text().splitlines()) if written.exists() else 0
        wait_for_rows(process, tmp_path / "run", before + int(rng.integers(0, 3)))
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is not None:
            break
        kill(process)
        kills += 1
        if not (tmp_path / "run" / "config.json").exists():
            process = start("--config", tmp_path / "config.json", "--output", tmp_path / "run")
        else:
            process = start("--resume", tmp_path / "run")
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert kills >= 5
    assert_same_run(tmp_path / "run", finished[0])


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_saves_and_says_so(number, status, config, finished, assert_same_run, tmp_path):
    process = start("--config", write_config(config, tmp_path), "--output", tmp_path / "run")
    wait_for_rows(process, tmp_path / "run", 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert f"--resume {tmp_path / 'run'}" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    resume(tmp_path / "run", progress=False)
    assert_same_run(tmp_path / "run", finished[0])


def test_a_run_that_is_being_trained_is_refused_to_others(config, finished, monkeypatch):
    folder = finished[0]
    before = (folder / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(run, "_SECONDS_TO_WAIT", 0.1)
    with locked_run(folder):
        for begin in (
            partial(resume, folder),
            partial(train, config, folder),
            partial(train, config, folder, go_on=True),
        ):
            with pytest.raises(
                OutputError, match=rf"is being trained: .*train.lock' is held by process {os.getpid()} on"
            ):
                begin()
    assert (folder / "metrics.jsonl").read_bytes() == before and not (folder / "train.lock").exists()


def test_a_command_that_goes_on_with_a_run_waits_for_the_one_before_it(tmp_path, caplog):
    """As where a scheduler starts it again while the first still saves."""

    def wait():
        with locked_run(tmp_path, waits=True):
            return True

    with ThreadPoolExecutor(1) as threads:
        with locked_run(tmp_path):
            waiting = threads.submit(wait)
            while "waiting up to 100 s" not in caplog.text:
                time.sleep(0.01)
            assert not waiting.done()
        assert waiting.result(10)


def test_validation_pictures_that_cannot_be_decoded_are_skipped_where_that_is_asked_for(
    config, painted, tmp_path, caplog
):
    """A run that stopped at one can be resumed without it."""
    root = painted(8, 3, deviation=25)
    broken = root / "val" / "red" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    config = replace(config, epochs=2, data=replace(config.data, path=str(root)))
    with pytest.raises(ImageError, match=r"1\.png.*: repair it, or resume with data\.on_bad_image skip"):
        train(config, tmp_path / "run", progress=False)
    skip = [("data.on_bad_image", "skip")]
    assert resume(tmp_path / "run", skip, progress=False).last.examples == 8
    told = [each.getMessage() for each in caplog.records if "left out of the scores" in each.getMessage()]
    assert len(told) == 1 and told[0].startswith("1 of 9 validation pictures") and "1.png" in told[0]
    for path in (root / "val").glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(ImageError, match="none of the 9 validation pictures can be decoded"):
        resume(tmp_path / "run", [*skip, ("epochs", "3")], progress=False)


def test_a_preview_passes_over_the_pictures_that_training_passes_over(config, painted, tmp_path):
    root = painted(8, 3, deviation=25)
    (root / "train" / "blue" / "0.png").write_bytes(b"")
    data = replace(config.data, path=str(root))
    with pytest.raises(ImageError, match=r"0\.png"):
        plot_augment(replace(config, data=data), tmp_path / "a.png")
    plot_augment(replace(config, data=replace(data, on_bad_image="skip")), tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


@pytest.mark.slow
def test_the_line_of_an_epoch_is_of_the_whole_epoch_also_where_it_was_resumed(
    config, tmp_path, crash_after, capsys, rows
):
    """Not of the last row of metrics alone: here of one step in four."""
    config = replace(config, epochs=1, log=replace(config.log, steps=3))
    train(config, tmp_path / "whole")
    with crash_after(3):
        train(config, tmp_path / "half", progress=False)
    capsys.readouterr()
    resume(tmp_path / "half")
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch   1/1"))
    first, last, scored = rows(tmp_path / "whole")
    assert (first["step"], last["step"]) == (3, 4)
    loss, top1 = ((3 * first[name] + last[name]) / 4 for name in ("train_loss", "train_top1"))
    assert abs(loss - last["train_loss"]) > 1e-3
    assert line.startswith(f"epoch   1/1  loss {loss:.4f}  top-1 {top1:5.1f} %  |  validation loss")
    assert (scored["train_epoch_loss"], scored["train_epoch_top1"]) == pytest.approx((loss, top1))
    assert rows(tmp_path / "half") == rows(tmp_path / "whole")


def test_a_signal_that_comes_by_two_ways_is_one():
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # would end the tests
    assert stop.signal == signal.SIGTERM


@pytest.mark.parametrize("size", [pytest.param(200, marks=pytest.mark.slow), 6000])
def test_a_full_disk_loses_nothing(size, finished, assert_same_run, crashed):
    """No room for a line of metrics, or none for a checkpoint: every write past so many bytes fails."""
    process = start("--resume", crashed)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("error: ") and str(crashed) in errors.splitlines()[-1]
    assert "Traceback" not in errors and "never awaited" not in errors
    resume(crashed, progress=False)
    assert_same_run(crashed, finished[0])


@pytest.mark.parametrize("step", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_a_crash_within_an_epoch_or_before_its_scores_changes_nothing(
    step, config, finished, assert_same_run, tmp_path, crash_after
):
    with crash_after(step):
        train(config, tmp_path / "run", progress=False)
    resume(tmp_path / "run", progress=False)
    assert_same_run(tmp_path / "run", finished[0])


# Where one array cannot be read, Orbax gives up while its threads still read the others.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_corrupt_last_checkpoint_is_reported_and_the_one_before_it_used(finished, assert_same_run, crashed, caplog):
    assert {path.name for path in (crashed / "checkpoints").glob("[0-9]*")} == {"3", "4"}
    files = [path for path in (crashed / "checkpoints" / "4").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    resume(crashed, progress=False)
    assert "step 4 cannot be read" in caplog.text
    assert_same_run(crashed, finished[0])


@pytest.mark.slow
def test_a_picture_that_is_deleted_meanwhile_is_named_and_put_back_the_run_goes_on(
    config, finished, assert_same_run, tmp_path, pictures, monkeypatch
):
    path = pictures / "train" / "red" / "5.png"
    content, write = path.read_bytes(), Journal.write

    def delete(journal, row):
        write(journal, row)
        path.unlink(missing_ok=True)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", delete)
        with pytest.raises(ImageError, match=r"5\.png"):
            train(config, tmp_path / "run", progress=False)
    path.write_bytes(content)
    resume(tmp_path / "run", progress=False)
    assert_same_run(tmp_path / "run", finished[0])


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_good(crashed, rows):
    wild = [("optimizer.learning_rate", "1e38")]
    with pytest.raises(TrainingError, match=r"learning_rate.*keeps the checkpoint of step \d"):
        resume(crashed, wild, progress=False)
    result = resume(crashed, [("optimizer.learning_rate", "0.002")])
    assert result.steps == 12
    assert all(np.isfinite(row["train_loss"]) for row in rows(crashed) if "train_loss" in row)


def test_a_configuration_that_does_not_fit_the_checkpoint_is_refused(crashed):
    files = [crashed / "config.json", crashed / "metrics.jsonl"]
    before = [path.read_text() for path in files]
    for overrides in ([("ema.decay", "none")], [("optimizer.name", "sgd")], [("model.in_chans", "1")]):
        with pytest.raises(ConfigError, match="does not fit the checkpoint"):
            resume(crashed, overrides, progress=False)
    for overrides in ([("seed", "5")], [("batch_size", "4")]):
        with pytest.raises(ConfigError, match=f"the {overrides[0][0]}, min_epoch_steps and data|seed and the data"):
            resume(crashed, overrides, progress=False)
    assert [path.read_text() for path in files] == before


@pytest.mark.slow
def test_steps_without_numbers_in_a_row_end_even_a_run_that_skips_them(config, tmp_path):
    wild = replace(config, on_nan="skip", max_skipped=3, optimizer=OptimizerConfig(name="sgd", learning_rate=1e38))
    with pytest.raises(TrainingError, match="3 steps in a row"):
        train(wild, tmp_path / "run", progress=False)


def test_a_run_does_not_go_on_with_other_pictures(crashed, config, monkeypatch):
    """As they would be where the model's entry in the zoo has changed since; what the user asks for is no surprise."""
    entry = zoo.MODELS[config.model.name]
    changed = replace(entry.preprocessing, interpolation="bilinear", mean=(0.5, 0.4, 0.3))
    monkeypatch.setitem(zoo.MODELS, config.model.name, replace(entry, preprocessing=changed))
    with pytest.raises(ConfigError, match=r"were others when .* bicubic, now bilinear.*--data.mean 0.485,0.456,0.406"):
        resume(crashed, progress=False)
    same = [("data.interpolation", "bicubic"), ("data.mean", "0.485,0.456,0.406")]
    assert resume(crashed, [*same, ("epochs", "2")], progress=False).steps == 8


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pt_efficientnet_b1", "--data.image_size 240 --data.crop_pct 0.875"),
        ("efficientnet_b5", "--data.image_size 456 --data.crop_pct 0.934 --data.crop_mode center"),
        ("mobilenetv3_large_075", "--data.interpolation bicubic"),
        ("efficientnet_b0", ""),
    ],
)
def test_a_run_from_before_checkpoints_said_pictures_does_not_go_on_with_others(name, options):
    """Models whose entry in the zoo has changed since are known; what the options say is kept."""

    def check(**chosen):
        data = replace(DataConfig(path="-"), **chosen)
        own = Config(model=ModelConfig(name=name), data=data)
        card = ModelCard(resolve_name(name), 2, 3, run_preprocessing(own))
        loop._check_pictures(SimpleNamespace(config=own, card=card), None)

    if options:
        with pytest.raises(ConfigError, match=f"continue with {options}$"):
            check()
    words = options.split()
    kinds = {"image_size": int, "crop_pct": float}
    names = [word.removeprefix("--data.") for word in words[::2]]
    check(**{entry: kinds.get(entry, str)(value) for entry, value in zip(names, words[1::2], strict=True)})
