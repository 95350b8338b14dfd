"""The models as pure functions: plain pytrees of canonical names, through every transformation of JAX."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jeffnet.arch.execution import Execution
from jeffnet.arch.summary import array_specs
from jeffnet.errors import ArchitectureError, WeightsError
from jeffnet.functional import ImageClassifier, create_model, to_canonical, to_variables

pytestmark = pytest.mark.usefixtures("tiny_model")


def _images(batch=4, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, 16, 16, 3)).astype(np.float32)


def _create(**options):
    return create_model("tiny_tf", **{"num_classes": 3} | options)


def test_variables_are_plain_dictionaries_of_canonical_names():
    model, variables = _create()
    assert {type(each) for each in (variables, *variables.values())} == {dict}
    specs = array_specs(model.plan)
    assert variables["params"].keys() == {name for name, spec in specs.items() if spec.is_parameter}
    assert variables["batch_stats"].keys() == {name for name, spec in specs.items() if not spec.is_parameter}
    again = to_variables(to_canonical(variables, model.plan))
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_init_gives_what_create_model_gives():
    model, variables = _create(rng=5)
    jax.tree.map(np.testing.assert_array_equal, model.init(5), variables)
    assert (model.init(6)["params"]["conv_stem.kernel"] != variables["params"]["conv_stem.kernel"]).any()
    assert model.init(jax.random.key(0)).keys() == variables.keys()


def test_a_model_is_a_static_argument():
    """Equal models are one: a function that takes the model is compiled once for them."""
    traces = []

    def call(model, variables, images):
        traces.append(model)
        return model.apply(variables, images)

    jitted = jax.jit(call, static_argnums=0)
    for options in ({}, {}, {"drop_rate": 0.5}):
        model, variables = _create(**options)
        jitted(model, variables, _images())
    assert len(traces) == 2 and isinstance(traces[0], ImageClassifier)


def test_training_returns_what_changed_and_changes_nothing():
    model, variables = _create(drop_rate=0.0)
    before = jax.tree.map(np.asarray, variables)
    logits, updated = jax.jit(lambda v, x: model.apply(v, x, train=True))(variables, _images())
    assert logits.shape == (4, 3)
    assert updated.keys() == {"batch_stats"}
    assert updated["batch_stats"].keys() == variables["batch_stats"].keys()
    assert all((updated["batch_stats"][name] != before["batch_stats"][name]).any() for name in updated["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, before, variables)


def test_training_needs_a_key_where_something_is_dropped():
    for options in ({"drop_rate": 0.5, "drop_path_rate": 0.0}, {"drop_rate": 0.0, "drop_path_rate": 0.5}):
        model, variables = _create(**options)
        with pytest.raises(ArchitectureError, match=r"rngs=\{'dropout': key\}"):
            model.apply(variables, _images(), train=True)
    model, variables = _create(drop_rate=0.0, drop_path_rate=0.0)
    model.apply(variables, _images(), train=True)


def test_test_time_pooling_where_the_head_follows_it(x64):
    """By hand: each window of the last map is averaged, then goes through the head and the classifier."""
    model, variables = _create(dtype=jnp.float64, param_dtype=jnp.float64)
    images = np.random.default_rng(0).normal(size=(2, 48, 80, 3))
    last = np.asarray(model.features(variables, images)[-1])
    arrays, window = variables["params"], 4
    pooled = replace(model, execution=Execution(test_window=window))
    assert last.shape[1:3] == (6, 10)
    logits = []
    for i in range(6 - window + 1):
        for j in range(10 - window + 1):
            head = last[:, i : i + window, j : j + window].mean((1, 2)) @ arrays["conv_head.kernel"][0, 0]
            head = jax.nn.hard_swish(head + arrays["conv_head.bias"])
            logits.append(head @ arrays["classifier.kernel"] + arrays["classifier.bias"])
    expected = (np.mean(logits, 0) + np.max(logits, 0)) / 2
    np.testing.assert_allclose(pooled.apply(variables, images), expected, rtol=1e-10)


def test_optax_learns():
    """Two classes told by their brightness, through `jax.value_and_grad` of the parameters."""
    model, variables = create_model("tiny_flat", num_classes=2, drop_rate=0.1, drop_path_rate=0.1)
    optimizer, labels = optax.adam(3e-3), np.arange(16) % 2

    @jax.jit
    def step(variables, state, images, key):
        def loss_of(params):
            logits, updated = model.apply({**variables, "params": params}, images, train=True, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

        (loss, updated), gradients = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradients, state)
        return {"params": optax.apply_updates(variables["params"], updates), **updated}, state, loss

    state, losses = optimizer.init(variables["params"]), []
    for count in range(25):
        images = _images(16, seed=count) + labels[:, None, None, None].astype(np.float32)
        variables, state, loss = step(variables, state, images, jax.random.key(count))
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])


def test_vmap_over_models():
    """Two models' variables stacked: an ensemble in one call."""
    model, one = _create(rng=1)
    _, two = _create(rng=2)
    stacked = jax.tree.map(lambda *each: jnp.stack(each), one, two)
    logits = jax.jit(jax.vmap(model.apply, (0, None)))(stacked, _images())
    for ours, variables in zip(logits, (one, two), strict=True):
        np.testing.assert_allclose(ours, jax.jit(model.apply)(variables, _images()), rtol=1e-4, atol=1e-5)


def test_every_place_drops_differently():
    """One key for the whole call, from which every block and the classifier derive their own."""
    model, variables = create_model("tiny", num_classes=3, drop_path_rate=0.9)
    assert len([block for block in model.plan.blocks if block.drop_path_rate]) == 2
    drawn = []

    def spy(key, rate, shape):
        drawn.append(jax.random.key_data(key))
        return jnp.ones(shape, bool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "bernoulli", spy)

        @jax.jit
        def keys(variables, images, key):
            model.apply(variables, images, train=True, rngs={"dropout": key})
            return jnp.stack(drawn)

        chosen = np.asarray(keys(variables, _images(), jax.random.key(0)))
    assert len({tuple(key) for key in chosen}) == len(chosen) == 3


def test_a_missing_array_is_named():
    model, variables = _create()
    del variables["batch_stats"]["bn1.mean"]
    with pytest.raises(WeightsError, match=r"'bn1\.mean'"):
        to_canonical(variables, model.plan)
