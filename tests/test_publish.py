"""Models for others: what is written or pushed is all that is needed, and loads to the same bits in every backend."""

import base64
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.backends import BACKENDS, load_backend, to_start
from jeffnet.cli.main import main
from jeffnet.errors import OutputError, WeightsError
from jeffnet.publish import push_to_hub, save_pretrained
from jeffnet.weights.load import read_weights

PREPROCESSING = Preprocessing(32, 1.0, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
DESCRIPTION = {
    "classes": ("cat", "dög"),
    "preprocessing": PREPROCESSING,
    "scores": {"top-1": 91.5, "top-5": 100.0},
    "dataset": "pets",
    "license": "apache-2.0",
}


def _model(name, backend="functional"):
    return load_backend(backend).create_model(name, num_classes=2, rng=3)


def _arrays(model):
    return {key: np.asarray(array) for key, array in to_start(model).arrays.items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_folder_is_loaded_to_the_bit_by_every_backend(backend, tmp_path, small_model):
    model = _model(small_model, backend)
    card = save_pretrained(tmp_path / "cats", model, small_model, **DESCRIPTION)
    assert (card.classes, card.preprocessing) == (DESCRIPTION["classes"], PREPROCESSING)
    assert sorted(file.name for file in (tmp_path / "cats").iterdir()) == ["README.md", "model.safetensors"]
    expected = _arrays(model)
    for target in BACKENDS:
        *loaded, again = load_backend(target).from_pretrained(tmp_path / "cats")
        assert again == card
        for key, array in _arrays(loaded[0] if len(loaded) == 1 else tuple(loaded)).items():
            np.testing.assert_array_equal(array, expected[key])


def test_the_readme_says_how_to_use_it_and_is_right(tmp_path, small_model, capsys, monkeypatch):
    """Its example and its command are run as they stand, beside the folder."""
    monkeypatch.chdir(tmp_path)
    save_pretrained(tmp_path / "cats", _model(small_model), small_model, **DESCRIPTION)
    text = (tmp_path / "cats" / "README.md").read_text(encoding="utf-8")
    for shown in (
        small_model,
        "cat, dög",
        "(0.5, 0.4, 0.3)",
        "91.5 % on pets",
        "license: apache-2.0",
        "library_name: jeffnet",
    ):
        assert shown in text
    assert re.search(r"value: 91.5\n\s+name: top-1", text)
    scope = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], scope)
    assert scope["logits"].shape == (1, 2) and scope["card"].classes == ("cat", "dög")
    Image.new("RGB", (40, 50), "red").save(tmp_path / "photo.jpg")
    command = re.search(r"```sh\njeffnet (.*?)\n```", text)[1].replace("photo.jpg", str(tmp_path / "photo.jpg"))
    assert main([*command.split(), "--json"]) == 0
    assert sorted(json.loads(capsys.readouterr().out)[0]["classes"]) == ["cat", "dög"]


def test_names_in_the_readme_are_shown_as_they_are(tmp_path, small_model):
    classes = ("$x$|\n" + os.fsdecode(b"caf\xe9"), "<b>*`")
    folder = tmp_path / "two words"
    save_pretrained(
        folder, _model(small_model), small_model, **{**DESCRIPTION, "classes": classes, "dataset": "a\n$b$"}
    )
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert r"\$x\$\|\\ncaf\\xe9, \<b\>\*\`" in text and r"91.5 % on a\\n\$b\$ |" in text
    assert f"--weights '{folder.name}'\n" in text and str(tmp_path) not in text


def test_nothing_is_written_over_and_a_failure_leaves_nothing(tmp_path, small_model):
    model = _model(small_model)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "README.md").write_text("precious")
    with pytest.raises(OutputError, match=r"README\.md' exists"):
        save_pretrained(tmp_path / "precious", model, small_model)
    assert [file.name for file in (tmp_path / "precious").iterdir()] == ["README.md"]
    with pytest.raises(WeightsError, match="3 names of classes"):
        save_pretrained(tmp_path / "new", model, small_model, classes=("a", "b", "c"))
    with pytest.raises(WeightsError, match=r"misshapen|missing|strides"):
        save_pretrained(tmp_path / "new", model, "mnasnet_small")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_pretrained(tmp_path / "file" / "new", model, small_model)


class Handler(BaseHTTPRequestHandler):
    """As much of the hub as a client needs to make a repository and to upload files to it."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.status != 200:
            self.answer({"error": "denied"}, self.server.status)
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.server.url}/upload/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/preupload/" in self.path:
            files = [
                {
                    **file,
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            self.server.commits.append([json.loads(line) for line in body.splitlines()])
            self.answer({"commitUrl": f"{self.server.url}/me/cats/commit/1", "commitOid": "1" * 40, "success": True})
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.url}/me/cats", "name": "me/cats"})
        else:
            self.answer({"warnings": [], "errors": []})

    def do_PUT(self):
        self.server.uploads[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def do_GET(self):
        self.answer({"id": "me/cats", "sha": "0" * 40, "siblings": []})

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    server.tokens, server.commits, server.created, server.uploads, server.status = set(), [], [], {}, 200
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # within huggingface_hub, of its HTTP client
def test_a_push_uploads_the_model_and_its_description(hub, tmp_path, small_model):
    """And the uploaded file is the model to the bit."""
    model = _model(small_model)
    address = push_to_hub("me/cats", model, small_model, private=True, token="secret", message="First", **DESCRIPTION)
    assert address == f"{hub.url}/me/cats/commit/1"
    assert hub.created[0]["name"] == "cats" and hub.created[0]["visibility"] == "private"
    assert "Bearer secret" in hub.tokens
    (commit,) = hub.commits
    header = commit[0]["value"]
    assert header["summary"] == "First"
    regular = {entry["value"]["path"]: entry["value"] for entry in commit if entry["key"] == "file"}
    text = base64.b64decode(regular["README.md"]["content"]).decode()
    assert 'from_pretrained("hf:me/cats")' in text.replace("'", '"') and "--weights hf:me/cats" in text
    (large,) = [entry["value"] for entry in commit if entry["key"] == "lfsFile"]
    assert large["path"] == "model.safetensors"
    (tmp_path / "pushed").write_bytes(hub.uploads[large["oid"]])
    arrays = read_weights(tmp_path / "pushed").arrays
    for key, array in _arrays(model).items():
        np.testing.assert_array_equal(np.asarray(arrays[key]), array)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_hub_that_refuses_is_one_error(status, hub, small_model):
    hub.status = status
    with pytest.raises(OutputError, match=r"cannot push to 'me/cats': .*HF_TOKEN") as raised:
        push_to_hub("me/cats", _model(small_model), small_model, token="wrong")
    assert "\n" not in str(raised.value)


def test_offline_nothing_is_pushed(hub, small_model, monkeypatch):
    monkeypatch.setenv("JEFFNET_OFFLINE", "1")
    with pytest.raises(OutputError, match="JEFFNET_OFFLINE"):
        push_to_hub("me/cats", _model(small_model), small_model)
    assert not hub.tokens


def test_what_does_not_fit_is_not_uploaded(hub, small_model):
    with pytest.raises(WeightsError):
        push_to_hub("me/cats", _model(small_model), "mnasnet_small")
    assert not hub.created and not hub.uploads
