"""The cache of downloads, against a real server: whole files, the right ones, and one line of error otherwise."""

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jeffnet.errors import OutputError, WeightsError
from jeffnet.weights import download
from jeffnet.weights.download import FetchError, cache_folder, fetch, wrong_hash
from jeffnet.weights.hub import HubConfig, locate
from jeffnet.weights.load import find_weights

BODY = bytes(range(256)) * 800 + b"end"
HASH = hashlib.sha256(BODY).hexdigest()


@dataclass
class Answer:
    """What the server sends: with `cut` the connection ends after so many bytes; with an ETag parts can be had.

    `start` is where a part begins, whatever was asked for.
    """

    body: bytes = BODY
    status: int = 200
    headers: dict = field(default_factory=dict)
    cut: int | None = None
    start: int | None = None


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        with server.lock:
            server.requests.append((self.path, dict(self.headers)))
            answers = server.answers.get(self.path, [Answer(b"", 404)])
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if server.together:
            server.together.wait(30)
        body, status, headers = answer.body, answer.status, dict(answer.headers)
        etag = headers.get("ETag")
        if etag and "Range" in self.headers and self.headers["If-Range"] == etag:
            start = answer.start or int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body, status = body[start:], 206
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: answer.cut])

    def log_message(self, format, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.lock, self.requests, self.answers, self.together = threading.Lock(), [], {}, None
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()


@pytest.fixture
def server():
    from huggingface_hub.utils import close_session

    server = Server()
    server.answers["/b0.npz"] = [Answer()]
    yield server
    close_session()
    server.close()


@pytest.fixture(autouse=True)
def waits(monkeypatch, tmp_path):
    """The seconds that would have been waited; the cache is a folder of the test's own."""
    from huggingface_hub import constants

    for name in ("JEFFNET_OFFLINE", "XDG_CACHE_HOME", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JEFFNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "files" / "b0.npz"


def left_in(folder):
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def damage(path):
    """Another content of the same size."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # clocks of file systems are coarse


@pytest.mark.parametrize("expected", [None, f"sha256:{HASH[:8]}", f"sha256:{HASH}"])
def test_a_file_is_downloaded_once(expected, server, path):
    for _ in range(2):
        assert fetch(f"{server.url}/b0.npz", path, expected) == path
        assert path.read_bytes() == BODY
    assert len(server.requests) == 1
    assert left_in(path.parent) == ["b0.npz"]


@pytest.mark.parametrize("body", [b"", b"a"])
def test_a_small_file(body, server, path):
    server.answers["/b0.npz"] = [Answer(body)]
    assert fetch(f"{server.url}/b0.npz", path, f"sha256:{hashlib.sha256(body).hexdigest()}").read_bytes() == body


def test_no_token_is_sent_to_a_plain_address(server, path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(f"{server.url}/b0.npz", path)
    assert "hf_secret" not in str(server.requests)


def test_others_may_read_the_file_as_the_umask_says(server, path):
    mask = os.umask(0)
    os.umask(mask)
    fetch(f"{server.url}/b0.npz", path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_redirect_is_followed(server, path):
    other = Server()
    other.answers["/there"] = [Answer()]
    server.answers["/b0.npz"] = [Answer(b"moved", 302, {"Location": f"{other.url}/there"})]
    assert fetch(f"{server.url}/b0.npz", path).read_bytes() == BODY
    other.close()


@pytest.mark.parametrize(("status", "said"), [(404, "no such file (404)"), (403, "(403)"), (410, "gone (410)")])
def test_what_is_not_there_is_asked_for_once(status, said, server, path):
    server.answers["/b0.npz"] = [Answer(b"", status)]
    with pytest.raises(FetchError) as raised:
        fetch(f"{server.url}/b0.npz", path)
    assert said in str(raised.value) and f"{server.url}/b0.npz" in str(raised.value) and raised.value.unavailable
    assert len(server.requests) == 1 and left_in(path.parent) == []


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_servers_error_that_passes(status, server, path, waits):
    server.answers["/b0.npz"] = [Answer(b"", status), Answer(b"", status), Answer()]
    assert fetch(f"{server.url}/b0.npz", path).read_bytes() == BODY
    assert len(server.requests) == 3 and waits == [1, 2]


def test_a_servers_error_that_stays(server, path, waits):
    server.answers["/b0.npz"] = [Answer(b"oops\n" * 3, 500)]
    with pytest.raises(FetchError, match="the server answers 500; try again later") as raised:
        fetch(f"{server.url}/b0.npz", path)
    assert f"{server.url}/b0.npz" in str(raised.value) and "\n" not in str(raised.value)
    assert len(server.requests) == 1 + download.RETRIES == 1 + len(waits) and waits == sorted(waits)
    assert left_in(path.parent) == []


@pytest.mark.parametrize("cut", [0, 1, len(BODY) // 2, len(BODY) - 1])
def test_a_cut_body_is_fetched_anew(cut, server, path, waits):
    """The version of the file is not known, so that nothing can be continued."""
    server.answers["/b0.npz"] = [Answer(cut=cut), Answer()]
    assert fetch(f"{server.url}/b0.npz", path).read_bytes() == BODY
    assert len(server.requests) == 2 and waits == [1]
    assert "Range" not in server.requests[1][1]


def test_a_cut_body_is_continued(server, path):
    etag = {"ETag": '"1"'}
    server.answers["/b0.npz"] = [
        Answer(cut=100_000, headers=etag),
        Answer(cut=50_000, headers=etag),
        Answer(headers=etag),
    ]
    assert fetch(f"{server.url}/b0.npz", path).read_bytes() == BODY
    ranges = [headers.get("Range") for _, headers in server.requests]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]


@pytest.mark.parametrize("headers", [{"ETag": '"2"'}, {}, {"ETag": 'W/"1"'}])
def test_another_version_is_not_appended(headers, server, path):
    other = BODY[::-1]
    first = {"ETag": 'W/"1"' if headers.get("ETag", "").startswith("W") else '"1"'}
    server.answers["/b0.npz"] = [Answer(cut=100_000, headers=first), Answer(other, headers=headers)]
    assert fetch(f"{server.url}/b0.npz", path).read_bytes() == other


def test_nor_is_the_version_of_an_earlier_try(server, path):
    etag = {"ETag": '"1"'}
    server.answers["/b0.npz"] = [Answer(cut=9000, headers=etag), Answer(BODY[::-1], cut=9000), Answer(headers=etag)]
    assert fetch(f"{server.url}/b0.npz", path).read_bytes() == BODY


def test_no_compression_is_asked_for(server, path):
    """A compressed body has no length by which to tell that it is whole, and the file is to be as it is."""
    fetch(f"{server.url}/b0.npz", path)
    assert server.requests[0][1]["Accept-Encoding"] == "identity"


def test_the_wrong_part_is_not_appended(server, path):
    etag = {"ETag": '"1"'}
    server.answers["/b0.npz"] = [Answer(cut=100_000, headers=etag), Answer(headers=etag, start=7), Answer(headers=etag)]
    assert fetch(f"{server.url}/b0.npz", path).read_bytes() == BODY


@pytest.mark.parametrize("headers", [{}, {"ETag": '"1"'}])
def test_a_body_that_is_always_cut(headers, server, path, waits):
    server.answers["/b0.npz"] = [Answer(cut=1000, headers=headers)]
    with pytest.raises(FetchError, match=r"cannot be downloaded \(.+\); check address and network") as raised:
        fetch(f"{server.url}/b0.npz", path)
    assert "\n" not in str(raised.value) and raised.value.unavailable
    assert len(server.requests) == 1 + download.RETRIES and left_in(path.parent) == []


def test_no_network(server, path, waits, caplog):
    server.close()
    with pytest.raises(FetchError, match=r"cannot be downloaded \(.*Connection refused.*\)") as raised:
        fetch(f"{server.url}/b0.npz", path)
    assert raised.value.unavailable and waits == [download.WAIT_SECONDS] and left_in(path.parent) == []
    assert caplog.text == ""


@pytest.mark.parametrize("url", ["http://", "http://a b/", "http://127.0.0.1:99999/x", "http://[::/x"])
def test_no_address(url, waits):
    with pytest.raises(WeightsError) as raised:
        locate(url)
    assert "\n" not in str(raised.value)


def test_a_file_with_another_hash_is_refused(server, path):
    with pytest.raises(FetchError) as raised:
        fetch(f"{server.url}/b0.npz", path, "sha256:0123abcd")
    assert "sha256:0123abcd" in str(raised.value) and f"sha256:{HASH}" in str(raised.value)
    assert not raised.value.unavailable and left_in(path.parent) == []


@pytest.mark.parametrize("expected", [None, f"sha256:{HASH[:8]}"], ids=["remembered", "expected"])
def test_a_file_damaged_later_is_downloaded_again(expected, server, path, caplog):
    """Without a hash to expect, it is the one that was downloaded."""
    fetch(f"{server.url}/b0.npz", path, expected)
    damage(path)
    assert fetch(f"{server.url}/b0.npz", path, expected).read_bytes() == BODY
    assert len(server.requests) == 2 and f"{path} is damaged" in caplog.text


def test_a_file_damaged_for_good_is_no_longer_there(server, path):
    fetch(f"{server.url}/b0.npz", path, f"sha256:{HASH[:8]}")
    damage(path)
    server.answers["/b0.npz"] = [Answer(BODY[::-1])]
    with pytest.raises(FetchError, match="its hash is"):
        fetch(f"{server.url}/b0.npz", path, f"sha256:{HASH[:8]}")
    assert len(server.requests) == 2 and left_in(path.parent) == []


def test_a_truncated_file_in_the_cache_is_noticed(server, path):
    """Such as one that somebody copied there."""
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY[:100])
    assert fetch(f"{server.url}/b0.npz", path, f"sha256:{HASH[:8]}").read_bytes() == BODY


@pytest.fixture
def digests(monkeypatch):
    """The paths that were read to hash them."""
    read, digest = [], download.file_hash
    monkeypatch.setattr(download, "file_hash", lambda path, algorithm: read.append(path) or digest(path, algorithm))
    return read


def test_an_unchanged_file_is_hashed_once(server, path, digests):
    for _ in range(3):
        fetch(f"{server.url}/b0.npz", path, f"sha256:{HASH[:8]}")
    assert len(digests) == 1
    os.utime(path, ns=(0, 1))
    for _ in range(2):
        fetch(f"{server.url}/b0.npz", path, f"sha256:{HASH[:8]}")
    assert len(digests) == 2 and len(server.requests) == 1


def test_a_remembered_hash_is_still_compared(server, path):
    fetch(f"{server.url}/b0.npz", path)
    assert wrong_hash(path, "sha256:0123abcd") == f"sha256:{HASH}"
    assert wrong_hash(path, f"sha256:{HASH}") is None


def test_gits_hash_is_not_mistaken_for_another(path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"hello\n")
    blob = "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    for _ in range(2):
        assert wrong_hash(path, f"git:{blob}") is None
        assert wrong_hash(path, f"sha256:{blob}") == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1}', b'{"a": [1, 2]}', b"\xff\x00", b'{"a": ["b", null, 3]}'])
def test_a_broken_memory_is_none(content, server, path, digests):
    fetch(f"{server.url}/b0.npz", path, f"sha256:{HASH[:8]}")
    memory = cache_folder() / "verified.json"
    memory.write_bytes(content)
    for _ in range(2):
        fetch(f"{server.url}/b0.npz", path, f"sha256:{HASH[:8]}")
    assert len(digests) == 2 and len(server.requests) == 1
    assert str(path) in json.loads(memory.read_text())


def test_files_that_are_gone_are_forgotten(server, path):
    fetch(f"{server.url}/b0.npz", path)
    path.rename(path.with_name("other"))
    wrong_hash(path.with_name("other"))
    assert list(json.loads((cache_folder() / "verified.json").read_text())) == [str(path.with_name("other"))]


def test_where_nothing_can_be_remembered_files_are_hashed_every_time(server, path, digests):
    (cache_folder() / "verified.json").mkdir(parents=True)
    for _ in range(3):
        assert fetch(f"{server.url}/b0.npz", path, f"sha256:{HASH[:8]}").read_bytes() == BODY
    assert len(digests) == 3 and len(server.requests) == 1
    assert left_in(cache_folder()) == ["files", "verified.json"]


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JEFFNET_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(WeightsError, match="JEFFNET_CACHE can point to another folder") as raised:
        locate(f"{server.url}/b0.npz")
    assert str(tmp_path / "file" / "cache") in str(raised.value) and "Not a directory" in str(raised.value)


def _fail_to_write(monkeypatch, error):
    """Half of what is written comes through, then `error` is raised."""

    class Full(io.FileIO):
        def write(self, data):
            super().write(data[: len(data) // 2])
            raise error

    def full(path, mode="r", **options):
        return Full(path, "x") if mode == "xb" else open(path, mode, **options)

    monkeypatch.setattr(download, "open", full, raising=False)


def test_a_full_disk(server, path, monkeypatch):
    _fail_to_write(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(FetchError, match="the disk is full; JEFFNET_CACHE can point to another folder") as raised:
        fetch(f"{server.url}/b0.npz", path)
    assert str(path) in str(raised.value) and not raised.value.unavailable
    assert left_in(path.parent) == []


def test_an_interrupt_leaves_nothing(server, path, monkeypatch):
    _fail_to_write(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server.url}/b0.npz", path)
    assert left_in(path.parent) == []


def test_a_failed_memory_leaves_nothing(path, monkeypatch):
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)

    def full(path, content):
        with path.open("xb") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert wrong_hash(path, f"sha256:{HASH}") is None
    assert left_in(cache_folder()) == ["files"]


def test_two_processes_at_once(server, path):
    """Both are answered only when both have asked."""
    server.together = threading.Barrier(2)
    script = "import sys; from pathlib import Path; from jeffnet.weights.download import fetch; "
    script += "fetch(sys.argv[1], Path(sys.argv[2]), sys.argv[3])"
    arguments = [sys.executable, "-c", script, f"{server.url}/b0.npz", str(path), f"sha256:{HASH[:8]}"]
    processes = [subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, complaint = process.communicate(timeout=60)
        assert process.returncode == 0, complaint
    assert len(server.requests) == 2 and path.read_bytes() == BODY
    assert left_in(path.parent) == ["b0.npz"]


@pytest.fixture(params=["1", "true", "YES", "on", "HF_HUB_OFFLINE"])
def offline(request, monkeypatch):
    """A function that turns the network off, in every way there is."""
    from huggingface_hub import constants

    if request.param == "HF_HUB_OFFLINE":
        return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return lambda: monkeypatch.setenv("JEFFNET_OFFLINE", request.param)


def test_offline_what_is_cached_is_used(offline, server, path):
    fetch(f"{server.url}/b0.npz", path, f"sha256:{HASH[:8]}")
    offline()
    assert fetch(f"{server.url}/b0.npz", path, f"sha256:{HASH[:8]}").read_bytes() == BODY
    assert len(server.requests) == 1


def test_offline_nothing_is_asked_for(offline, server, path):
    offline()
    with pytest.raises(FetchError, match=r"offline, and .* is not there; put the file there, or unset") as raised:
        fetch(f"{server.url}/b0.npz", path)
    assert repr(str(path)) in str(raised.value) and f"{server.url}/b0.npz" in str(raised.value)
    assert server.requests == []


def test_offline_a_damaged_file_is_not_used(server, path, monkeypatch):
    fetch(f"{server.url}/b0.npz", path, f"sha256:{HASH[:8]}")
    damage(path)
    monkeypatch.setenv("JEFFNET_OFFLINE", "1")
    with pytest.raises(FetchError, match="is not there"):
        fetch(f"{server.url}/b0.npz", path, f"sha256:{HASH[:8]}")
    assert len(server.requests) == 1


@pytest.mark.parametrize("value", ["", "0", "false", "no"])
def test_the_network_is_not_off_by_accident(value, server, path, monkeypatch):
    monkeypatch.setenv("JEFFNET_OFFLINE", value)
    assert fetch(f"{server.url}/b0.npz", path).read_bytes() == BODY


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"JEFFNET_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"JEFFNET_CACHE": "~/a"}, "/home/me/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/jeffnet"),
        ({"JEFFNET_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/jeffnet"),
        ({}, "/home/me/.cache/jeffnet"),
    ],
)
def test_where_the_cache_is(variables, folder, monkeypatch):
    monkeypatch.delenv("JEFFNET_CACHE")
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


def test_a_user_without_a_home_is_told_how_to_name_a_folder(monkeypatch):
    monkeypatch.setenv("JEFFNET_CACHE", "~no such user/a")
    with pytest.raises(OutputError, match="no such home folder; set JEFFNET_CACHE"):
        cache_folder()


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": [1e999, 1, ""]}', "[1]", "\ufeff{}"])
def test_a_damaged_list_of_what_was_verified_is_passed_over(content, server, path):
    cache_folder().mkdir(parents=True)
    (cache_folder() / "verified.json").write_text(content, encoding="utf-8")
    assert fetch(f"{server.url}/b0.npz", path, f"sha256:{HASH}").read_bytes() == BODY


def test_progress_is_shown_on_a_terminal_where_a_download_takes_time(server, path, monkeypatch):
    class Terminal(io.StringIO):
        terminal = True

        def isatty(self):
            return self.terminal

    for terminal, moment in ((True, 0), (True, 60), (False, 0)):
        stderr = Terminal()
        stderr.terminal = terminal
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setattr(download, "_MOMENT", moment)
        fetch(f"{server.url}/b0.npz", path.with_name(f"{terminal}{moment}"))
        assert ("b0.npz" in stderr.getvalue()) == (terminal and not moment)


# Of URLs, as `locate` takes them.


def test_a_url_is_kept_under_its_own_name(server):
    server.answers["/other/b0.npz?x=1"] = [Answer(BODY[::-1])]
    first, second = locate(f"{server.url}/b0.npz"), locate(f"{server.url}/other/b0.npz?x=1")
    assert first.path.name == second.path.name == "b0.npz"
    assert first.path.read_bytes() == BODY and second.path.read_bytes() == BODY[::-1]
    assert cache_folder() in first.path.parents
    assert first.source == f"{server.url}/b0.npz" and first.config == HubConfig()
    assert locate(f"{server.url}/b0.npz") == first and len(server.requests) == 2


@pytest.mark.parametrize(
    "place", ["", "/", "/..", "/%2e%2e%2f%2e%2e%2fa", "/a%5cb%00c", "/.hidden", f"/{'n' * 500}.npz"]
)
def test_a_urls_name_stays_in_the_cache(place, server):
    for path in ("/", "/a", place):
        server.answers[path] = [Answer()]
    located = locate(f"{server.url}{place}")
    assert located.path.read_bytes() == BODY
    assert located.path.resolve().parent.parent == (cache_folder() / "url").resolve()


@pytest.mark.parametrize("digits", [HASH[:8], HASH[:20].upper(), HASH])
def test_a_hash_behind_a_url_is_verified(digits, server):
    assert locate(f"{server.url}/b0.npz#sha256={digits}").path.read_bytes() == BODY
    assert server.requests[0][0] == "/b0.npz"
    wrong = ("0" if digits[0] != "0" else "1") + digits[1:]
    with pytest.raises(WeightsError, match=f"not sha256:{wrong.lower()}"):
        locate(f"{server.url}/b0.npz#sha256={wrong}")


@pytest.mark.parametrize("name", ["b0-{}.npz", "b0_ra-x-{}.pth"])
def test_a_hash_in_a_name_is_verified(name, server):
    for digits, body in ((HASH[:8], BODY), ("0123abcd", BODY)):
        server.answers[f"/{name.format(digits)}"] = [Answer(body)]
    assert locate(f"{server.url}/{name.format(HASH[:8])}").path.read_bytes() == BODY
    with pytest.raises(WeightsError, match=r"not sha256:0123abcd; .* append '#sha256='"):
        locate(f"{server.url}/{name.format('0123abcd')}")


def test_a_date_in_a_name_can_be_overruled(server):
    server.answers["/b0-20240131.npz"] = [Answer()]
    assert locate(f"{server.url}/b0-20240131.npz#sha256={HASH[:8]}").path.read_bytes() == BODY


@pytest.mark.parametrize("name", ["b0-20240131.npz", "b0-20240131235959.npz", "b0-00000001.npz"])
def test_a_number_in_a_name_is_no_hash_unless_it_is_the_files(name, server, caplog):
    server.answers[f"/{name}"] = [Answer()]
    for _ in range(2):
        located = locate(f"{server.url}/{name}")
        assert located.path.read_bytes() == BODY and not located.is_verified
    # Once, with what to do about it.
    assert caplog.text.count("not verified") == 1 and f"append '#sha256={HASH}'" in caplog.text


def test_a_hash_of_digits_alone_is_verified(server, caplog):
    body = next(text for text in map(b"%d".__mod__, range(10**4)) if hashlib.sha256(text).hexdigest()[:8].isdecimal())
    digits = hashlib.sha256(body).hexdigest()[:8]
    server.answers[f"/b0-{digits}.npz"] = [Answer(body)]
    assert locate(f"{server.url}/b0-{digits}.npz").is_verified
    assert "not verified" not in caplog.text


def test_a_url_without_a_hash_is_said_to_be_not_verified(server, caplog):
    assert not locate(f"{server.url}/b0.npz").is_verified
    assert f"{server.url}/b0.npz: not verified" in caplog.text
    caplog.clear()
    assert locate(f"{server.url}/b0.npz#sha256={HASH}").is_verified
    assert caplog.text == ""


def test_what_is_cut_without_a_length_is_removed(server, tmp_path):
    """The connection simply ends: only the file's own structure tells."""
    array = np.zeros((3, 3), np.float32)
    save_file({"conv_stem.weight": array}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    headers = {"Content-Length": "", "Connection": "close"}
    server.answers["/a.safetensors"] = [
        Answer(whole, headers=headers, cut=len(whole) - 5),
        Answer(whole, headers=headers),
    ]
    with pytest.raises(WeightsError, match=f"{server.url}/a.safetensors': what was downloaded is removed, .*try again"):
        find_weights(f"{server.url}/a.safetensors")
    assert not list((cache_folder() / "url").rglob("a.safetensors"))
    file = find_weights(f"{server.url}/a.safetensors")
    np.testing.assert_array_equal(file.arrays["conv_stem.weight"], array)


@pytest.mark.parametrize("name", ["b0-1234567.npz", "b0-large.npz", "mobilenet-v2_100.npz", "b0.0123abcd.npz"])
def test_other_names_hold_no_hash(name, server):
    server.answers[f"/{name}"] = [Answer()]
    assert locate(f"{server.url}/{name}").path.read_bytes() == BODY


@pytest.mark.parametrize(
    "fragment", ["sha256=", "sha256=1234567", "sha265=0123abcd", "sha256=0123abcg", "x", "sha256=" + "0" * 65]
)
def test_a_misspelt_hash_is_no_hash_left_out(fragment, server):
    with pytest.raises(WeightsError, match="is not '#sha256=' with 8 to 64 hexadecimal digits"):
        locate(f"{server.url}/b0.npz#{fragment}")
    assert server.requests == []


def test_a_password_is_not_shown(server):
    url = server.url.replace("http://", "HTTP://me:secret@")
    assert locate(f"{url}/b0.npz").source == server.url.replace("http://", "HTTP://") + "/b0.npz"
    assert "Authorization" in server.requests[0][1]
    with pytest.raises(WeightsError) as raised:
        locate(f"{url}/missing.npz")
    assert "secret" not in str(raised.value) and "missing.npz" in str(raised.value)
