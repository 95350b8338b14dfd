"""Checkpoints of TensorFlow with the papers' authors' variable names: float64 logits equal to TensorFlow's."""

import functools
import importlib.util
import logging
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jeffnet.arch.zoo import model_preprocessing
from jeffnet.checkpoints import write_checkpoint
from jeffnet.errors import WeightsError
from jeffnet.functional import create_model, from_pretrained
from jeffnet.weights.formats.tensorflow import find_checkpoint, preprocessing_of
from jeffnet.weights.load import open_weights, read_weights

TOLERANCE = 1e-10
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}
SMALL, V2 = "tf_mobilenetv3_small_100", "tf_mobilenetv2_100"

# Root of the names, block strings, and how the network departs from EfficientNet's.
SEARCHED = {
    "tf_efficientnet_b0": ("efficientnet-b0", "EFFICIENTNET_B0", {"act": "silu"}),
    "tf_efficientnet_lite0": ("efficientnet-lite0", "LITE0", {"act": "relu6"}),
    "tf_efficientnetv2_b0": ("efficientnetv2-b0", "EFFICIENTNETV2_B0", {"act": "silu", "fused": True}),
    "tf_efficientnetv2_s": ("efficientnetv2-s", "EFFICIENTNETV2_S", {"act": "silu", "fused": True, "stem": 24}),
    "tf_efficientnet_es": ("efficientnet-edgetpu-S", "EDGETPU_S", {}),
    "tf_mnasnet_100": ("mnasnet-b1", "MNASNET_B1", {"mnas": "mnas_"}),
    "tf_semnasnet_100": ("mnasnet-a1", "MNASNET_A1", {"mnas": "mnas_"}),
    "tf_mixnet_s": ("mixnet-s", "MIXNET_S", {"stem": 16, "features": 1536}),
}
# S has nothing that B0 lacks, but several times the layers.
# One of each way in which the authors name blocks.
QUICK = ("tf_efficientnet_b0", "tf_efficientnetv2_b0", "tf_efficientnet_es", "tf_semnasnet_100")
NAMES = [
    *(pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SEARCHED),
    SMALL,
    V2,
]


@functools.cache
def _reference_module():
    """Not a test module, and so not on the path of pytest's import mode."""
    path = Path(__file__).with_name("tensorflow_reference.py")
    spec = importlib.util.spec_from_file_location("tensorflow_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def _reference(name, classes=7):
    """A network with variables, and the function that runs it."""
    pytest.importorskip("tensorflow")
    module = _reference_module()
    tf = module.tf
    if name in SEARCHED:
        root, blocks, options = SEARCHED[name]
        options = dict(options)
        net = module.Network(norm="tpu_batch_normalization" if "efficientnet" in root else "batch_normalization")
        act = getattr(tf.nn, options.pop("act", "relu"))
        run = functools.partial(
            module.searched, net, root=root, blocks=getattr(module, blocks), act=act, classes=classes, **options
        )
    else:
        net = module.Network()
        network = module.mobilenet_v2 if name == V2 else module.mobilenet_v3_small
        run = functools.partial(network, net, classes=classes)
    run(tf.constant(_images(8, seed=5)))  # makes the variables
    return net, run


def _images(batch=2, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, 44, 54, 3))


def _save(variables, prefix):
    """By TensorFlow 1's own writer of checkpoints."""
    saver = _reference_module().tf.compat.v1.train.Saver(variables)
    return Path(saver.save(None, str(prefix), write_meta_graph=False))


def _check(prefix, name, run, num_classes=7, skip=0):
    with jax.enable_x64(True):
        functions, variables = create_model(
            name, num_classes=num_classes, pretrained=prefix, dtype="float64", param_dtype="float64"
        )
        images = _images()
        logits = np.asarray(jax.jit(functions.apply, compiler_options=COMPILER_OPTIONS)(variables, images))
    expected = run(_reference_module().tf.constant(images)).numpy()[:, skip:]
    assert logits.shape == expected.shape and expected.std() > 0.1
    assert np.abs(logits - expected).max() / np.abs(expected).max() < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_tensorflows(name, tmp_path):
    net, run = _reference(name)
    prefix = _save(net.variables, tmp_path / "model.ckpt")
    _check(prefix, name, run)
    # slim's names do not tell which MobileNet it is.
    assert read_weights(prefix).model == (None if name in (SMALL, V2) else name)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnetv2_b0", SMALL])
def test_moving_averages_are_preferred_and_said(name, tmp_path, caplog):
    """And an optimizer's slots are no part of the model."""
    net, run = _reference(name)
    tf = _reference_module().tf
    saved = {f"{key}/ExponentialMovingAverage": variable for key, variable in net.variables.items()}
    saved |= {key: tf.Variable(variable * 2) for key, variable in net.variables.items()}
    saved |= {f"{key}/RMSProp": tf.Variable(variable * 3) for key, variable in net.variables.items()}
    saved |= {f"{key}/RMSProp_1": tf.Variable(variable * 3) for key, variable in net.variables.items()}
    saved |= {"global_step": tf.Variable(7, dtype=tf.int64)}
    with caplog.at_level(logging.INFO, "jeffnet"):
        _check(_save(saved, tmp_path / "model.ckpt"), name, run)
    assert "took the moving averages" in caplog.text


def test_moving_averages_of_some_variables_only_are_an_error(tmp_path):
    net, _ = _reference(SMALL)
    some = dict(net.variables)
    average = _reference_module().tf.Variable(some["MobilenetV3/Conv/weights"] * 2)
    some["MobilenetV3/Conv/weights/ExponentialMovingAverage"] = average
    with pytest.raises(WeightsError, match="moving averages of some variables only"):
        read_weights(_save(some, tmp_path / "model.ckpt"))


def test_statistics_without_a_second_average_are_taken_as_they_are(tmp_path):
    net, run = _reference(SMALL)
    tf = _reference_module().tf
    saved = dict(net.variables)
    for key, variable in net.variables.items():
        if "moving_" not in key:
            saved[f"{key}/ExponentialMovingAverage"] = variable
            saved[key] = tf.Variable(variable * 2)
    _check(_save(saved, tmp_path / "model.ckpt"), SMALL, run)


def test_the_background_class_is_dropped(tmp_path):
    net, run = _reference(SMALL, 1001)
    prefix = _save(net.variables, tmp_path / "model.ckpt")
    _check(prefix, SMALL, run, num_classes=1000, skip=1)
    card, arrays = open_weights(prefix, SMALL)
    assert card.num_classes == 1000 and len(card.classes) == 1000 and arrays["classifier.bias"].shape == (1000,)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tf_efficientnet_lite0", ((127 / 255,) * 3, (128 / 255,) * 3)),
        ("tf_efficientnet_es", ((127 / 255,) * 3, (128 / 255,) * 3)),
        ("tf_efficientnet_b0", None),
    ],
)
def test_preprocessing_is_the_authors(name, expected, tmp_path):
    """Lite and EdgeTPU: (pixel - 127) / 128."""
    net, _ = _reference(name)
    _, _, card = from_pretrained(_save(net.variables, tmp_path / "model.ckpt"))
    zoo = model_preprocessing(name)
    assert (card.preprocessing.mean, card.preprocessing.std) == (expected or (zoo.mean, zoo.std))
    assert card.model == name and card.preprocessing.image_size == zoo.image_size


@pytest.mark.parametrize(
    ("model", "classes", "mean", "crop_mode", "interpolation"),
    [
        ("tf_efficientnetv2_s", 1000, 128 / 255, "squash", "bilinear"),
        ("tf_efficientnetv2_l", 1000, 128 / 255, "squash", "bilinear"),
        ("tf_efficientnetv2_s", 21843, 0.5, "center", "bicubic"),
        ("tf_efficientnetv2_b0", 1000, 0.485, "center", "bicubic"),
        ("tf_efficientnetv2_b3", 1000, 0.485, "center", "bicubic"),
    ],
)
def test_preprocessing_of_efficientnetv2(model, classes, mean, crop_mode, interpolation):
    found = preprocessing_of(model, classes)
    assert (found.mean[0], found.crop_mode, found.interpolation) == (mean, crop_mode, interpolation)
    assert preprocessing_of("tf_efficientnetv2_xl", classes) is preprocessing_of("tf_efficientnet_b0", 1000) is None


def test_a_checkpoint_is_found_by_prefix_file_and_folder(tmp_path):
    net, _ = _reference(SMALL)
    tf = _reference_module().tf
    saver = tf.compat.v1.train.Saver(net.variables)
    prefixes = [
        Path(saver.save(None, str(tmp_path / "model.ckpt"), global_step=step, write_meta_graph=False))
        for step in (5, 40)
    ]
    for prefix in prefixes:
        data = next(tmp_path.glob(f"{prefix.name}.data*"))
        assert find_checkpoint(prefix) == find_checkpoint(Path(f"{prefix}.index")) == find_checkpoint(data) == prefix
    assert find_checkpoint(tmp_path) == prefixes[1]  # as the file `checkpoint` says
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(WeightsError, match=r"several checkpoints: give one of model.ckpt-40, model.ckpt-5"):
        find_checkpoint(tmp_path)
    assert find_checkpoint(tmp_path / "another") is None


@pytest.mark.parametrize("which", ["*.index", "*.data*"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_broken_checkpoint_is_one_error(which, share, tmp_path):
    net, _ = _reference(SMALL)
    prefix = _save(net.variables, tmp_path / "model.ckpt")
    file = next(tmp_path.glob(which))
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(WeightsError, match="no whole checkpoint of TensorFlow") as raised:
        open_weights(prefix, SMALL)
    assert "\n" not in str(raised.value)


def test_another_checkpoint_is_told_as_such(tmp_path):
    pytest.importorskip("tensorflow")
    prefix = _save({"a/kernel": _reference_module().tf.Variable([1.0])}, tmp_path / "model.ckpt")
    with pytest.raises(WeightsError, match=r"not of the authors' code: .* 1 variables \(a/kernel"):
        read_weights(prefix)


def test_another_model_is_refused_with_all_that_does_not_fit(tmp_path):
    net, _ = _reference("tf_efficientnet_lite0")
    prefix = _save(net.variables, tmp_path / "model.ckpt")
    with pytest.raises(WeightsError, match="are of tf_efficientnet_lite0, not of tf_efficientnet_lite2"):
        open_weights(prefix, "tf_efficientnet_lite2")


def test_without_tensorflow_the_message_says_so(tmp_path, monkeypatch):
    (tmp_path / "model.ckpt.index").write_bytes(bytes.fromhex("57fb808b247547db"))
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(WeightsError, match=r"not installed: pip install tensorflow-cpu"):
        read_weights(tmp_path / "model.ckpt")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_has_the_authors_names_and_bits(name, tmp_path):
    """Names, shapes and values are those of the reference, which reads them back."""
    net, _ = _reference(name)
    prefix = _save(net.variables, tmp_path / "model.ckpt")
    card, arrays = open_weights(prefix, name)
    write_checkpoint(tmp_path / "again.ckpt", arrays, card)
    reader = _reference_module().tf.train.load_checkpoint(str(tmp_path / "again.ckpt"))
    assert reader.get_variable_to_shape_map().keys() == net.variables.keys()
    for key, variable in net.variables.items():
        np.testing.assert_array_equal(reader.get_tensor(key), variable.numpy())
