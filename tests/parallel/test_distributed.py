"""How processes find each other and what they agree on: two real ones over loopback, and what needs only one."""

import argparse
import functools
import json
import re
import socket
import subprocess
import sys

import jax
import pytest

from jeffnet.cli.devices import add_process_options, connect
from jeffnet.errors import ConfigError, OutputError
from jeffnet.parallel import distributed

# What each of two processes finds, as JSON on its last line.
PROGRAM = """
import json, sys
from jeffnet.parallel import distributed
from jeffnet.errors import ConfigError, JeffnetError, OutputError

def raised(call, *arguments):
    try:
        return call(*arguments)
    except JeffnetError as error:
        return [type(error).__name__, str(error)]

ONLY_HERE = [{}, {"new": 1}]

def bad():
    raise ConfigError("no good")

calls = []
number = int(sys.argv[2])
distributed.connect(sys.argv[1], 2, number)
found = {
    "primary": distributed.is_primary(),
    "gathered": distributed.gathered({"name": "x" * 3 ** number, "number": number}),
    "large": distributed.gathered(2**64 - 1 - number),
    "returned": distributed.on_primary(lambda: calls.append(number) or ["of", number]),
    "calls": calls,
    "raised": raised(distributed.on_primary, bad),
    "any": [distributed.any_process(flag) for flag in (False, number == 1, True)],
    "agree": raised(distributed.check_agreement, {"epochs": 3, "path": None}),
    "differ": raised(distributed.check_agreement, {"epochs": 3 + number, "path": None} | ONLY_HERE[number]),
}
distributed.wait_for_all()
print(json.dumps(found))
"""


def start(program, numbers=(0, 1)):
    """Processes of these numbers that run a program, of two."""
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        address = f"localhost:{listening.getsockname()[1]}"
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, address, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in numbers
    ]


@pytest.fixture(scope="module")
def found():
    """By both processes."""
    processes = start(PROGRAM)
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def test_every_process_learns_what_each_gives(found):
    for number, own in enumerate(found):
        assert own["primary"] == (number == 0)
        assert own["gathered"] == [{"name": "x", "number": 0}, {"name": "xxx", "number": 1}]
        assert own["large"] == [2**64 - 1, 2**64 - 2]
        assert own["any"] == [False, True, True]


def test_the_first_process_works_for_all(found):
    assert [own["returned"] for own in found] == [["of", 0]] * 2
    assert [own["calls"] for own in found] == [[0], []]
    assert found[0]["raised"] == ["ConfigError", "no good"]
    assert found[1]["raised"] == ["JeffnetError", "process 0: no good"]


def test_processes_that_differ_all_hear_in_what(found):
    assert [own["agree"] for own in found] == [None, None]
    for own in found:
        kind, text = own["differ"]
        assert kind == "ConfigError"
        assert "process 1 differs from process 0: epochs 4 instead of 3; new 1 instead of None" in text
        assert "path" not in text


# The second waits for what the first would give.
WAITING = """
import sys, threading, time
from jeffnet.parallel import distributed

number = int(sys.argv[2])
distributed.connect(sys.argv[1], 2, number)
print("connected", flush=True)
if number == 0:
    time.sleep(600)
# Not at once: it must be waiting when the first is killed, not sending.
threading.Timer(2, print, ("waiting",), {"flush": True}).start()
with distributed.lost_processes_reported():
    distributed.gathered(None)
"""


def test_a_process_ends_with_one_message_when_the_first_is_killed():
    """Which it is that the others ask who is there: JAX by itself aborts, with a native stack."""
    first, second = start(WAITING)
    try:
        for process in (first, second):
            assert process.stdout.readline() == "connected\n"
        assert second.stdout.readline() == "waiting\n"
        first.kill()
        _, told = second.communicate(timeout=100)
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert second.returncode == 76
    message = r"error: another of the 2 processes is gone or does not answer: start all of them again"
    # Python may have begun to print a traceback when the process ended.
    assert re.fullmatch(message, told.splitlines()[-1]) and told.count("error: ") == 1, told


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_others_do_not_join_says_so(number):
    program = WAITING.replace("number = ", "distributed.START_SECONDS = 1; number = ")
    (process,) = start(program, (number,))
    try:
        _, told = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 1 and told.splitlines()[-1].endswith(
        "LostProcessError: not all processes started within 1 s"
    )


class SlowProcess:
    """A client of the service for which another process takes its time."""

    def __init__(self, refusals):
        self.refusals = refusals

    def blocking_key_value_get_bytes(self, key, milliseconds):
        if self.refusals:
            raise jax.errors.JaxRuntimeError(self.refusals.pop())
        return b"\0done"


def test_a_process_waits_for_a_slow_one_as_long_as_that_is_alive(caplog):
    slow = SlowProcess(["DEADLINE_EXCEEDED: GetKeyValue() timed out"] * 3)
    assert distributed._received(slow, 5, 1) == b"done"
    assert [record.message for record in caplog.records] == [
        "waiting for process 1, which is alive, for 600 s more"
    ] * 3
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNAVAILABLE"):
        distributed._received(SlowProcess(["UNAVAILABLE: Socket closed"]), 5, 1)


def test_what_several_processes_are_to_run_is_compiled_in_all_of_them_first(monkeypatch):
    traced = []

    @jax.jit
    def double(array):
        traced.append("compiled")
        return 2 * array

    distributed.compile_together(double, jax.numpy.ones(3))
    assert traced == []  # alone there is nobody to wait for
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "wait_for_all", lambda: traced.append("waited"))
    call = functools.partial(double, jax.numpy.ones(3))
    distributed.compile_together(call)
    call()
    assert traced == ["compiled", "waited"]


def test_one_process_alone_asks_nobody():
    assert distributed.gathered({"a": 1}) == [{"a": 1}]
    assert distributed.on_primary(lambda: 5) == 5
    assert distributed.any_process(True) and not distributed.any_process(False)
    distributed.wait_for_all()
    distributed.check_agreement({"what": object()})
    distributed.leave(3)
    assert distributed.is_primary()


@pytest.fixture
def initialized(monkeypatch):
    """What JAX would have been told."""
    calls = []

    def initialize(*arguments, **options):
        assert jax.config.jax_enable_preemption_service is False
        calls.append(arguments)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    before = jax.config.values.copy()
    yield calls
    assert jax.config.values == before, "what is set for JAX's service is set for it alone"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("host:1", None, None), "--num-processes, --process-id missing"),
        (("host:1", 2, None), "--process-id missing"),
        ((None, 2, 0), "--coordinator missing"),
        ((None, None, 0), "--coordinator, --num-processes missing"),
        (("host", 2, 0), "--coordinator 'host': give .* HOST:PORT"),
        ((":1", 2, 0), "HOST:PORT"),
        (("host:", 2, 0), "HOST:PORT"),
        (("host:1", 2, 2), "--process-id 2 of --num-processes 2: give an id from 0 to 1"),
        (("host:1", 2, -1), "--process-id -1"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(arguments, fault, initialized):
    with pytest.raises(ConfigError, match=fault):
        distributed.connect(*arguments)
    assert initialized == []


def test_what_jax_is_told(initialized, monkeypatch):
    distributed.connect("[::1]:1234", 4, 3)
    distributed.connect(None, 1, None)  # not even asked
    distributed.connect()
    assert initialized == [("[::1]:1234", 4, 3), (None, None, None)]


def test_without_a_cluster_a_process_is_alone_and_other_faults_are_told(monkeypatch):
    def fail(error):
        def initialize(*arguments, **options):
            raise error

        monkeypatch.setattr(jax.distributed, "initialize", initialize)

    fail(ValueError("coordinator_address should be defined."))
    distributed.connect()
    fail(RuntimeError("std::bad_cast"))  # in place of the reason
    with pytest.raises(distributed.LostProcessError, match=r"not all processes started within 300 s$"):
        distributed.connect("host:1", 2, 1)
    fail(RuntimeError("must be called before any JAX calls"))
    with pytest.raises(ConfigError, match="--coordinator host:1: must be called before"):
        distributed.connect("host:1", 2, 1)
    fail(ValueError("something else"))
    with pytest.raises(ValueError, match="something else"):
        distributed.connect()
    fail(jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nmore"))
    with pytest.raises(distributed.LostProcessError, match=r"within 300 s: DEADLINE_EXCEEDED: Barrier timed out\.$"):
        distributed.connect("host:1", 2, 1)


def test_options_of_the_command_line(initialized):
    parser = argparse.ArgumentParser()
    add_process_options(parser)
    connect(parser.parse_args(["--coordinator", "host:1", "--num-processes", "2", "--process-id", "0"]))
    assert initialized == [("host:1", 2, 0)]
    with pytest.raises(SystemExit):
        parser.parse_args(["--num-processes", "0"])


def told(error):
    with distributed.lost_processes_reported():
        raise error


def test_what_a_lost_process_makes_go_wrong_is_told_as_that(monkeypatch):
    gloo = jax.errors.JaxRuntimeError("Gloo AllReduce failed: Connection closed by peer\nmore")
    wrapped = OutputError("a checkpoint cannot be written")
    wrapped.__cause__ = ValueError("of a thread")
    wrapped.__cause__.__cause__ = gloo
    with pytest.raises(jax.errors.JaxRuntimeError, match="Gloo"):
        told(gloo)  # alone there is nobody to lose
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for error in (gloo, wrapped):
        with pytest.raises(distributed.LostProcessError, match="another of the 2 processes is gone") as raised:
            told(error)
        assert raised.value.exit_code == 76 and "\n" not in str(raised.value)
    for other in (
        KeyError("peer"),
        ConfigError("connection refused"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"),
    ):
        with pytest.raises(type(other)):  # a hub that cannot be reached, memory: nobody is lost
            told(other)


def test_the_hash_of_the_sources_changes_with_any_of_them(tmp_path, monkeypatch):
    def hashed():
        return distributed.code_hash()

    monkeypatch.setattr(distributed.jeffnet, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "part").mkdir()
    seen = [hashed()]
    for change in (
        lambda: (tmp_path / "__init__.py").write_text(""),
        lambda: (tmp_path / "part" / "a.py").write_text("1"),
        lambda: (tmp_path / "part" / "a.py").write_text("1  # One."),
        lambda: (tmp_path / "part" / "a.py").rename(tmp_path / "a.py"),
        lambda: (tmp_path / "kernel.cc").write_text("int a;"),
    ):
        change()
        seen.append(hashed())
    assert len(set(seen)) == len(seen)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "part" / "a.pyc").write_text("")
    assert hashed() == seen[-1]
