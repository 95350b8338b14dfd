"""What users of Objax expect of a module, done to ours, and what makes Objax work on a current JAX."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet import _objax_compat
from jeffnet.arch.summary import count_parameters
from jeffnet.backends import convert
from jeffnet.objax import BatchNorm, Conv2D, Linear, create_model, objax

pytestmark = pytest.mark.usefixtures("tiny_model")


def _images(batch=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, 16, 16, 3)), jnp.float32)


def _create(**options):
    return create_model("tiny_tf", **{"num_classes": 3} | options)


@pytest.mark.slow
def test_objax_alone_fails_on_this_jax_and_the_repair_cures_it():
    """In an interpreter where nothing else touched Objax. Where Objax works by itself, nothing is repaired."""
    script = """
import jax, jax.numpy as jnp, objax
var = objax.TrainVar(jnp.zeros(3))
def works():
    try:
        var.assign(jnp.ones(3))
    except AttributeError as error:
        assert "PmapSharding" in str(error), error
        return False
    return True
before = works()
original = objax.util.check.split_shape_and_device
import jeffnet._objax_compat
assert works() and (var.value == 1).all()
assert before == hasattr(jax.sharding, "PmapSharding")
assert before == (objax.util.check.split_shape_and_device is original)
"""
    answer = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def test_nothing_is_repaired_where_objax_works(monkeypatch):
    package = SimpleNamespace(util=SimpleNamespace(check=SimpleNamespace(split_shape_and_device="its own")))
    monkeypatch.setattr(jax.sharding, "PmapSharding", object, raising=False)
    assert _objax_compat.repair(package) is False
    assert package.util.check.split_shape_and_device == "its own"


def test_one_function_is_replaced_where_it_does_not(monkeypatch):
    check = SimpleNamespace(split_shape_and_device="its own", other="untouched")
    monkeypatch.delattr(jax.sharding, "PmapSharding", raising=False)
    assert _objax_compat.repair(SimpleNamespace(util=SimpleNamespace(check=check))) is True
    assert check.split_shape_and_device(jnp.ones((2, 3))) == (None, (2, 3))
    assert check.other == "untouched"


def test_a_repaired_assignment_still_checks_shapes():
    """What is patched answers a question; the check that asks it goes on checking."""
    var = objax.TrainVar(jnp.zeros((2, 3)))
    with pytest.raises(AssertionError, match="can not change shape"):
        var.assign(jnp.zeros((3, 2)))
    with pytest.raises(AssertionError, match="JaxArray"):
        var.assign([1.0])


def test_it_is_a_module_of_native_layers():
    model = _create()
    assert isinstance(model, objax.Module)
    assert issubclass(Conv2D, objax.nn.Conv2D) and issubclass(BatchNorm, objax.nn.BatchNorm)
    assert issubclass(Linear, objax.nn.Linear) and isinstance(model.dropout, objax.nn.Dropout)
    assert model.blocks[1][0].conv_dw.w.shape == (5, 5, 1, 24)
    assert "Conv2D(nin=3, nout=8" in repr(model.conv_stem)


def test_variables_have_names_and_kinds():
    """Each once but the generator's key, which dropout has too."""
    model = _create()
    variables = model.vars()
    assert isinstance(variables, objax.VarCollection)
    assert (
        "(ImageClassifier).blocks(ModuleList)[1](ModuleList)[0](Block).se(SqueezeExcite).conv_reduce(Conv2D).b"
        in variables
    )
    params, states = variables.subset(objax.TrainVar), variables.subset(objax.StateVar)
    assert {name.rpartition(".")[2] for name, _ in params.items()} == {"w", "b", "beta", "gamma"}
    assert {name.rpartition(".")[2] for name, _ in states.items()} == {"running_mean", "running_var", "_key"}
    assert len(list(variables)) == len(variables) - 1
    assert sum(var.value.size for var in params) == count_parameters(model.plan)


def test_jit_compiles_once_for_each_shape_and_updates_statistics():
    model, traces = _create(drop_rate=0.5, drop_path_rate=0.5), []

    def call(images):
        traces.append(images.shape[0])
        return model(images, training=True)

    jitted, before = objax.Jit(call, model.vars()), model.bn1.running_mean.value
    outputs = [jitted(_images(batch)) for batch in (2, 2, 3, 2)]
    assert traces == [2, 3]
    assert float(jnp.abs(outputs[0] - outputs[1]).max()) > 0  # the generator moved on
    assert float(jnp.abs(model.bn1.running_mean.value - before).max()) > 0


def test_a_module_can_be_jitted_itself():
    model = _create()
    np.testing.assert_allclose(objax.Jit(model)(_images()), model(_images()), rtol=1e-4, atol=1e-5)


def test_evaluation_changes_nothing():
    model = _create(drop_rate=0.5, drop_path_rate=0.5)
    before = [np.asarray(tensor) for tensor in model.vars().tensors()]
    np.testing.assert_array_equal(model(_images()), model(_images(), training=False))
    for old, new in zip(before, model.vars().tensors(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("remat", [False, True])
def test_gradients_and_an_optimizer_learn(remat):
    """Two classes told by their brightness; with dropout, drop path, and with recomputation."""
    model = create_model("tiny_flat", num_classes=2, drop_rate=0.1, drop_path_rate=0.1, remat=remat)
    labels = jnp.arange(16) % 2

    def loss(images):
        logits = model(images, training=True)
        return objax.functional.loss.cross_entropy_logits_sparse(logits, labels).mean()

    gradients = objax.GradValues(loss, model.vars())
    optimizer = objax.optimizer.Adam(model.vars())

    def train(images):
        gradient, value = gradients(images)
        optimizer(3e-3, gradient)
        return value[0]

    step = objax.Jit(train, model.vars() + gradients.vars() + optimizer.vars())
    losses = [
        float(step(_images(16, seed) + labels[:, None, None, None].astype(jnp.float32))) for seed in range(25)
    ]  # fmt: skip
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])


def test_vectorize():
    """One picture a call, and the calls batched: the logits are those of the batch."""
    model = _create()
    vectorized = objax.Jit(objax.Vectorize(lambda image: model(image[None])[0], model.vars()))
    np.testing.assert_allclose(vectorized(_images()), objax.Jit(model)(_images()), rtol=1e-4, atol=1e-5)


def test_save_and_load(tmp_path):
    """Objax's own, into a model that began with other values: every variable, and so every logit, is the same."""
    model, other = _create(drop_rate=0.5), _create(drop_rate=0.5, rng=7)
    model(_images(), training=True)
    objax.io.save_var_collection(str(tmp_path / "model.npz"), model.vars())
    assert float(jnp.abs(model(_images()) - other(_images())).max()) > 0
    objax.io.load_var_collection(str(tmp_path / "model.npz"), other.vars())
    np.testing.assert_array_equal(model(_images()), other(_images()))
    np.testing.assert_array_equal(model(_images(), training=True), other(_images(), training=True))


def test_the_classifier_can_be_replaced():
    model = _create()
    model.classifier = objax.nn.Linear(model.plan.num_features, 5)
    assert model(_images()).shape == (4, 5)
    linen, variables = convert(model, "linen")
    np.testing.assert_allclose(linen.apply(variables, _images()), model(_images()), rtol=1e-4, atol=1e-5)


def test_seeds_and_keys_decide_what_is_dropped():
    """A seed, and a key of either kind."""
    outputs = [
        _create(drop_rate=0.5, rng=rng)(_images(), training=True)
        for rng in (3, 3, 4, jax.random.key(3), jax.random.PRNGKey(3))
    ]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert float(jnp.abs(outputs[0] - outputs[2]).max()) > 0
    np.testing.assert_array_equal(outputs[3], outputs[4])


def test_a_computation_over_a_sharded_batch():
    """What takes the place of `objax.Parallel`: a batch spread over the devices there are, under `objax.Jit`."""
    model = _create()
    mesh = jax.make_mesh((len(jax.devices()),), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    images = jax.device_put(_images(8), jax.NamedSharding(mesh, jax.P("batch")))
    np.testing.assert_allclose(objax.Jit(model)(images), objax.Jit(model)(_images(8)), rtol=1e-4, atol=1e-5)


def test_without_objax_the_message_says_what_to_install():
    script = """
import sys
sys.modules["objax"] = None
from jeffnet.backends import load_backend
try:
    load_backend("objax")
except ValueError as error:
    print(error)
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install objax six" in answer.stdout
