"""A contender's process: builds, compiles, then measures on request."""

import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jeffnet.bench.child import Channel, resolve
from jeffnet.bench.program import Job, Program


def serve(arguments: dict[str, Any], channel: Channel) -> None:
    """Build the program of a job, then take turns.

    First `import_seconds`, `create_seconds`, `compile_seconds`, `peak_bytes` and `Program.describe` are sent, and the
    answers of the first two calls are written to the job's file; then for each request, `{'seconds': ...}`, the seconds
    of each call of a turn that takes at least so long.
    """
    job = Job(**arguments)
    program: Program = resolve(job.program)(job)
    imported = _seconds(program.load)
    before = _resident_bytes()
    created = _seconds(program.create)
    answers: list[np.ndarray] = []

    def answer() -> None:
        answers.append(program.answer(program.call()))

    compiled = _seconds(program.compile) + _seconds(answer)
    answer()
    np.save(job.answers, np.stack(answers))
    channel.send(
        {
            "import_seconds": imported,
            "create_seconds": created,
            "compile_seconds": compiled,
            "peak_bytes": _peak_bytes(program, before),
            **program.describe(),
        }
    )
    for request in channel.requests():
        channel.send({"seconds": turn(program.call, request["seconds"]), "peak_bytes": _peak_bytes(program, before)})


def turn(call: Callable[[], Any], seconds: float, least_calls: int = 1) -> list[float]:
    """Seconds of each call of a turn; the first call, with cold caches, does not count."""
    call()
    calls: list[float] = []
    began = time.perf_counter()
    while len(calls) < least_calls or time.perf_counter() - began < seconds:
        calls.append(_seconds(call))
    return calls


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _peak_bytes(program: Program, before: int) -> int:
    taken = program.device_bytes()
    return _most_resident_bytes() - before if taken is None else taken


def _resident_bytes() -> int:
    """Memory of the process; resets its peak if the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return _most_resident_bytes()


def _most_resident_bytes() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        # In bytes on macOS, elsewhere in units of 1,024.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(entry: str) -> int:
    match = re.search(rf"^{entry}:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"no {entry}")
    return int(match[1]) * 1024
