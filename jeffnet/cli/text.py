"""Text for terminals."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from jeffnet.text.names import printable, printable_lines


@contextmanager
def any_text() -> Iterator[None]:
    """Within it, standard output and error accept any text: characters that their encoding lacks become escapes."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with suppress(OSError, ValueError):  # it is closed, or its buffer cannot be written
                stream.reconfigure(errors=errors)  # pyright: ignore[reportAttributeAccessIssue]


class PrintableFormatter(logging.Formatter):
    """Escapes control characters, which names in messages may contain."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, numbers aligned to the right; characters that are not printable become escapes."""
    head, rows = [printable(cell) for cell in head], [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    right = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(cells, widths, right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def _is_number(cell: str) -> bool:
    return not cell or cell.replace(",", "").replace(".", "").replace("%", "").strip().isdecimal()
