"""8-bit integers in exported files: those of the simulation, found from pictures, in the runtime's integer kernels."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from jeffnet.arch.execution import Execution
from jeffnet.arch.quantization import Grid, quantized_points
from jeffnet.arch.zoo import model_preprocessing
from jeffnet.checkpoints import save_checkpoint
from jeffnet.cli.main import main
from jeffnet.errors import ConfigError, DatasetError, ImageError, JeffnetError
from jeffnet.export.calibrate import quantized
from jeffnet.export.export import export_model
from jeffnet.export.metadata import ExportMetadata
from jeffnet.export.network import ExportNetwork
from jeffnet.export.options import ExportOptions
from jeffnet.export.snippet import snippet
from jeffnet.functional import from_pretrained
from jeffnet.inference.quantized import calibrate, quantized_network
from jeffnet.ops.quantize import quantize_kernel
from jeffnet.weights.card import ModelCard, card_json, parse_card
from jeffnet.weights.start import start_model

SIZE = (32, 48)


def int8_network(name, bits=7, **options):
    """With random biases, and its ranges from noise."""
    start = start_model(name, num_classes=7)
    card = ModelCard(name, 7, 3, model_preprocessing(name))
    network = ExportNetwork.of(start, card, ExportOptions(image_size=SIZE, **options))
    rng = np.random.default_rng(0)
    biases = {name: array for name, array in network.arrays.items() if name.endswith(".bias")}
    drawn = {name: rng.normal(0, 0.3, array.shape).astype(np.float32) for name, array in biases.items()}
    network = replace(network, arrays={**network.arrays, **drawn})
    images = rng.normal(size=(4, *SIZE, 3)).astype(np.float32)
    grids = calibrate(network.plan, network.execution, network.arrays, lambda: [images], "minmax")
    return replace(network, quantization=replace(grids, kernel_bits=bits)), images


def simulated(network, images):
    """The integers of all values by name, and the logits."""
    seen, simulation = {}, quantized_network(network.plan, Execution(), network.quantization)

    def point(name, value):
        seen[name] = value = simulation.point(name, value)
        return value

    def run(arrays, images):
        seen.clear()
        logits = replace(simulation, point=point).apply(arrays, images)
        return dict(seen), logits

    values, logits = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(network.arrays, images)
    grids = network.quantization.grids
    steps = {name: np.rint(np.asarray(values[name]) / grid.scale) + grid.zero_point for name, grid in grids.items()}
    return steps, np.asarray(logits)


def written(network, path):
    from jeffnet.export import onnx as target

    bits = network.quantization.kernel_bits
    target.write(path, network, ExportMetadata("onnx", network.card, network.options, "by noise", bits))
    return path


def _nonzero(array):
    return array[array != 0]


@pytest.mark.parametrize(
    "name", ["tiny_flat", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tiny", "tiny_tf"))]
)
def test_onnx_files_hold_what_was_simulated(name, tiny_model, tmp_path):
    """Kernels to the bit; what ONNX Runtime computes from them within a step, where it rounds a half otherwise."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from jeffnet.export.onnx import open_runner, values

    network, images = int8_network(name)
    path = written(network, tmp_path / "model.onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    points = quantized_points(network.plan)
    merged = {f"{conv.name}.kernel": conv.parts for conv in network.plan.convolutions if len(conv.parts) > 1}
    parts_of_merged = {f"{part.name}.kernel" for parts in merged.values() for part in parts}
    for kernel in points.layers.keys() - parts_of_merged:
        integers, scales = quantize_kernel(network.arrays[kernel], 7)
        order = {2: (1, 0), 4: (3, 2, 0, 1)}[integers.ndim]
        np.testing.assert_array_equal(constants[f"{kernel}:integers"], integers.transpose(order))
        np.testing.assert_array_equal(constants[f"{kernel}:scales"], scales)
    for kernel, parts in merged.items():  # with zeros between and around those of the parts
        each = [quantize_kernel(network.arrays[f"{part.name}.kernel"], 7) for part in parts]
        np.testing.assert_array_equal(constants[f"{kernel}:scales"], np.concatenate([scales for _, scales in each]))
        rows = iter(constants[f"{kernel}:integers"])
        for integers, _ in each:
            for output in np.moveaxis(integers, -1, 0):
                np.testing.assert_array_equal(np.sort(_nonzero(next(rows))), np.sort(_nonzero(output)))
    # No kernel is left in floats that should not be.
    floats = {key for key, array in constants.items() if array.dtype == np.float32 and array.ndim > 1}
    assert floats <= network.arrays.keys() - points.layers.keys()
    steps, logits = simulated(network, images)
    found = values(path, images, [f"{name}:integers" for name in steps])
    assert len(found) == len(steps)
    for key, expected in steps.items():
        difference = np.abs(found[f"{key}:integers"].astype(int).reshape(expected.shape) - expected)
        assert difference.max() <= 1 and (difference > 0).mean() < 2e-3, key
    difference = np.abs(open_runner(path)(images) - logits)
    assert difference.max() < 5e-3 * np.abs(logits).max()


@pytest.mark.parametrize("bits", [7, 8])
def test_onnx_files_are_right_on_every_processor(bits, tiny_model, tmp_path, caplog, monkeypatch):
    """Kernels of one sign alone: on x86 processors without VNNI their products overflow, where nothing is done."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from jeffnet.export import onnx as target

    network, images = int8_network("tiny_flat", bits)
    arrays = {name: np.abs(array) if name.endswith("kernel") else array for name, array in network.arrays.items()}
    grids = calibrate(network.plan, network.execution, arrays, lambda: [np.abs(images)], "minmax").grids
    network = replace(network, arrays=arrays, quantization=replace(network.quantization, grids=grids))
    monkeypatch.setattr(target, "lacks_vnni", lambda: True)  # where it does not, the same must come out
    _, logits = simulated(network, np.abs(images))
    found = target.open_runner(written(network, tmp_path / "m.onnx"))(np.abs(images))
    assert np.abs(found - logits).max() < 0.02 * np.abs(logits).max()
    assert ("kernels of 7 bits are right and fast" in caplog.text) == (bits == 8)


def test_onnx_runtime_computes_with_integers(tiny_model, tmp_path):
    """Every convolution but those of gates is one of integers after the runtime's optimisation, and so are sums."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    network, _ = int8_network("tiny_flat")
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(
        str(written(network, tmp_path / "m.onnx")), options, providers=["CPUExecutionProvider"]
    )
    operators = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    layers, sums = len(quantized_points(network.plan).layers), sum(block.residual for block in network.plan.blocks)
    assert operators.count("QLinearConv") == layers - 1 and operators.count("QGemm") == 1
    assert sums and operators.count("QLinearAdd") == sums
    assert not {"Conv", "FusedConv", "Gemm", "Add", "Relu"} & set(operators)


@pytest.mark.parametrize(("name", "limit"), [("tiny_flat", 0.05), pytest.param("tiny", 0.1, marks=pytest.mark.slow)])
def test_tflite_files_compute_what_was_simulated(name, limit, tiny_model, tmp_path):
    """With the same ranges: its kernels are rounded by the same scales, a value may be a few steps away."""
    pytest.importorskip("litert_converter")
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("ai_edge_quantizer")
    from jeffnet.export import tflite as target

    network, images = int8_network(name, 8, batch_size=1)
    path = tmp_path / "model.tflite"
    target.write(path, network, ExportMetadata("tflite", network.card, network.options, "by noise"))
    steps, logits = simulated(network, images)
    grids, values = network.quantization.grids, target.values(path, images, list(steps))
    assert len(values) > sum(1 for _ in network.plan.blocks)
    for key, value in values.items():  # what their integers stand for
        expected = (steps[key] - grids[key].zero_point) * grids[key].scale
        assert np.abs(value - expected.reshape(value.shape)).mean() < 2 * grids[key].scale, key
    run = target.open_runner(path)
    found = np.concatenate([np.asarray(run(image[None])) for image in images])
    assert np.abs(found - logits).max() < limit * np.abs(logits).max()
    floats = tmp_path / "float.tflite"
    plain = replace(network, quantization=None)
    target.write(floats, plain, ExportMetadata("tflite", plain.card, plain.options))
    assert path.read_bytes() != floats.read_bytes()


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def weights(tiny_model, tmp_path):
    from jeffnet.functional import create_model

    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, create_model("tiny_flat", num_classes=7), "tiny_flat")
    return path


def test_the_command(weights, pictures, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "int8.onnx"
    arguments = ["export", str(weights), "--output", str(path), "--int8", "--calibrate", str(pictures)]
    assert main([*arguments, "--calibration-images", "3"]) == 0
    assert "int8" in capsys.readouterr().out
    from jeffnet.export.run import open_exported

    exported = open_exported(path)
    metadata = exported.runner.metadata
    assert exported.dtype == "int8" and "ranges by mse of 3 pictures" in metadata.quantization
    option = 'options.add_session_config_entry("session.x64quantprecision", "1")'.replace('"', "'")
    assert option in snippet("m.onnx", replace(metadata, kernel_bits=8)) and metadata.kernel_bits == 7
    assert option not in snippet("m.onnx", metadata)
    floats = tmp_path / "float.onnx"
    assert main(["export", str(weights), "--output", str(floats)]) == 0
    assert open_exported(floats).dtype == "float32"


def test_a_model_trained_with_integers_needs_no_pictures(weights, pictures, tmp_path):
    """Its file has the ranges of the training, which its card keeps."""
    pytest.importorskip("onnxruntime")
    model, variables, card = from_pretrained(weights)
    with pytest.raises(ConfigError, match=r"tiny_flat was not trained with 8-bit integers: give pictures to calibrate"):
        export_model(tmp_path / "a.onnx", (model, variables), card, int8=True)
    network = ExportNetwork.of(start_model("tiny_flat", num_classes=7), card, ExportOptions())
    trained = quantized(network, "onnx", str(pictures)).quantization
    card = parse_card(card_json(replace(card, quantization=trained)), "card")
    assert card.quantization == trained
    with pytest.raises(ConfigError, match=r"trained with kernels of 7 bits, not 8: leave these out, or train it"):
        export_model(tmp_path / "b.onnx", (model, variables), card, int8=True, kernel_bits=8)
    # Ranges as narrow as these make another model of it, the one that was trained.
    narrow = {name: Grid(grid.scale / 8, grid.zero_point) for name, grid in trained.grids.items()}
    far = replace(card, quantization=replace(trained, grids=narrow))
    assert export_model(tmp_path / "c.onnx", (model, variables), far, int8=True).comparison.cosine > 0.999
    report = export_model(tmp_path / "b.onnx", (model, variables), card, int8=True, check=False)
    # A format that has no kernels of 7 bits rounds to its own.
    assert quantized(replace(network, card=card), "tflite", None).quantization == replace(trained, kernel_bits=8)
    assert report.metadata.quantization == "8-bit integers with ranges by mse of 5 pictures, kernels of 7 bits"


def test_a_file_of_integers_that_are_not_the_models_is_not_kept(weights, pictures, tmp_path, monkeypatch):
    """It is compared with the rounded model too, which is near, and the first layer that differs is named."""
    pytest.importorskip("onnxruntime")
    from jeffnet.export import onnx as target

    model, variables, card = from_pretrained(weights)
    write = target.write

    def damaged(path, network, metadata):
        grids = dict(network.quantization.grids)
        grids["blocks.1.0.conv"] = replace(grids["blocks.1.0.conv"], scale=grids["blocks.1.0.conv"].scale / 16)
        write(path, replace(network, quantization=replace(network.quantization, grids=grids)), metadata)

    monkeypatch.setattr(target, "write", damaged)
    with pytest.raises(
        JeffnetError, match=r"differs from the model with the same rounding .* first at 'blocks\.1\.0\.conv'"
    ):
        export_model(tmp_path / "a.onnx", (model, variables), card, int8=True, calibrate_with=str(pictures))
    assert not (tmp_path / "a.onnx").exists()


def test_quantization_that_is_none(weights):
    """Of older files, which do not say the bits of kernels, they are 8."""
    _, _, card = from_pretrained(weights)

    def parsed(entries):
        return parse_card(f'{card_json(card)[:-1]}, "quantization": {{"method": "mse", {entries}}}}}', "file")

    assert parsed('"grids": {"images": [0.1, 3]}').quantization.kernel_bits == 8
    with pytest.raises(JeffnetError, match=r"malformed description of their model: its 8-bit range of 'images' is 0.0"):
        parsed('"grids": {"images": [0.0, 3]}')
    with pytest.raises(JeffnetError, match=r"its kernels are of 9 bits, not 7 or 8"):
        parsed('"grids": {}, "kernel_bits": 9')


def test_bad_input(weights, pictures, tmp_path):
    model, variables, card = from_pretrained(weights)
    empty = tmp_path / "empty"
    empty.mkdir()

    def refused(error, message, path="a.onnx", **options):
        with pytest.raises(error, match=message):
            export_model(tmp_path / path, (model, variables), card, int8=True, **options)
        assert not (tmp_path / path).exists()

    refused(DatasetError, "empty", calibrate_with=str(empty))
    refused(ConfigError, "stablehlo files have no 8-bit integers here: export to onnx", "a.stablehlo")
    refused(ConfigError, "kernels of tflite files have 8 bits, not 7", "a.tflite", kernel_bits=7)
    refused(ConfigError, "8-bit integers and dtype float16 contradict one another", dtype="float16")
    (pictures / "2.png").write_bytes(b"no picture")
    refused(ImageError, r"2\.png", calibrate_with=str(pictures))
    floats = ["export", str(weights), "--output", str(tmp_path / "b.onnx")]
    assert main([*floats, "--calibrate", str(pictures)]) == main([*floats, "--kernel-bits", "7"]) == 2
