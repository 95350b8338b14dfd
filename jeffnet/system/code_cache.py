"""Folders for compiled code. It is executed, so only this user and root may be able to write there."""

import contextlib
import os
import stat
from pathlib import Path

from jeffnet.system.files import cache_folder

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ACCESS_LIST = "system.posix_acl_access"


def code_folders(name: str) -> list[Path]:
    """Folders of this name for compiled code, in `cache_folder()`, the first choice first; they need not exist.

    Users may share a cache folder: if the first choice belongs to another user, the second has this user's number.

    Raises:
      OutputError: the user has no home.
    """
    names = [name, f"{name}-{os.geteuid()}"] if hasattr(os, "geteuid") else [name]
    # Resolved, so that no link is followed again after the check.
    folders = [(cache_folder() / entry).resolve() for entry in names]
    return [folder for folder in folders if untrusted(folder) is None]


def make_code_folder(folder: Path) -> bool:
    """Make a folder for this user alone if it is missing; whether only this user and root can write to it."""
    if untrusted(folder) is not None:
        return False
    with contextlib.suppress(OSError):
        missing = [entry for entry in (folder, *folder.parents) if not entry.exists()]
        for entry in reversed(missing):
            # Not `parents=True`: with a umask of 0 others could write to those folders.
            entry.mkdir(mode=0o700 if entry == folder else 0o755, exist_ok=True)
    # Checked again, since another user may have made it at the same moment.
    return os.access(folder, os.W_OK | os.X_OK) and untrusted(folder) is None


def untrusted(path: str | os.PathLike) -> str | None:
    """How users other than this one and root could have written a file or folder; None if nobody could.

    The answer is a clause for a message, such as "'/shared' may be written by others (mode 777)". Who can write to a
    folder can write all below it, unless it is sticky, as `/tmp` is. A group without other members does not count. What
    does not exist is as safe as the folder in which it would be made.
    """
    if not hasattr(os, "geteuid"):  # Windows, which has neither owners nor modes of this kind
        return None
    try:
        path = Path(path).resolve()
        for entry in (path, *path.parents):
            # Not `exists()`: to it, what cannot be looked at is missing.
            with contextlib.suppress(FileNotFoundError):
                if reason := _untrusted_entry(entry, sticky_will_do=entry != path):
                    return reason
    except (OSError, RuntimeError) as error:  # links in a circle: from `resolve` the latter until Python 3.12
        return f"{str(path)!r} cannot be looked at: {getattr(error, 'strerror', None) or error}"
    return None


def _untrusted_entry(path: Path, sticky_will_do: bool) -> str | None:
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        return f"{str(path)!r} belongs to another user (number {status.st_uid})"
    writers = status.st_mode & _OTHERS_WRITE
    if writers == stat.S_IWGRP and _is_own_group(status.st_gid) and not _has_access_list(path):
        return None
    if writers and not (sticky_will_do and status.st_mode & stat.S_ISVTX):
        return f"{str(path)!r} may be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def _is_own_group(number: int) -> bool:
    """Whether a group is the private one that many systems make for a user."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    return number == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _has_access_list(path: Path) -> bool:
    """Whether a file has an access list, which may let more users write than its mode shows."""
    return hasattr(os, "listxattr") and _ACCESS_LIST in os.listxattr(path)
