"""The conformance suite: what every backend must do. One that passes it is a backend, another is not.

Everything is compared in float64 with Linen's models, which `test_timm_parity.py` compares with timm. Arrays are
random, BatchNorm's too. To add a backend, add a `Driver`: how its users run a model.
"""

import inspect
import os
import re
import resource
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from flax import nnx

from jeffnet import linen as jeffnet_linen
from jeffnet import nnx as jeffnet_nnx
from jeffnet.arch import zoo
from jeffnet.arch.execution import Execution
from jeffnet.arch.model import Model
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec, SqueezeRule
from jeffnet.arch.summary import array_specs, layers
from jeffnet.arch.zoo import list_models, model_plan
from jeffnet.backends import BACKENDS, backend_of, convert, load_backend, to_start
from jeffnet.backends.common import submodule
from jeffnet.checkpoints import form_of, save_checkpoint
from jeffnet.errors import (
    ArchitectureError,
    InputError,
    JeffnetError,
    OutputError,
    UnknownModelError,
    UnknownOptionError,
    WeightsError,
)
from jeffnet.inference.folding import fold_norms
from jeffnet.inference.fused import fuse
from jeffnet.objax import objax
from jeffnet.weights.formats import FORMS
from jeffnet.weights.start import ModelOptions, start_model, with_test_pooling

pytestmark = pytest.mark.usefixtures("tiny_model")

TOLERANCE = 1e-10
CLASSES, BATCH, HEIGHT, WIDTH = 10, 4, 44, 54

# Families whose blocks differ, in both paddings. The first two are small and have convolutions, norms and squeezes of
# every kind, both paddings and both orders of head and pooling: `make test` computes with them alone, `make test-all`
# with all.
FAMILIES = (
    "tiny",
    "tiny_tf",
    "mnasnet_small",
    "mobilenetv3_small_075",
    "tf_mobilenetv3_small_minimal_100",
    "efficientnet_b0",
    "efficientnet_es",
    "efficientnet_lite0",
    "fbnetc_100",
    "lcnet_035",
    "mixnet_s",
    "mnasnet_100",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small_035",
    "semnasnet_100",
    "spnasnet_100",
    "tf_efficientnet_b0",
    "tf_efficientnet_es",
    "tf_efficientnet_lite0",
    "tf_efficientnetv2_b0",
    "tf_mixnet_s",
    "tf_mobilenetv3_large_100",
    "tinynet_e",
)
QUICK = FAMILIES[:2]
families = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
every_backend = pytest.mark.parametrize("backend", BACKENDS)

# The operations that none of these families has, each in a model of a block or two.
OPERATIONS = {
    "attention": ModelSpec(
        stages=(("mqa_r1_k3_s1_h2_v2_d4_c8", "mqa_r1_k3_s1_h3_d4_c8"),),
        stem=8,
        features=16,
        act="gelu",
        layer_scale=0.5,
    ),
    "average": ModelSpec(stages=(("er_r1_k3_s2_e2_c8",),), stem=8, features=0, downsample="average"),
    "blur": ModelSpec(stages=(("cn_r1_k3_s2_c8",),), stem=8, features=16, downsample="blur"),
    "experts": ModelSpec(stages=(("ir_r1_k3_s2_e2_c8_cc3",),), stem=8, features=16, padding="same"),
    "global context": ModelSpec(
        stages=(("ds_r1_k3_s1_c8_se0.5",),), stem=8, features=16, se=SqueezeRule(kind="context")
    ),
    "group norm": ModelSpec(stages=(("ds_r1_k3_s2_c8",),), stem=8, features=16, norm="group", norm_group=4),
    "grouped": ModelSpec(stages=(("er_r1_k3_s1_e2_gs4_c8",),), stem=8, features=16, pool_first=True, head_bias=False),
    "packed": ModelSpec(
        stages=(("ds_r1_k3_s1_c8_se0.25_d1",), ("er_r1_k1_s2_e4_c8_se0.25",)), stem=8, features=16, act="silu"
    ),
    "universal": ModelSpec(
        stages=(("uir_r1_a3_k0_s2_e2_c8", "uir_r1_k3_p3_s1_e2_c8"),),
        stem=8,
        features=16,
        layer_scale=0.5,
        pool_first=True,
        head_norm=True,
    ),
}
every_operation = pytest.mark.parametrize("operation", OPERATIONS)


class Linen:
    """`apply` of a module and its variables."""

    def __init__(self, model):
        self.model, self.variables = model

    def evaluate(self, variables, images, indices=None):
        return (
            self.model.apply(variables, images),
            self.model.apply(variables, images, method="pre_logits"),
            self.model.apply(variables, images, indices, method="features"),
        )

    def outputs(self, variables, images, indices):
        return self.model.apply(variables, images, indices, method="outputs")

    def train(self, variables, images, key, output="__call__"):
        outputs, updated = self.model.apply(
            variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"], method=output
        )
        return outputs, {**variables, **updated}

    def step(self, variables, images, key, weights):
        def loss(params):
            logits, updated = self.train({**variables, "params": params}, images, key)
            return (logits * weights).sum(), (logits, updated)

        params, (logits, updated) = jax.grad(loss, has_aux=True)(variables["params"])
        return logits, self.arrays({**updated, "params": params})

    def arrays(self, variables):
        return load_backend("linen").to_canonical(variables, self.model.plan)


class Functional(Linen):
    """`apply` of plain dictionaries."""

    def evaluate(self, variables, images, indices=None):
        model = self.model
        return (
            model.apply(variables, images),
            model.pre_logits(variables, images),
            model.features(variables, images, indices),
        )

    def outputs(self, variables, images, indices):
        return self.model.outputs(variables, images, indices)

    def train(self, variables, images, key, output="__call__"):
        method = getattr(self.model, "apply" if output == "__call__" else output)
        outputs, updated = method(variables, images, train=True, rngs={"dropout": key})
        return outputs, {**variables, **updated}

    def arrays(self, variables):
        return load_backend("functional").to_canonical(variables, self.model.plan)


class Nnx:
    """`nnx.split` and `nnx.merge`; the mode is set on the module."""

    def __init__(self, model):
        self.model = model
        self.variables = nnx.split(model)[1]

    def _merged(self, variables, key=None):
        model = nnx.merge(nnx.split(self.model)[0], variables)
        if key is not None:
            model.train()
            model.rngs = nnx.Rngs(dropout=key)
        return model

    def evaluate(self, variables, images, indices=None):
        model = self._merged(variables)
        return model(images), model.pre_logits(images), model.features(images, indices)

    def outputs(self, variables, images, indices):
        return self._merged(variables).outputs(images, indices)

    def train(self, variables, images, key, output="__call__"):
        model = self._merged(variables, key)
        return getattr(model, output)(images), nnx.state(model)

    def step(self, variables, images, key, weights):
        def loss(model):
            logits = model(images)
            return (logits * weights).sum(), logits

        model = self._merged(variables, key)
        (_, logits), gradients = nnx.value_and_grad(loss, has_aux=True)(model)
        nnx.update(model, gradients)
        return logits, to_start(model).arrays

    def arrays(self, variables):
        return to_start(self._merged(variables)).arrays


class Objax:
    """A module whose variables are assigned for the time of a call, as `objax.Jit` does."""

    def __init__(self, model):
        self.model = model
        self.vars = model.vars()
        self.variables = self.vars.tensors()

    def _assigned(self, variables, function, key=None):
        try:
            self.vars.assign(variables)
            if key is not None:
                self.model.generator.key.assign(jax.random.key_data(key))
            return function()
        finally:
            for var, tensor in zip(self.vars, self.variables, strict=True):
                var.assign(tensor, check=False)

    def evaluate(self, variables, images, indices=None):
        model = self.model
        return self._assigned(
            variables, lambda: (model(images), model.pre_logits(images), model.features(images, indices))
        )

    def outputs(self, variables, images, indices):
        return self._assigned(variables, lambda: self.model.outputs(images, indices))

    def train(self, variables, images, key, output="__call__"):
        method = getattr(self.model, output)
        return self._assigned(variables, lambda: (method(images, training=True), self.vars.tensors()), key)

    def step(self, variables, images, key, weights):
        def loss(images):
            logits = self.model(images, training=True)
            return (logits * weights).sum(), logits

        def run():
            gradients, (_, logits) = objax.GradValues(loss, self.vars)(images)
            self.vars.subset(objax.TrainVar).assign(gradients)
            return logits, to_start(self.model).arrays

        return self._assigned(variables, run, key)

    def arrays(self, variables):
        return self._assigned(variables, lambda: to_start(self.model).arrays)


DRIVERS = {"linen": Linen, "nnx": Nnx, "objax": Objax, "functional": Functional}


def create(backend, name="tiny", **options):
    """A driver of a model as the backend's own `create_model` makes it."""
    model = load_backend(backend).create_model(name, **{"num_classes": CLASSES} | options)
    return DRIVERS[backend](model)


def random_start(name="tiny", **options):
    """Random arrays for a model, statistics and scales included, each at the scale that keeps activations near 1."""
    start = start_model(name, **{"num_classes": CLASSES, "dtype": jnp.float64, "param_dtype": jnp.float64} | options)
    rng = np.random.default_rng(1)
    draws = {
        "kernel": lambda x: x * rng.uniform(0.8, 1.2, x.shape),
        "scale": lambda x: rng.uniform(0.5, 1.5, x.shape),
        "var": lambda x: rng.uniform(0.5, 1.5, x.shape),
        "bias": lambda x: rng.normal(0, 0.1, x.shape),
        "mean": lambda x: rng.normal(0, 0.1, x.shape),
    }
    arrays = {key: jnp.asarray(draws[key.rpartition(".")[2]](x), x.dtype) for key, x in start.arrays.items()}
    return replace(start, arrays=arrays)


def build(backend, start):
    return DRIVERS[backend](load_backend(backend).build(start))


def images_of(height=HEIGHT, width=WIDTH, channels=3, batch=BATCH, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, height, width, channels))


def run(function, *arguments):
    """Compiled without the optimisations that take most of the time and change no float64 by more than rounding."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})(*arguments)


def error(ours, theirs):
    """The largest difference over the largest magnitude."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def operation_start(operation, monkeypatch, **options):
    """Random arrays for the model of an operation, which has its name."""
    monkeypatch.setitem(zoo.MODELS, operation, Model(OPERATIONS[operation], Preprocessing(32, 1.0)))
    return random_start(operation, **{"drop_rate": 0.0} | options)


_REFERENCES = {}


def reference(kind, name, function):
    """What Linen's model gives, computed once for all backends."""
    if (kind, name) not in _REFERENCES:
        _REFERENCES[kind, name] = jax.tree.map(np.asarray, function())
    return _REFERENCES[kind, name]


def test_every_backend_has_a_driver():
    assert DRIVERS.keys() == BACKENDS.keys()


@every_backend
def test_its_help_says_what_arguments_are(backend):
    """Docstrings stand once, for all backends: `help` must show them for each."""
    module = load_backend(backend)
    for name, part in {
        "create_model": "Raises:",
        "from_pretrained": "hf:owner/name",
        "build": "plan, options and arrays",
    }.items():
        assert part in inspect.getdoc(getattr(module, name)), name
    model = module.ImageClassifier
    for name, part in {
        "features": "indices",
        "outputs": "Outputs",
        "pre_logits": "(N, F)",
        "feature_info": "stride",
    }.items():
        assert part in inspect.getdoc(getattr(model, name)), name
    assert list(inspect.signature(module.create_model).parameters) == ["name", *ModelOptions.__annotations__]


@dataclass(frozen=True)
class Foreign:
    """An operation that nothing knows."""

    name: str = "blocks.0.0.foreign"
    convolutions: tuple = ()


@every_backend
def test_an_unknown_operation_is_an_error(backend):
    """It is not taken for an operation of another kind: that a new one is missing somewhere is noticed."""
    start = random_start("tiny_flat", dtype=jnp.float32, param_dtype=jnp.float32)
    block = replace(start.plan.stages[0][0], ops=(Foreign(),))
    plan: Any = replace(start.plan, stages=((block,), *start.plan.stages[1:]))

    def compute():
        driver = build(backend, replace(start, plan=plan))
        driver.evaluate(driver.variables, jnp.zeros((1, 32, 32, 3)))

    for function in (
        compute,
        lambda: array_specs(plan),
        lambda: layers(plan, 32),
        lambda: fold_norms(plan, start.arrays),
    ):
        with pytest.raises(AssertionError, match="Foreign"):
            function()


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        # A backend sees the Plan only, whose parts those of each family have: with the others, one backend is enough.
        pytest.param(name, backend, marks=() if name in FAMILIES or backend == "functional" else pytest.mark.slow)
        for name in list_models()
        for backend in BACKENDS
    ],
)
def test_abstract_shapes(name, backend):
    """All architectures: the arrays of the Plan and no other, without allocating any."""
    model = load_backend(backend).create_model(name, abstract=True)
    arrays = to_start(model).arrays
    assert all(isinstance(array, jax.ShapeDtypeStruct) for array in arrays.values())
    assert {key: array.shape for key, array in arrays.items()} == {
        key: spec.shape for key, spec in array_specs(model_plan(name)).items()
    }
    assert {array.dtype for array in arrays.values()} == {jnp.dtype(jnp.float32)}


@every_backend
@families
def test_abstract_outputs(name, backend):
    """Shapes of logits, pre-logits and maps, of arrays that are not there."""
    driver = create(backend, name, abstract=True)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    logits, pre_logits, maps = jax.eval_shape(driver.evaluate, driver.variables, images)
    plan = model_plan(name)
    assert (logits.shape, logits.dtype) == ((2, CLASSES), jnp.float32)
    assert pre_logits.shape == (2, plan.num_features)
    assert [each.shape for each in maps] == [
        (2, 64 // info.stride, 64 // info.stride, info.channels) for info in plan.features
    ]


@every_backend
@families
def test_evaluation(name, backend, x64):
    """Logits, pre-logits and the map at every stride."""
    start, images = random_start(name), images_of()

    def outputs(backend):
        driver = build(backend, start)
        return run(driver.evaluate, driver.variables, images)

    theirs = reference("evaluation", name, lambda: outputs("linen"))
    for ours, their in zip(jax.tree.leaves(outputs(backend)), jax.tree.leaves(theirs), strict=True):
        assert ours.dtype == np.float64
        assert error(ours, their) <= TOLERANCE


# Compiling a gradient takes seconds: of the second family `make test` has Linen's, with which the others are compared.
SLOW_TO_TRAIN = {("tiny_tf", backend) for backend in BACKENDS if backend != "linen"}


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(
            name, backend, marks=() if name in QUICK and (name, backend) not in SLOW_TO_TRAIN else pytest.mark.slow
        )
        for name in FAMILIES
        for backend in BACKENDS
    ],
)
def test_training(name, backend, x64):
    """Logits, the gradient of every parameter through a random functional of them, the updated statistics."""
    start = random_start(name, drop_rate=0.0, drop_path_rate=0.0)
    images, weights = images_of(), np.random.default_rng(2).normal(size=(BATCH, CLASSES))

    def step(backend):
        driver = build(backend, start)
        return run(driver.step, driver.variables, images, jax.random.key(0), weights)

    logits, arrays = step(backend)
    their_logits, theirs = reference("training", name, lambda: step("linen"))
    assert error(logits, their_logits) <= TOLERANCE
    assert arrays.keys() == theirs.keys()
    # A norm's bias before a 1x1 convolution and the next norm has the gradient 0, of which rounding alone is left.
    largest = {key: np.abs(array).max() for key, array in theirs.items()}
    for key, array in arrays.items():
        scale = max(largest[key], largest.get(key.replace(".bias", ".scale"), 0))
        assert np.abs(array - theirs[key]).max() <= TOLERANCE * scale, key
        assert np.abs(array - np.asarray(start.arrays[key])).max() > 0, key


@every_backend
@every_operation
def test_operations(operation, backend, monkeypatch, x64):
    """Evaluation and training, in pictures of odd sizes; the same where blocks are computed again."""
    images, weights = images_of(13, 10), np.random.default_rng(2).normal(size=(BATCH, CLASSES))

    def outputs(backend, remat):
        driver = build(backend, operation_start(operation, monkeypatch, remat=remat))

        def both(variables, images, key):
            return driver.evaluate(variables, images), driver.step(variables, images, key, weights)

        return run(both, driver.variables, images, jax.random.key(0))

    evaluated, (logits, arrays) = outputs(backend, True)
    their_evaluated, (their_logits, theirs) = reference("operation", operation, lambda: outputs("linen", False))
    for ours, their in zip(
        jax.tree.leaves((evaluated, logits)), jax.tree.leaves((their_evaluated, their_logits)), strict=True
    ):
        assert ours.dtype == np.float64
        assert error(ours, their) <= TOLERANCE
    assert arrays.keys() == theirs.keys()
    for key, array in arrays.items():
        layer = key.rpartition(".")[0]
        # A bias that is subtracted again has the gradient 0, of which rounding alone is left.
        scale = max(np.abs(theirs[other]).max() for other in theirs if other.rpartition(".")[0] == layer)
        assert np.abs(array - theirs[key]).max() <= TOLERANCE * scale, key


@every_operation
def test_operations_are_converted_saved_and_read(operation, monkeypatch, tmp_path):
    """From every backend into the next one, through a file of every form."""
    start = operation_start(operation, monkeypatch, dtype=jnp.float32, param_dtype=jnp.float32)
    model, following = load_backend("linen").build(start), [*[*BACKENDS][1:], "linen"]
    for backend in following:
        model = convert(model, backend)
    assert to_start(model).plan == start.plan
    for form in ANY_MODEL:
        if form == "npz" and operation in ("attention", "experts", "global context", "universal"):
            with pytest.raises(WeightsError, match=r"only timm has names for the \w+ of blocks"):
                save_checkpoint(tmp_path / form, model, operation, form=form)
            continue
        save_checkpoint(tmp_path / form, model, operation, form=form)
        *model, card = load_backend(following[0]).from_pretrained(tmp_path / form, operation)
        model = model[0] if len(model) == 1 else tuple(model)
        following = [*following[1:], following[0]]
        arrays = to_start(model).arrays
        assert card.model == operation and list(arrays) == list(start.arrays)
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, start.arrays[key], err_msg=key)


@every_backend
@every_operation
def test_operations_in_half_precision(operation, backend, monkeypatch):
    """Layers compute in it, statistics and gradients stay float32, and nothing is promoted behind one's back."""
    options = {"dtype": jnp.bfloat16, "param_dtype": jnp.float32}
    driver = build(backend, operation_start(operation, monkeypatch, **options))
    images, weights = (
        jax.ShapeDtypeStruct((4, 13, 10, 3), jnp.bfloat16),
        jax.ShapeDtypeStruct((4, CLASSES), jnp.bfloat16),
    )

    def both(variables, images, key, weights):
        return driver.evaluate(variables, images), driver.step(variables, images, key, weights)

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        lowered = jax.jit(both).lower(driver.variables, images, jax.random.key(0), weights)
    evaluated, (logits, arrays) = lowered.out_info
    assert {each.dtype for each in jax.tree.leaves((evaluated, logits))} == {jnp.dtype(jnp.bfloat16)}
    assert {array.dtype for array in arrays.values()} == {jnp.dtype(jnp.float32)}


@every_operation
def test_operations_of_no_pictures(operation, monkeypatch):
    driver = build("functional", operation_start(operation, monkeypatch, dtype=jnp.float32, param_dtype=jnp.float32))
    outputs = run(driver.evaluate, driver.variables, images_of(13, 10, batch=0))
    some = jax.eval_shape(driver.evaluate, driver.variables, images_of(13, 10, batch=2))
    for none, two in zip(jax.tree.leaves(outputs), jax.tree.leaves(some), strict=True):
        assert (none.shape, none.dtype) == ((0, *two.shape[1:]), two.dtype)


@pytest.mark.parametrize(
    ("operation", "layer", "change"),
    [
        ("attention", "blocks.0.0.attn", {"op": {"heads": 1}}),
        ("experts", "blocks.0.0.conv_dw", {"conv": {"stride": 1}}),
        ("group norm", "bn1", {"norm": {"epsilon": 0.1}}),
        ("group norm", "blocks.0.0.bn2", {"norm": {"groups": 1}}),
        ("global context", "blocks.0.0.se.norm", {"norm": {"epsilon": 0.1}}),
    ],
)
@pytest.mark.parametrize("backend", ["nnx", "objax"])
def test_a_changed_operation_is_not_lost(operation, layer, change, backend, monkeypatch):
    start = operation_start(operation, monkeypatch, dtype=jnp.float32, param_dtype=jnp.float32)
    model = load_backend(backend).build(start)
    module = submodule(model, layer)
    ((attribute, values),) = change.items()
    setattr(module, attribute, replace(getattr(module, attribute), **values))
    with pytest.raises(WeightsError, match=rf"{layer} has {attribute} .* would be lost"):
        convert(model, "functional")


@every_backend
@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 0, "in_chans": 1},
        {"num_classes": 3, "in_chans": 5, "global_pool": "max", "remat": True},
        {"output_stride": 16, "global_pool": "avgmax"},
        {"output_stride": 8, "global_pool": "none"},
    ],
    ids=str,
)
def test_options(options, backend, x64):
    """What each option makes of the logits, the pre-logits and the maps."""
    # Only the deeper model has strides for dilations to take the place of.
    name = "tiny" if "output_stride" in options else "tiny_tf"
    start, images = random_start(name, **options), images_of(64, 64, options.get("in_chans", 3))

    def outputs(backend):
        driver = build(backend, start)
        return run(driver.evaluate, driver.variables, images)

    theirs = reference("options", str(options), lambda: outputs("linen"))
    for ours, their in zip(jax.tree.leaves(outputs(backend)), jax.tree.leaves(theirs), strict=True):
        assert error(ours, their) <= TOLERANCE
    width = start.plan.num_classes or start.plan.num_features
    side = 64 // start.plan.features[-1].stride
    shape = (BATCH, side, side, width) if options.get("global_pool") == "none" else (BATCH, width)
    assert theirs[0].shape == shape
    assert theirs[2][-1].shape[1] == side


@every_backend
def test_features_by_index(backend):
    driver = create(backend, "tiny_flat")

    def both(variables, images):
        return driver.evaluate(variables, images)[2], driver.evaluate(variables, images, (1, 0, -2))[2]

    everything, chosen = run(both, driver.variables, images_of())
    assert len(everything) == len(driver.model.feature_info) == 2
    for ours, index in zip(chosen, (1, 0, 0), strict=True):
        assert error(ours, everything[index]) < 1e-5
    with pytest.raises(ArchitectureError, match="feature indices"):
        driver.evaluate(driver.variables, images_of(), (5,))


@every_backend
def test_the_outputs_of_one_pass_are_those_of_three(backend):
    driver = create(backend, "tiny_flat")

    def both(variables, images):
        return driver.evaluate(variables, images, (1, 0)), driver.outputs(variables, images, (1, 0))

    expected, outputs = run(both, driver.variables, images_of())
    assert (outputs.logits.shape, outputs.pre_logits.shape) == ((BATCH, CLASSES), (BATCH, 16))
    for ours, theirs in zip(jax.tree.leaves(tuple(outputs)), jax.tree.leaves(expected), strict=True):
        assert error(ours, theirs) < 1e-5


@every_backend
def test_training_returns_maps_beside_the_same_logits_and_statistics(backend):
    start, training = (
        random_start("tiny_flat", dtype=jnp.float32, param_dtype=jnp.float32),
        load_backend(backend).training,
    )

    def both(arrays, images):
        given = replace(start, arrays=arrays, rng=jax.random.key(0))
        return training(given, images, (-1,)), training(given, images)

    (outputs, stats), (logits, expected) = run(both, start.arrays, images_of())
    assert error(outputs.logits, logits) < 1e-5
    assert outputs.features[0].shape[-1] == 8 and outputs.pre_logits.shape == (BATCH, 16)
    assert stats.keys() == expected.keys() and all(error(stats[name], expected[name]) < 1e-5 for name in stats)


@every_backend
@pytest.mark.parametrize(("dtype", "name"), [(jnp.bfloat16, "tiny_tf"), (jnp.float16, "tiny_flat")])
def test_half_precision(dtype, name, backend):
    """Layers compute in it and logits have it; parameters, statistics and gradients stay float32."""
    driver, single = create(backend, name, dtype=dtype, drop_rate=0.0), create(backend, name)
    logits, pre_logits, maps = run(driver.evaluate, driver.variables, images_of())
    assert {each.dtype for each in (logits, pre_logits, *maps)} == {jnp.dtype(dtype)}
    expected = run(single.evaluate, single.variables, images_of())[0]
    assert 1e-6 < error(logits.astype(jnp.float32), expected) < 0.1
    step = jax.eval_shape(driver.step, driver.variables, images_of(), jax.random.key(0), np.ones((BATCH, CLASSES)))
    assert step[0].dtype == dtype
    assert {array.dtype for array in step[1].values()} == {jnp.dtype(jnp.float32)}


@every_backend
def test_parameters_of_another_type(backend):
    """Statistics stay at least float32."""
    driver = create(backend, param_dtype=jnp.bfloat16)
    for key, array in driver.arrays(driver.variables).items():
        assert array.dtype == (jnp.float32 if key.endswith((".mean", ".var")) else jnp.bfloat16), key


@every_backend
def test_one_compilation_for_each_shape(backend):
    """Of training, which changes the variables: what comes out must not look new to JAX when it goes in."""
    driver, traces = create(backend, "tiny_flat"), []

    def train(variables, images, key):
        traces.append(images.shape)
        return driver.train(variables, images, key)

    jitted = jax.jit(train, compiler_options={"xla_backend_optimization_level": 0})
    variables = driver.variables
    for step, batch in enumerate((2, 2, 3, 2, 3)):
        _, variables = jitted(variables, images_of(32, 32, batch=batch, seed=step), jax.random.key(step))
    assert traces == [(2, 32, 32, 3), (3, 32, 32, 3)]


@every_backend
def test_training_is_decided_by_its_key(backend):
    driver = create(backend, "tiny_flat", drop_rate=0.3, drop_path_rate=0.3)
    jitted = jax.jit(driver.train, compiler_options={"xla_backend_optimization_level": 0})
    one, again, other = (
        jitted(driver.variables, images_of(32, 32), jax.random.key(seed))[0] for seed in (0, 0, 1)
    )  # fmt: skip
    np.testing.assert_array_equal(one, again)
    assert error(other, one) > 1e-3


@every_backend
@pytest.mark.parametrize(
    ("rates", "output"),
    [((0.5, 0.0), "__call__"), ((0.0, 0.9), "features")],
    ids=["dropout", "drop-path"],
)
def test_dropping_is_on_in_training_with_the_right_mean_and_off_in_evaluation(rates, output, backend):
    """Of 1,000 copies of each of two pictures, the mean is what comes out without dropping.

    So it must be, since the classifier is linear in what dropout leaves, and the last map the sum of its block's input
    and of what drop path leaves of the branch; no block before that one can drop.
    """
    copies, images = 1000, np.repeat(images_of(16, 16, batch=2), 1000, axis=0).astype(np.float32)
    outputs, evaluated = [], []
    for drop_rate, drop_path_rate in (rates, (0.0, 0.0)):
        driver = create(backend, "tiny_flat", drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        trained, _ = run(lambda v, d=driver: d.train(v, images, jax.random.key(3), output), driver.variables)
        trained = np.asarray(trained[-1] if output == "features" else trained, np.float64)
        outputs.append(trained.reshape(2, copies, -1))
        evaluated.append(run(driver.evaluate, driver.variables, images[::copies])[0])
    dropped, undropped = outputs
    scale = np.abs(undropped).max()
    assert undropped.std(1).max() < 1e-3 * scale < dropped.std(1).max()  # on
    margin = 5 * dropped.std(1) / copies**0.5 + 1e-3 * scale  # 5 standard errors
    assert (np.abs(dropped.mean(1) - undropped.mean(1)) <= margin).all()
    np.testing.assert_array_equal(*evaluated)  # off


@every_backend
def test_recomputation_changes_nothing(backend, x64):
    """Gradients, logits and statistics are the same with the same key, and the program does compute again."""
    results = []
    for remat in (False, True):
        driver = build(backend, random_start("tiny_flat", drop_rate=0.3, drop_path_rate=0.5, remat=remat))
        arguments = driver.variables, images_of(), jax.random.key(0), np.ones((BATCH, CLASSES))
        assert ("remat" in str(jax.make_jaxpr(driver.step)(*arguments))) == remat
        results.append(run(driver.step, *arguments))
    for one, other in zip(*(jax.tree.leaves(result) for result in results), strict=True):
        assert np.abs(one - other).max() <= 1e-10 * max(1, np.abs(one).max())


@every_backend
def test_a_pass_in_training_mode_leaves_frozen_norms_alone(backend, x64):
    """`training` of every backend gives the same logits and statistics, from arrays that a function gets."""
    start = random_start("tiny_flat", drop_rate=0.0, drop_path_rate=0.0)
    images = images_of()
    norms = [name.removesuffix(".scale") for name in start.arrays if name.endswith(".scale")]
    frozen = replace(start, execution=Execution(frozen_norms=frozenset(norms[1:3])))

    for each in (start, frozen):
        (logits, stats), (expected, expected_stats) = (
            run(partial(_training, name, each, images), each.arrays, jax.random.key(0))
            for name in (backend, "functional")
        )
        assert error(logits, expected) < TOLERANCE
        moved = {name for name, array in stats.items() if (array != start.arrays[name]).any()}
        still = {f"{norm}.{leaf}" for norm in norms[1:3] for leaf in ("mean", "var")} if each is frozen else set()
        assert moved == stats.keys() - still
        assert all(error(stats[name], expected_stats[name]) < TOLERANCE for name in moved)


def _training(backend, start, images, arrays, key):
    return load_backend(backend).training(replace(start, arrays=arrays, rng=key), images)


@every_backend
def test_seeds_and_options_give_linens_arrays(backend):
    """Seeds of Python and of NumPy, keys new and old."""
    keys = jax.random.key(3), jax.random.PRNGKey(3)
    for options in ({}, {"rng": np.int64(3), "in_chans": 1}, *({"rng": key, "num_classes": 0} for key in keys)):
        driver, linen = create(backend, **options), create("linen", **options)
        theirs = linen.arrays(linen.variables)
        for key, array in driver.arrays(driver.variables).items():
            np.testing.assert_array_equal(array, theirs[key], err_msg=key)


@every_backend
def test_bad_input_is_an_error_that_names_it(backend):
    create_model = load_backend(backend).create_model
    with pytest.raises(UnknownModelError, match="near it"):
        create_model("mnasnet_smal")
    for options in ({"num_classes": -1}, {"drop_rate": 1.0}, {"output_stride": 4}, {"global_pool": "mean"}):
        with pytest.raises(ArchitectureError, match=f"{next(iter(options))} "):
            create_model("tiny", **options)
    with pytest.raises(WeightsError, match="does not exist"):
        create_model("tiny", pretrained="nowhere.safetensors")
    with pytest.raises(UnknownOptionError, match="colour"):
        create_model("tiny", colour=1)
    driver = create(backend)
    for shape in ((32, 32, 3), (1, 3, 32, 32), (1, 32, 32, 1)):
        with pytest.raises(InputError, match=r"\(N, H, W, 3\)"):
            driver.evaluate(driver.variables, np.zeros(shape, np.float32))
    with pytest.raises(InputError, match=r"\(2, 0, 32, 3\): they have no pixels"):
        driver.evaluate(driver.variables, np.zeros((2, 0, 32, 3), np.float32))


@every_backend
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny", {}),
        ("tiny_flat", {"num_classes": 0}),
        ("tiny_flat", {"global_pool": "none"}),
        ("tiny_flat", {"global_pool": "avgmax", "remat": True}),
    ],
)
def test_no_pictures_give_no_logits(name, options, backend):
    """Nor pre-logits and maps; each of the shape that pictures give, but for their number."""
    driver = create(backend, name, **options)
    outputs = run(driver.evaluate, driver.variables, images_of(batch=0))
    some = jax.eval_shape(driver.evaluate, driver.variables, images_of(batch=2))
    for none, two in zip(jax.tree.leaves(outputs), jax.tree.leaves(some), strict=True):
        assert (none.shape, none.dtype) == ((0, *two.shape[1:]), two.dtype)


@every_backend
def test_no_pictures_in_test_time_pooling_and_in_training(backend):
    start = random_start("tiny_flat", dtype=jnp.float32, param_dtype=jnp.float32)
    driver = build(backend, with_test_pooling(start, 16))
    model = driver.model if backend in ("nnx", "objax") else (driver.model, driver.variables)
    apply, variables = load_backend(backend).inference(*(model if isinstance(model, tuple) else (model,)))
    assert run(apply, variables, images_of(batch=0)).shape == (0, CLASSES)
    with pytest.raises(ArchitectureError, match=r"BatchNorm in training over an array of shape \(0, .*no statistics"):
        driver.train(driver.variables, images_of(batch=0), jax.random.key(0))


def test_the_gradient_of_no_pictures_is_zero():
    driver = create("functional")

    def loss(params):
        return driver.model.apply({**driver.variables, "params": params}, images_of(batch=0)).sum()

    gradients = run(jax.grad(loss), driver.variables["params"])
    assert gradients.keys() == driver.variables["params"].keys()
    assert not any(np.asarray(gradient).any() for gradient in gradients.values())


@every_backend
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.bool_, np.complex64])
def test_pixels_that_were_not_normalised_are_refused(dtype, backend):
    """Of them a model would make nonsense without a word."""
    driver, images = create(backend, "tiny_flat"), images_of().astype(dtype)
    message = (
        rf"images of {np.dtype(dtype).name}: the model takes normalised floats; .*normalize\(images, p.mean, p.std\)"
    )
    with pytest.raises(InputError, match=message):
        driver.evaluate(driver.variables, images)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(driver.train, driver.variables, images, jax.random.key(0))


@pytest.fixture
def strict_model(tiny_model, monkeypatch):
    """Every kind of layer once."""
    spec = ModelSpec(stages=(("ds_r1_k3_s2_c8_se0.25",), ("ir_r1_k3_s1_e2_c8",)), stem=8, features=16)
    monkeypatch.setitem(zoo.MODELS, "tiny_strict", Model(spec, Preprocessing(32, 1.0)))


def test_strict_settings_of_jax(strict_jax, strict_model):
    """Nothing is refused, and the same is computed: logits, and a training step with its gradients and statistics."""
    # Nothing is dropped, since JAX draws other numbers in 64 bits.
    start = random_start("tiny_strict", dtype=jnp.float32, param_dtype=jnp.float32, drop_rate=0.0)
    driver, key = build("functional", start), jax.random.key(0)
    images, weights = jax.device_put((images_of(16, 16).astype(np.float32), np.ones((BATCH, CLASSES), np.float32)))

    def results():
        logits = run(driver.evaluate, driver.variables, images)[0]
        trained, arrays = run(driver.step, driver.variables, images, key, weights)
        return {"logits": logits, "trained": trained, **arrays}

    expected = reference("strict", "functional", results)
    with strict_jax():
        found = results()
    for name, theirs in expected.items():
        assert found[name].dtype == theirs.dtype, name
        assert np.abs(np.asarray(found[name]) - theirs).max() <= 1e-3 * max(1, np.abs(theirs).max()), name


@every_backend
@pytest.mark.parametrize(
    ("dtype", "param_dtype"), [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16), (jnp.float16, jnp.float16)]
)
def test_dtypes_and_ranks_are_promoted_explicitly(dtype, param_dtype, backend, strict_model):
    """In what is traced and in what our primitives are lowered to."""
    driver = create(backend, "tiny_strict", dtype=dtype, param_dtype=param_dtype, drop_rate=0.3)
    images, weights = jax.ShapeDtypeStruct((4, 16, 16, 3), dtype), jax.ShapeDtypeStruct((4, CLASSES), dtype)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        jax.jit(driver.evaluate).lower(driver.variables, images)
        jax.jit(driver.step).lower(driver.variables, images, jax.random.key(0), weights)


@every_backend
@pytest.mark.parametrize("kind", ["rbg", "legacy"])
def test_keys_of_every_kind_decide_what_is_dropped(kind, backend):
    """Those of another implementation than JAX's default, and the old ones, which are arrays of numbers."""
    start = random_start("tiny_flat", dtype=jnp.float32, param_dtype=jnp.float32, drop_rate=0.5)
    images = images_of(8, 8).astype(np.float32)
    train = jax.jit(partial(_training, backend, start, images), compiler_options={"xla_backend_optimization_level": 0})
    keys = [jax.random.PRNGKey(seed) if kind == "legacy" else jax.random.key(seed, impl=kind) for seed in (0, 0, 1)]
    one, again, other = (train(start.arrays, key)[0] for key in keys)
    np.testing.assert_array_equal(one, again)
    assert error(other, one) > 1e-3


# JAX's settings under which the suite runs once more. Not `transfer_guard`: under it JAX itself makes no key, and no
# array of a NumPy one.
SETTINGS = {
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_DEBUG_NANS": "1",
    "JAX_DEBUG_INFS": "1",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_suite_under_a_setting_of_jax(setting):
    """All of it but what computes nothing: shapes of all models, and files."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-m", "not slow"]
    result = subprocess.run(
        [*command, "-k", "not (abstract or form or full_disk or checkpoint)", __file__],
        env=os.environ | {setting: SETTINGS[setting]}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]


def test_every_pair_of_backends_converts_and_back_to_the_same_bits():
    start = random_start(dtype=jnp.bfloat16, param_dtype=jnp.float32, remat=True, drop_path_rate=0.1)
    start = replace(start, execution=Execution(test_window=2, frozen_norms=frozenset({"bn1"}), norm_groups=2))
    for origin in BACKENDS:
        model = load_backend(origin).build(start)
        for target in BACKENDS:
            there = convert(model, target)
            assert backend_of(there) == target
            back = to_start(convert(there, origin))
            assert (back.plan, back.dtype, back.param_dtype, back.remat, back.execution) == (
                start.plan, start.dtype, start.param_dtype, start.remat, start.execution,
            )  # fmt: skip
            for passed in (to_start(there), back):
                assert list(passed.arrays) == list(start.arrays)
                for key, array in passed.arrays.items():
                    assert array.dtype == start.arrays[key].dtype
                    np.testing.assert_array_equal(array, start.arrays[key])


def _replaced(model, name, layer):
    parent, _, leaf = name.rpartition(".")
    setattr(submodule(model, parent) if parent else model, leaf, layer)


def _halved(*arguments, **options):
    return 0.5 * jax.lax.conv_general_dilated(*arguments, **options)


def _nnx_conv(**options):
    return nnx.Conv(16, 16, (1, 1), use_bias=False, rngs=nnx.Rngs(1), **options)


class _Lora(nnx.Linear):
    """A classifier of another class."""

    def __call__(self, inputs):
        return 2 * super().__call__(inputs)


class _Doubled(jeffnet_nnx.ImageClassifier):
    """A model of another class."""

    def __call__(self, images, *, rngs=None):
        return 2 * super().__call__(images, rngs=rngs)


# What users do to NNX modules, and whether it can be said in a file, or in another backend.
SURGERY = {
    "classifier": (
        lambda m: setattr(m, "classifier", nnx.Linear(64, 7, rngs=nnx.Rngs(1))), True,
    ),
    "no classifier": (lambda m: delattr(m, "classifier"), True),
    "classifier of another class": (lambda m: setattr(m, "classifier", _Lora(64, 7, rngs=nnx.Rngs(1))), False),
    "classifier of two layers": (
        lambda m: setattr(m, "classifier", nnx.Sequential(nnx.Linear(64, 7, rngs=nnx.Rngs(1)), nnx.relu)), False,
    ),
    "classifier without bias": (
        lambda m: setattr(m, "classifier", nnx.Linear(64, 7, use_bias=False, rngs=nnx.Rngs(1))), False,
    ),
    "layer": (lambda m: _replaced(m, "blocks.1.0.conv_pwl", _nnx_conv()), True),
    "kernel function": (
        lambda m: _replaced(m, "blocks.1.0.conv_pwl", _nnx_conv(conv_general_dilated=_halved)),
        False,
    ),
    "stride": (lambda m: setattr(m.conv_stem, "strides", 1), False),
    "epsilon": (lambda m: setattr(m.bn1, "epsilon", 0.1), False),
    "block": (lambda m: setattr(m.blocks[2][1], "block", replace(m.blocks[2][1].block, residual=False)), False),
    "own class": (lambda m: setattr(m, "__class__", _Doubled), False),
    "momentum": (lambda m: setattr(m.bn1, "momentum", 0.5), True),
    "dropout": (lambda m: setattr(m.dropout, "rate", 0.5), True),
}  # fmt: skip


@pytest.mark.parametrize("surgery", SURGERY)
def test_what_users_change_in_a_model_is_kept_or_refused(surgery, tmp_path):
    change, is_kept = SURGERY[surgery]
    start = random_start(dtype=jnp.float32, param_dtype=jnp.float32)
    model, images = load_backend("nnx").build(start), images_of().astype(np.float32)
    before = model(images)
    change(model)
    expected = model(images)
    is_same = expected.shape == before.shape and bool(jnp.allclose(expected, before))
    assert is_same == (surgery in ("momentum", "dropout"))
    if not is_kept:
        for lose in (
            lambda: convert(model, "functional"),
            lambda: save_checkpoint(tmp_path / "a", model, "tiny"),
            lambda: fuse(model, batch_size=len(images), image_size=images.shape[1]),
        ):
            with pytest.raises(WeightsError, match=r"would be lost|has no array 'classifier"):
                lose()
        return
    save_checkpoint(tmp_path / "a", model, "tiny")
    again, _ = load_backend("nnx").from_pretrained(tmp_path / "a")
    np.testing.assert_allclose(again(images), expected, rtol=1e-4, atol=1e-4)
    if surgery in ("momentum", "dropout"):
        with pytest.raises(WeightsError, match=r"would be lost"):
            convert(model, "functional")
        return
    functional, variables = convert(model, "functional")
    np.testing.assert_allclose(functional.apply(variables, images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["nnx", "objax"])
def test_a_classifier_put_into_a_model_without_one_classifies(backend, tmp_path):
    module = load_backend(backend)
    model, images = module.create_model("tiny", num_classes=0), images_of().astype(np.float32)
    other = module.create_model("tiny", num_classes=7, rng=3)
    model.classifier = other.classifier
    apply, variables = module.inference(model)
    logits = apply(variables, images)
    assert logits.shape == (BATCH, 7)
    assert to_start(model).plan.classifier.out_features == 7
    save_checkpoint(tmp_path / "a", model, "tiny")
    functional, arrays, card = load_backend("functional").from_pretrained(tmp_path / "a")
    assert card.num_classes == 7
    np.testing.assert_allclose(functional.apply(arrays, images), logits, rtol=1e-4, atol=1e-5)
    if backend == "objax":
        model.bn1.eps = 0.1
        with pytest.raises(WeightsError, match=r"bn1 has eps 0\.1.*would be lost"):
            save_checkpoint(tmp_path / "b", model, "tiny")


def test_a_subclass_of_a_linen_model_is_not_taken_for_ours():
    class Doubled(jeffnet_linen.ImageClassifier):
        def __call__(self, images, train=False):
            return 2 * super().__call__(images, train)

    model, variables = load_backend("linen").create_model("tiny", num_classes=2)
    with pytest.raises(WeightsError, match="Doubled has a __call__ of its own"):
        convert((Doubled(model.plan), variables), "nnx")


@every_backend
def test_what_training_left_is_converted(backend):
    """Not the arrays with which a model began: those that it has now."""
    driver = create(backend, "tiny_flat")
    _, variables = run(driver.train, driver.variables, images_of(), jax.random.key(0))
    arrays = driver.arrays(variables)
    moved = [key for key in arrays if key.endswith((".mean", ".var"))]
    began = driver.arrays(driver.variables)
    assert all(np.abs(np.asarray(arrays[key]) - np.asarray(began[key])).max() > 0 for key in moved)


# The forms that can hold any model; the others are those of libraries that have a few.
ANY_MODEL = tuple(form for form in FORMS if form not in ("efficientnet_pytorch", "tensorflow", "keras"))


@every_backend
@pytest.mark.parametrize("form", ANY_MODEL)
def test_a_checkpoint_from_one_loads_into_every_other(form, backend, tmp_path):
    """Every form, written from every backend: the same bits, and classes and channels are found in the file.

    What is read from a file is the same for all backends; each builds what the one before it wrote, and its own.
    """
    start = random_start(dtype=jnp.float32, param_dtype=jnp.float32, num_classes=7, in_chans=1)
    path = tmp_path / "checkpoint"
    save_checkpoint(path, load_backend(backend).build(start), "tiny", form=form)
    backends = list(BACKENDS)
    for target in {backend, backends[backends.index(backend) - 1]}:
        *model, card = load_backend(target).from_pretrained(path, "tiny")
        assert (card.model, card.num_classes, card.in_chans) == ("tiny", 7, 1)
        arrays = to_start(model[0] if len(model) == 1 else tuple(model)).arrays
        assert list(arrays) == list(start.arrays)
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, start.arrays[key], err_msg=key)
        adapted = load_backend(target).create_model("tiny", pretrained=path, adapt=True, num_classes=2, in_chans=3)
        assert to_start(adapted).arrays["classifier.kernel"].shape == (64, 2)


def test_frameworks_own_tools_read_what_is_written(tmp_path):
    """Into a fresh model, the way that each framework's users do."""
    start = random_start(dtype=jnp.float32, param_dtype=jnp.float32)
    for form in ("linen", "nnx", "objax"):
        save_checkpoint(tmp_path / form, load_backend(form).build(start), "tiny", form=form)

    model, variables = load_backend("linen").create_model("tiny", num_classes=CLASSES, rng=5)
    linen = (model, flax.serialization.from_bytes(variables, (tmp_path / "linen").read_bytes()))

    module = load_backend("nnx").create_model("tiny", num_classes=CLASSES, rng=5)
    graph, state = nnx.split(module)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "nnx", jax.eval_shape(lambda: state))

    objaxs = load_backend("objax").create_model("tiny", num_classes=CLASSES, rng=5)
    objax.io.load_var_collection(str(tmp_path / "objax"), objaxs.vars())

    for loaded in (linen, nnx.merge(graph, restored), objaxs):
        for key, array in to_start(loaded).arrays.items():
            np.testing.assert_array_equal(array, start.arrays[key], err_msg=key)


@pytest.mark.parametrize("form", ANY_MODEL)
def test_half_precision_survives_or_is_refused(form, tmp_path):
    model = load_backend("functional").create_model("tiny", num_classes=3, param_dtype=jnp.bfloat16)
    if form in ("objax", "npz"):
        with pytest.raises(WeightsError, match="cannot hold bfloat16"):
            save_checkpoint(tmp_path / form, model, "tiny", form=form)
        assert list(tmp_path.iterdir()) == []
        return
    save_checkpoint(tmp_path / form, model, "tiny", form=form)
    again = load_backend("nnx").create_model(
        "tiny", num_classes=3, param_dtype=jnp.bfloat16, pretrained=tmp_path / form
    )
    for key, array in to_start(again).arrays.items():
        np.testing.assert_array_equal(np.asarray(array), np.asarray(model[1][_collection(key)][key]))


def _collection(key):
    return "batch_stats" if key.endswith((".mean", ".var")) else "params"


def test_a_card_says_how_the_model_is_built(tmp_path):
    """Pooling, output stride and names of classes come back."""
    options = {"num_classes": 2, "output_stride": 8, "global_pool": "max"}
    model = load_backend("nnx").create_model("tiny", **options)
    save_checkpoint(tmp_path / "a.safetensors", model, "tiny", classes=("cat", "dog"))
    _, _, card = load_backend("linen").from_pretrained(tmp_path / "a.safetensors")
    assert (card.output_stride, card.global_pool, card.classes) == (8, "max", ("cat", "dog"))


def test_test_time_pooling_is_kept(tmp_path):
    start = random_start(dtype=jnp.float32, param_dtype=jnp.float32)
    model = load_backend("functional").build(with_test_pooling(start, 32))
    images = np.random.default_rng(0).normal(size=(2, 48, 48, 3)).astype(np.float32)
    save_checkpoint(tmp_path / "a", model, "tiny")
    again, variables, card = load_backend("functional").from_pretrained(tmp_path / "a")
    assert card.test_window == model[0].execution.test_window > 0
    np.testing.assert_array_equal(again.apply(variables, images), model[0].apply(model[1], images))


def test_a_model_is_not_saved_under_the_name_of_another(tmp_path):
    """The arrays of both have the same shapes."""
    model = load_backend("functional").create_model("tf_mobilenetv3_small_100", num_classes=2)
    with pytest.raises(WeightsError, match="not a mobilenetv3_small_100"):
        save_checkpoint(tmp_path / "a", model, "mobilenetv3_small_100")
    assert list(tmp_path.iterdir()) == []


def test_what_another_form_does_not_keep_is_said(tmp_path, caplog):
    model = load_backend("functional").create_model("tiny", num_classes=2, global_pool="max")
    preprocessing = Preprocessing(48)
    save_checkpoint(tmp_path / "own", model, "tiny", classes=("a", "b"), preprocessing=preprocessing)
    bare = load_backend("functional").create_model("tiny", num_classes=2, rng=31)  # no other test loads its classifier
    save_checkpoint(tmp_path / "bare", bare, "tiny", form="timm")
    assert caplog.text == ""
    save_checkpoint(tmp_path / "timm", model, "tiny", form="timm", classes=("a", "b"), preprocessing=preprocessing)
    assert "'timm' does not keep global_pool 'max', the preprocessing, the names of the classes" in caplog.text


@pytest.mark.parametrize("classes", [np.array(["a", "b"]), iter(["a", "b"]), ["a", "b"]])
def test_what_is_saved_with_numbers_of_numpy_is_read_again(classes, tmp_path):
    model = load_backend("functional").create_model("mnasnet_small", num_classes=2)
    preprocessing = Preprocessing(np.int64(96), np.float32(0.5), "bilinear", np.full(3, 0.5, np.float32), np.ones(3))
    path = tmp_path / "a.safetensors"
    saved = save_checkpoint(path, model, "mnasnet_small", classes=classes, preprocessing=preprocessing)
    card = load_backend("functional").from_pretrained(path)[-1]
    assert card == saved and card.classes == ("a", "b")
    assert card.preprocessing == Preprocessing(96, 0.5, "bilinear", (0.5,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("classes", "message"),
    [(range(2), "are text, and 0 is a int"), ("ab", "1 names of classes do not fit a model of 2")],
)
def test_names_that_could_not_be_read_again_are_not_saved(classes, message, tmp_path):
    model = load_backend("functional").create_model("mnasnet_small", num_classes=2)
    with pytest.raises(WeightsError, match=message):
        save_checkpoint(tmp_path / "a.safetensors", model, "mnasnet_small", classes=classes)


def test_a_card_stands_for_the_name_and_brings_what_it_says(tmp_path):
    model = load_backend("functional").create_model("tiny", num_classes=2)
    card = save_checkpoint(tmp_path / "a", model, "tiny", classes=("a", "b"), preprocessing=Preprocessing(48))
    assert save_checkpoint(tmp_path / "b", model, card) == card
    assert save_checkpoint(tmp_path / "c", model, card, classes=("x", "y")).classes == ("x", "y")
    other = load_backend("functional").create_model("tiny", num_classes=3)
    assert save_checkpoint(tmp_path / "d", other, card) == replace(card, num_classes=3, classes=())


def test_what_does_not_fit_is_not_written(tmp_path):
    model = load_backend("linen").create_model("tiny", num_classes=2)
    with pytest.raises(WeightsError, match=r"misshapen|missing|strides"):
        save_checkpoint(tmp_path / "a", model, "mnasnet_small")
    with pytest.raises(WeightsError, match="3 names of classes"):
        save_checkpoint(tmp_path / "a", model, "tiny", classes=("a", "b", "c"))
    with pytest.raises(OutputError, match="form 'onnx' is not one of"):
        save_checkpoint(tmp_path / "a", model, "tiny", form="onnx")
    with pytest.raises(OutputError, match="cannot write"):
        save_checkpoint(tmp_path / "missing" / "a", model, "tiny", form="linen")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").write_text("precious")
    for form in FORMS:
        with pytest.raises(OutputError, match="exists"):
            save_checkpoint(tmp_path / "a", model, "tiny", form=form)
    assert (tmp_path / "a").read_text() == "precious"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Orbax's threads
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # and what they leave to a closed loop
@pytest.mark.parametrize("form", sorted({*ANY_MODEL} | {"timm-pth"}))
def test_a_full_disk_is_an_error_that_names_the_file(form, tmp_path):
    """Whatever the library makes of the system's refusal, here of a file that is too large."""
    if form.endswith("pth"):
        pytest.importorskip("torch")
    path = tmp_path / (form.partition("-")[0] + (".pth" if form.endswith("pth") else ""))
    model = load_backend("functional").create_model("tiny", num_classes=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match=f"cannot write {re.escape(repr(str(path)))}: File too large"):
            save_checkpoint(path, model, "tiny", form=form.partition("-")[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "form", "expected"),
    [
        ("a.safetensors", None, "jeffnet"), ("a.safetensors", "timm", "timm"), ("a", None, "jeffnet"),
        ("a.v2", None, "jeffnet"), ("a.PTH", None, "timm"),
        ("a.pth.tar", "efficientnet_pytorch", "efficientnet_pytorch"),
        ("a.npz", None, "npz"), ("a.npz", "objax", "objax"), ("a.msgpack", None, "linen"), ("a.keras", None, "keras"),
        ("a.weights.h5", None, "keras"), ("model.ckpt", None, "tensorflow"), ("folder", "nnx", "nnx"),
    ],
)  # fmt: skip
def test_the_form_follows_the_ending(name, form, expected):
    assert form_of(name, form) == expected


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("a.onnx", None, "cannot write 'a.onnx' as weights: `jeffnet export` writes .onnx files"),
        ("a.zip", None, r"'a.zip': jeffnet writes no .zip files, but \*.safetensors"),
        ("a.zip", "jeffnet", "writes no .zip files"),
        ("a.pth", "jeffnet", "in the form 'jeffnet': a file of this name is timm or efficientnet_pytorch"),
        ("a.keras", "npz", "a file of this name is keras"),
        ("a.safetensors", "linen", "a file of this name is jeffnet or timm"),
    ],
)
def test_an_ending_of_another_form_is_an_error(name, form, message):
    with pytest.raises(OutputError, match=message):
        form_of(name, form)


@pytest.mark.parametrize("form", ["linen", "nnx", "objax"])
def test_a_broken_checkpoint_is_an_error_that_names_it(form, tmp_path):
    path = tmp_path / "broken"
    save_checkpoint(path, load_backend("linen").create_model("tiny", num_classes=2), "tiny", form=form)
    if path.is_dir():
        for file in [each for each in path.rglob("*") if each.is_file() and each.name != "_METADATA"]:
            file.unlink()
    else:
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(WeightsError, match="broken"):
        load_backend("linen").from_pretrained(path, "tiny")


def test_a_message_pack_of_something_else_is_an_error_that_names_it(tmp_path):
    """Arrays where collections should be, and collections of nothing of ours."""
    for variables in (
        {"params": np.ones(3), "batch_stats": np.ones(3)},
        {"params": {"w": np.ones(3)}, "batch_stats": {}},
    ):
        (tmp_path / "other").write_bytes(flax.serialization.msgpack_serialize(variables))
        with pytest.raises(WeightsError, match="other"):
            load_backend("linen").from_pretrained(tmp_path / "other", "tiny")


def test_a_foreign_npz_and_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    with pytest.raises(WeightsError, match="without 'names'"):
        load_backend("linen").from_pretrained(tmp_path / "other.npz", "tiny")
    np.savez(tmp_path / "pickle.npz", names=np.array([_Bomb()], dtype=object))
    with pytest.raises(WeightsError, match="not a whole npz file"):
        load_backend("linen").from_pretrained(tmp_path / "pickle.npz", "tiny")


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_an_unknown_or_missing_backend_is_an_error(monkeypatch):
    with pytest.raises(JeffnetError, match="'torch' is not one of linen, nnx, objax, functional"):
        load_backend("torch")
    monkeypatch.setitem(BACKENDS, "absent", "jeffnet.absent")
    with pytest.raises(JeffnetError, match="'absent' is not installed"):
        load_backend("absent")


def test_what_is_no_model_is_refused():
    model, variables = load_backend("linen").create_model("tiny", num_classes=2)
    with pytest.raises(JeffnetError, match=r"a model of linen is \(model, variables\)"):
        convert(model, "nnx")
    with pytest.raises(JeffnetError, match="is no model of jeffnet"):
        convert(variables, "nnx")
    with pytest.raises(JeffnetError, match="is no model of jeffnet"):
        convert(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), "linen")
    del variables["params"]["conv_stem"]
    with pytest.raises(WeightsError, match=r"conv_stem\.kernel"):
        convert((model, variables), "nnx")
