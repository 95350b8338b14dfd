"""The command `jeffnet`, also as `python -m jeffnet`: nothing is imported before an interrupt can be answered."""

import os
import signal
import sys
from types import FrameType

_INTERRUPTED = 130


def main() -> int:
    """Run the command line; see `jeffnet.cli.main.main`.

    Returns:
      The exit status.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the process is to ignore it
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from jeffnet.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt; within an import it ends the process.

    There the exception would crash C++ code that is being loaded, or be lost in callbacks of JAX's.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, b"interrupted\n")
            os._exit(_INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
