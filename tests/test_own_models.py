"""Architectures of one's own: as good as those of the zoo, and their files need no registration to be read."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import jeffnet
from jeffnet.arch import zoo
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ACTIVATIONS, ModelSpec, SqueezeRule, as_spec, spec_attributes, spec_name
from jeffnet.arch.zoo import list_models, model_plan, model_preprocessing, model_spec, register_model, resolve_name
from jeffnet.backends import BACKENDS, convert, load_backend
from jeffnet.bench.measure import _registered
from jeffnet.bench.prepare import prepare
from jeffnet.checkpoints import save_checkpoint, write_checkpoint
from jeffnet.cli.main import main
from jeffnet.errors import ArchitectureError, ConfigError, OutputError, UnknownModelError, WeightsError
from jeffnet.inference.fused import fuse
from jeffnet.ops import activations
from jeffnet.publish import save_pretrained
from jeffnet.train.config import ModelConfig
from jeffnet.weights.card import METADATA_KEY, ModelCard, card_json, parse_card
from jeffnet.weights.checksum import CHECKSUMS_KEY
from jeffnet.weights.load import open_weights, read_weights

# Nothing but 1x1 convolutions, which compile in no time.
STAGES = [["cn_r1_k1_s2_c8"], ["cn_r2_k1_s2_c8_skip"]]
SPEC = ModelSpec(stages=STAGES, stem=8, features=16, act="silu")
PREPROCESSING = Preprocessing(32, 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What the tests register; `clear` makes this process like another one."""
    monkeypatch.setattr(zoo, "_REGISTERED", {})
    return zoo._REGISTERED


@pytest.fixture
def images():
    return np.asarray(jax.random.normal(jax.random.key(0), (2, 32, 32, 3)))


def _logits(backend, model, images):
    apply, variables = load_backend(backend).inference(*(model if isinstance(model, tuple) else (model,)))
    return np.asarray(jax.jit(apply)(variables, images))


def _opened(backend, source, name=None):
    *model, card = load_backend(backend).from_pretrained(source, name)
    return (tuple(model) if len(model) > 1 else model[0]), card


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_of_ones_own_in_every_backend(backend, registry, tmp_path, images):
    """By name, by architecture, from a file in a process that knows neither; fused and converted."""
    register_model("my_net", SPEC, PREPROCESSING)
    create_model, options = load_backend(backend).create_model, {"num_classes": 5, "rng": 1}
    named, unnamed = create_model("my_net", **options), create_model(SPEC, **options)
    expected = _logits(backend, named, images)
    np.testing.assert_array_equal(_logits(backend, unnamed, images), expected)
    save_checkpoint(tmp_path / "named.safetensors", named, "my_net", classes=tuple("abcde"))
    save_checkpoint(tmp_path / "unnamed.safetensors", unnamed, SPEC)
    fused = fuse(named, batch_size=2, image_size=32)
    np.testing.assert_allclose(fused(images), expected, rtol=1e-4, atol=1e-5)
    other = "functional" if backend == "linen" else "linen"
    np.testing.assert_allclose(_logits(other, convert(named, other), images), expected, rtol=1e-4, atol=1e-5)
    registry.clear()
    model, card = _opened(backend, tmp_path / "named.safetensors")
    assert (card.model, card.spec, card.preprocessing) == ("my_net", SPEC, PREPROCESSING)
    assert card.classes == tuple("abcde")
    np.testing.assert_array_equal(_logits(backend, model, images), expected)
    assert _opened(backend, tmp_path / "named.safetensors", "my_net")[1] == card  # as `--model` may say
    # The card serves to write it again.
    assert save_checkpoint(tmp_path / "again.safetensors", model, card) == card
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "named.safetensors").read_bytes()
    model, card = _opened(backend, tmp_path / "unnamed.safetensors")
    assert (card.model, card.spec) == (spec_name(SPEC), SPEC) and card.preprocessing == Preprocessing()
    np.testing.assert_array_equal(_logits(backend, model, images), expected)
    again = create_model(SPEC, pretrained=tmp_path / "named.safetensors", num_classes=5)
    np.testing.assert_array_equal(_logits(backend, again, images), expected)


def test_block_strings_are_an_architecture_with_the_defaults_of_all_else():
    start = load_backend("functional").create_model(STAGES, abstract=True)[0]
    assert start.plan == model_plan(ModelSpec(stages=STAGES))
    register_model("strings", STAGES)
    assert model_spec("strings") == ModelSpec(stages=(("cn_r1_k1_s2_c8",), ("cn_r2_k1_s2_c8_skip",)))
    assert ModelSpec(stages=["cn_r1_k1_s2_c8", ["cn_r2_k1_s2_c8_skip"]]) == model_spec("strings")
    assert model_preprocessing("strings") == Preprocessing()


def test_registered_models_are_listed_and_described(capsys):
    jeffnet.register_model("my_net", SPEC, PREPROCESSING)
    jeffnet.register_model("my_net", replace(SPEC), replace(PREPROCESSING))  # as a module that is imported anew
    assert "my_net" in jeffnet.list_models() and list_models("my_*") == ["my_net"]
    assert list_models() == sorted(list_models())
    assert list_models("my_*", pretrained=True) == list_models("my_*", tags=True) == []
    assert resolve_name("my_net") == "my_net" and model_preprocessing("my_net") == PREPROCESSING
    assert main(["info", "my_net", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["name"], summary["image_size"], summary["pretrained"]) == ("my_net", 32, None)
    assert main(["list", "my_*", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["my_net"]
    with pytest.raises(UnknownModelError, match="my_net"):
        resolve_name("my_nets")
    with pytest.raises(WeightsError, match="'my_net' has no published weights"):
        load_backend("functional").create_model("my_net", pretrained=True)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *((name, "letters, digits, '_' and '-'") for name in ("", "my.net", "my/net", "my net", "net*", "a,b", "é", 7)),
        ("x" * 101, "letters, digits"),
        *(
            (name, "is one of the zoo")
            for name in (
                "efficientnet_b0",
                "pt_efficientnet_b0",
                "tf_efficientnet_b0_ns",
                "mobilenetv2_055",
                "mnasnet_a1",
            )
        ),
    ],
)
def test_a_name_that_cannot_be_ones_own(name, fault):
    with pytest.raises(ArchitectureError, match=fault):
        register_model(name, SPEC)
    assert name not in list_models("[!e-t]*")


def test_a_name_has_one_architecture():
    register_model("my_net", SPEC, PREPROCESSING)
    for other in ((replace(SPEC, act="relu"), PREPROCESSING), (SPEC, None)):
        with pytest.raises(ArchitectureError, match="'my_net' is registered already, with other contents"):
            register_model("my_net", *other)
    assert model_spec("my_net") == SPEC


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ([["cn_r1_k1_s2_c8"], ["cn_r2_k1_s2"]], "'cn_r2_k1_s2': a 'cn' block needs field c"),
        ([], "stages"),
        ([[]], "stages"),
        ([[1]], "stages"),
        ("cn_r1_k1_s2_c8", "'cn_r1_k1_s2_c8' is no architecture"),
        (None, "None is no architecture"),
        ([["cn_r65536_k1_s1_c8"]], "more than 1,000 blocks"),
        ([["cn_r1_k1_s1_c8"]] * 1001, "more than 1,000 blocks"),
        (ModelSpec(stages=STAGES, width=100, stem=60000), "channels are more than 65,536"),
        ([["ir_r1_k3_s1_e1000_c8000"], ["ir_r1_k3_s1_e1000_c8"]], "channels are more than 65,536"),
    ],
)
def test_an_architecture_that_is_no_network_is_an_error_at_once(spec, fault):
    with pytest.raises(ArchitectureError, match=fault):
        register_model("my_net", spec)
    assert list_models("my_*") == []


@pytest.mark.parametrize("model", [None, 7, 1.5, object])
def test_what_is_no_model_is_an_error(model):
    with pytest.raises(UnknownModelError, match="give a name, such as 'efficientnet_b0', a ModelSpec, or stages"):
        load_backend("functional").create_model(model)


@pytest.fixture
def file(tmp_path):
    """A file of a model of its own that nobody registered."""
    model = load_backend("functional").create_model(SPEC, num_classes=2)
    card = ModelCard("my_net", 2, 3, PREPROCESSING, ("cat", "dog"), spec=SPEC)
    save_checkpoint(tmp_path / "model.safetensors", model, card)
    return tmp_path / "model.safetensors"


def _with_card(path, **changes):
    """The file with other entries in its card."""
    with safe_open(path, "numpy") as opened:
        metadata = opened.metadata()
    entry = json.loads(metadata.pop(METADATA_KEY)) | changes
    metadata.pop(CHECKSUMS_KEY, None)
    arrays = {name: np.asarray(array) for name, array in read_weights(path).arrays.items()}
    save_file(arrays, path, {**metadata, METADATA_KEY: json.dumps(entry)})


def _attributes(**changes):
    return json.loads(json.dumps(spec_attributes(SPEC))) | changes


@pytest.mark.parametrize(
    "changes",
    [
        *({"spec": spec} for spec in (None, 1, "x", [], {}, STAGES, {"stem": 8})),
        *({"spec": _attributes(**{name: value})} for name, value in [
            ("surplus", 1), ("stages", None), ("stages", "cn_r1_k1_s1_c8"), ("stages", [["xx_r1"]]), ("stages", [[1]]),
            ("stages", [["cn_r1_k1_s2_c8"] * 10**4]), ("stages", [["cn_r1_k1_s2_c8"]] * 10**4),
            ("stages", [["cn_r9999999_k1_s2_c8"]]), ("stages", [["cn_r1_k1_s2_c99999999999"]]),
            ("stages", [["cn_r1_k" + ".".join(["1"] * 10**5) + "_s2_c8"]]),
            ("stages", [["ir_r1_k3_s1_e" + "9" * 400 + "_c8"]]),
            ("stages", [["cn_r1000_k63_s1_c65536"]]),
            ("stem", "8"), ("stem", 8.5), ("stem", True), ("stem", 0), ("stem", 10**12), ("stem", None),
            ("stem_kernel", 2), ("width", 0), ("width", 1e308), ("width", float("nan")), ("width", "1"), ("depth", []),
            ("depth", [1.0]), ("depth", [1.0, "2"]), ("depth", 1e9), ("divisor", 0), ("act", "tanh"), ("act", None),
            ("act", ["relu"]), ("padding", "valid"), ("norm", "instance"), ("pool_first", 1), ("pool_first", None),
            ("head_norm", 0), ("layer_scale", float("inf")), ("layer_scale", "1"), ("bn_epsilon", 0),
            ("bn_momentum", 1.0), ("drop_rate", -0.1), ("experts", 10**9), ("se", None), ("se", []),
            ("se", {"surplus": 1}), ("se", {"divisor": 0}),
            ("se", {"gate": None}), ("se", {"kind": "other"}), ("se", {"from_expanded": "yes"}),
        ]),
        *({"model": name} for name in (None, 7, "", "my.net", "../net", "a b", "x" * 101)),
    ],
    ids=lambda changes: json.dumps(changes)[:60],
)  # fmt: skip
def test_a_malformed_architecture_in_a_file_is_an_error_that_names_the_file(changes, file):
    _with_card(file, **changes)
    with pytest.raises(WeightsError, match="malformed description of their model") as raised:
        read_weights(file)
    assert str(file) in str(raised.value) and len(str(raised.value)) < 1000


def test_a_file_without_some_attributes_has_their_defaults(file):
    """As files that were written before there were these."""
    expected = read_weights(file).card
    attributes = _attributes()
    for name in ("experts", "layer_scale", "drop_rate"):
        del attributes[name]
    del attributes["se"]["kind"]
    _with_card(file, spec=attributes)
    assert read_weights(file).card == expected


def test_a_card_cannot_change_a_model_of_the_zoo(file, caplog):
    """The file is still what its architecture says, under a name that is nobody's."""
    for name in ("efficientnet_b0", "pt_efficientnet_b0"):
        _with_card(file, model=name)
        card, _ = open_weights(file)
        assert (card.model, card.spec) == (spec_name(SPEC), SPEC)
        assert f"since {name}, as they call it, is another model of the zoo" in caplog.text
        assert model_spec(name) != SPEC
        with pytest.raises(WeightsError, match=f"are of {spec_name(SPEC)}, not of {name}"):
            open_weights(file, name)
        with pytest.raises(WeightsError, match=f"are of {spec_name(SPEC)}, not of {name}"):
            load_backend("functional").create_model(name, num_classes=2, pretrained=file)


def test_a_file_of_another_model_of_the_same_name_is_refused(file):
    register_model("my_net", replace(SPEC, act="relu"))
    with pytest.raises(WeightsError, match=r"another my_net than the registered one.*without a name"):
        load_backend("functional").create_model("my_net", num_classes=2, pretrained=file)
    with pytest.raises(WeightsError, match="another my_net than the registered one"):
        open_weights(file, "my_net")
    assert open_weights(file)[0].spec == SPEC
    with pytest.raises(WeightsError, match="are of my_net, not of efficientnet_b0"):
        open_weights(file, "efficientnet_b0")


def test_cards_of_the_zoo_are_as_before():
    card = ModelCard("efficientnet_b0", 2, 3, PREPROCESSING)
    assert "spec" not in json.loads(card_json(card))
    assert parse_card(card_json(card), "file") == card
    own = replace(card, model="my_net", spec=SPEC)
    assert parse_card(card_json(own), "file") == own


def test_every_architecture_of_the_zoo_is_the_same_after_json():
    specs = {model.spec for model in zoo.MODELS.values()}
    for spec in specs:
        assert as_spec(json.loads(json.dumps(spec_attributes(spec)))) == spec
    assert len({spec_name(spec) for spec in specs}) == len(specs)


def test_a_spec_may_have_the_activations_that_there_are():
    assert {*ACTIVATIONS} == {*activations.ACTIVATIONS}


def test_equal_architectures_have_equal_names():
    assert spec_name(SPEC) == "custom_b1dd545b"  # names are in files: they stay as they are
    assert spec_name(
        ModelSpec(stages=[list(stage) for stage in STAGES], stem=np.int64(8), features=16, act="silu")
    ) == spec_name(SPEC)
    assert spec_name(replace(SPEC, se=SqueezeRule(divisor=8))) != spec_name(SPEC)


def test_formats_without_a_card_need_the_architecture(tmp_path, caplog, file):
    pytest.importorskip("torch")  # to write files of torch.save
    card, arrays = open_weights(file)
    write_checkpoint(tmp_path / "model.msgpack", arrays, card)
    write_checkpoint(tmp_path / "model.pth", arrays, card)
    assert "does not keep the architecture, the preprocessing, the names of the classes" in caplog.text
    with pytest.raises(OutputError, match=r"keras.applications has no my_net"):
        write_checkpoint(tmp_path / "model.keras", arrays, card)
    register_model("my_net", SPEC)
    for source in (tmp_path / "model.msgpack", tmp_path / "model.pth"):
        for name in ("my_net", SPEC):
            described, loaded = open_weights(source, name)
            assert (described.spec, described.model) == (SPEC, resolve_name(name))
            for key, array in arrays.items():
                np.testing.assert_array_equal(loaded[key], array)


def test_commands_take_a_file_for_a_model(tmp_path, file, capsys):
    """Where a file in another format needs the architecture, one of jeffnet's format has it."""
    card, arrays = open_weights(file)
    write_checkpoint(tmp_path / "other.msgpack", arrays, card)
    assert main(["convert", str(tmp_path / "other.msgpack"), str(tmp_path / "a.safetensors"), "--model", "my_net"]) == 1
    assert "unknown model 'my_net'" in capsys.readouterr().err
    command = ["convert", str(tmp_path / "other.msgpack"), str(tmp_path / "a.safetensors"), "--model", str(file)]
    assert main(command) == 0
    assert read_weights(tmp_path / "a.safetensors").card == replace(card, classes=())
    assert main(["info", str(file), "--json"]) == 0
    assert main([*command[:2], str(tmp_path / "b.safetensors"), "--model", str(tmp_path / "other.msgpack")]) == 2
    assert "does not say its architecture" in capsys.readouterr().err


def test_the_readme_of_a_model_has_its_blocks(tmp_path):
    model = load_backend("functional").create_model(SPEC, num_classes=2)
    save_pretrained(tmp_path / "net", model, SPEC)
    text = (tmp_path / "net" / "README.md").read_text()
    assert spec_name(SPEC) in text and "`cn_r1_k1_s2_c8`; `cn_r2_k1_s2_c8_skip`" in text


def test_the_benchmark_prepares_a_registered_model_in_another_process(registry, tmp_path):
    register_model("my_net", SPEC, PREPROCESSING)
    arguments = {"folder": str(tmp_path), "model": "my_net", "weights": None, "image_sizes": [], "batch_sizes": [1]}
    arguments |= {"tasks": ["inference"], "registered": json.loads(json.dumps(_registered("my_net")))}
    assert _registered("efficientnet_b0") is None and _registered(None) is None
    registry.clear()

    class Channel:
        def send(self, message):
            self.message = message

    channel = Channel()
    prepare(arguments, channel)
    assert channel.message["model"] == "my_net" and list(channel.message["macs"]) == ["32"]
    assert parse_card((tmp_path / "card.json").read_text(), "card").spec == SPEC


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            {"name": "efficientnet_b0", "spec": SPEC},
            "model.spec is .* one's own: .*'efficientnet_b0' is one of the zoo",
        ),
        ({"spec": {"stages": STAGES, "surplus": 1}}, "model.spec: ModelSpec has no 'surplus'"),
        ({"spec": "cn"}, "model.spec: 'cn' is no architecture"),
        ({"spec": 3}, "model.spec: 3 is no architecture"),
    ],
)
def test_a_configuration_with_an_architecture_that_is_none(options, fault):
    with pytest.raises(ConfigError, match=fault):
        ModelConfig(**options)
