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
    """Within it figures show texts as they are, whatever a user's settings of Matplotlib say; also a decorator.

    Names come from people: a dollar sign in one begins no formula, and signs that the font lacks are drawn as boxes,
    without a warning. What a font cannot draw at all must be `jeffnet.text.names.printable` before.
    """
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        yield


def form_of(path: str | os.PathLike[str], forms: Mapping[str, str] = FORMS) -> str:
    """The form that a file's ending says, one of `forms`.

    Raises:
      EndingError: no form in which figures can be written.
    """
    form = forms.get(Path(path).suffix.lower())
    if form is None:
        raise EndingError(f"cannot write a picture as {os.fspath(path)!r}: give a name that ends in {', '.join(forms)}")
    return form


def check_output(path: str | os.PathLike[str]) -> None:
    """Raises OutputError where no file of this name could be written: better before the work than after it."""
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"cannot write {str(path)!r}: it is a folder, give the name of a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {str(path)!r}: its folder does not exist, make it")


def save_figure(figure: Any, path: str | os.PathLike[str], dpi: int = 110) -> None:
    """Write a figure, in the form that the ending says.

    Raises:
      EndingError: no form in which figures can be written.
      OutputError: it cannot be written.
    """
    form = form_of(path)
    with written_atomically(path) as partial:
        figure.savefig(partial, format=form, dpi=dpi)
