"""Zip archives, in which torch, NumPy and Keras keep weights: what they may unpack to, and the CRC of every member."""

import zipfile
from pathlib import Path

# Weights hardly shrink, so that what unpacks to many times its size is made to fill the memory.
MOST_TIMES = 64
_SMALL = 2**24  # bytes, which any file may unpack to
_PIECE = 2**20


def open_zip(path: Path) -> zipfile.ZipFile:
    """An archive whose members, as it states their sizes, fit its own.

    Raises:
      ValueError: they do not.
      zipfile.BadZipFile, OSError, NotImplementedError: it is none, or cannot be read.
    """
    archive = zipfile.ZipFile(path)
    try:
        check_growth(sum(member.file_size for member in archive.infolist()), path.stat().st_size)
    except BaseException:
        archive.close()
        raise
    return archive


def check_growth(size: int, packed: int) -> None:
    """Refuse what unpacks to more bytes than weights do.

    Raises:
      ValueError: `size` bytes are far too many for `packed` bytes of a file.
    """
    if size > max(MOST_TIMES * packed, _SMALL):
        raise ValueError(f"{packed:,} bytes of it would unpack to {size:,}: refused")


def check_members(archive: zipfile.ZipFile) -> bool:
    """Compare the CRC of every member with its content.

    Returns:
      Whether there are any: torch can be told to write none, which it marks with zeros.

    Raises:
      zipfile.BadZipFile, OSError: a member is not what was written.
      Exception: others of zipfile's and zlib's, for a broken archive.
    """
    members = [member for member in archive.infolist() if member.file_size]
    if not any(member.CRC for member in members):
        return False
    for member in members:
        with archive.open(member) as file:
            while file.read(_PIECE):  # which compares the CRC at the end
                pass
    return True
