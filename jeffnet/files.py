"""Files that are there whole or not at all, and the folder for those that can be made or fetched anew."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jeffnet.errors import OutputError


@contextmanager
def written_atomically(path: str | os.PathLike) -> Iterator[str]:
    """Another name under which to write a file; at the end it gets its own, or nothing is left after an error.

    Raises:
      OutputError: it cannot be written.
    """
    path = Path(path)
    try:
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(descriptor)
        try:
            yield partial
            os.chmod(partial, 0o666 & ~_umask())  # mkstemp's files are for their owner alone
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def cache_folder() -> Path:
    """For downloads and compiled code: $JEFFNET_CACHE, else $XDG_CACHE_HOME/jeffnet, else ~/.cache/jeffnet."""
    if own := os.environ.get("JEFFNET_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jeffnet"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
