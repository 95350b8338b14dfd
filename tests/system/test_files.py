"""Files that are written whole or not at all, and locks between processes."""

import errno
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jeffnet.errors import OutputError
from jeffnet.system import files
from jeffnet.system.files import LockedError, locked, partial_folder, remove_partials, written_atomically


def _write(path, content=b"new"):
    with written_atomically(path) as partial:
        Path(partial).write_bytes(content)


def _python(code, *arguments) -> Any:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


WRITES = """
import sys, time
from pathlib import Path
from jeffnet.system.files import written_atomically
with written_atomically(sys.argv[1]) as partial:
    Path(partial).with_name("library's own name").write_bytes(b"half")
    print("written", flush=True)
    time.sleep(600)
"""
HOLDS = """
import os, sys, time
from jeffnet.system.files import locked
with locked(sys.argv[1]):
    if len(sys.argv) > 2 and os.fork():
        print("held", flush=True)
    time.sleep(600 if len(sys.argv) < 3 else 5)
"""


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027, 0o077])
def test_a_file_has_the_mode_that_the_umask_says(mask, tmp_path, monkeypatch):
    """Which is never changed, as other threads make files meanwhile."""
    before = os.umask(mask)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
        _write(tmp_path / "a")
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_a_library_that_gives_its_file_another_mode_does_not_decide(tmp_path):
    with written_atomically(tmp_path / "a") as partial:
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))
    _write(tmp_path / "b")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_file_that_is_replaced_hands_on_its_mode(tmp_path):
    _write(tmp_path / "a")
    (tmp_path / "a").chmod(0o640)
    _write(tmp_path / "a", b"newer")
    assert (tmp_path / "a").read_bytes() == b"newer"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    """What a power cut leaves is then the old file or the whole new one."""
    events = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor):
        events.append(("flushed", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def replaced(source, target):
        events.append(("named", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", replaced)
    _write(tmp_path / "a")
    file, folder = (tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino
    assert events == [("flushed", file), ("named", file), ("flushed", folder)]


def test_a_disk_that_fails_when_it_is_flushed_leaves_the_old_file(tmp_path, monkeypatch):
    _write(tmp_path / "a", b"old")

    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=r"cannot write .*a': Input/output error"):
        _write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_a_folder_without_flushing_and_locks_is_written_to_nevertheless(tmp_path, monkeypatch, caplog):
    """As of some network and FUSE file systems."""

    def refuse(*arguments):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    monkeypatch.setattr(os, "fsync", refuse)
    _write(tmp_path / "a")
    with locked(tmp_path / "lock"):
        assert "cannot be locked on this file system" in caplog.text
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "\udcff" * 255])
def test_names_as_long_as_a_file_system_takes(name, tmp_path):
    _write(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


def test_several_files_and_folders_are_named_in_their_order(tmp_path, monkeypatch):
    """A checkpoint's index comes after its data, without which it says nothing."""
    named = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: named.append(Path(new).name) or replace(old, new))
    with written_atomically(tmp_path / "model") as partial:
        Path(f"{partial}.index").write_bytes(b"index")
        Path(f"{partial}.data").write_bytes(b"data")
        Path(f"{partial}.folder").mkdir()
        (Path(f"{partial}.folder") / "a").write_bytes(b"a")
        assert sorted(entry.suffix for entry in tmp_path.iterdir()) == [".partial"]
    assert named == ["model.data", "model.folder", "model.index"] == sorted(entry.name for entry in tmp_path.iterdir())
    assert (tmp_path / "model.folder" / "a").read_bytes() == b"a"


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    for name in ("pipe", "null"):
        with pytest.raises(OutputError, match="something other than a file has this name"):
            _write(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["null", "pipe"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_stays(tmp_path):
    path = tmp_path / "model"
    others = {"model.partial", ".model.0123456789abcdef.part", ".model.tar.partial"}
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".other.0123456789abcdef.partial").mkdir()  # its writer was killed before it locked it
    process = _python(WRITES, path)
    try:
        assert process.stdout.readline() == "written\n"
        remove_partials(tmp_path, "model")
        _write(path, b"meanwhile")
        (living,) = [name for name in os.listdir(tmp_path) if re.fullmatch(r"\.model\.[0-9a-f]{16}\.partial", name)]
        assert (tmp_path / living / "content" / "library's own name").read_bytes() == b"half"
    finally:
        process.kill()
        process.communicate()
    _write(path)  # the next to write it cleans up
    assert set(os.listdir(tmp_path)) == {"model", ".other.0123456789abcdef.partial", *others}
    remove_partials(tmp_path)
    assert set(os.listdir(tmp_path)) == {"model", *others}
    remove_partials(tmp_path / "missing")


def test_a_partial_folder_is_gone_at_the_end(tmp_path):
    with pytest.raises(RuntimeError), partial_folder(tmp_path / "a") as folder:
        (folder / "b").touch()
        raise RuntimeError
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("forks", [False, True])
def test_a_lock_names_its_holder_and_ends_with_it(forks, tmp_path):
    """Also where the holder was killed and a child that it forked lives on."""
    path = tmp_path / "lock"
    process = _python(HOLDS, path, *["forks"] * forks)
    try:
        assert forks or _held_by(path, process)
        assert not forks or process.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"lock' is held by process {process.pid} on "), locked(path):
            pass
        assert path.exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with locked(path, 1):
        assert path.read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(LockedError), locked(path):
            pass
    assert not path.exists()
    process.stdout.close()


def _held_by(path, process):
    for _ in range(600):
        if path.exists() and str(process.pid) in path.read_text():
            return True
        time.sleep(0.05)
    return False


def test_a_lock_is_waited_for(tmp_path):
    """Every process gets its turn, though each removes the file of the lock."""
    code = """
import json, sys, time
from pathlib import Path
from jeffnet.system.files import locked
path = Path(sys.argv[1])
for _ in range(20):
    with locked(path.with_name("lock"), 60):
        count = json.loads(path.read_text())
        time.sleep(0.002)
        path.write_text(json.dumps(count + 1))
"""
    (tmp_path / "count").write_text("0")
    processes = [_python(code, tmp_path / "count") for _ in range(3)]
    assert [process.wait() for process in processes] == [0] * 3
    for process in processes:
        process.stdout.close()
    assert json.loads((tmp_path / "count").read_text()) == 60
    assert os.listdir(tmp_path) == ["count"]


def test_a_lock_writes_into_no_linked_file(tmp_path):
    (tmp_path / "precious").write_text("content")
    (tmp_path / "lock").symlink_to("precious")
    with pytest.raises(OutputError, match="cannot lock"), locked(tmp_path / "lock"):
        pass
    assert (tmp_path / "precious").read_text() == "content"
    with (
        pytest.raises(OutputError, match=r"cannot lock .*: No such file or directory"),
        locked(tmp_path / "a" / "lock"),
    ):
        pass
