"""Weights of the model hub and of the original release: its real client against a server that plays both."""

import errno
import hashlib
import io
import itertools
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from jeffnet.arch.imagenet import LABEL_SETS, imagenet_classes, label_set
from jeffnet.arch.model import RELEASE, WeightSet
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import MODELS, list_models, model_preprocessing
from jeffnet.errors import UnknownModelError, WeightsError
from jeffnet.system.progress import progress_bar
from jeffnet.weights import download
from jeffnet.weights.hub import Located, locate
from jeffnet.weights.hub_config import HubConfig

MODEL, REPOSITORY = "tf_efficientnet_b0.ns_jft_in1k", "timm/tf_efficientnet_b0.ns_jft_in1k"
PUBLISHED = HubConfig(MODEL, model_preprocessing(MODEL), tuple(imagenet_classes()))
FIRST, SECOND = "1" * 40, "2" * 40
WEIGHTS = b"weights of the hub " * 1000
OTHER_WEIGHTS = b"older weights of the hub " * 1000
RELEASED = b"weights of the release " * 1000
CONFIG = {
    "architecture": "tf_efficientnet_b0",
    "num_classes": 2,
    "label_names": ["cat", "dög"],
    "pretrained_cfg": {
        "tag": "mine",
        "input_size": [3, 256, 256],
        "crop_pct": 0.9,
        "interpolation": "bilinear",
        "mean": [0.5, 0.4, 0.3],
        "std": [0.1, 0.2, 0.3],
    },
}


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        if path == "/":  # where the hub itself is
            return self.send(200, {}, b"")
        kind = self.server.kind(self.command, path)
        with self.server.lock:
            self.server.requests.append((kind, path, {name.lower(): value for name, value in self.headers.items()}))
            fault = next(self.server.faults.get(kind, iter(())), None)
        if isinstance(fault, int):
            return self.send(fault, {}, b'{"error": "injected"}')
        status, headers, body = self.server.response(kind, path, self.headers)
        if fault == "wrong":
            body = body[::-1]
        self.send(status, headers, body, half=fault == "cut")

    def send(self, status, headers, body, half=False):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if half else body)

    def log_message(self, format, *args):
        pass


class Hub(ThreadingHTTPServer):
    """The hub, where its large files are, and the release.

    Attributes:
      repositories: by name the branches, tags and commits, by their names the files.
      faults: for the next requests of a kind: a status, `cut`, `wrong` or None.
      requests: kind, path and headers of each.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        port = self.server_address[1]
        # The client tells the hub from other places by their origin.
        self.url, self.elsewhere = f"http://127.0.0.1:{port}", f"http://localhost:{port}/elsewhere"
        self.repositories, self.commits, self.gated, self.released = {}, {}, {}, {}
        self.faults, self.requests, self.lock = {}, [], threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()

    def add(self, name, files, commit=FIRST):
        self.repositories.setdefault(name, {})[commit] = files
        self.commits[name] = {"main": commit}

    def kind(self, method, path):
        for kind in ("release", "elsewhere", "api"):
            if path.startswith(f"/{kind}/"):
                return kind
        return method

    def asked(self, *kinds):
        return [path for kind, path, _ in self.requests if kind in kinds]

    def response(self, kind, path, headers):
        if kind == "release":
            body = self.released.get(path.removeprefix("/release/"))
            return (404, {}, b"") if body is None else (200, {}, body)
        if kind == "elsewhere":
            wanted = path.rpartition("/")[2]
            files = [
                file for commits in self.repositories.values() for files in commits.values() for file in files.values()
            ]
            return 200, {}, next(file for file in files if hashlib.sha256(file).hexdigest() == wanted)
        pattern = r"/api/models/(.+?/.+?)/tree/([^/]+)()" if kind == "api" else r"/(.+?/.+?)/resolve/([^/]+)/(.+)"
        name, revision, file = re.fullmatch(pattern, path).groups()
        if name in self.gated and headers.get("Authorization") != f"Bearer {self.gated[name]}":
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if name not in self.repositories:
            return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b""
        commit = self.commits[name].get(revision, revision)
        if commit not in self.repositories[name]:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        files = self.repositories[name][commit]
        if kind == "api":
            listing = [{"type": "file", "path": path, "size": 1, "oid": "0" * 40} for path in files]
            return 200, {"Content-Type": "application/json"}, json.dumps(listing).encode()
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        body = files[file]
        if file.endswith(".json"):
            blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
            return 200, {"X-Repo-Commit": commit, "ETag": f'"{blob}"'}, body
        digest = hashlib.sha256(body).hexdigest()
        linked = {"X-Repo-Commit": commit, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(body))}
        return 302, {**linked, "Location": f"{self.elsewhere}/{digest}"}, b""


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    hub = Hub()
    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_OFFLINE": False,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "JEFFNET_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JEFFNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JEFFNET_RELEASE_URL", f"{hub.url}/release")
    # The published weights are those of the tests.
    digest = hashlib.sha256(RELEASED).hexdigest()[:8]
    entry = replace(MODELS[MODEL], timm=REPOSITORY.removeprefix("timm/"), weights=WeightSet(0, 0, digest))
    monkeypatch.setitem(MODELS, MODEL, entry)
    hub.add(REPOSITORY, {"model.safetensors": WEIGHTS, "config.json": json.dumps(CONFIG).encode()})
    hub.add("me/mine", {"model.safetensors": WEIGHTS, "config.json": json.dumps(CONFIG).encode()})
    hub.file = f"tf_efficientnet_b0_ns-{digest}.npz"  # a name of the release's own
    hub.released[hub.file] = RELEASED
    yield hub
    close_session()
    hub.close()


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds that would have been waited."""
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    return waits


@pytest.fixture
def offline(monkeypatch):
    return lambda: monkeypatch.setenv("JEFFNET_OFFLINE", "1")


def refused(source, *said, name=None):
    """The one line that says why there are no weights."""
    with pytest.raises(WeightsError) as raised:
        locate(source, name)
    message = str(raised.value)
    assert "\n" not in message
    for part in said:
        assert part in message, message
    return message


def forever(fault):
    return itertools.repeat(fault)


def damage(path):
    """Another content of the same size."""
    path = path.resolve()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def unfinished(folder):
    return [
        path
        for path in Path(folder).rglob("*")
        if "incomplete" in path.name or re.match(r"\..*\.[0-9a-f]{32}", path.name)
    ]


# A file of one's own.


def test_a_path_is_returned_as_it_is(hub, tmp_path):
    assert locate("b0.npz") == Located(Path("b0.npz"), "b0.npz")
    assert locate(tmp_path / "hf:x") == Located(tmp_path / "hf:x", str(tmp_path / "hf:x"))
    assert hub.requests == []


# Published weights.


@pytest.mark.parametrize("name", [MODEL, REPOSITORY.removeprefix("timm/")])
def test_published_weights_come_from_the_hub(name, hub):
    located = locate(True, name)
    assert located == Located(located.path, f"hf:{REPOSITORY}", PUBLISHED)
    assert located.path.read_bytes() == WEIGHTS
    assert hub.asked("release") == []


def test_what_is_cached_is_not_downloaded_again(hub):
    first = locate(True, MODEL)
    assert locate(True, MODEL) == first
    assert len(hub.asked("elsewhere")) == 1


def test_every_published_model_has_an_address():
    published = [model for model in MODELS.values() if model.weights]
    assert sorted(model.timm for model in published) == list_models(tags=True)
    assert all(re.fullmatch(r"\w+\.\w+", model.timm) for model in published)
    released = {model.timm: model.release_file for model in published if model.release_file}
    assert len(released) == 65
    assert all(re.fullmatch(r"(pt|tf)_\w+-[0-9a-f]{8}\.npz", file) for file in released.values())
    names = {
        "efficientnet_b0.ra_in1k": "pt_efficientnet_b0",
        "tf_efficientnet_b0.aa_in1k": "tf_efficientnet_b0",
        "tf_efficientnet_b8.ap_in1k": "tf_efficientnet_b8_ap",
        "tf_efficientnet_l2.ns_jft_in1k": "tf_efficientnet_l2_ns",
        "tf_efficientnet_l2.ns_jft_in1k_475": "tf_efficientnet_l2_ns_475",
        "mobilenetv3_large_100.ra_in1k": "pt_mobilenetv3_large_100",
    }
    assert {name: released[name][:-13] for name in names} == names
    assert "efficientnet_b0.ra4_e3600_r224_in1k" not in released and "efficientnet_b4.ra2_in1k" not in released


@pytest.mark.parametrize("name", ["efficientnet_b4", "efficientnet_b0.ra4_e3600_r224_in1k"])
def test_weights_that_are_not_in_the_release_come_from_the_hub_alone(name, hub):
    repository = f"timm/{MODELS[name].timm}"
    message = refused(
        True, f"weights of {name} cannot be had: hf:{repository}", "or give the path of a file", name=name
    )
    assert "release" not in message and "None" not in message
    hub.add(repository, {"model.safetensors": WEIGHTS})
    assert locate(True, name).source == f"hf:{repository}"
    assert hub.asked("release") == []


@pytest.mark.parametrize("name", ["efficientnet_b5.sw_in12k", "tf_efficientnetv2_b3.in21k", "tf_efficientnetv2_m"])
def test_published_weights_bring_their_preprocessing_and_their_classes(name, hub):
    model = MODELS[name]
    hub.add(f"timm/{model.timm}", {"model.safetensors": WEIGHTS})
    config = locate(True, name).config
    assert (config.model, config.preprocessing) == (name, model.preprocessing)
    assert config.classes == tuple(label_set(model.weights.classes))
    assert len(config.classes) == LABEL_SETS[model.weights.classes]


def test_a_model_without_published_weights(hub):
    refused(True, "'mnasnet_075' has no published weights", "near it: ", "mnasnet_100", name="mnasnet_075")
    with pytest.raises(UnknownModelError, match="near it: tf_efficientnet_b0"):
        locate(True, "tf_efficientnet_b00")
    refused(True, "give its name")
    assert hub.requests == []


def _remove_repository(hub):
    del hub.repositories[REPOSITORY]


def _remove_file(hub):
    hub.add(REPOSITORY, {"model.bin": WEIGHTS})


@pytest.mark.parametrize(
    ("fail", "why"),
    [
        (lambda hub: hub.faults.update(HEAD=forever(500)), "the hub answers 500"),
        (lambda hub: hub.faults.update(HEAD=forever(404)), "the hub answers 404"),
        (lambda hub: hub.faults.update(elsewhere=forever(503)), "the hub answers 503"),
        (lambda hub: hub.faults.update(elsewhere=forever("cut")), "the hub cannot be reached"),
        (_remove_repository, f"the hub has no {REPOSITORY}, or a private one"),
        (_remove_file, "has no model.safetensors"),
        (lambda hub: hub.gated.update({REPOSITORY: "hf_token"}), "is gated"),
    ],
)
def test_the_release_stands_in_for_the_hub(fail, why, hub, caplog):
    fail(hub)
    located = locate(True, MODEL)
    assert located == Located(located.path, f"{hub.url}/release/{hub.file}", PUBLISHED)
    assert located.path.read_bytes() == RELEASED and located.path.name == hub.file
    (record,) = [
        record for record in caplog.records if record.name == "jeffnet" and "original release" in record.message
    ]
    assert record.levelno == logging.WARNING
    assert why in record.message and located.source in record.message


def test_the_release_stands_in_where_no_hub_can_be_reached(hub, monkeypatch, caplog):
    from huggingface_hub import constants

    other = Hub()
    other.close()
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", other.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    assert locate(True, MODEL).path.read_bytes() == RELEASED
    assert "the hub cannot be reached" in caplog.text and "Connection refused" in caplog.text


def test_the_release_does_not_stand_in_for_another_file(hub):
    """Somebody put other weights on the way: that must be seen."""
    hub.faults["elsewhere"] = forever("wrong")
    refused(
        True,
        f"hf:{REPOSITORY}",
        "the hash of model.safetensors is sha256:",
        hashlib.sha256(WEIGHTS).hexdigest(),
        name=MODEL,
    )
    assert hub.asked("release") == []


@pytest.mark.parametrize(
    ("fail", "why"),
    [
        (lambda hub: hub.released.clear(), "there is no such file (404)"),
        (lambda hub: hub.faults.update(release=forever(502)), "the server answers 502"),
        (lambda hub: hub.faults.update(release=forever("cut")), "cannot be downloaded"),
        (lambda hub: hub.faults.update(release=forever("wrong")), "its hash is sha256:"),
    ],
)
def test_both_sources_fail(fail, why, hub, tmp_path):
    hub.faults["HEAD"] = forever(500)
    fail(hub)
    path = tmp_path / "cache" / "release" / hub.file
    message = refused(True, MODEL, f"hf:{REPOSITORY}: the hub answers 500", f"the original release: {why}", name=MODEL)
    assert f"download {hub.url}/release/{hub.file} by hand" in message
    assert f"by hand to {str(path)!r}" in message and not path.exists() and unfinished(tmp_path) == []
    # What the message advises works.
    path.write_bytes(RELEASED)
    assert locate(True, MODEL).path == path


def test_the_releases_own_address():
    assert RELEASE.startswith("https://") and RELEASE.endswith("/")


# Failures of the hub that pass, and those that do not.


def test_a_servers_error_that_passes(hub, waits):
    hub.faults["HEAD"] = iter([500, 503])
    hub.faults["elsewhere"] = iter([500])
    assert locate("hf:me/mine").path.read_bytes() == WEIGHTS
    assert waits


def test_a_cut_body_is_fetched_again(hub):
    hub.faults["elsewhere"] = iter(["cut", "cut"])
    assert locate("hf:me/mine").path.read_bytes() == WEIGHTS


def test_a_damaged_body_is_fetched_again(hub, caplog):
    hub.faults["elsewhere"] = iter(["wrong"])
    assert locate("hf:me/mine").path.read_bytes() == WEIGHTS
    assert "is damaged" in caplog.text


@pytest.mark.parametrize(
    ("kind", "fault", "said"),
    [
        ("HEAD", 500, "the hub answers 500; try again later"),
        ("HEAD", 403, "the hub refuses access to me/mine (403); check the token"),
        ("HEAD", 401, "the hub refuses access to me/mine (401); check the token"),
        ("elsewhere", 403, "the hub refuses access to me/mine (403); check the token"),
        ("elsewhere", 502, "the hub answers 502; try again later"),
        ("elsewhere", "cut", "the hub cannot be reached (peer closed connection"),
        ("elsewhere", "wrong", "the hash of model.safetensors is sha256:"),
    ],
)
def test_a_failure_that_stays(kind, fault, said, hub, tmp_path):
    hub.faults[kind] = forever(fault)
    refused("hf:me/mine", "'hf:me/mine': ", said)
    assert unfinished(tmp_path) == []
    assert not list(tmp_path.rglob("model.safetensors"))


def test_progress_is_shown_where_a_download_takes_time(hub, monkeypatch, tmp_path):
    """By one bar of bytes, which also counts what a second try continues; without a terminal by lines."""
    hub.faults["elsewhere"] = iter(["cut"])
    seen = []

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    @contextmanager
    def counted(*arguments, **options):
        with progress_bar(*arguments, **options) as bar:
            yield bar
            seen.append((bar.n, bar.total, str(bar)))

    monkeypatch.setattr(download, "progress_bar", counted)
    for moment, shown in ((0, True), (60, False)):
        monkeypatch.setattr(download, "_MOMENT", moment)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / f"{moment}"))
        monkeypatch.setattr(sys, "stderr", stderr := Terminal())
        locate("hf:me/mine/model.safetensors")
        assert ("model.safetensors: " in stderr.getvalue()) == shown
    size = len(WEIGHTS)
    assert [each[:2] for each in seen if each[1] == size] == [(size, size)] * 2
    assert all(f"{size / 1000:.1f}k/{size / 1000:.1f}k" in text for _, total, text in seen if total == size)


def test_no_network(hub, waits, caplog):
    hub.close()
    refused("hf:me/mine", "'hf:me/mine': the hub cannot be reached (", "Connection refused", "check the network")
    assert waits == [download.WAIT_SECONDS] and caplog.text == ""
    waits.clear()
    refused(True, "the hub cannot be reached (", "cannot be downloaded (", name=MODEL)
    assert waits == [download.WAIT_SECONDS] and caplog.text == ""


def test_a_connection_that_is_slow_to_come_is_not_tried_again(hub, waits, monkeypatch):
    import httpx2
    from huggingface_hub import constants, utils

    timeouts = []

    class Client:
        def head(self, url, timeout):
            timeouts.append(timeout)
            raise httpx2.ConnectTimeout("timed out")

    monkeypatch.setattr(utils, "get_session", Client)
    refused("hf:me/mine", "the hub cannot be reached (timed out)")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 30)  # for slow networks
    refused("hf:me/mine", "the hub cannot be reached (timed out)")
    assert [timeout.connect for timeout in timeouts] == [3.2, 30] and waits == []


def test_no_network_but_a_cached_file(hub, waits):
    located = locate("hf:me/mine")
    hub.close()
    assert locate("hf:me/mine") == located


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.safetensors"])
def test_a_connection_that_ends_at_once_but_a_cached_file(file, hub, monkeypatch):
    """The client itself does not look into its cache then."""
    import httpx2
    import huggingface_hub

    hub.add("me/mine", {file: WEIGHTS})
    located = locate("hf:me/mine")

    def reset(*arguments, **options):
        raise httpx2.ReadError("Connection reset by peer")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", reset)
    assert locate("hf:me/mine") == located
    refused("hf:me/other", "Connection reset by peer")


@pytest.mark.parametrize(
    "error", [ConnectionResetError(errno.ECONNRESET, "reset"), TimeoutError(errno.ETIMEDOUT, "late")]
)
def test_an_error_of_the_network_is_not_taken_for_the_disks(error, monkeypatch):
    """As Xet, the hub's other way to send files, raises them."""
    import huggingface_hub

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    refused("hf:me/mine", "the hub cannot be reached")


def test_a_hub_that_is_down_is_not_asked_for_every_file(hub):
    hub.faults["HEAD"] = forever(500)
    refused("hf:me/mine", "the hub answers 500")
    assert set(hub.asked("HEAD")) == {"/me/mine/resolve/main/model.safetensors"}


def test_no_hub_at_that_address(hub, monkeypatch):
    """A page of a hotel's network, for one."""
    monkeypatch.setattr(hub, "response", lambda kind, path, headers: (200, {}, b"<html>"))
    refused("hf:me/mine", "X-Repo-Commit")


def test_a_hub_that_gives_no_hash(hub, monkeypatch):
    response = hub.response

    def without(kind, path, headers):
        status, said, body = response(kind, path, headers)
        return status, {**said, "X-Linked-Etag": '"abc-2"'} if "X-Linked-Etag" in said else said, body

    monkeypatch.setattr(hub, "response", without)
    refused("hf:me/mine", "the hub gives no hash of model.safetensors but 'abc-2'")


# Repositories and their files.


def test_what_a_repository_says_of_its_weights(hub):
    located = locate("hf:me/mine")
    preprocessing = Preprocessing(256, 0.9, "bilinear", (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert located == Located(
        located.path, "hf:me/mine", HubConfig("tf_efficientnet_b0", preprocessing, ("cat", "dög"), num_classes=2)
    )
    assert located.path.read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("config", "model", "preprocessing", "classes"),
    [
        ({"architecture": "tf_efficientnet_b0", "pretrained_cfg": {"tag": "ns_jft_in1k"}}, MODEL, None, ()),
        ({"architecture": "efficientnet_b0", "pretrained_cfg": {"tag": "x"}}, "efficientnet_b0", None, ()),
        ({"architecture": "efficientnet_b0"}, "efficientnet_b0", None, ()),
        ({"architecture": "resnet50", "pretrained_cfg": {"input_size": [3, 64, 64]}}, None, Preprocessing(64), ()),
        # As timm wrote it before it had `pretrained_cfg`.
        (
            {"architecture": "mixnet_s", "input_size": [3, 64, 64], "crop_pct": 1},
            "mixnet_s",
            Preprocessing(64, 1.0),
            (),
        ),
        (
            {"pretrained_cfg": {"label_names": ["a"], "mean": None, "input_size": [3, 9, 9]}},
            None,
            Preprocessing(9),
            ("a",),
        ),
        # Of other libraries.
        ({"architectures": ["BertModel"], "id2label": {"0": "a"}}, None, None, ()),
        ({"architecture": None, "pretrained_cfg": None}, None, None, ()),
        ({}, None, None, ()),
    ],
)
def test_configurations(config, model, preprocessing, classes, hub, caplog):
    hub.add("me/mine", {"model.safetensors": WEIGHTS, "config.json": json.dumps(config).encode()})
    located = locate("hf:me/mine")
    assert located == Located(located.path, "hf:me/mine", HubConfig(model, preprocessing, classes))
    assert caplog.records == []


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ({"pretrained_cfg": {"input_size": 3}}, "what jeffnet does not do"),
        ({"pretrained_cfg": {"input_size": [3, 9, 9], "interpolation": "lanczos"}}, "interpolation 'lanczos'"),
        ({"pretrained_cfg": {"input_size": [3, 9, 9], "crop_mode": "corner"}}, "crop_mode 'corner'"),
        ({"pretrained_cfg": {"input_size": [3, 9, 9], "std": [1]}}, "as many of each"),
        ({"model_args": {"global_pool": "catavgmax"}}, "model_args.global_pool 'catavgmax'"),
        ({"model_args": {"output_stride": 4}}, "model_args.output_stride 4"),
        ({"model_args": {"block_args": []}}, "model_args.block_args"),
        ({"model_args": [1]}, "model_args"),
    ],
)
def test_what_a_configuration_asks_for_and_is_not_ours_is_refused(entries, fault, hub):
    config = {"architecture": "mixnet_s", **entries}
    hub.add("me/mine", {"model.safetensors": WEIGHTS, "config.json": json.dumps(config).encode()})
    with pytest.raises(WeightsError, match=f"hf:me/mine.*{fault}"):
        locate("hf:me/mine")


def test_of_pictures_that_are_not_square_all_but_the_size_is_followed(hub, caplog):
    stated = {"input_size": [3, 64, 32], "mean": [0.1, 0.2, 0.3], "crop_pct": 1.0}
    config = {"architecture": "mixnet_s", "pretrained_cfg": stated}
    hub.add("me/mine", {"model.safetensors": WEIGHTS, "config.json": json.dumps(config).encode()})
    assert locate("hf:me/mine").config.preprocessing == Preprocessing(224, 1.0, mean=(0.1, 0.2, 0.3))
    assert "64 x 32, which are not square: 224 px are taken" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_broken_configuration_is_left_aside_aloud(content, hub, caplog):
    hub.add("me/mine", {"model.safetensors": WEIGHTS, "config.json": content})
    located = locate("hf:me/mine")
    assert located == Located(located.path, "hf:me/mine", HubConfig())
    assert "'hf:me/mine': config.json cannot be read" in caplog.text


def test_a_repository_without_configuration(hub):
    hub.add("me/mine", {"model.safetensors": WEIGHTS})
    located = locate("hf:me/mine")
    assert located == Located(located.path, "hf:me/mine", HubConfig())


def test_a_published_repository_needs_no_configuration(hub):
    hub.add(REPOSITORY, {"model.safetensors": WEIGHTS})
    assert locate(f"hf:{REPOSITORY}").config.model == MODEL


def test_a_configuration_that_fails_to_come_is_an_error(hub):
    """Without it weights would silently be used with another preprocessing."""
    hub.faults["HEAD"] = itertools.chain([None], forever(500))
    refused("hf:me/mine", "the hub answers 500")


def test_files_in_the_order_of_preference(hub):
    hub.add("me/mine", {"pytorch_model.bin": OTHER_WEIGHTS, "model.safetensors": WEIGHTS})
    assert locate("hf:me/mine").path.read_bytes() == WEIGHTS
    hub.add("me/mine", {"pytorch_model.bin": OTHER_WEIGHTS, "b.bin": WEIGHTS}, SECOND)
    assert locate("hf:me/mine").path.read_bytes() == OTHER_WEIGHTS


def test_a_named_file(hub):
    files = {
        "model.safetensors": WEIGHTS,
        "a/snapshots/ä b.pth": OTHER_WEIGHTS,
        "config.json": json.dumps(CONFIG).encode(),
    }
    hub.add("me/mine", files)
    located = locate("hf:me/mine/a/snapshots/ä b.pth")
    assert located.path.read_bytes() == OTHER_WEIGHTS and located.config.classes == ("cat", "dög")
    assert located.source == "hf:me/mine/a/snapshots/ä b.pth"


def test_what_a_repository_lacks(hub):
    hub.add("me/mine", {"last.ckpt": WEIGHTS, "README.json": b""})
    refused("hf:me/mine", "me/mine has no model.safetensors and no pytorch_model.bin; it has last.ckpt, README.json")
    refused("hf:me/mine/best.ckpt", "me/mine has no best.ckpt; it has last.ckpt, README.json", "hf:me/mine/FILE")
    hub.faults["api"] = forever(500)
    refused("hf:me/mine", "me/mine has no model.safetensors and no pytorch_model.bin; name a file")


def test_a_pinned_revision(hub):
    hub.add("me/mine", {"model.safetensors": OTHER_WEIGHTS}, SECOND)
    hub.commits["me/mine"] = {"main": SECOND, "v1": FIRST, "refs/pr/1": FIRST}
    assert locate("hf:me/mine").path.read_bytes() == OTHER_WEIGHTS
    for revision in (FIRST, "v1"):
        located = locate(f"hf:me/mine@{revision}")
        assert located.path.read_bytes() == WEIGHTS and located.config.classes == ("cat", "dög")
        assert locate(f"hf:me/mine/model.safetensors@{revision}").path == located.path
    before = len(hub.requests)
    assert locate(f"hf:me/mine@{FIRST}").path.read_bytes() == WEIGHTS
    assert len(hub.requests) == before, "a commit does not change"


def test_a_branch_that_moves_on(hub):
    """Weights and configuration are of the same commit; what is cached of an older one is not taken for the newer."""
    assert locate("hf:me/mine").path.read_bytes() == WEIGHTS
    hub.add("me/mine", {"model.safetensors": OTHER_WEIGHTS}, SECOND)
    located = locate("hf:me/mine")
    assert located.path.read_bytes() == OTHER_WEIGHTS and located.config.classes == ()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf:me/nothing", "the hub has no me/nothing, or a private one; check the spelling; for a private one log in"),
        ("hf:me/mine@v7", "me/mine has no revision 'v7'"),
        ("hf:me/mine@v1/model.safetensors", "the name of a file stands before @"),
        ("hf:mine", "not of the form hf:owner/name"),
        ("hf:", "not of the form hf:owner/name"),
        ("hf://me/mine", "not of the form hf:owner/name"),
        ("hf:me/mine@", "not of the form hf:owner/name"),
        ("hf:me/../../x", "not of the form hf:owner/name"),
        ("hf:me/mine@../../x", "not of the form hf:owner/name"),
        ("hf:me/mi--ne", "Cannot have -- or .."),
        ("hf:me/mi ne", "Repo id must use alphanumeric chars"),
    ],
)
def test_misspelt_sources(source, said, hub):
    refused(source, repr(source), said)


# Tokens.


def test_a_token_goes_to_the_hub_alone(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.gated["me/mine"] = "hf_secret"
    assert locate("hf:me/mine").path.read_bytes() == WEIGHTS
    tokens = {(kind, headers.get("authorization")) for kind, _, headers in hub.requests}
    assert ("HEAD", "Bearer hf_secret") in tokens and ("elsewhere", None) in tokens
    assert ("elsewhere", "Bearer hf_secret") not in tokens


@pytest.mark.parametrize("token", [None, "hf_of_somebody_else"])
def test_a_gated_repository(token, hub, monkeypatch):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.gated["me/mine"] = "hf_secret"
    message = refused(
        "hf:me/mine", "me/mine is gated", f"ask for access at {hub.url}/me/mine", "HF_TOKEN", "hf auth login"
    )
    assert "hf_of_somebody_else" not in message


# What is cached.


def test_an_unchanged_file_is_hashed_once(hub, monkeypatch):
    read, digest = [], download.file_hash
    monkeypatch.setattr(
        download, "file_hash", lambda path, algorithm: read.append(path.name) or digest(path, algorithm)
    )
    for _ in range(3):
        located = locate("hf:me/mine")
    assert len(read) == 2, "weights and configuration"
    os.utime(located.path, ns=(0, 1))
    locate("hf:me/mine")
    assert len(read) == 3


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("source", ["hf:me/mine", f"hf:me/mine@{FIRST}"])
def test_a_cached_file_damaged_later_is_fetched_again(source, file, hub, caplog):
    located = locate(source)
    damage(located.path.parent / file)
    assert locate(source) == located and located.path.read_bytes() == WEIGHTS
    assert f"{located.path.parent / file} is damaged" in caplog.text


def test_a_cached_file_that_cannot_be_mended_is_gone(hub):
    located = locate("hf:me/mine")
    damage(located.path)
    hub.faults["elsewhere"] = forever("wrong")
    refused(
        "hf:me/mine",
        f"is sha256:{hashlib.sha256(WEIGHTS[::-1]).hexdigest()}, not sha256:{hashlib.sha256(WEIGHTS).hexdigest()}",
    )
    assert not os.path.lexists(located.path)


def test_a_damaged_file_that_cannot_be_removed(hub, monkeypatch):
    located = locate("hf:me/mine")
    damage(located.path)

    def keep(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", keep)
    refused("hf:me/mine", str(located.path), "Permission denied", "remove the file")


def test_a_cache_without_links(hub, monkeypatch, offline):
    """Where the cache's names do not tell the hash, the hub is asked once, and what it said is remembered."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    hub.faults["elsewhere"] = iter(["wrong"])
    located = locate("hf:me/mine")
    assert not located.path.is_symlink() and located.path.read_bytes() == WEIGHTS
    # The hash is that of the commit that was downloaded: the branch may have moved on meanwhile.
    assert f"/me/mine/resolve/{FIRST}/model.safetensors" in hub.asked("HEAD")
    located, before = replace(located, source=f"hf:me/mine@{FIRST}"), len(hub.requests)
    assert locate(located.source) == located and len(hub.requests) == before
    damage(located.path)
    assert locate(located.source) == located and located.path.read_bytes() == WEIGHTS
    offline()
    damage(located.path)
    refused(located.source, "offline")


def test_a_cache_that_cannot_be_written(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    refused("hf:me/mine", str(tmp_path / "file" / "hub"), "Not a directory", "HF_HUB_CACHE can point to another folder")
    refused(True, "HF_HUB_CACHE can point to another folder", name=MODEL)
    assert hub.asked("release") == []


def test_where_nothing_can_be_remembered_the_hubs_files_are_still_found(hub, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JEFFNET_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        assert locate("hf:me/mine").path.read_bytes() == WEIGHTS


def test_a_full_disk(hub, tmp_path, monkeypatch):
    from huggingface_hub import file_download

    def fail(url, temp_file, **options):
        temp_file.write(WEIGHTS[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", fail)
    refused("hf:me/mine", str(tmp_path / "hub"), "the disk is full")
    assert unfinished(tmp_path) == []


def _environment(hub, tmp_path, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}
    return {**kept, **settings, **variables}


def _locate_elsewhere(source, environment):
    """In a process of its own."""
    script = "import sys; from jeffnet.weights.hub import locate; print(locate(sys.argv[1]).path); "
    script += "assert 'jax' not in sys.modules"
    return subprocess.Popen(
        [sys.executable, "-c", script, source],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once(hub, tmp_path):
    processes = [_locate_elsewhere("hf:me/mine", _environment(hub, tmp_path)) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    (path,) = {Path(printed.strip()) for printed, _ in results}
    assert path.read_bytes() == WEIGHTS and unfinished(tmp_path) == []


# Without a network.


@pytest.mark.parametrize("source", [True, "hf:me/mine", f"hf:me/mine@{FIRST}", "hf:me/mine/model.safetensors"])
def test_offline_what_is_cached_is_used(source, hub, offline):
    located = locate(source, MODEL)
    before = len(hub.requests)
    offline()
    assert locate(source, MODEL) == located
    assert len(hub.requests) == before


def test_offline_another_file_or_none_at_all_was_cached(hub, offline, caplog):
    hub.add("me/mine", {"pytorch_model.bin": WEIGHTS})
    located = locate("hf:me/mine")
    offline()
    assert locate("hf:me/mine") == located and caplog.records == []


def test_offline_a_configuration_that_was_never_cached_is_missed_aloud(hub, offline, caplog):
    from huggingface_hub import hf_hub_download

    hf_hub_download("me/mine", "model.safetensors")
    offline()
    located = locate("hf:me/mine")
    assert located == Located(located.path, "hf:me/mine", HubConfig())
    assert "config.json" in caplog.text and "not known" in caplog.text


def test_offline_the_cached_release_is_used(hub, offline):
    hub.faults["HEAD"] = forever(500)
    located = locate(True, MODEL)
    offline()
    before = len(hub.requests)
    assert locate(True, MODEL) == located and len(hub.requests) == before


def test_offline_nothing_is_asked_for(hub, offline, tmp_path, monkeypatch):
    """Not even what the client asks for its headers."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _detect_agent

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "agents"))
    monkeypatch.setattr(_detect_agent, "_registry", None)
    offline()
    place = tmp_path / "hub" / "models--me--mine" / "snapshots"
    refused(
        "hf:me/mine",
        f"{str(place / '*' / 'model.safetensors')!r} is not there",
        "`hf download me/mine model.safetensors`",
    )
    refused("hf:me/mine/a.bin@v1", repr(str(place / "v1" / "a.bin")))
    message = refused(True, f"{REPOSITORY.replace('/', '--')}", f"{hub.url}/release/{hub.file}", name=MODEL)
    assert repr(str(tmp_path / "cache" / "release" / hub.file)) in message
    assert hub.requests == []


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "JEFFNET_OFFLINE"])
def test_offline_by_the_environment(variable, hub, tmp_path):
    process = _locate_elsewhere("hf:me/mine", _environment(hub, tmp_path, **{variable: "1"}))
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 1 and "offline" in complaint.splitlines()[-1], complaint
    process = _locate_elsewhere("hf:me/mine", _environment(hub, tmp_path))
    printed, complaint = process.communicate(timeout=60)
    assert process.returncode == 0, complaint
    before = len(hub.requests)
    assert before > 0
    process = _locate_elsewhere("hf:me/mine", _environment(hub, tmp_path, **{variable: "1"}))
    assert process.communicate(timeout=60)[0] == printed and len(hub.requests) == before


def test_importing_it_does_not_import_the_client():
    script = "import sys; import jeffnet.weights.hub; print({'huggingface_hub', 'httpx2', 'jax'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
