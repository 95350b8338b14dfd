"""The processes that benchmarks start: JSON lines over pipes; a waiting process takes no CPU time.

`run` starts one, `Child` is its handle. In it `main` calls a function with what it was given and a `Channel`.
"""

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from jeffnet.errors import JeffnetError, first_line

# The child imports what its parent would, wherever that found it.
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from jeffnet.bench.child import main; main()"


class ChildError(Exception):
    """The error of a child process, in one line.

    Attributes:
      expected: the contender lacks the model or the task; no defect.
    """

    def __init__(self, reason: str, expected: bool = False) -> None:
        super().__init__(reason)
        self.expected = expected


class LateError(ChildError):
    """A child did not answer in time."""


@dataclass(frozen=True)
class Setting:
    """Environment and processors of a child process.

    Attributes:
      environment: its variables.
      processors: numbers of those that it may use.
    """

    environment: Mapping[str, str]
    processors: tuple[int, ...]


class Channel:
    """The child's end of the pipes."""

    def __init__(self) -> None:
        # Libraries print to standard output: they write to standard error from here on.
        self._replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, reply: Mapping[str, Any]) -> None:
        """Send one message to the parent."""
        self._replies.write(json.dumps(reply) + "\n")
        self._replies.flush()

    def requests(self) -> Iterator[dict[str, Any]]:
        """The parent's requests, until it closes the pipe."""
        for line in sys.stdin:
            yield json.loads(line)


class Child:
    """The parent's end."""

    def __init__(self, target: str, arguments: Mapping[str, Any], setting: Setting) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        start = (sys.path, target, dict(arguments), setting.processors)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, *map(json.dumps, start)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=dict(setting.environment),
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the parent, and what the child starts ends with it
        )

    def receive(self, limit: float | None = None) -> dict[str, Any]:
        """The next message.

        Args:
          limit: seconds to wait; None waits for ever.

        Raises:
          ChildError: it says that it failed, or is dead.
          LateError: there was no message in time; the child runs on until it is closed.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], limit)[0]:
            raise LateError(f"took longer than {limit:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise ChildError(self._last_words())
        reply = json.loads(line)
        if "error" in reply:
            raise ChildError(reply["error"], reply["expected"])
        return reply

    def ask(self, request: Mapping[str, Any], limit: float | None = None) -> dict[str, Any]:
        """The answer to a request, as `receive` gives it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(dict(request)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ChildError(self._last_words()) from None
        return self.receive(limit)

    def close(self) -> None:
        """End the child and all processes that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._log):
            assert file is not None
            with suppress(BrokenPipeError):  # a request that it did not read
                file.close()

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        if status == -signal.SIGKILL:
            how += ", perhaps since memory ran out"
        return f"{how}: {lines[-1].strip()}" if lines else how


def run(target: str, arguments: Mapping[str, Any], setting: Setting, limit: float | None = None) -> dict[str, Any]:
    """Run a `module:function` in a child process; it gets arguments, as JSON, and a `Channel`, and sends one answer.

    Raises:
      ChildError: it failed, or sent none within `limit` seconds.
    """
    with closing(Child(target, arguments, setting)) as child:
        return child.receive(limit)


def main() -> None:
    """The main function of a child process."""
    target, arguments, processors = map(json.loads, sys.argv[2:])
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors)  # the one way to tell XLA how many threads it may have
    threading.Thread(target=_end_with_parent, daemon=True).start()
    channel = Channel()
    try:
        resolve(target)(arguments, channel)
    except Exception as error:
        from jeffnet.bench.program import UnsupportedError

        kind = "" if isinstance(error, JeffnetError | UnsupportedError) else f"{type(error).__name__}: "
        channel.send({"error": kind + first_line(error), "expected": isinstance(error, UnsupportedError)})
        traceback.print_exc()


def _end_with_parent() -> None:
    """A parent that was killed cannot end its children: the pipe of its requests is closed then."""
    poll = select.poll()
    poll.register(sys.stdin.fileno(), 0)  # nothing but that its other end is closed
    poll.poll()
    os._exit(1)


def resolve(name: str) -> Any:
    """Import a function or class from `module:name`."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
