"""What asks a run to stop, or to save: signals, the clock, and other processes of the run."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
import numpy as np

from jeffnet.parallel.distributed import any_process, is_primary
from jeffnet.parallel.mesh import Layout

# Exit codes of the command: EX_TEMPFAIL, "try again later", after SIGTERM, the usual one after Ctrl-C.
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
_SAME_SECONDS = 2
# Processes ask each other only before every so many validation batches, since that takes a moment.
_BATCHES_TO_AGREE = 8


class InterruptedRunError(Exception):
    """The run was asked to stop, and saved its state.

    Attributes:
      signal: the one that this process got, else SIGTERM: another process was asked.
      step: how many steps were taken.
      exit_code: 75 for SIGTERM, 130 for SIGINT.
    """

    def __init__(self, number: signal.Signals | None, step: int) -> None:
        where = "" if number else " of another process"
        number = number or signal.SIGTERM
        super().__init__(f"stopped by {number.name}{where} after step {step}, which is saved")
        self.signal, self.step, self.exit_code = number, step, EXIT_CODES[number]


class StopRequest:
    """The first signal that asked the run to stop; false until there is one."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT instead of obeying them; a second signal of either kind ends the process at once.

    A second SIGTERM within two seconds of the first is ignored: it is the same request, from a scheduler that signals
    every process of a job and from a supervisor that passes the signal on.

    Outside the main thread Python cannot catch signals, so nothing is caught there.
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


class Requests:
    """Requests to stop and to save, on which all processes of a run agree.

    With several processes, each puts its requests into its batches; a step combines them, and its metrics tell every
    process the same.

    Attributes:
      stop: the signal that this process got.
    """

    def __init__(self, stop: StopRequest, layout: Layout, minutes: float | None) -> None:
        """Begins to count time: `minutes` from one checkpoint to the next, by the first process's clock, or None."""
        self.stop, self._layout, self._minutes = stop, layout, minutes
        self._agreed = np.zeros(2, np.bool_)
        self._saved = time.monotonic()

    @property
    def stops(self) -> bool:
        """Whether the run is to stop after this step."""
        return bool(self._agreed[0]) if self._layout.is_shared else bool(self.stop)

    @property
    def saves(self) -> bool:
        """Whether it is time for a checkpoint."""
        return bool(self._agreed[1]) if self._layout.is_shared else self._is_due()

    def place(self, batch: dict[str, Any]) -> Any:
        """A batch on the devices, with the requests of this process where there are several."""
        if self._layout.is_shared:
            batch["requests"] = np.tile([bool(self.stop), self._is_due()], (jax.local_device_count(), 1))
        return self._layout.place_batch(batch)

    def note(self, metrics: Mapping[str, Any]) -> None:
        """Remember the requests of all processes, from a step's metrics."""
        if "requests" in metrics:
            self._agreed |= np.asarray(metrics["requests"])

    def saved(self) -> None:
        """A checkpoint was begun: count time anew."""
        self._saved, self._agreed[1] = time.monotonic(), False

    def stop_between_steps(self, number: int) -> bool:
        """Whether the run is to stop before validation batch `number`; all processes must ask for the same numbers."""
        if not self._layout.is_shared:
            return bool(self.stop)
        return number % _BATCHES_TO_AGREE == 0 and any_process(bool(self.stop))

    def _is_due(self) -> bool:
        return self._minutes is not None and is_primary() and time.monotonic() - self._saved > 60 * self._minutes
