"""Downloads of plain URLs into jeffnet's cache, verified on every use.

huggingface_hub downloads what is on the hub. For URLs it has no cache, does not compare hashes, and continues a cut
body without asking whether the file is still the same.
"""

import errno
import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit

from jeffnet.errors import OutputError, WeightsError, one_line
from jeffnet.system.files import cache_folder, move_durably, partial_folder, write_file
from jeffnet.system.network import is_offline
from jeffnet.system.progress import progress_bar
from jeffnet.system.reading import parse_json, read_text
from jeffnet.text.names import printable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import httpx2
    import tqdm

# After a cut connection or a server error; the wait doubles from try to try. Where no connection can be made at all,
# one more try is enough: mostly there is no network, and the user waits.
RETRIES = 3
WAIT_SECONDS = 1.0
_BRIEFLY = 1.0  # seconds for a connection where another one has failed
_MOMENT = 1.0  # seconds of a download that needs no bar
_log = logging.getLogger("jeffnet")


def connect_seconds() -> float:
    """How long a connection may take: with two packets lost, or as HF_HUB_ETAG_TIMEOUT says for slower networks."""
    from huggingface_hub import constants

    stated = constants.HF_HUB_ETAG_TIMEOUT
    return 3.2 if stated == constants.DEFAULT_ETAG_TIMEOUT else float(stated)


class FetchError(WeightsError):
    """Weights that a source does not give.

    Attributes:
      source: their URL or repository.
      reason: what is wrong.
      remedy: what to do.
      unavailable: whether another source may help: this one cannot be reached or lacks the file. False if the file has
        the wrong hash or cannot be written.
      unreached: whether no connection could be made.
    """

    def __init__(self, source: str, reason: str, remedy: str, *, unavailable: bool = False) -> None:
        super().__init__(f"weights {source!r}: {reason}; {remedy}")
        self.source, self.reason, self.remedy, self.unavailable = source, reason, remedy, unavailable

    @property
    def unreached(self) -> bool:
        import httpx2

        return isinstance(self.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout)


def wrong_hash(path: Path, expected: str | None = None) -> str | None:
    """The hash of an existing file if it is the wrong one, else None.

    The right hash is remembered with the file's size and time of change, and computed again when one of these differs.
    What is expected is a hash or the beginning of one, after `sha256:` or `git:` (git's SHA-1 of a blob); otherwise the
    remembered hash, and without one every hash is right.
    """
    path = Path(os.path.realpath(path))
    status = path.stat()
    size, time_of_change, known = _remembered().get(str(path), (None, None, None))
    expected = expected or known
    algorithm = _algorithm(expected)
    if known and known.startswith(algorithm) and (size, time_of_change) == (status.st_size, status.st_mtime_ns):
        return None if not expected or known.startswith(expected) else known
    actual = file_hash(path, algorithm)
    if expected and not actual.startswith(expected):
        return actual
    _remember(path, status, actual)
    return None


def is_remembered(path: Path) -> bool:
    """Whether the hash of a file is remembered."""
    return os.path.realpath(path) in _remembered()


def file_hash(path: Path, algorithm: str) -> str:
    """The hash of a file's content by 'sha256' or 'git', after `sha256:` or `git:`."""
    with open(path, "rb") as file:
        start = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size) if algorithm == "git" else hashlib.sha256()
        return f"{algorithm}:{hashlib.file_digest(file, lambda: start).hexdigest()}"


def fetch(url: str, path: Path, expected: str | None = None, persist: bool = True) -> Path:
    """Download a file to a path in the cache, which is returned, unless it is there with the expected hash.

    Args:
      url: http or https.
      path: of the file.
      expected: hash, see `wrong_hash`.
      persist: try again where no connection can be made; False where another address could not be reached either.

    Raises:
      FetchError: it cannot be downloaded, has another hash, or cannot be written.
    """
    source = without_password(url)
    try:
        if path.is_file():
            if (actual := wrong_hash(path, expected)) is None:
                return path
            _log.warning("%s is damaged: its hash is %s; it is removed", path, actual)
            path.unlink(missing_ok=True)
        if is_offline():
            raise FetchError(
                source,
                f"offline, and {str(path)!r} is not there",
                "put the file there, or unset JEFFNET_OFFLINE and HF_HUB_OFFLINE",
                unavailable=True,
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(path) as folder:
            with open(folder / path.name, "xb") as file:
                _receive(url, source, file, persist)
            actual = file_hash(folder / path.name, _algorithm(expected))
            if expected and not actual.startswith(expected):
                raise _other_file(source, path.name, expected, actual)
            move_durably(folder / path.name, path)
        _remember(path, path.stat(), actual)
        return path
    except OSError as error:
        what = "the disk is full" if is_disk_full(error) else f"cannot be read or written ({error.strerror or error})"
        raise FetchError(source, f"{str(path)!r}: {what}", "JEFFNET_CACHE can point to another folder") from error


def is_disk_full(error: OSError) -> bool:
    """Whether the disk or the quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def without_password(url: str) -> str:
    """A URL that may be printed."""
    user, at, _ = urlsplit(url).netloc.rpartition("@")
    return url.replace(user + at, "", 1) if at else url


def _other_file(source: str, name: str, expected: str, actual: str) -> FetchError:
    remedy = "it came damaged or is another file: try again, or check address and hash"
    if expected.removeprefix("sha256:") in name:
        remedy += (
            "; if what looks like a hash in its name is none, append '#sha256=' and the file's hash to the address"
        )
    return FetchError(source, f"its hash is {actual}, not {expected}", remedy)


def _receive(url: str, source: str, file: BinaryIO, persist: bool) -> None:
    """Write what a URL has, in as many tries as it takes; huggingface_hub's client repeats only failed requests."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import http_stream_backoff

    # Compressed on the way, a body would not have the length that is announced.
    headers = {"User-Agent": "jeffnet", "Accept-Encoding": "identity"}
    connect = connect_seconds() if persist else min(connect_seconds(), _BRIEFLY)
    timeout = httpx2.Timeout(constants.HF_HUB_DOWNLOAD_TIMEOUT, connect=connect)
    for wait in (*(WAIT_SECONDS * 2**retry for retry in range(RETRIES)), None):
        if "If-Range" in headers:
            headers["Range"] = f"bytes={file.tell()}-"
        try:
            with http_stream_backoff(
                "GET",
                url,
                headers=headers,
                follow_redirects=True,
                timeout=timeout,
                max_retries=RETRIES,
                base_wait_time=WAIT_SECONDS,
                retry_on_exceptions=(),
            ) as response:
                if not response.is_success:
                    raise _refused(source, response.status_code)
                return _write_body(response, source, file, headers)
        except HfHubHTTPError as error:
            raise _refused(source, error.response.status_code) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            may_pass = isinstance(error, httpx2.TimeoutException | httpx2.NetworkError | httpx2.RemoteProtocolError)
            unreached = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout) and not file.tell()
            is_late = isinstance(error, httpx2.ConnectTimeout) or wait != WAIT_SECONDS or not persist
            if wait is None or not may_pass or (unreached and is_late):
                reason = f"cannot be downloaded ({one_line(error)})"
                raise FetchError(source, reason, "check address and network", unavailable=True) from error
            level = logging.DEBUG if unreached else logging.WARNING
            _log.log(level, "%s: %s; trying again in %g s", source, one_line(error), wait)
            time.sleep(wait)


def _write_body(response: "httpx2.Response", source: str, file: BinaryIO, headers: dict[str, str]) -> None:
    """Write the rest of a file, or all of it if the server starts anew; set the headers for another try."""
    import httpx2

    headers.pop("Range", None)
    headers.pop("If-Range", None)
    if response.status_code != httpx2.codes.PARTIAL_CONTENT:
        file.seek(0)
        file.truncate()
    elif not response.headers.get("Content-Range", "").startswith(f"bytes {file.tell()}-"):
        raise httpx2.RemoteProtocolError("another part of the file came than was asked for")
    length, version = response.headers.get("Content-Length"), response.headers.get("ETag", "")
    # Without a length nobody could tell that a body which was cut is complete; weak marks are not exact.
    if length and version.startswith('"'):
        headers["If-Range"] = version
    total, name = file.tell() + int(length) if length else None, os.path.basename(urlsplit(source).path)
    with download_bar(name, total, file.tell()) as bar:
        for chunk in response.iter_bytes():
            file.write(chunk)
            bar.update(len(chunk))


def download_bar(name: str, total: int | None = None, initial: int = 0) -> "AbstractContextManager[tqdm.tqdm]":
    """Shows how far a download is, where it takes more than a moment: `update` takes numbers of bytes.

    Args:
      name: of the file.
      total: its bytes; None if they are not known.
      initial: bytes that are there already.
    """
    return progress_bar(printable(name[-40:]), total, "B", unit_scale=True, initial=initial, delay=_MOMENT)


def _refused(source: str, status: int) -> FetchError:
    reason, remedy = {
        **dict.fromkeys((401, 403), (f"access is refused ({status})", "download it by hand and give its path")),
        404: ("there is no such file (404)", "check the address"),
        410: ("the file is gone (410)", "give another address"),
    }.get(status, (f"the server answers {status}", "try again later"))
    return FetchError(source, reason, remedy, unavailable=True)


def _algorithm(expected: str | None) -> str:
    return expected.partition(":")[0] if expected else "sha256"


def _memory() -> Path:
    return cache_folder() / "verified.json"


def _remembered() -> dict[str, tuple[int, int, str]]:
    """Size, time of change and right hash of files, by path."""
    try:
        entries = parse_json(read_text(_memory()))
        return {path: (int(size), int(changed), str(digest)) for path, (size, changed, digest) in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError):
        return {}  # then files are hashed once more


def _remember(path: Path, status: os.stat_result, digest: str) -> None:
    entries = {other: entry for other, entry in _remembered().items() if os.path.exists(other)}
    entries[os.path.realpath(path)] = (status.st_size, status.st_mtime_ns, digest)
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_file(_memory(), json.dumps(entries))
    except (OSError, OutputError) as error:
        _log.debug("%s cannot be written: %s", _memory(), error)
