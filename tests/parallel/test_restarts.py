"""Commands that are started again when they crash: small programs that end as they are told."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from jeffnet.cli.main import _parse, main
from jeffnet.errors import ConfigError
from jeffnet.parallel import restarts

pytestmark = pytest.mark.runs

# Counts its starts in a file, and ends with the next of the statuses given; a negative one is a signal.
ENDING = """
import os, sys
from pathlib import Path
count = Path(sys.argv[1])
starts = int(count.read_text()) if count.exists() else 0
count.write_text(str(starts + 1))
status = int(sys.argv[2:][starts])
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""
# Says that it runs, and ends with 75 when it is asked to.
WAITING = """
import signal, sys, time
from pathlib import Path
def stop(number, frame):
    Path(sys.argv[1]).write_text(str(number))
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, stop)
Path(sys.argv[2]).write_text("")
time.sleep(60)
"""
# Runs `supervise` as the main program does, without a pause.
SUPERVISING = """
import sys
from jeffnet.parallel import restarts
restarts._sleep = lambda seconds, asked: None
sys.exit(restarts.supervise(sys.argv[1:], 3, print))
"""

# A command that would run for ever, and says so.
ENDLESS = "import time; print('running', flush=True); time.sleep(600)"


@pytest.fixture
def pauses(monkeypatch):
    """How long each pause would have been."""
    taken = []
    monkeypatch.setattr(restarts, "_sleep", lambda seconds, asked: taken.append(seconds))
    return taken


@pytest.fixture
def ended(tmp_path, pauses):
    """What `supervise` returns for a program with these statuses, how often it started it, and what it said."""

    def run(most, *statuses):
        said = []
        command = [sys.executable, "-c", ENDING, str(tmp_path / "count"), *map(str, statuses)]
        status = restarts.supervise(command, most, said.append)
        return status, int((tmp_path / "count").read_text()), said

    return run


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_what_would_end_so_again_is_not_started_again(status, ended):
    assert ended(3, status, 0) == (status, 1, [])


@pytest.mark.parametrize(
    ("status", "shown"), [(70, 70), (75, 75), (76, 76), (-signal.SIGKILL, 137), (-signal.SIGABRT, 134)]
)
def test_a_loss_or_a_crash_is_started_again(status, shown, ended):
    final, starts, (said,) = ended(2, status, 0)
    assert (final, starts) == (0, 2)
    assert f"ended with status {shown}: starting again in 1 s" in said


def test_after_so_many_restarts_the_last_status_is_the_result(ended, pauses):
    final, starts, said = ended(2, 76, 75, -signal.SIGKILL, 0)
    assert (final, starts) == (137, 3)
    assert len(said) == 3 and said[-1] == "ended with status 137, after 2 restarts: giving up"
    assert pauses == [1, 2]


def test_an_error_after_a_restart_is_final(ended):
    assert ended(5, 76, 1, 0)[:2] == (1, 2)


def test_pauses_grow_to_a_minute(ended, pauses):
    ended(8, *[76] * 8, 0)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_what_follows_is_final(number, tmp_path):
    ready, caught = tmp_path / "ready", tmp_path / "caught"
    command = [sys.executable, "-c", SUPERVISING, sys.executable, "-c", WAITING, str(caught), str(ready)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(1000):
            if ready.exists():
                break
            threading.Event().wait(0.02)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75 and said == ""
    assert caught.read_text() == str(int(number))


def test_handlers_of_signals_are_put_back(ended):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    ended(0, 0)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_cuts_the_pause_short():
    restarts._sleep(1000, [signal.SIGTERM])


def test_it_needs_the_main_thread():
    raised = []

    def run():
        try:
            restarts.supervise([sys.executable, "-c", ""], 1, print)
        except ConfigError as error:
            raised.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(raised) == 1 and "main thread" in raised[0]


def test_a_command_ends_with_a_supervisor_that_is_killed():
    command = [sys.executable, "-c", SUPERVISING, sys.executable, "-c", ENDLESS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        assert said.readline() == "running\n"
        process.kill()
        process.wait()
        assert said.read() == ""  # which ends when the command has


def test_a_command_does_not_begin_after_its_supervisor_was_killed():
    bound = [sys.executable, "-c", restarts._BOUND, str(os.getpid() + 1), sys.executable, "-c", "print(1)"]
    done = subprocess.run(bound, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def supervised(monkeypatch):
    """The commands that would have been supervised, and how often at most they would have been started again."""
    commands = []

    def supervise(command, most, say):
        commands.append((command, most))
        return 76

    monkeypatch.setattr(restarts, "supervise", supervise)
    return commands


@pytest.mark.parametrize(
    "given",
    [
        ("--max-restarts", "3"),
        ("--max-restarts=3",),
        ("--max-restarts", "2", "--max-restarts=3"),
        ("--max-restarts=3",) * 2,
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_supervised_command_is_not_supervised_itself_however_that_is_spelled(given, place, supervised):
    rest = ("--config", "none.py", "--output", "run")
    assert main(["train", *(given + rest if place == "first" else rest + given)]) == 76
    ((command, most),) = supervised
    assert most == 3
    options = _parse(command[command.index("train") :])
    assert options.max_restarts == 0 and vars(options)["continue"] and options.config == "none.py"


def test_the_command_is_the_one_that_was_given(supervised, monkeypatch):
    """To the program, with what the interpreter was told, or to `main`, by a program with arguments of its own."""
    arguments = ["train", "--resume", "run", "--max-restarts", "1"]
    monkeypatch.setattr(sys, "argv", ["program.py", *arguments])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "utf8", "program.py", *arguments])
    assert main() == 76
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "other"])
    assert main() == 76
    monkeypatch.setattr(sys, "argv", ["other", "train", "--max-restarts=7"])
    assert main(arguments) == 76
    (first, *_), (second, *_), (third, *_) = supervised
    assert first == [sys.executable, "-X", "utf8", "program.py", *arguments, "--max-restarts=0"]
    assert second == third
    assert second[:2] == [sys.executable, "-c"] and second[-6:] == [*arguments, "--max-restarts=0"]


def test_a_program_that_calls_main_gets_the_status_of_the_supervised_command(tmp_path, capfd):
    assert main(["train", "--config", str(tmp_path / "none.py"), "--output", "run", "--max-restarts", "2"]) == 1
    assert capfd.readouterr().err.startswith("error: config ")
