"""How far long work is: a bar on a terminal or in a notebook; elsewhere, such as in a log, a line every 30 seconds."""

import io
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from jeffnet.text.names import printable

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
      shown: False shows nothing, and neither does `TQDM_DISABLE=1` in the environment.
      options: further ones of `tqdm`.

    Yields:
      A bar of `tqdm`: `update(n)` counts, `set_description` and `set_postfix` change what stands beside it.
    """
    tqdm = _tqdm()
    settings = {"desc": text, "total": total, "unit": unit, "leave": False, **options}
    if not shown:
        settings["disable"] = True  # otherwise the environment decides
    if not shown or _is_terminal() or _is_notebook():
        with tqdm(**settings) as bar:
            yield bar
        return
    # The bar counts and describes, in as much text as there is; a thread writes, also while the work is in one step.
    with tqdm(**settings, file=io.StringIO(), ncols=0) as bar, nullcontext() if bar.disable else _lines(bar):
        yield bar


@contextmanager
def progress_line(shown: bool = True) -> Iterator[Callable[[str], None]]:
    """Yields a function that shows what is being done, as a `progress_bar` without a bar."""
    with progress_bar("", bar_format="{desc} [{elapsed}]", shown=shown) as bar:

        def show(text: str) -> None:
            bar.set_description_str(printable(text))

        yield show


def _tqdm() -> type:
    """Bars of widgets in a notebook that has ipywidgets, else of text."""
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # that there are no ipywidgets
        from tqdm.auto import tqdm
    return tqdm


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


def _is_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config
