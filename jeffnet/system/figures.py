"""Matplotlib figures as files, in the format of the file's extension."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jeffnet.system.files import check_output, written_atomically

# Matplotlib's name of the format, by extension.
FORMS = {
    ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff",
    ".pdf": "pdf", ".svg": "svg", ".eps": "eps",
}  # fmt: skip


@contextmanager
def plain_text() -> Iterator[None]:
    """Context or decorator in which figures show texts literally, whatever a user's Matplotlib settings are.

    A dollar sign in a name does not start a formula, and characters that the font lacks are drawn as boxes without a
    warning. Pass names through `jeffnet.text.names.printable` first.
    """
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        yield


def save_figure(figure: Any, path: str | os.PathLike[str], dpi: int = 110) -> None:
    """Write a figure, in the format of the extension.

    Raises:
      EndingError: figures cannot be written in such a format.
      OutputError: it cannot be written.
    """
    form = FORMS[check_output(path, FORMS)]
    with written_atomically(path) as partial:
        figure.savefig(partial, format=form, dpi=dpi)
