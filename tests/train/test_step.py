"""One training step: it learns, draws its randomness from the seed and the step alone, and is compiled once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jeffnet.arch.zoo import model_preprocessing
from jeffnet.linen import create_model
from jeffnet.train.step import initial_state, make_train_step

RNG = np.random.default_rng(0)
BATCH = {"image": RNG.integers(0, 256, (8, 48, 48, 3), np.uint8), "label": RNG.integers(0, 4, 8).astype(np.int32)}


@pytest.fixture(scope="module")
def parts(small_model):
    """A model with much dropout, so that its draws show, and its step with seed 3."""
    model, variables = create_model(small_model, num_classes=4, drop_rate=0.5)
    optimizer = optax.adam(2e-3)

    def start():
        # A step gives up its state's buffers: every test needs its own.
        return initial_state(jax.tree.map(jnp.array, variables), optimizer)

    def make(seed):
        return make_train_step(model, optimizer, model_preprocessing(small_model), 0.0, seed)

    return start, make, make(3)


def test_it_learns_a_batch_by_heart(parts):
    start, _, step = parts
    state, losses = start(), []
    for _ in range(150):
        state, metrics = step(state, BATCH)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.1 * losses[0]
    assert int(state.step) == 150
    assert step.func._cache_size() == 1


def test_its_randomness_depends_on_the_seed_and_the_step_alone(parts):
    start, make, step = parts
    same, other = make(3), make(4)
    loss = float(step(start(), BATCH)[1]["loss"])
    assert float(same(start(), BATCH)[1]["loss"]) == loss
    assert float(other(start(), BATCH)[1]["loss"]) != loss
    later = replace(start(), step=start().step + 1)
    assert float(step(later, BATCH)[1]["loss"]) != loss


def test_it_updates_the_statistics_and_every_parameter(parts):
    start, _, step = parts
    before = jax.tree.map(np.array, start().variables)
    after = jax.tree.map(np.array, step(start(), BATCH)[0].variables)
    same = jax.tree.map(lambda old, new: bool((old == new).all()), before, after)
    assert not any(jax.tree.leaves(same))
