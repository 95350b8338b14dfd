"""Matplotlib figures as files, in the format of the file's extension."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jeffnet.errors import EndingError, OutputError
from jeffnet.system.files import written_atomically

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


def form_of(path: str | os.PathLike[str], forms: Mapping[str, str] = FORMS) -> str:
    """The format for a file's extension, one of `forms`.

    Raises:
      EndingError: figures cannot be written in such a format.
    """
    form = forms.get(Path(path).suffix.lower())
    if form is None:
        raise EndingError(f"cannot write a picture as {os.fspath(path)!r}: give a name that ends in {', '.join(forms)}")
    return form


def check_output(path: str | os.PathLike[str]) -> None:
    """Raises OutputError if no file of this name could be written; call it before long work."""
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"cannot write {str(path)!r}: it is a folder, give the name of a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {str(path)!r}: its folder does not exist, make it")


def save_figure(figure: Any, path: str | os.PathLike[str], dpi: int = 110) -> None:
    """Write a figure, in the format of the extension.

    Raises:
      EndingError: figures cannot be written in such a format.
      OutputError: it cannot be written.
    """
    form = form_of(path)
    with written_atomically(path) as partial:
        figure.savefig(partial, format=form, dpi=dpi)
