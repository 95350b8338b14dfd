"""TFLite files: the same logits and names in LiteRT's interpreter; and files that are something else."""

import importlib.util

import jax
import numpy as np
import pytest

from jeffnet.errors import ConfigError, InputError, OutputError, WeightsError
from jeffnet.export import tflite, tflite_convert, tflite_file
from jeffnet.export.checksum import tflite_archive
from jeffnet.export.traced import as_function

pytest.importorskip("ai_edge_litert")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

OPERATIONS = ("uir", "attention", "group_norm", "experts", "context", "packed", "blur", "average", "no_head", "v2_same")
slow = pytest.mark.slow
needs_litert = pytest.mark.skipif(
    importlib.util.find_spec("litert_converter") is None, reason="litert-converter is not installed"
)


@pytest.fixture(scope="module")
def written(network_of, metadata_of, tmp_path_factory):
    """A function that writes a file once: its path and its network, by the model's name and the file's options."""
    files = {}

    def write(name, **options):
        key = name, repr(options)
        if key not in files:
            network = network_of(name, **options)
            path = tmp_path_factory.mktemp("tflite") / f"{name}.tflite"
            tflite.write(path, network, metadata_of("tflite", network))
            files[key] = path, network
        return files[key]

    return write


OPTIONS = {
    "plain": {},
    "all": {"layout": "nchw", "include": ("preprocessing", "softmax"), "batch_size": 2},
    "float16": {"dtype": "float16"},
}


@needs_litert
@pytest.mark.parametrize("options", ["plain", "all", "float16"])
def test_the_file_computes_what_the_model_does(options, written, metadata_of, expected_of, pictures_of):
    """For any number of pictures, of any layout."""
    path, network = written("tiny_tf", **OPTIONS[options])
    runner = tflite.open_runner(path, threads=1)
    assert runner.metadata == metadata_of("tflite", network)
    like = network.images(network.options.batch_size or 1)
    assert (runner.shape, runner.dtype) == (like.shape, str(like.dtype)) and runner.runtime.startswith("ai-edge-litert")
    images, tolerance = pictures_of(network, 3), 5e-3 if options == "float16" else 1e-5
    expected = expected_of(network, images)
    assert np.std(expected, axis=0).min() > 1e-4  # the logits depend on the images
    np.testing.assert_allclose(runner(images), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(runner(images[:1]), expected[:1], rtol=tolerance, atol=tolerance)


def _operations(path):
    tables = tflite_file.schema()
    names = {number: name for name, number in vars(tables.BuiltinOperator).items() if name.isupper()}
    model = tflite_file.unpack(path.read_bytes(), "a")
    return [names[model.operatorCodes[each.opcodeIndex].builtinCode] for each in model.subgraphs[0].operators]


@needs_litert
def test_operations_are_those_that_runtimes_know(written):
    """Activations are single operations or parts of convolutions, and nothing of the padding or the norms is left."""
    path, network = written("tiny_tf")
    operations = _operations(path)
    convolutions = [conv for conv in network.plan.convolutions if conv.act is not None]
    assert operations.count("HARD_SWISH") == sum(conv.act == "hard_swish" for conv in convolutions) > 2
    assert {*operations} == {"CONV_2D", "DEPTHWISE_CONV_2D", "HARD_SWISH", "MEAN", "MUL", "ADD", "FULLY_CONNECTED"}
    halved = written("tiny_tf", dtype="float16")[0]
    assert [name for name in _operations(halved) if name != "DEQUANTIZE"] == operations
    assert halved.stat().st_size < 0.75 * path.stat().st_size


@needs_litert
def test_tensors_have_the_names_of_points(written, pictures_of):
    """A tensor with a point's name has its value; of each block and each convolution with a norm there is one."""
    path, network = written("tiny_tf")
    images, expected = pictures_of(network, 2), {}

    def run(images):
        values = {}
        as_function(network, "shifted", lambda name, value: values.setdefault(name, value))(images)
        return values

    expected = jax.jit(run)(images)
    found = tflite.values(path, images, list(expected))
    assert [name for name in expected if name not in found and not name.endswith(":sum")] == []
    for name, values in found.items():
        np.testing.assert_allclose(values.ravel(), np.ravel(expected[name]), rtol=1e-4, atol=1e-5, err_msg=name)


@needs_litert
def test_the_example_of_the_page(written, run_example):
    path, _ = written("tiny_tf")
    names = run_example("import Interpreter", path)
    images = np.zeros((1, 32, 32, 3), np.float32)
    np.testing.assert_allclose(names["logits"], tflite.open_runner(path)(images), rtol=1e-5, atol=1e-6)
    assert names["card"]["classes"] == list("abcdefg")


@needs_litert
@pytest.mark.parametrize("name", [pytest.param(name, marks=slow) for name in ("tiny", *OPERATIONS)])
def test_every_operation(name, written, expected_of, pictures_of):
    path, network = written(name if name == "tiny" else f"tiny_of_{name}")
    images = pictures_of(network, 2)
    np.testing.assert_allclose(tflite.open_runner(path)(images), expected_of(network, images), rtol=1e-5, atol=1e-5)


@slow
@pytest.mark.parametrize("options", ["plain", "all", "float16"])
def test_the_way_through_tensorflow(options, network_of, metadata_of, expected_of, pictures_of, tmp_path, monkeypatch):
    """Where LiteRT's converter is not installed."""
    pytest.importorskip("tensorflow")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        tflite_convert.importlib.util, "find_spec", lambda name: None if name == "litert_converter" else found(name)
    )
    network = network_of("tiny_tf", **OPTIONS[options])
    tflite.write(tmp_path / "a.tflite", network, metadata_of("tflite", network))
    assert b"through tensorflow" in tflite_file.unpack((tmp_path / "a.tflite").read_bytes(), "a").description
    images, tolerance = pictures_of(network, 3), 5e-3 if options == "float16" else 1e-5
    found_logits = tflite.open_runner(tmp_path / "a.tflite")(images)
    np.testing.assert_allclose(found_logits, expected_of(network, images), rtol=tolerance, atol=tolerance)


@needs_litert
@pytest.mark.parametrize(("dtype", "scale", "zero"), [("int8", 0.02, 3), ("uint8", 0.02, 128), ("int8", 1.0, -128)])
def test_integers_of_other_programs_stand_for_pictures(dtype, scale, zero, written, pictures_of, tmp_path):
    """For normalised ones, which are rounded to them, or for pixels; as numbers they would be something else."""
    path, network = written("tiny_flat")
    model, tables = tflite_file.unpack(path.read_bytes(), "a"), tflite_file.schema()
    (graph,) = model.subgraphs
    given, code, operator = tables.TensorT(), tables.OperatorCodeT(), tables.OperatorT()
    given.name, given.shape, given.type = "integers", [1, 32, 32, 3], getattr(tables.TensorType, dtype.upper())
    given.quantization = tables.QuantizationParametersT()
    given.quantization.scale, given.quantization.zeroPoint = np.float32([scale]), np.array([zero])
    model.buffers.append(tables.BufferT())
    given.buffer = len(model.buffers) - 1
    code.builtinCode = code.deprecatedBuiltinCode = tables.BuiltinOperator.DEQUANTIZE
    code.version = 2
    model.operatorCodes.append(code)
    graph.tensors.append(given)
    operator.opcodeIndex, operator.inputs = len(model.operatorCodes) - 1, [len(graph.tensors) - 1]
    operator.outputs, graph.inputs = list(graph.inputs), [len(graph.tensors) - 1]
    graph.operators, model.metadata, model.signatureDefs = [operator, *graph.operators], None, None
    (tmp_path / "a.tflite").write_bytes(tflite_file.pack(model))
    runner = tflite.open_runner(tmp_path / "a.tflite")
    like = tflite.open_runner(path)
    if scale == 1:
        pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
        assert runner.dtype == "uint8"
        np.testing.assert_allclose(runner(pixels), like(pixels.astype(np.float32)), rtol=1e-5)
        return
    images = np.clip(pictures_of(network, 2), -2, 2)
    assert runner.dtype == "float32"
    np.testing.assert_allclose(runner(images), like(images), atol=scale * np.abs(like(images)).max())


def test_without_a_converter(network_of, monkeypatch):
    monkeypatch.setattr(tflite_convert.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="writing TFLite needs litert-converter: pip install ai-edge-litert"):
        tflite_convert.convert(network_of("tiny_flat"))


@needs_litert
def test_files_that_cannot_be_run(written, tmp_path):
    """One line each, which names the file."""
    content = written("tiny_tf")[0].read_bytes()

    def rewritten(old, new):
        model = content[: content.index(b"PK\3\4")].replace(old, new)
        return model + tflite_archive(model, {})

    cases = {
        "empty": (b"", "no TFLite file"),
        "foreign": (b"PK" * 1000, "no TFLite file"),
        "half": (content[: len(content) // 2], "is a damaged TFLite file|LiteRT cannot run"),
        "newer": (rewritten(b'"export_format": 1', b'"export_format": 2'), "another version of jeffnet"),
        "other": (rewritten(b'"card": ', b'"cord": '), "malformed description of its model: lacks 'card'"),
    }
    for name, (damaged, message) in cases.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(WeightsError, match=message) as error:
            tflite.open_runner(tmp_path / name)
        assert "\n" not in str(error.value) and str(tmp_path / name) in str(error.value)
    with pytest.raises(WeightsError, match=r"cannot read .*: No such file"):
        tflite.open_runner(tmp_path / "nothing")
    runner = tflite.open_runner(written("tiny_tf")[0])
    with pytest.raises(InputError, match="takes normalised floats"):
        runner(np.zeros((1, 32, 32, 3), np.uint8))


def test_a_folder_that_does_not_exist(network_of, metadata_of, tmp_path, monkeypatch):
    monkeypatch.setattr(tflite, "serialized", lambda network, metadata: b"")
    network = network_of("tiny_flat")
    with pytest.raises(OutputError, match="No such file or directory"):
        tflite.write(tmp_path / "none" / "a.tflite", network, metadata_of("tflite", network))
    assert list(tmp_path.iterdir()) == []


def test_constants_behind_the_tables_are_found():
    """As in what LiteRT's quantizer writes for larger networks; places in the file change when it is packed again."""
    tables, data, place = tflite_file.schema(), b"constants of a layer", 1 << 12
    model = tables.ModelT()
    model.buffers = [tables.BufferT(), tables.BufferT()]
    model.buffers[1].offset, model.buffers[1].size = place, len(data)
    content = tflite_file.pack(model).ljust(place, b"\0") + data
    for _ in range(2):
        model = tflite_file.unpack(content, "quantised")
        assert bytes(model.buffers[1].data) == data
        content = tflite_file.pack(model)
