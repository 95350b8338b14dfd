"""Restarts a command when it or another process of its group crashes."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

from jeffnet.errors import ConfigError

# Exit codes that a restart cannot fix: done, wrong input, wrong usage, interrupted by its user.
_FINAL = (0, 1, 2, 130)
_MOST_SECONDS = 60

# What becomes the command: first it asks the kernel to kill it when the thread that started it ends, however that ends.
# (Linux alone has that: elsewhere `prctl` is missing.) The parent may have ended before.
_BOUND = """
import ctypes, os, signal, sys
prctl = getattr(ctypes.CDLL(None), "prctl", None)
if prctl is not None:
    prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def supervise(command: Sequence[str], most: int, say: Callable[[str], None]) -> int:
    """Run a command until it is done; restart it, at most so many times, if it crashed or lost another process.

    SIGTERM and SIGINT are passed on, and what the command then ends with is final. On Linux the command is killed when
    this process ends in any other way: nothing would be there to stop it.

    Returns:
      What the last start ended with, as a shell has it: 128 and the number of a signal.

    Raises:
      ConfigError: this is not the main thread, where alone signals can be passed on.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError("a command can be supervised from the main thread only")
    bound = [sys.executable, "-ISc", _BOUND, str(os.getpid())]
    child: subprocess.Popen | None = None
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if child is not None:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for attempt in range(most + 1):
            # A session of its own: what a terminal sends comes once, through us.
            child = subprocess.Popen([*bound, *command], start_new_session=True)
            if asked:  # while it was being started
                child.send_signal(asked[0])
            status = child.wait()
            status = 128 - status if status < 0 else status
            if asked or status in _FINAL:
                return status
            if attempt < most:
                pause = min(2**attempt, _MOST_SECONDS)
                say(f"ended with status {status}: starting again in {pause} s, for the {attempt + 1}. of {most} times")
                _sleep(pause, asked)
            if asked:
                return status
        say(f"ended with status {status}, after {most} restarts: giving up")
        return status
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sleep(seconds: float, asked: Sequence[int]) -> None:
    end = time.monotonic() + seconds
    while not asked and time.monotonic() < end:
        time.sleep(0.1)
