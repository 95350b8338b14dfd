"""Reads untrusted files safely: regular files of bounded size, UTF-8 text, and JSON."""

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

# Larger than any list of labels, settings or results; reading it takes a second.
MOST_TEXT = 2**28

_TOO_LARGE = "it has {:,} bytes, more than {:,}"
_KINDS = (
    (stat.S_ISFIFO, "it is a pipe, not a file"),
    (stat.S_ISCHR, "it is a device, not a file"),
    (stat.S_ISBLK, "it is a device, not a file"),
    (stat.S_ISSOCK, "it is a socket, not a file"),
)


def is_url(text: str) -> bool:
    """Whether a text is a URL."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path from a user, with a leading `~` expanded if that home folder exists."""
    return Path(os.path.expanduser(path))


def read_file(path: str | os.PathLike[str], most: int | None) -> bytes:
    """The contents of a regular file. Nothing else is opened: a pipe could block, and a device never end.

    Args:
      path: of the file; symbolic links are followed.
      most: largest size in bytes; None for any.

    Raises:
      OSError: it cannot be read, is not a regular file or is larger; `strerror` says which.
    """
    check_file(path, most)  # before it is opened, since some devices react to that
    with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        _check(path, status, most)  # again, since it may have been replaced
        size = status.st_size
        parts, count, step = [], 0, size + 1
        # Read on beyond the size that `stat` gives: that of files in /proc is 0, and others grow.
        while (most is None or count <= most) and (part := file.read(step)):
            parts.append(part)
            count += len(part)
            if count == size:
                break
            step = 2**20
    if most is not None and count > most:
        _refuse(path, errno.EOVERFLOW, _TOO_LARGE.format(count, most))
    return b"".join(parts)


def check_file(path: str | os.PathLike[str], most: int | None) -> None:
    """Raises the OSError of `read_file` unless this is a regular file of at most that size; does not open it."""
    _check(path, os.stat(_named(path)), most)


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file of at most `MOST_TEXT` bytes, without a byte order mark.

    Raises:
      OSError: as `read_file`, or it is not UTF-8.
    """
    content = read_file(path, MOST_TEXT)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse(path, errno.EILSEQ, f"it is not text in UTF-8: byte {error.start:,} is {content[error.start]:#04x}")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
      ValueError: it is not JSON, or nested thousands of levels deep.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _named(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The path, if it is a possible name of a file."""
    if "\0" in os.fsdecode(path):
        _refuse(path, errno.EINVAL, "its name has a null character")
    return path


def _check(path: str | os.PathLike[str], status: os.stat_result, most: int | None) -> None:
    if stat.S_ISREG(status.st_mode):
        if most is not None and status.st_size > most:
            _refuse(path, errno.EOVERFLOW, _TOO_LARGE.format(status.st_size, most))
        return
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    reason = next((reason for is_kind, reason in _KINDS if is_kind(status.st_mode)), "it is not a regular file")
    _refuse(path, errno.EINVAL, reason)


def _refuse(path: str | os.PathLike[str], number: int, reason: str) -> NoReturn:
    raise OSError(number, reason, os.fspath(path))
