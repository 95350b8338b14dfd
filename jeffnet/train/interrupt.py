"""Signals that ask a run to stop: it saves where it stands first."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What the command exits with: EX_TEMPFAIL, "try again later", after SIGTERM, the usual status after Ctrl-C.
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
_SAME_SECONDS = 2


class InterruptedRunError(Exception):
    """The run was asked to stop, and saved where it stood.

    Attributes:
      signal: which asked, of the process itself or of another one.
      step: how many steps were taken.
      exit_code: 75 for SIGTERM, 130 for SIGINT.
    """

    def __init__(self, number: signal.Signals | None, step: int) -> None:
        where = "" if number else " of another process"
        number = number or signal.SIGTERM
        super().__init__(f"stopped by {number.name}{where} after step {step}, which is saved")
        self.signal, self.step, self.exit_code = number, step, EXIT_CODES[number]


class StopRequest:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within it SIGTERM and SIGINT are noted instead of obeyed; the second of either is obeyed at once.

    But for a second SIGTERM within two seconds: a scheduler that signals every process of a job, and a supervisor that
    passes the signal on, mean the same one.

    Outside the main thread no signal can be caught, and none is.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    noted = -math.inf

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if request.signal is None:
            request.signal, noted = signal.Signals(number), time.monotonic()
            if number == signal.SIGINT:
                restore()
        elif number != signal.SIGTERM or time.monotonic() - noted > _SAME_SECONDS:
            restore()
            signal.raise_signal(number)

    before = {number: signal.signal(number, note) for number in EXIT_CODES}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it was not Python's

    try:
        yield request
    finally:
        restore()
