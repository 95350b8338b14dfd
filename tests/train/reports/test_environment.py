"""What is recorded of a run's surroundings, and its memory."""

import errno
import importlib.metadata
import json
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jeffnet
from jeffnet.errors import OutputError
from jeffnet.system.environment import environment, format_bytes, memory_in_use
from jeffnet.train.reports import environment as module
from jeffnet.train.reports.environment import read_environments, record_environment

with_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """An empty one, in which the test runs, whatever the settings of the user's git are."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet", "--initial-branch", "trunk")
    return tmp_path


def git(*arguments):
    who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    done = subprocess.run(["git", *who, *arguments], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_it_says_what_ran_on_what_and_not_where():
    found = environment()
    assert found["versions"]["jeffnet"] == jeffnet.__version__
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow"):
        assert found["versions"][name] == importlib.metadata.version(name)
    assert found["devices"] == [{"platform": "cpu", "kind": "cpu", "count": len(jax.devices())}]
    assert found["command"] == sys.argv
    started = datetime.fromisoformat(found["started"])
    assert started.utcoffset() == timedelta(0) and abs(datetime.now(started.tzinfo) - started) < timedelta(minutes=5)
    assert found.keys() == {"started", "command", "versions", "platform", "cpus", "devices", "git"}
    assert json.loads(json.dumps(found)) == found


@with_git
def test_the_state_of_the_code(repository):
    assert environment()["git"] == {"commit": None, "branch": "trunk", "changed": False}
    (repository / "recipe.py").write_text("1")
    git("add", "recipe.py")
    git("commit", "--quiet", "--message", "First")
    commit = git("rev-parse", "HEAD")
    assert environment()["git"] == {"commit": commit, "branch": "trunk", "changed": False}
    (repository / "notes.txt").write_text("not of the code")
    assert environment()["git"]["changed"] is False
    (repository / "recipe.py").write_text("2")
    assert environment()["git"] == {"commit": commit, "branch": "trunk", "changed": True}
    git("checkout", "--quiet", "--detach")
    assert environment()["git"] == {"commit": commit, "branch": None, "changed": True}


def test_outside_of_a_repository_and_without_git_there_is_no_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment()["git"] is None
    monkeypatch.setenv("PATH", "")
    assert environment()["git"] is None


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_nobody_waits_for_git(tmp_path, monkeypatch):
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 100\n")
    (tmp_path / "git").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("jeffnet.system.environment._GIT_SECONDS", 0.1)
    assert environment()["git"] is None


def test_every_start_has_an_entry(tmp_path, monkeypatch):
    assert read_environments(tmp_path) == []
    for command in (["jeffnet", "train"], ["jeffnet", "train", "--resume", "run"]):
        monkeypatch.setattr(sys, "argv", command)
        record_environment(tmp_path)
    entries = json.loads((tmp_path / "environment.json").read_text())
    assert [entry["command"][2:] for entry in entries] == [[], ["--resume", "run"]]
    assert read_environments(tmp_path) == entries
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


@pytest.mark.parametrize("damaged", [b"[{", b'{"started": 1}', b"", b"\xff\xfe\xff"])
def test_a_damaged_record_does_not_stop_a_run(damaged, tmp_path):
    (tmp_path / "environment.json").write_bytes(damaged)
    record_environment(tmp_path)
    assert len(read_environments(tmp_path)) == 1
    assert (tmp_path / "environment.json.damaged").read_bytes() == damaged


def test_a_record_that_cannot_be_read_now_is_not_written_over(tmp_path, monkeypatch):
    """As on a network disk that is away for a moment."""
    record_environment(tmp_path)
    before = (tmp_path / "environment.json").read_bytes()

    def fail(path, most):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(module, "read_file", fail)
    with pytest.raises(OutputError, match=r"cannot read .*environment\.json': Stale file handle"):
        record_environment(tmp_path)
    assert (tmp_path / "environment.json").read_bytes() == before


def test_a_record_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*environment\.json"):
        record_environment(tmp_path / "missing")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="elsewhere only the peak is known")
def test_memory_of_a_process_grows_with_what_it_holds():
    before = memory_in_use()
    held = np.ones(2**26, np.uint8)
    grown = memory_in_use() - before
    assert 0.8 * held.nbytes < grown < 2 * held.nbytes


def test_memory_of_devices_is_the_peak_of_the_fullest(monkeypatch):
    peaks = [{"peak_bytes_in_use": 3, "bytes_in_use": 9}, {"peak_bytes_in_use": 7}, {"bytes_limit": 100}, None]
    devices = [SimpleNamespace(memory_stats=lambda stats=stats: stats) for stats in peaks]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert memory_in_use() == 7


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1000, "0.98 KiB"),
        (1536 * 2**20, "1.50 GiB"),
        (int(23.4 * 2**20), "23.4 MiB"),
        (9.996 * 2**10, "10.0 KiB"),
        (99.96 * 2**10, "100 KiB"),
        (999.6 * 2**20, "0.98 GiB"),
        (80 * 2**30, "80.0 GiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_bytes_have_three_digits_and_a_unit(count, text):
    assert format_bytes(count) == text
