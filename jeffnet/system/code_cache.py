"""Folders for compiled code that this user alone, or root, can have written: what lies in them is run."""

import contextlib
import os
import stat
from pathlib import Path

from jeffnet.system.files import cache_folder

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ACCESS_LIST = "system.posix_acl_access"


def code_folders(name: str) -> list[Path]:
    """Where compiled code may be looked for and kept, the first choice first; they need not exist.

    Users may share a cache folder: where the first choice is another user's, the second is this user's own.

    Args:
      name: of the folder in `jeffnet.system.files.cache_folder`.

    Raises:
      OutputError: the user has no home.
    """
    names = [name, f"{name}-{os.geteuid()}"] if hasattr(os, "geteuid") else [name]
    # Resolved: no link on the way is followed again after the look at it.
    folders = [(cache_folder() / each).resolve() for each in names]
    return [folder for folder in folders if untrusted(folder) is None]


def make_code_folder(folder: Path) -> bool:
    """Whether this process can write into a folder that nobody else can; makes it, for this user alone, if need be."""
    if untrusted(folder) is not None:
        return False
    with contextlib.suppress(OSError):
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        for each in reversed(missing):
            # Not `parents=True`, which makes folders that others may write where the umask is 0.
            each.mkdir(mode=0o700 if each == folder else 0o755, exist_ok=True)
    # Looked at again, since somebody else may have made it at the same moment.
    return os.access(folder, os.W_OK | os.X_OK) and untrusted(folder) is None


def untrusted(path: str | os.PathLike) -> str | None:
    """How another user, root apart, could have written what lies at a path; None where none could.

    A folder on the way there that others may write gives it to them, unless it is sticky, as `/tmp` is. A group with no
    other member is nobody else. What does not exist is as safe as the folder in which it would be made.

    Args:
      path: of a file or a folder.

    Returns:
      A clause for a message, such as "'/shared' may be written by others (mode 777)".
    """
    if not hasattr(os, "geteuid"):  # Windows, which has neither owners nor modes of this kind
        return None
    try:
        path = Path(path).resolve()
        for each in (path, *path.parents):
            if each.exists() and (reason := _untrusted_entry(each, sticky_will_do=each != path)):
                return reason
    except (OSError, RuntimeError) as error:  # the latter for links in a circle
        return f"{str(path)!r} cannot be looked at: {getattr(error, 'strerror', None) or error}"
    return None


def _untrusted_entry(path: Path, sticky_will_do: bool) -> str | None:
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0):
        return f"{str(path)!r} belongs to another user (number {found.st_uid})"
    writers = found.st_mode & _OTHERS_WRITE
    if writers == stat.S_IWGRP and _is_own_group(found.st_gid) and not _has_access_list(path):
        return None
    if writers and not (sticky_will_do and found.st_mode & stat.S_ISVTX):
        return f"{str(path)!r} may be written by others (mode {stat.S_IMODE(found.st_mode):o})"
    return None


def _is_own_group(number: int) -> bool:
    """Whether a group is the one that many systems make for each user, without other members."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    return number == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _has_access_list(path: Path) -> bool:
    """Whether more users than the mode tells of may write: the group's bits then are only the most they may do."""
    return hasattr(os, "listxattr") and _ACCESS_LIST in os.listxattr(path)
