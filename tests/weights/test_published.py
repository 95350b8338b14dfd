"""`pretrained=True` from end to end: a model's name in, its published weights from the hub or the release out."""

import hashlib
import json
import logging
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from jeffnet.arch.imagenet import LABEL_SETS, class_titles, known_classes, label_set
from jeffnet.arch.model import Model, WeightSet
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec
from jeffnet.arch.zoo import MODELS, default_num_classes, model_plan, model_preprocessing
from jeffnet.backends import BACKENDS, load_backend, to_start
from jeffnet.checkpoints import save_checkpoint, write_checkpoint
from jeffnet.cli.main import main
from jeffnet.errors import WeightsError
from jeffnet.ops.init import initial_arrays
from jeffnet.publish import save_pretrained
from jeffnet.train.config import Config, DataConfig, ModelConfig
from jeffnet.train.setup import run_preprocessing
from jeffnet.validation.candidates import select_models
from jeffnet.weights.card import ModelCard
from jeffnet.weights.load import read_weights

NAME, TIMM_NAME = "tf_mobilenetv3_small_075", "tf_mobilenetv3_small_075.in1k"


class Handler(BaseHTTPRequestHandler):
    """Files by their paths, with the headers by which the hub's client knows them."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        body = self.server.files.get(self.path)
        self.server.asked.append(self.path)
        self.send_response(200 if body is not None else 404)
        body = body or b""
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def arrays():
    return initial_arrays(model_plan(NAME), 5)


@pytest.fixture(scope="module")
def files(arrays, tmp_path_factory):
    """The weights as timm and as the release have them."""
    folder = tmp_path_factory.mktemp("published")
    card = ModelCard(NAME, 1000, 3, Preprocessing())
    write_checkpoint(folder / "timm", arrays, card, "timm")
    write_checkpoint(folder / "npz", arrays, card, "npz")
    return {form: (folder / form).read_bytes() for form in ("timm", "npz")}


@pytest.fixture
def server(files, tmp_path, monkeypatch):
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    digest = hashlib.sha256(files["npz"]).hexdigest()[:8]
    server.files = {
        f"/timm/{TIMM_NAME}/resolve/main/model.safetensors": files["timm"],
        f"/release/{NAME}-{digest}.npz": files["npz"],
    }
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("JEFFNET_RELEASE_URL", f"{url}/release")
    monkeypatch.setenv("JEFFNET_CACHE", str(tmp_path / "cache"))
    weights = replace(MODELS[NAME].weights, sha256=digest)
    monkeypatch.setitem(MODELS, NAME, replace(MODELS[NAME], weights=weights))
    yield server
    server.shutdown()
    server.server_close()


def _equal(model, arrays):
    start = to_start(model)
    for key, array in start.arrays.items():
        np.testing.assert_array_equal(np.asarray(array), arrays[key], err_msg=key)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [NAME, TIMM_NAME])
def test_one_argument_loads_the_published_weights(backend, name, server, arrays):
    """And of a second model, nothing is downloaded again."""
    _equal(load_backend(backend).create_model(name, pretrained=True), arrays)
    loads = [path for path in server.asked if path.endswith("model.safetensors")]
    *model, card = load_backend(backend).from_pretrained(name)
    _equal(model[0] if len(model) == 1 else tuple(model), arrays)
    assert card.model == NAME and len(card.classes) == 1000 and card.preprocessing.mean == (0.5, 0.5, 0.5)
    # The client asks whether there is something newer, by HEAD, and reads nothing.
    assert len([path for path in server.asked if path.endswith("model.safetensors")]) <= len(loads) + 1


def test_the_release_is_the_second_source(server, arrays, caplog):
    del server.files[f"/timm/{TIMM_NAME}/resolve/main/model.safetensors"]
    with caplog.at_level(logging.WARNING, "jeffnet"):
        _equal(load_backend("functional").create_model(NAME, pretrained=True), arrays)
    assert "those of the original release" in caplog.text


def test_both_sources_failing_is_one_error(server, caplog):
    """And the log announces no weights that are not there."""
    server.files.clear()
    with pytest.raises(
        WeightsError, match=r"cannot be had: hf:timm/.*; the original release: .*http://.*npz.*or give the path"
    ):
        load_backend("functional").create_model(NAME, pretrained=True)
    assert "using those" not in caplog.text


def test_other_classes_are_adapted_on_request_only(server, arrays, caplog):
    create = load_backend("functional").create_model
    with pytest.raises(WeightsError, match="pass num_classes=1000 to keep"):
        create(NAME, pretrained=True, num_classes=5)
    with caplog.at_level("INFO", "jeffnet"):
        _, variables = create(NAME, pretrained=True, num_classes=5, adapt=True)
    assert variables["params"]["classifier.kernel"].shape == (1024, 5)
    np.testing.assert_array_equal(variables["params"]["conv_head.kernel"], arrays["conv_head.kernel"])
    assert "new classifier of 5 classes" in caplog.text


@pytest.fixture
def of_many_classes(server, tmp_path, monkeypatch):
    """A small model whose published weights are of ImageNet-12k, and their arrays."""
    weights = WeightSet(classes="imagenet12k")
    spec = ModelSpec(stages=(("cn_r1_k1_s2_c8",),), stem=8, features=8)
    monkeypatch.setitem(MODELS, "many", Model(spec, Preprocessing(32, 1.0, train_size=24), "many.in12k", weights))
    arrays = initial_arrays(model_plan("many", num_classes=11_821), 3)
    write_checkpoint(tmp_path / "many", arrays, ModelCard("many", 11_821, 3, Preprocessing()), "timm")
    server.files["/timm/many.in12k/resolve/main/model.safetensors"] = (tmp_path / "many").read_bytes()
    return arrays


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_more_classes_make_a_model_of_as_many(backend, of_many_classes):
    backend = load_backend(backend)
    _equal(backend.create_model("many", pretrained=True), of_many_classes)
    *model, card = backend.from_pretrained("many")
    _equal(model[0] if len(model) == 1 else tuple(model), of_many_classes)
    assert card.classes == tuple(label_set("imagenet12k")) and card.num_classes == 11_821
    assert (card.preprocessing.image_size, card.preprocessing.train_size) == (32, 24)


def test_the_number_of_classes_is_that_of_the_weights_that_are_asked_for(of_many_classes, tmp_path):
    create = load_backend("functional").create_model
    for options, classes in (
        ({}, 11_821),
        ({"num_classes": 1000}, 1000),
        ({"pretrained": True}, 11_821),
        ({"pretrained": "many"}, 11_821),
        ({"pretrained": True, "num_classes": 7, "adapt": True}, 7),
    ):
        assert create("many", **options)[1]["params"]["classifier.bias"].shape == (classes,)
    with pytest.raises(WeightsError, match="pass num_classes=11821 to keep"):
        create("many", pretrained=True, num_classes=1000)
    for name, pretrained, classes in (
        ("efficientnet_b5.sw_in12k", True, 11_821),
        ("efficientnet_b5", "efficientnet_b5.sw_in12k", 11_821),
        ("mobilenetv3_large_100.miil_in21k", True, 11_221),
        ("tf_efficientnetv2_b3.in21k", True, 21_843),
        ("tf_efficientnetv2_b3", True, 1000),
        ("tf_efficientnetv2_b3.in21k", None, 21_843),
        ("tf_efficientnetv2_b3", None, 1000),
        ("tf_efficientnetv2_b3.in21k", "tf_efficientnetv2_b3", 1000),
        ("efficientnet_b5.sw_in12k", "a/path", 11_821),
    ):
        assert create(name, pretrained=pretrained, abstract=True)[0].plan.num_classes == classes


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_name_of_weights_means_their_number_of_classes_in_every_backend(backend, of_many_classes):
    """As in timm, also where no weights are loaded."""
    made = load_backend(backend).create_model("many", abstract=True)
    assert (made[0] if isinstance(made, tuple) else made).plan.num_classes == 11_821
    for name, model in MODELS.items():
        of_name = LABEL_SETS[model.weights.classes] if model.weights else 1000
        assert model_plan(name).num_classes == default_num_classes(name) == of_name
        assert model_plan(name, num_classes=3).num_classes == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_of_published_weights_is_written_with_the_names_of_its_classes(backend, of_many_classes, tmp_path):
    """Whichever function loaded it, and without its card."""
    made = load_backend(backend).create_model("many", pretrained=True)
    *model, _ = load_backend(backend).from_pretrained("many")
    save_checkpoint(tmp_path / "made.safetensors", made, "many")
    save_pretrained(tmp_path / "loaded", model[0] if len(model) == 1 else tuple(model), "many")
    for path in (tmp_path / "made.safetensors", tmp_path / "loaded"):
        assert read_weights(path).card.classes == known_classes(11_821)


def test_a_classifier_that_was_trained_further_has_no_names_by_itself(server, tmp_path, caplog):
    """It may be of 1,000 other classes."""
    model, variables = load_backend("functional").create_model(NAME, pretrained=True)
    half = load_backend("functional").create_model(NAME, pretrained=True, param_dtype="bfloat16")
    assert save_checkpoint(tmp_path / "half.safetensors", half, NAME).classes == known_classes(1000)
    assert "names of its classes" not in caplog.text
    params = variables["params"]
    others = {"classifier.bias": params["classifier.bias"] + 1e-3}
    changed = {**variables, "params": {**params, **others}}
    assert save_checkpoint(tmp_path / "a.safetensors", (model, changed), NAME).classes == ()
    assert "without names of its classes" in caplog.text and "known_classes(1000)" in caplog.text
    trunk = {**variables, "params": {**params, "conv_head.kernel": params["conv_head.kernel"] * 2}}
    assert save_checkpoint(tmp_path / "b.safetensors", (model, trunk), NAME).classes == known_classes(1000)
    given = ["other"] * 1000
    assert save_checkpoint(tmp_path / "c.safetensors", (model, variables), NAME, classes=given).classes == (*given,)


def test_pictures_are_named_by_the_classes_of_the_weights(of_many_classes, tmp_path, capsys):
    """Those that are published, and those that were written again."""
    Image.new("RGB", (40, 50), "red").save(tmp_path / "a.jpg")
    model = load_backend("functional").create_model("many", pretrained=True)
    save_checkpoint(tmp_path / "a.safetensors", model, "many")
    titles = class_titles(tuple(label_set("imagenet12k")))
    for arguments in (["--model", "many"], ["--weights", str(tmp_path / "a.safetensors")]):
        assert main(["predict", str(tmp_path / "a.jpg"), *arguments, "--json"]) == 0
        assert set(json.loads(capsys.readouterr().out)[0]["classes"]) <= set(titles)


@pytest.mark.parametrize("old", ["pt_mobilenetv3_small_100", "pt_mobilenetv3_small_100.lamb_in1k"])
def test_older_names_are_the_same_models_everywhere(old, tmp_path, capsys):
    name = "mobilenetv3_small_100"
    arrays = initial_arrays(model_plan(old), 0)
    for backend in BACKENDS:
        _equal(load_backend(backend).create_model(old, rng=0), arrays)
    card = ModelCard(old, 1000, 3, model_preprocessing(old))
    write_checkpoint(tmp_path / "old.safetensors", arrays, card)
    assert read_weights(tmp_path / "old.safetensors").card.model == name
    *model, card = load_backend("functional").from_pretrained(tmp_path / "old.safetensors")
    _equal(tuple(model), arrays)
    assert card.model == name
    for command in (["info", old], ["info", str(tmp_path / "old.safetensors")]):
        assert main([*command, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert name in (found.get("name"), found.get("model"))
    assert [candidate.name for candidate in select_models(old)] == [name]
    config = Config(model=ModelConfig(name=old), data=DataConfig(path="-"))
    assert run_preprocessing(config) == model_preprocessing(name) and model_plan(old) == model_plan(name)


def test_the_commands_take_published_weights(server, tmp_path, capsys):
    Image.new("RGB", (40, 50), "red").save(tmp_path / "a.jpg")
    assert main(["predict", str(tmp_path / "a.jpg"), "--model", NAME, "--image-size", "32", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert len(first[0]["classes"]) == 5
    assert main(["convert", NAME, str(tmp_path / "own.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == NAME
    weights = ["--weights", str(tmp_path / "own.safetensors")]
    assert main(["predict", str(tmp_path / "a.jpg"), *weights, "--image-size", "32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert main(["convert", NAME, str(tmp_path / "seven.safetensors"), "--num-classes", "7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_classes"] == 7
    assert main(["predict", str(tmp_path / "a.jpg")]) == 2
    assert "give --model NAME" in capsys.readouterr().err


def test_a_model_without_published_weights_says_so(server):
    with pytest.raises(WeightsError, match="'efficientnet_b8' has no published weights"):
        load_backend("functional").create_model("efficientnet_b8", pretrained=True)
    assert not server.asked


def test_offline_says_where_they_would_go(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JEFFNET_OFFLINE", "1")
    with pytest.raises(WeightsError) as raised:
        load_backend("functional").create_model(NAME, pretrained=True)
    assert "offline" in str(raised.value) and str(tmp_path / "cache") in str(raised.value)
    assert not server.asked
    assert main(["predict", "a.jpg", "--model", NAME]) == 1
    assert len(capsys.readouterr().err.splitlines()) <= 2


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within Keras, of its own variables
@pytest.mark.parametrize(
    ("form", "name", "ending", "needs"),
    [
        ("timm", "tf_mobilenetv3_small_075", ".safetensors", "safetensors"),
        ("timm", "tf_mobilenetv3_small_075", ".pth", "torch"),
        ("npz", "tf_mobilenetv3_small_075", ".npz", "numpy"),
        ("efficientnet_pytorch", "tf_efficientnet_b0", ".pth", "torch"),
        ("tensorflow", "tf_mobilenetv3_small_075", ".ckpt", "tensorflow"),
        ("keras", "tf_mobilenetv2_035", ".keras", "keras"),
        ("keras", "tf_mobilenetv3_small_075", ".weights.h5", "keras"),
    ],
)
def test_convert_to_other_libraries_and_back(form, name, ending, needs, tmp_path, capsys):
    """By the command line, to the bit; whatever the file is called then."""
    pytest.importorskip(needs)
    arrays = initial_arrays(model_plan(name, num_classes=4), 7)
    own, there, back = tmp_path / "own.safetensors", tmp_path / f"there{ending}", tmp_path / "back.safetensors"
    write_checkpoint(own, arrays, ModelCard(name, 4, 3, model_preprocessing(name)))
    assert main(["convert", str(own), str(there), "--to", form]) == 0, capsys.readouterr().err
    left = {path.name for path in tmp_path.iterdir()} - {own.name}
    assert left and all(each.startswith(there.name) for each in left)
    if there.exists():
        there = there.rename(tmp_path / "renamed")
    assert main(["convert", str(there), str(back), "--model", name, "--json"]) == 0, capsys.readouterr().err
    file = read_weights(back)
    assert (file.card.model, file.card.num_classes) == (name, 4)
    assert file.arrays.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(file.arrays[key]), array)
    wrong_ending = form not in ("timm", "efficientnet_pytorch")  # these may be written as safetensors
    assert main(["convert", str(own), str(tmp_path / "own.safetensors"), "--to", form]) == 1 + wrong_ending


@pytest.mark.parametrize("form", ["efficientnet_pytorch", "tensorflow", "keras"])
def test_a_library_that_has_no_such_model_is_told_as_such(form, tmp_path, capsys):
    pytest.importorskip({"tensorflow": "tensorflow", "keras": "keras"}.get(form, "numpy"))
    name = "mixnet_s"
    own = tmp_path / "own.safetensors"
    write_checkpoint(own, initial_arrays(model_plan(name), 0), ModelCard(name, 1000, 3, model_preprocessing(name)))
    assert main(["convert", str(own), str(tmp_path / "there.keras"), "--to", form]) == (1 if form == "keras" else 2)
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [own.name]
