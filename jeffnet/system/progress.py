"""How far long work is: a bar on a terminal or in a notebook; elsewhere, such as in a log, a line every 30 seconds."""

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tqdm

EVERY_SECONDS = 30.0  # between lines; shorter work has none


@contextmanager
def progress_bar(
    text: str, total: int | None = None, unit: str = "it", *, shown: bool = True, **options: Any
) -> Iterator["tqdm.tqdm"]:
    """Show how far work is, on standard error, within the `with` statement.

    Args:
      text: what is being done, printable.
      total: number of units of all the work; None if it is not known.
      unit: what is counted.
      shown: False shows nothing.
      options: further ones of `tqdm`.

    Yields:
      A bar of `tqdm`: `update(n)` counts, `set_description` and `set_postfix` change what stands beside it.
    """
    from tqdm.auto import tqdm

    is_live = shown and (_is_terminal() or _is_notebook(tqdm))
    settings = {"desc": text, "total": total, "unit": unit, "leave": False, "disable": not shown, **options}
    if is_live or not shown:
        with tqdm(**settings) as bar:
            yield bar
        return
    # The bar counts and describes, in as much text as there is; a thread writes, also while the work is in one step.
    with tqdm(**settings, file=io.StringIO(), ncols=0) as bar, _lines(bar):
        yield bar


@contextmanager
def _lines(bar: "tqdm.tqdm") -> Iterator[None]:
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(EVERY_SECONDS):
            try:
                print(str(bar).strip(), file=sys.stderr, flush=True)
            except (OSError, ValueError):  # nobody reads it any more
                return

    thread = threading.Thread(target=write, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _is_notebook(tqdm: type) -> bool:
    return any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
