"""Tar archives: patterns of names, and headers."""

import glob
import io
import os
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jeffnet.data.checks import readable
from jeffnet.errors import DatasetError
from jeffnet.system.reading import user_path

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCK = 512  # what a tar archive is made of
_MOST_TEXT = 2**20
_MOST_NAMES = 10**6


class Member(NamedTuple):
    """A file in an archive: `size` bytes from `offset` on. Its name has '/' and no './' in front."""

    name: str
    offset: int
    size: int


def find_archives(data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> tuple[Path, list[Path]]:
    """The folder that holds all archives of a data set, and these: at least one path, sorted.

    Args:
      data: an archive; a folder, with `*.tar` in it or one folder down; a pattern with `*`, `?`, `[...]` or braces, as
        `shard-{000..146}.tar` or `{train,val}.tar`; or a list of archives.

    Raises:
      DatasetError: there is none, or one of those named does not exist.
    """
    if isinstance(data, str | os.PathLike):
        path = user_path(data)
        if os.path.isdir(path):
            archives = [*path.glob("*.tar"), *path.glob("*/*.tar")]
            paths = sorted(archive for archive in archives if not archive.name.startswith("."))
            if not paths:
                raise DatasetError(f"data set {str(path)!r} has no archives: give a folder with files *.tar")
            _check_archives(paths)
            return path, paths
        paths = [path] if os.path.exists(path) else _expand(str(path))
    else:
        paths = [user_path(path) for path in data]
    if not paths:
        shown = os.fspath(data) if isinstance(data, str | os.PathLike) else "[]"
        raise DatasetError(f"data set {shown!r}: no archive is so named; check the pattern")
    _check_archives(paths)
    # Once each: nested braces, like patterns that overlap, give some twice.
    paths = sorted({path.absolute() for path in paths})
    return Path(os.path.commonpath([path.parent for path in paths])), paths


def _check_archives(paths: Sequence[Path]) -> None:
    if missing := [path for path in paths if not os.path.isfile(path)]:
        raise DatasetError(
            f"archive {str(missing[0])!r} does not exist ({len(missing)} of {len(paths)} do not), or is no file: check "
            "the path"
        )


def expand_braces(pattern: str) -> list[str]:
    """Expand braces as a shell does, `{a,b}` and `{000..146}`; a DatasetError above a million names."""
    names, waiting = [], [pattern]
    while waiting:
        text = waiting.pop()
        if not (braces := re.search(r"\{([^{}]*,[^{}]*|\d{1,18}\.\.\d{1,18})\}", text)):
            names.append(text)
            continue
        words = braces[1].split(",") if "," in braces[1] else _range(*braces[1].split(".."))
        if len(names) + len(waiting) + len(words) > _MOST_NAMES:
            raise DatasetError(
                f"pattern {pattern[:100]!r} names more than {_MOST_NAMES:,} archives: give a shorter range"
            )
        waiting += [text[: braces.start()] + word + text[braces.end() :] for word in reversed(words)]
    return names


def _range(first: str, last: str) -> list[str]:
    """The numbers from one to another, or so many of them that these are too many."""
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    end = min(int(last), int(first) + _MOST_NAMES)
    return [f"{number:0{width}d}" for number in range(int(first), end + 1)]


def read_headers(path: Path, is_text: Callable[[str], bool]) -> tuple[list[Member], dict[str, bytes]]:
    """The files of an archive without hidden ones, in their order, and the contents of texts up to 1 MiB, by name.

    All of a member's bytes are in the archive. Bytes of names that are not UTF-8 are surrogates, as in names of files.

    Raises:
      DatasetError: no tar archive, a compressed, truncated or damaged one, or one that has a member twice, or a link.
    """
    _refuse_compressed(path)
    members, texts, names = [], {}, set()
    # tarfile answers damaged headers with what Python raises at odd numbers and texts, or at very many of them.
    kinds = (OSError, tarfile.TarError, EOFError, ValueError, LookupError, RecursionError, OverflowError)
    with (
        readable(f"archive {str(path)!r} is no tar archive, truncated or damaged", "get it again", kinds),
        _Reader(path) as reader,
        tarfile.open(fileobj=reader, mode="r:", errors="surrogateescape") as archive,  # pyright: ignore[reportArgumentType, reportCallIssue]
    ):
        for entry in _entries(archive, reader.size):
            name = posixpath.normpath(entry.name).lstrip("/")
            if entry.isdir() or any(part.startswith(".") for part in name.split("/")):
                continue
            if not entry.isreg() or entry.issparse():
                raise DatasetError(
                    f"member {name!r} of archive {str(path)!r} is a link or sparse: pack the archive again with "
                    "`tar --dereference --hard-dereference`"
                )
            if name in names:
                raise DatasetError(f"archive {str(path)!r} has the member {name!r} twice: remove one of them")
            names.add(name)
            members.append(Member(name, entry.offset_data, entry.size))
            if entry.size <= _MOST_TEXT and is_text(name) and (content := archive.extractfile(entry)):
                texts[name] = content.read()
    return members, texts


def _expand(pattern: str) -> list[Path]:
    paths = []
    for path in expand_braces(pattern):
        paths += sorted(glob.glob(path)) if glob.has_magic(path) else [path]
    return [Path(path) for path in paths]


class _Reader(io.FileIO):
    """Guards an archive's file for tarfile, which trusts the lengths in headers and might read without end.

    Raises:
      tarfile.ReadError: on reading more than any header or text is long, or again and again at the end.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "rb")
        self.size = os.fstat(self.fileno()).st_size
        self._at_end = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= 2 * _MOST_TEXT:
            raise tarfile.ReadError(f"a header of {size} bytes")
        content = super().read(size) or b""
        self._at_end += not content and size > 0
        if self._at_end > 2:
            raise tarfile.ReadError("unexpected end of data")
        return content


def _entries(archive: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    """All headers; an error if they end before the archive does, or a member exceeds it."""
    while (entry := archive.next()) is not None:
        if not 0 <= entry.size <= max(size - entry.offset_data, 0):
            raise tarfile.ReadError(f"member {entry.name!r} is said to have {entry.size:,} bytes")
        yield entry
        # tarfile keeps every header: with millions of pictures, gigabytes.
        archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
    # It takes a header that it cannot read, or the end of the file, for the end; that is marked by empty blocks.
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise tarfile.ReadError(f"no end mark after {archive.offset:,} bytes")


def _refuse_compressed(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(6)
    except OSError as error:
        raise DatasetError(f"archive {str(path)!r} cannot be read ({error.strerror}): check its permissions") from error
    for magic, method in _COMPRESSED.items():
        if start.startswith(magic):
            raise DatasetError(
                f"archive {str(path)!r} is compressed with {method}: pictures are read in place, so decompress it first"
            )
