"""ONNX files: the same function under the same names, in any form, in the runtimes that read them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.export import onnx as target
from jeffnet.export.metadata import ExportMetadata
from jeffnet.export.network import ExportNetwork
from jeffnet.export.onnx_graph import OnnxGraph
from jeffnet.export.onnx_network import OnnxNetwork
from jeffnet.export.options import ExportOptions
from jeffnet.inference.folded_network import FoldedNetwork
from jeffnet.inference.folding import fold_norms
from jeffnet.weights.card import ModelCard
from jeffnet.weights.start import start_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

MODELS = ("tiny", "tiny_flat", "tiny_tf")
SIZE = (32, 48)


def network_of(name, dtype=np.float32, options=ExportOptions(image_size=SIZE), **model):
    """A folded network with random arrays, so that one that is left out, or another's, changes the values."""
    card = ModelCard(name, model.pop("num_classes", 7), 3, start_preprocessing(name), **model)
    start, rng = start_model(name, num_classes=card.num_classes, global_pool=card.global_pool), np.random.default_rng(0)
    draws = {
        "kernel": lambda x: x * rng.uniform(0.8, 1.2, x.shape),
        "scale": lambda x: rng.uniform(0.5, 1.5, x.shape),
        "var": lambda x: rng.uniform(0.5, 1.5, x.shape),
        "bias": lambda x: rng.normal(0, 0.1, x.shape),
        "mean": lambda x: rng.normal(0, 0.1, x.shape),
    }
    arrays = {key: draws[key.rpartition(".")[2]](array) for key, array in start.arrays.items()}
    return ExportNetwork(*_parts(start.plan, card.execution, arrays, dtype), card, options)


def _parts(plan, execution, arrays, dtype):
    plan, arrays = fold_norms(plan, arrays, dtype)
    return plan, execution, arrays


def start_preprocessing(name):
    from jeffnet.arch.zoo import model_preprocessing

    return model_preprocessing(name)


def images_of(network, count=2):
    rng, shape = np.random.default_rng(1), network.images(count)
    draw = rng.integers(0, 256, shape.shape) if network.takes_pixels else rng.normal(size=shape.shape)
    return draw.astype(shape.dtype)


def points_of(network, images, dtype):
    """Every value by its name, maps as `(N, C, H, W)`, in the order in which they are computed."""
    seen = {}

    def point(name, value):
        seen[name] = value
        return value

    def run(arrays, images):
        seen.clear()
        FoldedNetwork(network.plan, network.execution, dtype, point).apply(arrays, images)
        return dict(seen)

    values = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(network.arrays, images)
    return {name: np.moveaxis(values[name], -1, 1) if values[name].ndim == 4 else values[name] for name in seen}


def check_every_value(name, x64, **model):
    """In float64, by the evaluator that comes with the format."""
    from onnx.reference import ReferenceEvaluator

    network = network_of(name, np.float64, **model)
    graph = OnnxGraph(18, None)
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


@pytest.mark.parametrize("name", MODELS)
def test_every_value(name, tiny_model, x64):
    check_every_value(name, x64)
