"""Reading files of others: what is read is regular, bounded and, where it must be, text or JSON."""

import os
import socket
import threading
from pathlib import Path

import pytest

from jeffnet.system.reading import check_file, parse_json, read_file, read_text


@pytest.mark.parametrize("size", [0, 1, 70_000, 3 * 2**20])
@pytest.mark.parametrize("most", [None, 3 * 2**20])
def test_the_contents_are_the_files(size: int, most: int | None, tmp_path: Path):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "file", most) == read_file(str(tmp_path / "link"), most) == content
    check_file(tmp_path / "link", most)


@pytest.mark.parametrize("read", [read_file, check_file])
def test_what_is_no_file_or_too_large_is_refused_at_once(read, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    faults = {"pipe": "a pipe", "device": "a device", "socket": "a socket", "sparse": "1,099,511,627,776 bytes"}
    for name, fault in faults.items():
        with pytest.raises(OSError) as caught:
            read(tmp_path / name, 1000)
        assert fault in str(caught.value.strerror)
    with pytest.raises(IsADirectoryError):
        read(tmp_path, 1000)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing", 1000)
    with pytest.raises(OSError, match="null character"):
        read("nul\0", 1000)


def test_a_file_that_the_system_makes_up_is_read_though_it_says_it_is_empty():
    assert Path("/proc/self/status").stat().st_size == 0
    assert b"Name:" in read_file("/proc/self/status", 2**20)
    with pytest.raises(OSError, match="more than 10"):
        read_file("/proc/self/status", 10)


def test_no_descriptor_stays_open(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"12345")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        for name in ("pipe", "file"):
            with pytest.raises(OSError):
                read_file(tmp_path / name, 4)
    assert len(os.listdir("/proc/self/fd")) <= before + threading.active_count()


def test_text_is_utf8_with_or_without_a_mark(tmp_path: Path):
    path = tmp_path / "text"
    path.write_bytes("\ufeffä".encode())
    assert read_text(path) == "ä"
    path.write_bytes("ab\xe4".encode("latin-1"))
    with pytest.raises(OSError) as caught:
        read_text(path)
    assert caught.value.strerror == "it is not text in UTF-8: byte 2 is 0xe4"


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, b"\xff", "9" * 5000, '{"a":' * 100_000])
def test_whatever_is_no_json_is_a_value_error(text: str | bytes):
    with pytest.raises(ValueError):
        parse_json(text)
