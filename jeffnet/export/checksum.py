"""Checksums at the end of exported files: damage to constants is an error, and not another answer.

An ONNX file is a message of protocol buffers, which may be several one after the other: the checksum is an entry of the
metadata in a message of its own. Its length is written in two bytes where one would do, which readers take and writers
do not make: of a file that another program has written again nothing is compared.

A TFLite file may end in a ZIP archive, in which its checksum is a text.
"""

import hashlib
import io
import mmap
import zipfile
from collections.abc import Mapping
from pathlib import Path

from jeffnet.errors import WeightsError

CHECKSUM_KEY = "jeffnet_checksum"
_DIGITS = 64
# Field 14 of ModelProto, a message of two texts.
_ENTRY = bytes([0x0A, len(CHECKSUM_KEY), *CHECKSUM_KEY.encode(), 0x12, _DIGITS])
_PREFIX = bytes([0x72, 0x80 | (len(_ENTRY) + _DIGITS), 0x00, *_ENTRY])


def onnx_checksum(content: bytes) -> bytes:
    """What follows the bytes of an ONNX file."""
    return _PREFIX + hashlib.sha256(content).hexdigest().encode()


def check_onnx(path: Path) -> None:
    """Raises WeightsError where a file has another checksum than its bytes; OSError where it cannot be read."""
    if path.stat().st_size < len(_PREFIX) + _DIGITS:
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = len(content) - _DIGITS
        start = end - len(_PREFIX)
        if content[start:end] == _PREFIX:
            with memoryview(content) as view, view[:start] as covered:
                _compare(covered, content[end:], str(path))


def tflite_archive(content: bytes, texts: Mapping[str, str]) -> bytes:
    """What follows the bytes of a TFLite file: an archive of texts by name, and of a checksum."""
    archived = io.BytesIO()
    checksum = f"{len(content)} {hashlib.sha256(content).hexdigest()}"
    with zipfile.ZipFile(archived, "x") as archive:
        for name, text in {**texts, CHECKSUM_KEY: checksum}.items():
            # Of a fixed time, so that the same model gives the same bytes.
            archive.writestr(zipfile.ZipInfo(name), text)
    return archived.getvalue()


def check_tflite(content: bytes, source: str) -> None:
    """Raises WeightsError where a file has another checksum than its bytes, or its archive is damaged."""
    if CHECKSUM_KEY.encode() not in content:
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
            start = min((entry.header_offset for entry in archive.infolist()), default=0)
    except Exception as error:  # whatever the bytes lead to
        raise WeightsError(f"{source!r} is damaged: its archive cannot be read") from error
    length, _, digest = entries.get(CHECKSUM_KEY, b"").partition(b" ")
    if length == str(start).encode():  # otherwise another program has written the model again
        _compare(memoryview(content)[:start], digest, source)


def _compare(content: memoryview, digest: bytes, source: str) -> None:
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise WeightsError(f"{source!r} is damaged: its bytes are not those that were written: export or copy it again")
