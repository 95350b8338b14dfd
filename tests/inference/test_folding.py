"""Folded norms and factors: the same function in a plan without them, for every kind of operation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.arch.execution import Execution
from jeffnet.arch.operations import BatchNorm, Conv, Downsample, LayerScale, Normalize
from jeffnet.arch.summary import array_specs
from jeffnet.functional import ImageClassifier, to_variables
from jeffnet.inference.folding import fold_norms
from jeffnet.inference.fused_network import FusedNetwork
from jeffnet.weights.start import start_model

MODELS = ("tiny", "tiny_flat", "tiny_tf")
SLOW_MODELS = (
    "mobilenetv4_conv_small",
    "mobilenetv4_hybrid_medium",
    "mobilenetv4_conv_blur_medium",
    "tf_efficientnetv2_b0",
    "gc_efficientnetv2_rw_t",
    "efficientnet_b0_gn",
    "efficientnet_cc_b0_4e",
    "efficientnet_x_b3",
)


def start_of(name, dtype):
    """Every array random, so that a norm that is left out, or another's, changes the logits."""
    start, rng = start_model(name, num_classes=7, dtype=dtype, param_dtype=dtype), np.random.default_rng(0)
    draws = {
        "kernel": lambda x: x * rng.uniform(0.8, 1.2, x.shape),
        "scale": lambda x: rng.uniform(0.5, 1.5, x.shape),
        "var": lambda x: rng.uniform(0.5, 1.5, x.shape),
        "bias": lambda x: rng.normal(0, 0.1, x.shape),
        "mean": lambda x: rng.normal(0, 0.1, x.shape),
    }
    return start.plan, {key: draws[key.rpartition(".")[2]](array) for key, array in start.arrays.items()}


def check_the_folded_plan(name, size=(32, 48)):
    """By the functions of the library, and by those of fused models, which add and multiply elsewhere."""
    plan, arrays = start_of(name, jnp.float64)
    images = np.random.default_rng(1).normal(size=(2, *size, 3))
    folded, less = fold_norms(plan, arrays, np.float64)
    network = FusedNetwork(folded, Execution(), jnp.float64, native=False, piece=2)
    passes = [
        (ImageClassifier(plan, jnp.float64).apply, to_variables(arrays)),
        (ImageClassifier(folded, jnp.float64).apply, to_variables(less)),
        (network.apply, network.pack(dict(less))),
    ]
    quickly = {"xla_backend_optimization_level": 0}
    expected, *found = (jax.jit(apply, compiler_options=quickly)(variables, images) for apply, variables in passes)
    assert np.std(expected, axis=0).min() > 1e-6  # the logits depend on the images
    for logits in found:
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_the_folded_plan_computes_the_same(name, tiny_model, x64):
    check_the_folded_plan(name)


def test_every_operation(one_operation, x64):
    check_the_folded_plan(one_operation)


@pytest.mark.parametrize(
    "name", ["mobilenetv1_100", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_MODELS)]
)
def test_models_of_the_zoo(name, x64):
    check_the_folded_plan(name, (64, 64))


@pytest.mark.parametrize("name", MODELS)
def test_nothing_of_the_norms_is_left(name, tiny_model):
    plan, arrays = start_of(name, jnp.float32)
    folded, less = fold_norms(plan, arrays, jnp.bfloat16)
    assert all(conv.bias and conv.norm is None for conv in folded.convolutions)
    assert {key: array.shape for key, array in less.items()} == {
        key: spec.shape for key, spec in array_specs(folded).items()
    }
    assert list(less) == list(array_specs(folded))
    assert {array.dtype for array in less.values()} == {jnp.dtype(jnp.bfloat16)}


def test_what_is_left_of_every_operation(one_operation):
    """All arrays of the folded plan, and no others; no BatchNorm and no factors."""
    plan, arrays = start_of(one_operation, jnp.float32)
    folded, less = fold_norms(plan, arrays)
    assert {key: array.shape for key, array in less.items()} == {
        key: spec.shape for key, spec in array_specs(folded).items()
    }
    assert all(conv.bias and not isinstance(conv.norm, BatchNorm) for conv in folded.convolutions)
    assert not any(
        isinstance(op, LayerScale) or (isinstance(op, Normalize) and isinstance(op.norm, BatchNorm))
        for op in folded.operations
    )


def test_what_is_folded_where(every_operation):
    """Attention's input keeps its BatchNorm as a factor and a summand of each channel, since zeros pad it later."""
    plan, arrays = start_of("tiny_of_attention", jnp.float64)
    folded, less = fold_norms(plan, arrays, np.float64)
    block = folded.stages[0][1]
    assert [type(op).__name__ for op in block.ops] == ["Conv", "Attention"]
    scaled = block.ops[0]
    assert isinstance(scaled, Conv) and scaled.is_depthwise and less[f"{scaled.name}.kernel"].shape == (1, 1, 1, 16)
    name = f"{block.name}.attn.output.kernel"
    np.testing.assert_allclose(less[name], arrays[name] * arrays[f"{block.name}.layer_scale.scale"], rtol=1e-5)


def test_factors_pass_a_filter_but_no_activation(every_operation):
    plan, arrays = start_of("tiny_of_blur", jnp.float64)
    folded, less = fold_norms(plan, arrays, np.float64)
    ops = folded.stages[1][0].ops
    assert isinstance(ops[-1], Downsample)
    name, norm = ops[-2].name, f"{folded.stages[1][0].name}.dw_end_bn"
    scale = arrays[f"{norm}.scale"] / np.sqrt(arrays[f"{norm}.var"] + 1e-5)
    scale = scale * arrays[f"{folded.stages[1][0].name}.layer_scale.scale"]
    np.testing.assert_allclose(less[f"{name}.kernel"], arrays[f"{name}.kernel"] * scale, rtol=1e-5)


def test_an_array_that_no_operation_has_is_found(every_operation, monkeypatch):
    """`fold_norms` loses nothing silently."""
    plan, arrays = start_of("tiny_of_attention", jnp.float32)
    monkeypatch.setattr("jeffnet.inference.folding._Folding.keep", lambda self, name: None)
    with pytest.raises(AssertionError, match=r"neither folded nor kept: \['classifier.kernel', 'classifier.bias'\]"):
        fold_norms(plan, arrays)
