"""Zip archives, in which torch, NumPy and Keras keep weights: their unpacked size, and the CRC of every member."""

import zipfile
from pathlib import Path

# Weights hardly shrink: what unpacks to many times its size was made to fill the memory.
MOST_TIMES = 64
_SMALL = 2**24  # bytes, which any file may unpack to
_PIECE = 2**20


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open an archive.

    Raises:
      ValueError: it would unpack to far more bytes than it has.
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
    """Raises ValueError if `size` bytes are far too many to be packed into `packed` bytes of weights."""
    if size > max(MOST_TIMES * packed, _SMALL):
        raise ValueError(f"{packed:,} bytes of it would unpack to {size:,}: refused")


def check_members(archive: zipfile.ZipFile) -> bool:
    """Compare the CRC of every member, if there are any: torch can be told to write zeros.

    Returns:
      Whether there are any.

    Raises:
      Exception: whatever a broken archive makes zipfile and zlib raise.
    """
    members = [member for member in archive.infolist() if member.file_size]
    if not any(member.CRC for member in members):
        return False
    for member in members:
        with archive.open(member) as file:
            while file.read(_PIECE):  # which compares the CRC at the end
                pass
    return True
