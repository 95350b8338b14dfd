"""How far a run is, and lines of text, on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from jeffnet.system.environment import format_bytes, memory_in_use
from jeffnet.system.progress import progress_bar
from jeffnet.text.names import printable_lines


class Progress:
    """Shows how far a run is."""

    def __init__(self, shown: bool) -> None:
        """Shows nothing unless `shown`."""
        self._shown = shown
        self._bar: tqdm | None = None
        self._is_compiling = False

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        if self._shown:
            tqdm.write(printable_lines(text), file=sys.stderr)
            sys.stderr.flush()

    @contextmanager
    def bar(self, steps: int, done: int) -> Iterator[None]:
        """Show a bar within the `with` statement: `steps` of the whole run, of which `done` were taken before."""
        self._is_compiling = True
        with progress_bar("compiling", steps, "step", initial=done, shown=self._shown) as self._bar:
            yield

    def advance(self) -> None:
        """Count a step."""
        assert self._bar is not None
        if self._is_compiling:
            self._bar.set_description(refresh=False)
            self._is_compiling = False
        self._bar.update()

    def describe(self, epoch: str, loss: float, images_per_second: float) -> None:
        """Show metrics, and the memory in use, beside the bar."""
        assert self._bar is not None
        memory = memory_in_use()
        self._is_compiling = False
        self._bar.set_description(f"epoch {epoch}", refresh=False)
        self._bar.set_postfix_str(
            f"loss {loss:.3f}, {images_per_second:.0f} images/s" + (f", {format_bytes(memory)}" if memory else ""),
            refresh=False,
        )
