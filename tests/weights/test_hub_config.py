"""A `config.json` beside weights: followed as timm follows it, in a repository and in a clone of one."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import model_plan, model_preprocessing
from jeffnet.errors import WeightsError
from jeffnet.linen import create_model, from_pretrained
from jeffnet.ops.init import initial_arrays
from jeffnet.weights.card import ModelCard
from jeffnet.weights.formats.safetensors import save_model
from jeffnet.weights.hub_config import check_arguments, parse_config
from jeffnet.weights.load import open_weights
from jeffnet.weights.naming import to_source_names
from jeffnet.weights.timm import TIMM

NAME, TIMM_NAME = "mnasnet_small", "mnasnet_small"
PLAN = model_plan(NAME, num_classes=2)
CONFIG = {
    "architecture": TIMM_NAME,
    "num_classes": 2,
    "label_names": ["cat", "dog"],
    "pretrained_cfg": {
        "input_size": [3, 64, 64],
        "test_input_size": [3, 72, 72],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "crop_pct": 0.9,
        "test_crop_pct": 1.0,
        "crop_mode": "squash",
        "interpolation": "bilinear",
        "label_names": ["a", "b"],
        "num_classes": 5,
    },
}
CARD = ModelCard(
    NAME, 2, 3, Preprocessing(72, 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3, "squash", 64), ("cat", "dog"), "avg", 32
)


@pytest.fixture
def clone(tmp_path):
    """Makes the folder of a cloned repository."""

    def make(config=CONFIG, file="model.safetensors", plan=PLAN):
        state = to_source_names(initial_arrays(plan, 0), TIMM, plan)
        (tmp_path / "clone").mkdir()
        if file.endswith(".safetensors"):
            save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, tmp_path / "clone" / file)
        else:
            torch = pytest.importorskip("torch")
            tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
            torch.save(tensors, tmp_path / "clone" / file)
        (tmp_path / "clone" / "config.json").write_text(json.dumps(config))
        return tmp_path / "clone"

    return make


def test_a_clone_is_read_with_its_configuration(clone):
    folder = clone()
    for source in (folder, folder / "model.safetensors", str(folder)):
        card, _ = open_weights(source)
        assert card == CARD
    assert open_weights(folder, NAME)[0] == CARD


def test_the_older_file_of_a_clone_is_read_too(clone):
    pytest.importorskip("torch")
    folder = clone(file="pytorch_model.bin")
    assert open_weights(folder)[0] == open_weights(folder / "pytorch_model.bin")[0] == CARD


def test_options_of_the_network_are_followed(clone):
    folder = clone({**CONFIG, "model_args": {"global_pool": "avgmax", "output_stride": 16, "drop_rate": 0.3}})
    model, _, card = from_pretrained(folder)
    assert (
        (card.global_pool, card.output_stride) == (model.plan.global_pool, model.plan.output_stride) == ("avgmax", 16)
    )
    with pytest.raises(WeightsError, match="global_pool 'avgmax', this"):
        create_model(NAME, num_classes=2, pretrained=folder)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"model_args": {"bn_eps": 1e-3}}, "model_args.bn_eps 0.001 in config.json cannot be followed: .* has 1e-05"),
        ({"model_args": {"pad_type": "same"}}, "model_args.pad_type 'same'"),
        ({"model_args": {"act_layer": "swish"}}, "model_args.act_layer 'swish'.*has 'relu'"),
        ({"model_args": {"stem_size": 16}}, "model_args.stem_size 16.*does not know it"),
        ({"model_args": {"in_chans": 1}}, "have 3 channels, their config.json says 1"),
        ({"num_classes": 7}, "have 2 classes, their config.json says 7"),
        ({"architecture": "tf_mobilenetv3_small_100"}, "are of tf_mobilenetv3_small_100, not of mnasnet_small"),
    ],
)
def test_another_network_is_refused_by_name(changes, fault, clone):
    folder = clone({**CONFIG, **changes})
    for load in (open_weights, lambda path, name: create_model(name, num_classes=2, pretrained=path)):
        with pytest.raises(WeightsError, match=f"clone.*{fault}"):
            load(folder, NAME)


def test_arguments_that_say_what_the_model_is_are_no_fault():
    same = {"pad_type": "same", "bn_eps": 1e-3, "act_layer": "swish", "bn_momentum": 0.1, "scriptable": None}
    config = parse_config({"architecture": "tf_efficientnet_b0", "model_args": same}, "a")
    check_arguments(config, "tf_efficientnet_b0", "a")
    with pytest.raises(WeightsError, match="pad_type"):
        check_arguments(config, "efficientnet_b0", "a")


def test_a_clone_without_its_large_files_says_how_to_get_them(clone):
    folder = clone()
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 9\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(WeightsError, match=r"model\.safetensors.*git lfs pull"):
        open_weights(folder)


def test_names_of_other_classes_than_there_are_are_left_aside_aloud(clone, caplog):
    assert open_weights(clone({**CONFIG, "label_names": ["a", "b", "c"]}))[0].classes == ()
    assert "names 3 classes, and they have 2" in caplog.text


def test_other_configurations_are_no_matter(clone):
    """Of a run of jeffnet's, or of another library; and a file with a card needs none."""
    folder = clone({"model": {"name": NAME}, "data": {}})
    assert open_weights(folder, NAME)[0].preprocessing == model_preprocessing(NAME)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_model(folder / "own.safetensors", initial_arrays(PLAN, 0), own := replace(CARD, classes=("x", "y")))
    assert open_weights(folder / "own.safetensors")[0] == own


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_broken_configuration_of_a_clone_is_left_aside_aloud(content, clone, caplog):
    folder = clone()
    (folder / "config.json").write_bytes(content)
    assert open_weights(folder, NAME)[0].preprocessing == model_preprocessing(NAME)
    assert "config.json cannot be read" in caplog.text


def test_the_configuration_is_read_as_timm_reads_it(timm, clone):
    from timm.data import resolve_data_config
    from timm.models._hub import load_model_config_from_path

    folder = clone()
    for config in (CONFIG, {"architecture": TIMM_NAME, **CONFIG["pretrained_cfg"]}):
        (folder / "config.json").write_text(json.dumps(config))
        expected, name, _ = load_model_config_from_path(folder)
        data = resolve_data_config(pretrained_cfg=expected, use_test_size=True)
        ours = parse_config(config, "a")
        pre = ours.preprocessing
        assert (3, pre.image_size, pre.image_size) == tuple(data["input_size"])
        assert pre.train_size == expected["input_size"][-1]
        assert (pre.crop_pct, pre.interpolation) == (data["crop_pct"], data["interpolation"])
        assert (list(pre.mean), list(pre.std), pre.crop_mode) == (data["mean"], data["std"], data["crop_mode"])
        assert (list(ours.classes), ours.num_classes) == (expected["label_names"], expected["num_classes"])
        assert name == TIMM_NAME and ours.model == NAME


@pytest.mark.slow
def test_predictions_of_a_clone_are_timms(timm, clone):
    """The whole of it: pictures, network and names, from the same two files."""
    torch = pytest.importorskip("torch")
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    from jeffnet.data.preprocess import EvalTransform
    from jeffnet.ops.image import normalize

    folder = clone({**CONFIG, "model_args": {"global_pool": "avgmax"}})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 60, 3)).astype(np.uint8))
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(theirs, use_test_size=True), is_training=False)
    with torch.no_grad():
        expected = theirs(transform(image)[None]).numpy()
    model, variables, card = from_pretrained(folder)
    pixels = jnp.asarray(EvalTransform(card.preprocessing)(image))[None]
    logits = model.apply(variables, normalize(pixels, card.preprocessing.mean, card.preprocessing.std))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("entry", ["label_names", "labels"])
def test_names_of_classes_by_number_are_read(clone, entry):
    """As timm's users may give them; `labels` is timm's older name of the entry."""
    config = {name: value for name, value in CONFIG.items() if name != "label_names"}
    weights = {name: value for name, value in CONFIG["pretrained_cfg"].items() if name != "label_names"}
    folder = clone({**config, "pretrained_cfg": weights, entry: {"1": "dog", "0": "cat"}})
    assert open_weights(folder)[0].classes == ("cat", "dog")


@pytest.mark.parametrize("names", [{"cat": 0, "dog": 1}, {"1": "cat", "2": "dog"}, "cat, dog"])
def test_names_without_an_order_are_left_aside_aloud(clone, caplog, names):
    assert open_weights(clone({**CONFIG, "label_names": names}))[0].classes == ()
    assert "neither a list nor an object from 0, 1, ..." in caplog.text
