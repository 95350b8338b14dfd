"""ONNX files: the same function under the same names, in any form, in the runtimes that read them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.arch.operations import Conv, ConvPart
from jeffnet.arch.summary import array_specs
from jeffnet.arch.zoo import list_models, model_preprocessing
from jeffnet.errors import ConfigError, InputError, OutputError, WeightsError
from jeffnet.export import onnx as target
from jeffnet.export.checksum import onnx_checksum
from jeffnet.export.metadata import ExportMetadata
from jeffnet.export.network import ExportNetwork
from jeffnet.export.onnx_graph import OnnxGraph
from jeffnet.export.onnx_kernels import conv_kernel
from jeffnet.export.onnx_network import OnnxNetwork
from jeffnet.export.options import ExportOptions
from jeffnet.inference.folded_network import FoldedNetwork
from jeffnet.inference.folding import fold_norms
from jeffnet.weights.card import ModelCard
from jeffnet.weights.start import Start, start_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

MODELS = ("tiny", "tiny_flat", "tiny_tf")
SMALL = ExportOptions(image_size=(32, 48))


def network_of(name, options=SMALL, dtype=np.float32, **model):
    """A folded network with random arrays, so that one that is left out, or another's, changes the values."""
    card = ModelCard(name, **{"num_classes": 7, "in_chans": 3, "preprocessing": model_preprocessing(name)} | model)
    plan, rng = card.plan(), np.random.default_rng(0)
    draws = {
        "kernel": lambda x: x * rng.uniform(0.8, 1.2, x.shape),
        "scale": lambda x: rng.uniform(0.5, 1.5, x.shape),
        "var": lambda x: rng.uniform(0.5, 1.5, x.shape),
        "bias": lambda x: rng.normal(0, 0.1, x.shape),
        "mean": lambda x: rng.normal(0, 0.1, x.shape),
    }
    start = start_model(
        name, num_classes=card.num_classes, in_chans=card.in_chans, global_pool=card.global_pool,
        output_stride=card.output_stride,
    )  # fmt: skip
    arrays = {key: draws[key.rpartition(".")[2]](np.asarray(array)) for key, array in start.arrays.items()}
    plan, arrays = fold_norms(plan, arrays, dtype)
    return ExportNetwork(plan, card.execution, arrays, card, options)


def images_of(network, count=2):
    rng, shape = np.random.default_rng(1), network.images(count)
    draw = rng.integers(0, 256, shape.shape) if network.takes_pixels else rng.normal(size=shape.shape)
    return draw.astype(shape.dtype)


def written(path, network):
    """The path of its file."""
    options = dataclasses.replace(network.options, image_size=network.image_size)
    target.write(path, network, ExportMetadata("onnx", network.card, options))
    return path


def jitted(function, *arguments):
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})(*arguments)


def points_of(network, images, dtype):
    """Every value by its name, maps as `(N, C, H, W)`, in the order in which they are computed."""
    names = []

    def run(arrays, images):
        seen = {}

        def point(name, value):
            seen[name] = value
            return value

        FoldedNetwork(network.plan, network.execution, dtype, point).apply(arrays, images)
        names[:] = seen
        return seen

    arrays = {name: array.astype(dtype) for name, array in network.arrays.items()}
    values = jitted(run, arrays, images)
    return {name: np.moveaxis(values[name], -1, 1) if values[name].ndim == 4 else values[name] for name in names}


def check_every_value(name, opset=18, **model):
    """In float64, by the evaluator that comes with the format."""
    from onnx.reference import ReferenceEvaluator

    network = network_of(name, dtype=np.float64, **model)
    graph = OnnxGraph(opset, None)
    proto = graph.model(name, OnnxNetwork(network, graph, np.float64).add(), {})
    onnx.checker.check_model(proto, full_check=True)
    images = images_of(network)
    found = ReferenceEvaluator(proto).run(None, {"input": images}, intermediate=True)
    expected = points_of(network, images.astype(np.float64), jnp.float64)
    assert [each.name for each in proto.graph.value_info if each.name in expected] == [*expected]
    for key, value in expected.items():
        assert found[key].dtype == np.float64, key
        # Attributes, such as a norm's epsilon, are float32.
        np.testing.assert_allclose(found[key], value, rtol=0, atol=2e-7 * np.abs(value).max(), err_msg=key)
    used = {name for node in proto.graph.node for name in node.input}
    assert {each.name for each in proto.graph.initializer} <= used
    return proto


@pytest.mark.parametrize("name", MODELS)
def test_every_value(name, tiny_model, x64):
    check_every_value(name)


def test_every_operation(one_operation, x64):
    check_every_value(one_operation)


@pytest.mark.parametrize(("sizes", "stride", "dilation"), [((3, 5, 7), 2, 1), ((1, 3, 5), 2, 1), ((3, 7), 1, 2)])
@pytest.mark.parametrize("sides", [(13, 16), (14, 15)])
def test_several_kernels_as_one(sides, sizes, stride, dilation, x64):
    """The smaller kernels lie in the largest where the padding of each puts it."""
    rng, channels = np.random.default_rng(0), 2 * len(sizes)
    for groups in (2, 1):
        parts = tuple(ConvPart(f"c.{i}", 2, 2, size, groups, "SAME") for i, size in enumerate(sizes))
        conv = Conv("c", parts, stride, dilation, False, None, None)
        arrays = {f"{part.name}.kernel": rng.normal(size=(*(part.kernel_size,) * 2, 2 // groups, 2)) for part in parts}
        kernel, window, number = conv_kernel(conv, arrays, sides)
        assert kernel.shape[2:] == (max(sizes),) * 2 and number == (channels if groups == 2 else 1)
        x = jnp.asarray(rng.normal(size=(1, *sides, channels)))

        def convolved(x, kernel, pads, groups, steps=(stride,) * 2, dilations=(dilation,) * 2):
            form = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(x, kernel, steps, pads, None, dilations, form, groups)

        shares = [
            convolved(x[..., inputs], jnp.asarray(arrays[f"{part.name}.kernel"]), part.padding, groups)
            for part, inputs, _ in conv.shares
        ]
        merged = convolved(x, jnp.asarray(kernel.transpose(2, 3, 1, 0)), window.pads, number)
        np.testing.assert_allclose(merged, jnp.concatenate(shares, -1), rtol=0, atol=1e-12)


def check_outputs(path, network, tolerance, counts=(1, 3)):
    """The file in its runtime, with batches of several sizes, against JAX."""
    runner = target.open_runner(written(path, network), threads=1)
    arrays = {name: array.astype(network.options.dtype) for name, array in network.arrays.items()}
    expected = jitted(network.apply, arrays, images_of(network, 3))
    assert runner.shape == (network.options.batch_size, *network.images(1).shape[1:])
    assert runner.dtype == network.images(1).dtype
    assert np.std(expected, axis=0).max() > 0  # the answers depend on the pictures
    for count in counts:
        found = runner(images_of(network, 3)[:count])
        assert found.dtype == np.float32 and found.shape == (count, *expected.shape[1:])
        bound = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(found, expected[:count], rtol=0, atol=bound)


@pytest.mark.parametrize(
    "options",
    [
        ExportOptions(image_size=(32, 48), layout="nchw"),
        ExportOptions(image_size=(33, 47)),
        ExportOptions(image_size=(32, 32), layout="nchw", include=("preprocessing",)),
        ExportOptions(image_size=(32, 32), include=("softmax", "preprocessing"), batch_size=3),
    ],
    ids=str,
)
def test_what_a_file_takes_and_gives(options, tiny_model, tmp_path):
    network = network_of("tiny_tf", options)
    check_outputs(tmp_path / "a.onnx", network, 1e-5, (3,) if options.batch_size else (1, 3))


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_float16(layout, tiny_model, tmp_path):
    """Weights and arithmetic: the file has half the size, and the answers are as coarse as JAX's."""
    options = ExportOptions(image_size=(32, 32), layout=layout, dtype="float16", include=("preprocessing",))
    network = network_of("tiny_tf", options)
    check_outputs(tmp_path / "a.onnx", network, 1e-2)
    model = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(model, full_check=True)
    kinds = {each.data_type for each in model.graph.initializer if each.name in network.arrays}
    assert kinds == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize(
    "model",
    [
        {"test_window": 1},
        {"global_pool": "none"},
        {"global_pool": "max"},
        {"global_pool": "avgmax"},
        {"num_classes": 0},
        {"num_classes": 0, "test_window": 1},
        {"num_classes": 0, "global_pool": "none"},
        {"in_chans": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["tiny_flat", pytest.param("tiny_tf", marks=pytest.mark.slow)])
def test_heads(name, model, tiny_model, tmp_path):
    network = network_of(name, ExportOptions(image_size=(64, 96)), **model)
    check_outputs(tmp_path / "a.onnx", network, 1e-5)


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_opsets(opset, every_operation, tmp_path):
    options = dataclasses.replace(SMALL, opset=opset)
    network = network_of("tiny_of_attention", options)
    check_outputs(tmp_path / "a.onnx", network, 1e-5)
    model = onnx.load(tmp_path / "a.onnx")
    assert [each.version for each in model.opset_import] == [opset]
    assert ("Gelu" in {node.op_type for node in model.graph.node}) == (opset >= 20)


def test_the_newest_opset(every_operation, tmp_path):
    """ONNX Runtime may not have it yet."""
    newest = onnx.defs.onnx_opset_version()
    network = network_of("tiny_of_group_norm", dataclasses.replace(SMALL, opset=newest))
    onnx.checker.check_model(onnx.load(written(tmp_path / "a.onnx", network)), full_check=True)
    for opset in (17, newest + 1):
        other = dataclasses.replace(network, options=ExportOptions(opset=opset))
        with pytest.raises(
            ConfigError, match=f"^opset {opset}: give one of 18, the oldest that is written, to {newest}, the"
        ):
            written(tmp_path / "b.onnx", other)
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # its import starts programs, of which JAX warns
@pytest.mark.parametrize("name", ["tiny_of_attention", "tiny_of_experts", "tiny_of_group_norm", "tiny_of_context"])
def test_openvino_computes_the_same(name, every_operation, tmp_path):
    openvino = pytest.importorskip("openvino")
    network = network_of(name)
    images = images_of(network, 3)
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model = core.compile_model(core.read_model(str(written(tmp_path / "a.onnx", network))), "CPU", options)
    expected = target.open_runner(tmp_path / "a.onnx")(images)
    np.testing.assert_allclose(model(images)[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_values_on_the_way(dtype, every_operation, tmp_path):
    """As the check of an export asks for them."""
    network = network_of("tiny_of_experts", dataclasses.replace(SMALL, dtype=dtype))
    images = images_of(network)
    expected = points_of(network, images, jnp.dtype(dtype))
    found = target.values(written(tmp_path / "a.onnx", network), images, [*expected, "nothing"])
    assert [*found] == [*expected]
    for name, value in expected.items():
        ours = np.moveaxis(found[name], -1, 1) if value.ndim == 4 else found[name]
        bound = {"float32": 1e-5, "float16": 2e-2}[dtype] * np.abs(value).max()
        np.testing.assert_allclose(ours, value, rtol=0, atol=bound, err_msg=name)


def test_a_file_says_what_it_holds_and_is_the_same_twice(tiny_model, tmp_path):
    classes = tuple("abcdefg")
    network = network_of("tiny_flat", dataclasses.replace(SMALL, embed_labels=True), classes=classes)
    first, second = (written(tmp_path / name, network).read_bytes() for name in ("a.onnx", "b.onnx"))
    assert first == second
    model = onnx.load_from_string(first)
    texts = {each.key: each.value for each in model.metadata_props}
    assert texts["model"] == "tiny_flat" and texts["labels"].split("\n") == [*classes]
    assert texts["preprocessing"].startswith("32 x 48 pixels; bicubic")
    metadata = target.open_runner(tmp_path / "a.onnx").metadata
    assert metadata and metadata.card == network.card
    assert metadata.options == network.options
    names = {each.name for each in model.graph.initializer}
    assert network.arrays.keys() <= names


def test_files_that_cannot_be_opened(tiny_model, tmp_path):
    path, whole = tmp_path / "a.onnx", written(tmp_path / "whole.onnx", network_of("tiny_flat")).read_bytes()
    newer = whole[: whole.rindex(b"\x72\xd4\0")].replace(b'"export_format": 1', b'"export_format": 2')
    for content, message in {
        whole[: len(whole) // 2]: "ONNX Runtime cannot open",
        b"": "ONNX Runtime cannot open",
        b"no model": "ONNX Runtime cannot open",
        newer + onnx_checksum(newer): "exported by another version of jeffnet",
    }.items():
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=message) as caught:
            target.open_runner(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    for missing in (tmp_path / "nowhere.onnx", tmp_path):
        with pytest.raises(WeightsError, match="cannot read"):
            target.open_runner(missing)


def test_another_programs_file_runs(tmp_path):
    from onnx import TensorProto, helper

    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 4, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "theirs", sides[:1], sides[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "a.onnx")
    runner = target.open_runner(tmp_path / "a.onnx")
    assert runner.metadata is None and runner.shape == (None, 3, 4, 4) and runner.dtype == "float32"
    assert runner.runtime == f"ONNX Runtime {onnxruntime.__version__}"
    assert runner(-np.ones((2, 3, 4, 4))).max() == 0
    # Which of several outputs has the scores is not known.
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3, 4, 4]))
    model.graph.node.append(helper.make_node("Relu", ["y"], ["z"]))
    onnx.save(model, tmp_path / "b.onnx")
    with pytest.raises(WeightsError, match=r"b\.onnx' has 2 outputs, an image classifier has one"):
        target.open_runner(tmp_path / "b.onnx")


def test_pictures_that_a_file_does_not_take(tiny_model, tmp_path):
    runner = target.open_runner(written(tmp_path / "a.onnx", network_of("tiny_flat")))
    with pytest.raises(InputError, match=r"images of shape \(2, 48, 32, 3\): .* takes \(any number, 32, 48, 3\)"):
        runner(np.zeros((2, 48, 32, 3)))


def test_what_one_file_cannot_hold(tiny_model, tmp_path, monkeypatch):
    network = network_of("tiny_flat")
    monkeypatch.setattr("jeffnet.export.onnx._BYTES", 2**22)
    with pytest.raises(OutputError, match=r"^cannot write 'a.onnx': its arrays have 0.0 GB, .* less than 2: export"):
        written(tmp_path / "a.onnx", network)
    assert not (tmp_path / "a.onnx").exists()


def test_pictures_that_are_too_small(every_operation, tmp_path):
    network = network_of("tiny_of_average", ExportOptions(image_size=(2, 2)))
    with pytest.raises(InputError, match="cannot be halved"):
        written(tmp_path / "a.onnx", network)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_missing_packages(package, tiny_model, tmp_path, monkeypatch):
    import sys

    path, network = tmp_path / "a.onnx", network_of("tiny_flat")
    written(path, network)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match="pip install onnx onnxruntime"):
        written(path, network) if package == "onnx" else target.open_runner(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_the_zoo(name, tmp_path):
    """Every architecture is written whole, and runs at a small size."""
    card, rng = ModelCard(name, 1000, 3, model_preprocessing(name)), np.random.default_rng(0)
    specs = array_specs(card.plan())
    arrays = {key: np.ones(spec.shape, np.float32) for key, spec in specs.items()}
    for key, spec in specs.items():
        if spec.leaf == "kernel":
            fan_in = np.prod(spec.shape[:-1])
            arrays[key] = rng.standard_normal(spec.shape, np.float32) / np.sqrt(fan_in, dtype=np.float32)
    start = Start(card.plan(), arrays)
    network = ExportNetwork.of(start, card, ExportOptions(image_size=(64, 64)))
    path = written(tmp_path / "a.onnx", network)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    # The checker compares the shapes that are stated with those that it infers.
    stated = {each.name for each in (*model.graph.value_info, *model.graph.output)}
    assert stated == {output for node in model.graph.node for output in node.output}
    assert np.isfinite(target.open_runner(path)(images_of(network, 1))).all()
    path.unlink()
