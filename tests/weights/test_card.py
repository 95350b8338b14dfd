"""Weights files: what is written comes back bit by bit, and what is no whole weights file is told as such."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import model_plan, model_preprocessing
from jeffnet.errors import JeffnetError, OutputError, UnknownModelError, WeightsError
from jeffnet.linen import create_model, from_pretrained, to_canonical
from jeffnet.ops.init import initial_arrays, new_classifier
from jeffnet.weights.card import METADATA_KEY, ModelCard
from jeffnet.weights.checksum import CHECKSUMS_KEY
from jeffnet.weights.formats import safetensors
from jeffnet.weights.formats.safetensors import save_model
from jeffnet.weights.load import describe_weights, load_weights, open_weights, read_weights
from jeffnet.weights.timm import TIMM

NAME = "mnasnet_small"
PLAN = model_plan(NAME, num_classes=2, in_chans=1)
CARD = ModelCard(NAME, 2, 1, Preprocessing(28, 1.0, "bilinear", (0.5,), (0.25,)), ("cat", "dög"))
SIZE = len(initial_arrays(PLAN, 0))


@pytest.fixture
def path(tmp_path):
    """A model file."""
    save_model(tmp_path / "model.safetensors", initial_arrays(PLAN, 0), CARD)
    return tmp_path / "model.safetensors"


def _rewrite(path, metadata):
    save_file({name: np.asarray(array) for name, array in read_weights(path).arrays.items()}, path, metadata=metadata)


def _timm_file(path, name=NAME, **options):
    plan = model_plan(name, **options)
    arrays = {}
    for key, value in initial_arrays(plan, 0).items():
        module, _, leaf = key.rpartition(".")
        theirs = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(leaf, leaf)
        turned = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        arrays[f"{module}.{theirs}"] = np.ascontiguousarray(turned)
    save_file(arrays, path)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_round_trip_is_bit_equal(dtype, tmp_path):
    arrays = {name: array.astype(dtype) for name, array in initial_arrays(PLAN, 0).items()}
    arrays["conv_head.kernel"] = arrays["conv_head.kernel"].T.copy().T  # not contiguous
    save_model(tmp_path / "a", arrays, CARD)
    file = read_weights(tmp_path / "a")
    assert file.card == CARD and file.source == str(tmp_path / "a")
    assert file.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert file.arrays[name].dtype == array.dtype and file.arrays[name].shape == array.shape
        assert file.arrays[name].read().tobytes() == array.tobytes()
    loaded = load_weights(tmp_path / "a", PLAN)
    assert all(loaded[name].tobytes() == arrays[name].tobytes() for name in arrays)


def test_the_same_model_is_the_same_file(path):
    """Whatever the order in which the library writes the metadata."""
    before = path.read_bytes()
    for _ in range(5):
        save_model(path, initial_arrays(PLAN, 0), CARD)
        assert path.read_bytes() == before


def test_jax_arrays_are_written(tmp_path):
    model, variables = create_model(NAME, num_classes=2, in_chans=1)
    save_model(tmp_path / "a", to_canonical(variables, model.plan), CARD)
    _, loaded, card = from_pretrained(tmp_path / "a")
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert card == CARD


def test_the_file_can_be_read_by_others_as_the_umask_says(path):
    """Not only by its owner, as temporary files are."""
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("bug")])
def test_a_failure_leaves_the_old_file_and_nothing_else(error, path, monkeypatch):
    """Even one that comes when half of the new file is written."""
    before = path.read_bytes()

    def fail(tensors, filename, metadata):
        with open(filename, "wb") as file:
            file.write(before[:100])
        raise error

    monkeypatch.setattr(safetensors, "save_file", fail)
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as raised:
        save_model(path, initial_arrays(PLAN, 1), CARD)
    if expected is OutputError:
        assert str(path) in str(raised.value) and "No space left on device" in str(raised.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_new_file_replaces_the_old(path):
    save_model(path, initial_arrays(PLAN, 1), CARD)
    loaded = read_weights(path).arrays["conv_stem.kernel"]
    np.testing.assert_array_equal(loaded, initial_arrays(PLAN, 1)["conv_stem.kernel"])
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="No such file or directory"):
        save_model(tmp_path / "missing" / "model.safetensors", initial_arrays(PLAN, 0), CARD)


def test_writing_over_a_folder_is_an_error(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(OutputError, match=re.escape(str(tmp_path / "model.safetensors"))):
        save_model(tmp_path / "model.safetensors", initial_arrays(PLAN, 0), CARD)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_missing_file(tmp_path):
    with pytest.raises(WeightsError, match=r"nothing.safetensors': does not exist"):
        read_weights(tmp_path / "nothing.safetensors")


def test_a_folder(tmp_path):
    with pytest.raises(WeightsError, match="is a folder, but no checkpoint of Orbax"):
        read_weights(tmp_path)


def test_a_flipped_bit_in_any_array_is_an_error(path):
    """One in every array, so that none is left out of the checksums."""
    content, header = path.read_bytes(), int.from_bytes(path.read_bytes()[:8], "little")
    entries, chance = json.loads(content[8 : 8 + header]), np.random.default_rng(0)
    for name in entries.keys() - {"__metadata__"}:
        damaged = bytearray(content)
        start, end = (8 + header + offset for offset in entries[name]["data_offsets"])
        damaged[chance.integers(start, end)] ^= 1 << chance.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match=f"are damaged: {re.escape(name)} is not what was written"):
            read_weights(path).arrays[name].read()
        with pytest.raises(WeightsError, match=re.escape(str(path))):
            open_weights(path)


def test_a_flipped_bit_in_the_description_is_an_error(path):
    """In a class's name, which would still be a name, and in a number, which would still be one."""
    content = path.read_bytes()
    for text in (b"cat", b"0.25"):
        damaged = bytearray(content)
        damaged[content.index(text) + len(text) - 1] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match="the description of its model is not what was written"):
            read_weights(path)


def test_a_file_of_ours_without_checksums_is_read(path):
    """As all were before there were any."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    expected = {name: array.read() for name, array in read_weights(path).arrays.items()}
    assert metadata.pop(CHECKSUMS_KEY)
    _rewrite(path, metadata)
    card, arrays = open_weights(path)
    assert card == CARD
    jax.tree.map(np.testing.assert_array_equal, arrays, expected)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 10**5, '{"metadata": "", "arrays": {"a": 1}}'])
def test_malformed_checksums_are_an_error(text, path):
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    _rewrite(path, {**metadata, CHECKSUMS_KEY: text})
    with pytest.raises(WeightsError, match="are damaged: its list of checksums cannot be read"):
        read_weights(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file(share, path):
    """At any place: before the header, in it, among the arrays, and just before the end."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(WeightsError, match="not a whole safetensors file") as raised:
        read_weights(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(1000), b"hello", bytes(64), b"\xff" * 64, b'{"a": 1}'])
def test_another_kind_of_file(content, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(WeightsError):
        read_weights(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [({}, "no state dict"), ({"weight": np.ones((2, 2), np.float32)}, "neither jeffnet's nor a timm, .* 1 arrays")],
    ids=["empty", "another-model"],
)
def test_foreign_safetensors(arrays, message, tmp_path):
    save_file(arrays, tmp_path / "a.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / "a.safetensors")


def _card_entry(**changes):
    entry = {
        "format": 1,
        "model": NAME,
        "num_classes": 2,
        "in_chans": 1,
        "classes": ["cat", "dog"],
        "preprocessing": {
            "image_size": 28,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": [0.5],
            "std": [0.25],
        },
    }
    return entry | changes


def test_the_card_is_documented_json(path):
    """What other programs may read; the reference for the malformed ones below."""
    for name in (NAME, f"pt_{NAME}"):  # an older name, and no size for training
        _rewrite(path, {METADATA_KEY: json.dumps(_card_entry(model=name, classes=["cat", "dög"]))})
        assert read_weights(path).card == CARD


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "1",
        "{}",
        *(
            json.dumps({key: value for key, value in _card_entry().items() if key != left_out})
            for left_out in _card_entry()
            if left_out not in ("format",)
        ),
        json.dumps(_card_entry(surplus=1)),
        json.dumps(_card_entry(model="nothing")),
        json.dumps(_card_entry(model=None)),
        json.dumps(_card_entry(model=["mnasnet_small"])),
        json.dumps(_card_entry(classes=None)),
        json.dumps(_card_entry(preprocessing=None)),
        json.dumps(_card_entry(preprocessing={})),
        json.dumps(_card_entry(preprocessing=_card_entry()["preprocessing"] | {"crop_pct": 7})),
        json.dumps(_card_entry(preprocessing=_card_entry()["preprocessing"] | {"image_size": "28"})),
        json.dumps(_card_entry(preprocessing=_card_entry()["preprocessing"] | {"mean": 0.5})),
        json.dumps(_card_entry(preprocessing=_card_entry()["preprocessing"] | {"surplus": 7})),
        json.dumps(_card_entry(preprocessing=_card_entry()["preprocessing"] | {"image_size": 10**9})),
        json.dumps(_card_entry(preprocessing=_card_entry()["preprocessing"] | {"crop_pct": 1e-300})),
        json.dumps(_card_entry(preprocessing=_card_entry()["preprocessing"] | {"mean": [float("nan")]})),
        json.dumps(_card_entry(classes=["cat"])),
        json.dumps(_card_entry(classes=["cat", 3])),
        json.dumps(_card_entry(classes=["x" * 10**5])),
        "[" * 10**5,
    ],
)
def test_a_malformed_card_is_an_error(text, path):
    """Of every kind, and as one that says so, not as whatever exception its parsing meets."""
    _rewrite(path, {METADATA_KEY: text})
    with pytest.raises(WeightsError, match=r"malformed|another format") as raised:
        read_weights(path)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "changes",
    [
        *({"num_classes": "2"}, {"num_classes": None}, {"num_classes": -1}, {"in_chans": 0}, {"in_chans": "1"}),
        # Python counts them as 1.
        *({"num_classes": True, "classes": ["cat"]}, {"in_chans": True}),
        *({"preprocessing": _card_entry()["preprocessing"] | {name: True}} for name in ("image_size", "crop_pct")),
        *({"preprocessing": _card_entry()["preprocessing"] | {name: [True]}} for name in ("mean", "std")),
        {"classes": "ab"},
    ],
    ids=str,
)
def test_a_card_of_impossible_numbers_is_an_error(changes, path):
    _rewrite(path, {METADATA_KEY: json.dumps(_card_entry(**changes))})
    with pytest.raises(JeffnetError):
        open_weights(path)


def test_a_newer_format_asks_for_an_update(path):
    _rewrite(path, {METADATA_KEY: json.dumps(_card_entry(format=2))})
    with pytest.raises(WeightsError, match="update jeffnet"):
        read_weights(path)


def test_a_card_whose_arrays_are_another_models_is_an_error(path):
    _rewrite(path, {METADATA_KEY: json.dumps(_card_entry(model="efficientnet_b0"))})
    with pytest.raises(WeightsError, match="do not fit efficientnet_b0"):
        open_weights(path)


def test_weights_of_another_model_are_an_error(tmp_path):
    """B0's in B1, which has the same shapes and more blocks, and B1's in B0, which leaves blocks over."""
    for source, target, fault in [("b0", "b1", "missing"), ("b1", "b0", "left over")]:
        file = _timm_file(tmp_path / source, f"efficientnet_{source}", num_classes=10)
        with pytest.raises(WeightsError, match=rf"do not fit efficientnet_{target}:(.|\n)*{fault} +\([1-9]"):
            create_model(f"efficientnet_{target}", num_classes=10, pretrained=file)


def test_create_model_takes_a_file(path):
    _, variables = create_model(NAME, num_classes=2, in_chans=1, rng=5, pretrained=path)
    arrays = to_canonical(variables, PLAN)
    for name, array in initial_arrays(PLAN, 0).items():
        np.testing.assert_array_equal(arrays[name], array)
    _, half = create_model(NAME, num_classes=2, in_chans=1, pretrained=path, param_dtype=jnp.bfloat16)
    assert half["params"]["conv_stem"]["kernel"].dtype == jnp.bfloat16
    assert half["batch_stats"]["bn1"]["mean"].dtype == jnp.float32


def test_create_model_adapts_only_when_asked(path):
    with pytest.raises(WeightsError, match=r"misshapen +\(3\)"):
        create_model(NAME, num_classes=5, in_chans=3, pretrained=path)
    _, variables = create_model(NAME, num_classes=5, in_chans=3, pretrained=path, adapt=True)
    kernel = new_classifier(model_plan(NAME, num_classes=5), 0)["classifier.kernel"]
    np.testing.assert_array_equal(variables["params"]["classifier"]["kernel"], kernel)
    np.testing.assert_allclose(
        variables["params"]["conv_stem"]["kernel"].sum(2),
        initial_arrays(PLAN, 0)["conv_stem.kernel"][:, :, 0],
        rtol=1e-4,
        atol=1e-6,
    )


def test_weights_of_another_function_are_not_taken_into_a_model_of_the_same_shapes(tmp_path):
    """Padding, epsilon and activation are not in the arrays: the card says them."""
    loaders = (
        lambda name, path: create_model(name, num_classes=2, pretrained=path),
        lambda name, path: open_weights(path, name),
    )
    for architecture in ("efficientnet_b0", "mobilenetv3_small_100"):
        own, other = f"tf_{architecture}", architecture
        arrays = initial_arrays(model_plan(own, num_classes=2), 0)
        save_model(tmp_path / own, arrays, ModelCard(own, 2, 3, model_preprocessing(own)))
        for load in loaders:
            with pytest.raises(WeightsError, match=f"are of {own}, not of {other}"):
                load(other, tmp_path / own)
            load(own, tmp_path / own)
    # Trained otherwise, but the same network.
    create_model("tf_efficientnet_b0.ns_jft_in1k", num_classes=2, pretrained=tmp_path / "tf_efficientnet_b0")


@pytest.mark.parametrize(
    ("option", "value"), [("output_stride", 16), ("global_pool", "max"), ("global_pool", "none"), ("test_window", 7)]
)
def test_an_option_that_changes_the_logits_is_kept_or_refused(option, value, tmp_path, caplog):
    card = replace(CARD, **{option: value})
    save_model(tmp_path / "a", initial_arrays(PLAN, 0), card)
    model, _, said = from_pretrained(tmp_path / "a")
    assert said == card
    assert getattr(model.execution if option == "test_window" else model.plan, option) == value
    options = {"num_classes": 2, "in_chans": 1, "pretrained": tmp_path / "a"}
    with pytest.raises(WeightsError, match=f"{option} {value!r}, this {NAME} has .*adapt=True"):
        create_model(NAME, **options)
    if option != "test_window":
        assert getattr(create_model(NAME, **options, **{option: value})[0].plan, option) == value
    assert caplog.text == ""
    create_model(NAME, **options, adapt=True)
    assert f"made with {option} {value!r}, and used with" in caplog.text


def test_weights_without_options_go_into_a_model_with_any(path):
    """As published ones do: maps of another stride, features of another pooling, from the same arrays."""
    for options in ({"output_stride": 8}, {"global_pool": "avgmax"}):
        create_model(NAME, num_classes=2, in_chans=1, pretrained=path, **options)


def test_a_models_own_file_says_what_it_is(path):
    card, arrays = open_weights(path)
    assert card == CARD and len(arrays) == SIZE
    assert open_weights(path, NAME)[0] == CARD
    assert open_weights(path, "mnasnet_small")[0] == CARD  # timm's name
    with pytest.raises(WeightsError, match=f"are of {NAME}, not of mnasnet_100"):
        open_weights(path, "mnasnet_100")
    with pytest.raises(UnknownModelError):
        open_weights(path, "nothing")


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}, {"num_classes": 0}, {"num_classes": 3, "in_chans": 1}])
def test_a_timm_file_needs_a_name_and_tells_the_rest(options, tmp_path):
    file = _timm_file(tmp_path / "a.safetensors", **options)
    with pytest.raises(WeightsError, match="do not say of which model"):
        open_weights(file)
    card, arrays = open_weights(file, NAME)
    expected = {"num_classes": 1000, "in_chans": 3} | options
    assert {"num_classes": card.num_classes, "in_chans": card.in_chans} == expected
    assert (card.model, card.preprocessing) == (NAME, model_preprocessing(NAME))
    assert len(card.classes) == (1000 if card.num_classes == 1000 else 0)
    for name, array in initial_arrays(model_plan(NAME, **options), 0).items():
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize("name", ["conv_stem.weight", "classifier.bias", "classifier.weight"])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_timm_file_with_arrays_of_other_ranks_is_an_error(name, shape, tmp_path):
    file = _timm_file(tmp_path / "a.safetensors", num_classes=7)
    arrays = {key: np.asarray(array) for key, array in read_weights(file).arrays.items()}
    save_file(arrays | {name: np.ones(shape, np.float32)}, file)
    with pytest.raises(WeightsError):
        open_weights(file, NAME)
    with pytest.raises(WeightsError):
        create_model(NAME, num_classes=7, pretrained=file)


def test_the_helper_above_writes_timms_names(tmp_path):
    file = _timm_file(tmp_path / "a.safetensors")
    assert set(read_weights(file).arrays) == {*TIMM.names(model_plan(NAME), ()).values()}


@pytest.mark.slow
def test_loading_takes_little_more_memory_than_the_model(tmp_path):
    """A second copy of B7 would make it twice the file, over what the process has with its first array."""
    name = "tf_efficientnet_b7"
    plan = model_plan(name)
    path = tmp_path / "model.safetensors"
    save_model(path, initial_arrays(plan, 0), ModelCard(name, 1000, 3, model_preprocessing(name)))
    code = """
import resource, sys, jax, jax.numpy as jnp
from jeffnet.linen import create_model
jax.block_until_ready(jnp.zeros(3) + 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
variables = create_model("tf_efficientnet_b7", pretrained=sys.argv[1])[1]
jax.block_until_ready(variables)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    answer = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert int(answer.stdout) <= 1.3 * path.stat().st_size


@pytest.mark.parametrize("length", [2**20, 2**33, 2**63])
def test_a_header_that_is_too_long_is_refused_without_reading_it(length, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + b"{" + bytes(1000))
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        read_weights(tmp_path / "a.safetensors")


def test_published_weights_of_another_model_are_refused_before_they_are_fetched(monkeypatch):
    def fetch(*_):
        raise AssertionError("it was fetched")

    monkeypatch.setattr("jeffnet.weights.load.find_weights", fetch)
    fault = r"'efficientnet_b0\.ra_in1k' are of efficientnet_b0, not of mnasnet_100, .* --model\.pretrained to train"
    with pytest.raises(WeightsError, match=fault):
        describe_weights("efficientnet_b0.ra_in1k", "mnasnet_100")
    # The same arrays compute the same in models that differ in nothing but their training.
    with pytest.raises(AssertionError, match="it was fetched"):
        describe_weights("tf_efficientnet_b0.ns_jft_in1k", "tf_efficientnet_b0.ap_in1k")
