"""Atomic writes of files, locks between processes, and the cache folder."""

import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jeffnet.errors import EndingError, JeffnetError, OutputError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None

# Partial content lies in a folder beside its final name, `.NAME.TOKEN.partial`, which its writer has locked. A folder,
# since some libraries write a second file and rename it.
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{16}\.partial")
_LONGEST_NAME = 200  # bytes of NAME: file systems take 255 in all
_LOCK, _CONTENT = "lock", "content"
# Errors of file systems that cannot flush, or cannot flush a folder.
_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
# How safetensors and TensorStore quote the system's error, and errors that others quote by their text alone.
_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)|os_error_code='(\d+)'")
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_SECONDS_BETWEEN_TRIES = 0.05

_log = logging.getLogger("jeffnet")


class LockedError(OutputError):
    """A lock that another process holds."""


@contextmanager
def written_atomically(path: str | os.PathLike) -> Iterator[str]:
    """Yields another path to write to; what is there gets its final name when the block ends, unless it fails.

    Content is flushed to the disk before it is named, so that even a power cut leaves it whole or absent. A file that
    replaces another keeps its mode; a new one has the mode that the umask gives. Partial files of killed processes are
    removed.

    Args:
      path: of a file or a folder, or the prefix of several files. Each of them is moved, in the order of their names.

    Raises:
      OutputError: it cannot be written.
    """
    path = Path(path)
    try:
        with partial_folder(path) as folder:
            # Under the final name: some libraries choose a format by its ending.
            yield str(folder / path.name)
            for entry in sorted(folder.iterdir()):
                move_durably(entry, path.parent / entry.name)
    except JeffnetError:
        raise
    except Exception as error:
        raise not_written(path, error) from error


def write_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file with `written_atomically`, text in UTF-8.

    Raises:
      OutputError: it cannot be written.
    """
    with written_atomically(path) as partial:
        Path(partial).write_bytes(content if isinstance(content, bytes) else content.encode())


def check_output(path: str | os.PathLike, endings: Iterable[str]) -> str:
    """The ending of the name of a file that is to be written, in lower case; call it before long work.

    Raises:
      EndingError: it is none of `endings`.
      OutputError: the name is that of a folder, or the folder that it is in does not exist.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in endings:
        *others, last = endings
        known = f"{', '.join(others)} or {last}" if others else last
        raise EndingError(f"cannot write {str(path)!r}: give a name that ends in {known}")
    if path.is_dir():
        raise OutputError(f"cannot write {str(path)!r}: it is a folder, give the name of a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {str(path)!r}: its folder does not exist, make it")
    return ending


def check_not_read(path: str | os.PathLike, inputs: Iterable[str | os.PathLike]) -> None:
    """Raises OutputError where writing a file would replace one of the inputs, or one in a folder of them."""
    if not os.path.exists(path):
        return
    place = Path(os.path.realpath(path))
    if any(place.is_relative_to(os.path.realpath(one)) for one in inputs):
        raise OutputError(f"cannot write {str(path)!r}: it is one of the files to read, give another name")


def check_absent(path: Path) -> None:
    """Raises OutputError where there is a file, a folder or a link of this name, or none can be."""
    try:
        os.lstat(path)  # also a link that leads nowhere would be replaced
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:  # too long, in a folder of others, or with a null character
        raise OutputError(f"cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error
    raise OutputError(f"{str(path)!r} exists: remove it, or give another name")


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Within it, an OSError is raised as an OutputError that names the file."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {os.fspath(path)!r}: {error.strerror or error}") from error


def not_written(path: Path, error: Exception) -> Exception:
    """An OutputError that says why a file could not be written; `error` itself if the system did not refuse."""
    reason = system_reason(error)
    return error if reason is None else OutputError(f"cannot write {str(path)!r}: {reason}")


def system_reason(error: BaseException | None, ignored: tuple[type[OSError], ...] = ()) -> str | None:
    """Why the system refused to read or write, from any library's error or its causes; None if it did not.

    Errors of the types `ignored`, such as FileNotFoundError, do not count.
    """
    while error is not None:
        refusal = _os_error(error)
        if refusal is not None and not isinstance(refusal, ignored):
            return os.strerror(refusal.errno) if refusal.errno else str(refusal)
        error = error.__cause__ or error.__context__
    return None


def _os_error(error: BaseException) -> OSError | None:
    """The system's error that another one reports in its text."""
    if isinstance(error, OSError):
        return error
    text = str(error)
    if match := _ERROR_NUMBER.search(text):
        number = int(match[1] or match[2])
    else:
        number = next((number for number in _REFUSALS if os.strerror(number) in text), None)
    return None if number is None else OSError(number, os.strerror(number))


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """An empty folder for partial content of a file of this name; it is removed when the block ends."""
    name = path.name
    while len(os.fsencode(name)) > _LONGEST_NAME:
        name = name[:-1]
    remove_partials(path.parent, name)
    while True:
        partial = path.with_name(f".{name}.{secrets.token_hex(8)}.partial")
        if (descriptor := _made(partial)) is not None:
            break
    try:
        (partial / _CONTENT).mkdir()
        yield partial / _CONTENT
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _release(descriptor)


def move_durably(partial: Path, path: Path) -> None:
    """Flush an entry of a partial folder to the disk, then give it its final name."""
    if partial.is_file():
        try:
            before = os.stat(path)
            if not stat.S_ISREG(before.st_mode):  # a folder, or a device, which a file must not replace
                raise OSError("something other than a file has this name")
            mode = before.st_mode
        except FileNotFoundError:
            mode = os.stat(partial.parent).st_mode & 0o666  # as the umask says; some libraries create files with 0600
        os.chmod(partial, stat.S_IMODE(mode))
    flush(partial)
    os.replace(partial, path)
    _flush_one(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    if path.is_symlink():
        return
    if path.is_dir():
        for entry in path.iterdir():
            flush(entry)
    _flush_one(path)


def remove_partials(folder: Path, name: str | None = None) -> None:
    """Remove partial files that killed processes left in a folder: those of one file name, or of all."""
    try:
        entries = os.listdir(folder) if fcntl else []
    except OSError:
        return
    for entry in entries:
        match = _PARTIAL.fullmatch(entry)
        if match and name in (None, match[1]):
            with contextlib.suppress(OSError):
                _remove_if_free(folder / entry)


@contextmanager
def locked(path: str | os.PathLike, seconds: float = 0) -> Iterator[None]:
    """Hold a lock that one process on all hosts can have; it ends with the process, however that ends.

    On a file system without locks, a warning is logged and nothing is locked.

    Args:
      path: of the lock's file, which names its holder; it is removed afterwards.
      seconds: how long to wait for it.

    Raises:
      LockedError: another process holds it.
      OutputError: its file cannot be made.
    """
    path = Path(path)
    try:
        descriptor = _acquire(path, seconds)
    except OSError as error:
        raise OutputError(f"cannot lock {str(path)!r}: {error.strerror or error}") from error
    try:
        yield
    finally:
        if descriptor in _held:  # else this is a forked child, which holds nothing
            with contextlib.suppress(OSError):
                if _is_at(descriptor, path):
                    os.unlink(path)
            _release(descriptor)


def check_orbax_name(folder: str | os.PathLike[str]) -> None:
    """Raises OutputError where Orbax cannot write into a folder of this path, or would write into another one."""
    path = os.path.abspath(folder)
    if path.encode(errors="replace").decode() != path:
        reason = "must be UTF-8"
    elif "\\" in path and os.sep == "/":
        reason = "must have no backslash, which Orbax takes for a slash"
    elif any(part.endswith(".__lock") for part in path.split(os.sep)):
        reason = "must not end in '.__lock', as locks of Orbax do"
    else:
        return
    raise OutputError(f"Orbax cannot use the folder {path!r}: its name {reason}; rename it")


def cache_folder() -> Path:
    """The folder of downloads and compiled code: $JEFFNET_CACHE, $XDG_CACHE_HOME/jeffnet or ~/.cache/jeffnet.

    Raises:
      OutputError: the user has no home folder.
    """
    ours = os.environ.get("JEFFNET_CACHE")
    folder = Path(ours or os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        return folder.expanduser() / ("" if ours else "jeffnet")
    except RuntimeError as error:
        raise OutputError(
            f"cache folder {str(folder)!r}: there is no such home folder; set JEFFNET_CACHE to a folder"
        ) from error


def _made(partial: Path) -> int | None:
    """A new folder's lock; None if another process removed the folder before it was locked."""
    partial.mkdir()
    if fcntl is None:
        return _NOTHING_HELD
    try:
        descriptor = _open(partial / _LOCK, os.O_RDWR | os.O_CREAT)
    except FileNotFoundError:
        return None
    if _lock(descriptor) is False or not _is_at(descriptor, partial / _LOCK):
        _release(descriptor)
        return None
    return descriptor


def _acquire(path: Path, seconds: float) -> int:
    end = time.monotonic() + seconds
    while fcntl is not None:
        # No link is followed: what it leads to would be overwritten.
        try:
            descriptor = _open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        except PermissionError:  # another user's, left by a process that was killed
            descriptor = _open(path, os.O_RDONLY | os.O_NOFOLLOW)
        is_ours = _lock(descriptor)
        # The previous holder may have removed it just now: then it locks nothing.
        if is_ours is not False and _is_at(descriptor, path):
            if is_ours is None:
                _log.warning("%s cannot be locked on this file system: take care that no other process has it", path)
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return descriptor
        owner = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
        _release(descriptor)
        if is_ours is False and time.monotonic() >= end:
            raise LockedError(f"{str(path)!r} is held by {owner or 'another process'}")
        time.sleep(_SECONDS_BETWEEN_TRIES)
    return _NOTHING_HELD


def _remove_if_free(partial: Path) -> None:
    descriptor = _open(partial / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    if _lock(descriptor):
        shutil.rmtree(partial, ignore_errors=True)
    _release(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether an open file could be locked; None if the file system has no locks."""
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether this is still the name of an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _flush_one(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)


# Descriptors of locked files. A forked child would keep the locks of its parent, even after the parent's death.
_held: set[int] = set()
_NOTHING_HELD = -1


def _open(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags, 0o666)
    _held.add(descriptor)
    return descriptor


def _release(descriptor: int) -> None:
    if descriptor in _held:
        _held.discard(descriptor)
        os.close(descriptor)


def _release_all() -> None:
    for descriptor in list(_held):
        _release(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_all)
