"""Training with the rounding of 8-bit integers: what is trained is what the file of integers computes."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jeffnet.arch.quantization import quantized_points
from jeffnet.backends import BACKENDS, load_backend
from jeffnet.errors import ConfigError
from jeffnet.inference.folding import fold_norms
from jeffnet.inference.plain_norms import fixed_parameters
from jeffnet.ops.quantize import quantize_kernel
from jeffnet.train.config import Config, DataConfig, EmaConfig, ModelConfig, QuantizeConfig
from jeffnet.train.loop import resume, train
from jeffnet.train.setup import make_setup
from jeffnet.weights.load import open_weights


@pytest.fixture(scope="module")
def quantized(config):
    model = replace(config.model, backend="nnx")
    return replace(config, model=model, ema=EmaConfig(), epochs=1, quantize=QuantizeConfig(to="int8", images=8))


@pytest.fixture(scope="module")
def finished(quantized, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "quantized"
    return folder, train(quantized, folder, progress=False)


def test_the_file_computes_what_was_trained(finished, quantized, tmp_path, undrawn):
    """Kernels to the bit, with the ranges that the card keeps; the logits as those of validation."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from jeffnet.export.export import export_model
    from jeffnet.export.run import open_exported

    path = finished[0] / "model.safetensors"
    card, arrays = open_weights(str(path))
    assert card.quantization and card.quantization.method == "mse of 8 pictures, trained with them"
    model, variables, card = load_backend("functional").from_pretrained(path)
    report = export_model(tmp_path / "int8.onnx", (model, variables), card, int8=True)
    assert "mse of 8 pictures, trained" in str(report.metadata.quantization)
    assert report.metadata.kernel_bits == card.quantization.kernel_bits == 7
    plan, folded = fold_norms(card.plan(), arrays)
    constants = onnx.load(report.path).graph.initializer
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in constants}
    for kernel in quantized_points(plan).layers:
        # The folded kernels are the trained ones.
        np.testing.assert_array_equal(folded[kernel], arrays[kernel])
        integers, _ = quantize_kernel(np.asarray(arrays[kernel]), 7)
        order = {2: (1, 0), 4: (3, 2, 0, 1)}[integers.ndim]
        np.testing.assert_array_equal(constants[f"{kernel}:integers"], integers.transpose(order))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    network = make_setup(quantized).quantized(card.quantization).network
    expected = np.asarray(jax.jit(network.evaluate)(arrays, pixels))
    found = open_exported(report.path)(pixels)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_reads_the_model(backend, finished):
    if backend == "objax":
        pytest.importorskip("objax")
    *_, card = load_backend(backend).from_pretrained(finished[0] / "model.safetensors")
    assert card.quantization


def test_norms_stay_as_they_were_folded(finished, quantized):
    """While kernels and biases are trained, in the network that all backends share."""
    setup = make_setup(quantized)
    before = setup.start()
    _, arrays = open_weights(str(finished[0] / "model.safetensors"))
    same = {name for name, array in before.arrays.items() if np.array_equal(array, arrays[name])}
    fixed = fixed_parameters(setup.network.plan) | before.batch_stats.keys()
    assert fixed <= same
    # A bias whose gradient is 0 may stay, as may a channel that is never active; a kernel does not.
    assert not any(name.endswith("kernel") for name in same)
    assert any(name.endswith("bn1.bias") for name in before.params)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_ranges(quantized, crash_after, tmp_path):
    from jeffnet.train.run import read_config

    config = replace(quantized, epochs=2)
    expected = train(config, tmp_path / "whole", progress=False)
    with crash_after(6):
        train(config, tmp_path / "crashed", progress=False)
    assert read_config(tmp_path / "crashed").quantize.to == "int8"
    assert resume(tmp_path / "crashed", progress=False) == expected
    cards = [open_weights(str(tmp_path / name / "model.safetensors"))[0] for name in ("whole", "crashed")]
    assert cards[0] == cards[1] and cards[0].quantization


@pytest.mark.parametrize(
    ("entry", "changes"),
    [
        ("model.dtype bfloat16", {"model": ModelConfig(name="tiny", dtype="bfloat16")}),
        ("model.drop_path_rate 0.1", {"model": ModelConfig(name="tiny", drop_path_rate=0.1)}),
        ("bn_batches 3", {"bn_batches": 3}),
    ],
)
def test_what_has_no_meaning_is_refused(entry, changes):
    entries = {"model": ModelConfig(name="tiny"), "data": DataConfig(path="digits")}
    with pytest.raises(ConfigError, match=rf"{entry} is not for training with quantize\.to: leave it out"):
        Config(**entries | changes, quantize=QuantizeConfig(to="int8"))
    with pytest.raises(ConfigError, match=r"quantize\.to 'int4' is not one of int8"):
        QuantizeConfig(to="int4")
