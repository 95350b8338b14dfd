"""One training step: what it learns, draws, accumulates, averages, scales and refuses."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jeffnet.arch.zoo import model_preprocessing
from jeffnet.train.config import AugmentConfig, Config, DataConfig, EmaConfig, LossConfig, ModelConfig
from jeffnet.train.estimate import make_estimate
from jeffnet.train.network import frozen_parameters, make_network
from jeffnet.train.state import LossScale, initial_state
from jeffnet.train.step import make_train_step
from jeffnet.train.teacher import network_teacher
from jeffnet.weights.start import start_arrays

RNG = np.random.default_rng(0)
CLASSES = 4
BATCH = {"image": RNG.integers(0, 256, (8, 32, 32, 3), np.uint8), "label": RNG.integers(0, CLASSES, 8).astype(np.int32)}


class Parts:
    """A network of the tests, in 64 bits where JAX is, and one step from its initial state."""

    def __init__(self, name, optimizer=None, dtype="float32", **model):
        self.model = ModelConfig(name=name, dtype=dtype, **model)
        preprocessing = replace(model_preprocessing(name), image_size=32)
        self.network = make_network(self.model, preprocessing, CLASSES)
        if jax.config.jax_enable_x64:
            start = replace(self.network.start, dtype=jnp.float64, param_dtype=jnp.float64)
            self.network = replace(self.network, start=start)
        self.arrays = start_arrays(self.network.plan, 0, self.network.compute_dtype)
        self.optimizer = optimizer or optax.sgd(0.1)

    def config(self, **options):
        return Config(model=self.model, data=DataConfig(path="-"), batch_size=8, **options)

    def state(self, **options):
        # A step gives up its state's buffers: every one needs its own.
        arrays = jax.tree.map(jnp.array, self.arrays)
        frozen = frozen_parameters(self.network.plan, self.model.freeze)
        return initial_state(arrays, self.optimizer, frozen=frozen, **options)

    def step(self, **options):
        average_from = options.pop("average_from", 0)
        return make_train_step(self.network, self.optimizer, self.config(**options), average_from=average_from)


@pytest.fixture
def flat(tiny_model):
    """Norms, dropout and drop path between 1x1 convolutions: compiled in no time."""
    return Parts("tiny_flat")


def test_it_learns_a_batch_by_heart(small_model):
    parts = Parts(small_model, optax.adam(5e-3), drop_rate=0.2)
    step, state, losses = parts.step(), parts.state(), []
    for _ in range(150):
        state, metrics = step(state, BATCH)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.1 * losses[0]
    assert int(state.step) == 150
    assert step.func._cache_size() == 1


def test_its_randomness_depends_on_the_seed_and_the_step_alone(tiny_model):
    parts = Parts("tiny_flat", drop_rate=0.5)
    options = {"augment": AugmentConfig(mixup=0.4, erase_prob=0.5, erase_mode="pixel")}
    step, same, other = parts.step(seed=3, **options), parts.step(seed=3, **options), parts.step(seed=4, **options)
    loss = float(step(parts.state(), BATCH)[1]["loss"])
    assert float(same(parts.state(), BATCH)[1]["loss"]) == loss
    assert float(other(parts.state(), BATCH)[1]["loss"]) != loss
    assert float(step(parts.state().replace(step=jnp.int32(1)), BATCH)[1]["loss"]) != loss


def test_it_updates_the_statistics_and_every_parameter(flat):
    before = flat.state().arrays
    after = flat.step()(flat.state(), BATCH)[0].arrays
    assert before.keys() == after.keys()
    assert not [name for name in before if (before[name] == after[name]).all()]


def test_what_is_frozen_stays_and_has_no_optimizer_state(tiny_model):
    parts = Parts("tiny_flat", optax.adam(0.1), freeze=("conv_stem.*", "bn1.*", "blocks.0.*"))
    state = parts.state()
    frozen = {name for name in parts.arrays if name.startswith(("conv_stem.", "bn1.", "blocks.0."))}
    assert state.frozen.keys() == {name for name in frozen if not name.endswith(("mean", "var"))}
    assert state.opt_state[0].mu.keys() == state.params.keys()
    after = parts.step()(state, BATCH)[0].arrays
    assert {name for name in after if (after[name] == parts.arrays[name]).all()} == frozen


def test_accumulated_gradients_are_those_of_the_large_batch(tiny_model, x64):
    """Where nothing depends on the other examples: with frozen norms and nothing dropped."""
    norms = ("bn1.*", "bn2.*", "*.bn*")
    parts = Parts("tiny_flat", freeze=norms, drop_rate=0.0, drop_path_rate=0.0)
    options = {"loss": LossConfig(label_smoothing=0.1), "augment": AugmentConfig(mixup=0.3)}
    (whole, metrics), (cut, cut_metrics) = (
        parts.step(accumulate=count, **options)(parts.state(), BATCH) for count in (1, 4)
    )
    for name, array in whole.arrays.items():
        np.testing.assert_allclose(cut.arrays[name], array, rtol=0, atol=1e-13, err_msg=name)
    for name, value in metrics.items():
        np.testing.assert_allclose(cut_metrics[name], value, rtol=1e-12, err_msg=name)


def test_accumulation_normalises_each_part_by_itself(tiny_model, x64):
    """As in every framework: the statistics move once for each part."""
    parts = Parts("tiny_flat", drop_rate=0.0, drop_path_rate=0.0, bn_momentum=0.5)
    cut = parts.step(accumulate=2)(parts.state(), BATCH)[0].arrays
    state = parts.state()
    for part in (0, 1):
        rows = {name: array[part::2] for name, array in BATCH.items()}
        state = parts.step()(state.replace(params=parts.state().params), rows)[0]
    for name, array in state.batch_stats.items():
        np.testing.assert_allclose(cut[name], array, rtol=0, atol=1e-13, err_msg=name)


@pytest.mark.slow
def test_sharpness_aware_gradients_are_taken_where_the_loss_is_higher(tiny_model, x64):
    parts = Parts("tiny_flat", drop_rate=0.0, drop_path_rate=0.0)
    plain = parts.step()(parts.state(), BATCH)[0].params
    gradient = {name: (parts.arrays[name] - array) / 0.1 for name, array in plain.items()}
    norm = np.sqrt(sum(float((array**2).sum()) for array in gradient.values()))
    ascended = parts.state()
    ascended = ascended.replace(
        params={name: array + 0.05 / norm * gradient[name] for name, array in ascended.params.items()}
    )
    after = parts.step()(ascended, BATCH)[0].params
    sharp = parts.step(sam_rho=0.05)(parts.state(), BATCH)[0].params
    for name, array in sharp.items():
        moved = parts.arrays[name] + (after[name] - (parts.arrays[name] + 0.05 / norm * gradient[name]))
        np.testing.assert_allclose(array, moved, rtol=0, atol=1e-12, err_msg=name)
        assert (array != plain[name]).any()


@pytest.mark.parametrize("every", [1, 3])
def test_the_average_follows_the_model_and_then_averages_it(every, flat):
    decay, average_from = 0.8, 2
    step = flat.step(ema=EmaConfig(decay=decay, warmup=False, every=every), average_from=average_from)
    state, expected = flat.state(averaged=True), dict(flat.arrays)
    for count in range(1, 8):
        state, _ = step(state, BATCH)
        if count % every == 0:
            share = decay if count > average_from else 0.0
            own = {**state.params, **state.batch_stats}
            expected = {name: share * expected[name] + (1 - share) * array for name, array in own.items()}
        for name, array in expected.items():
            np.testing.assert_allclose(state.average[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_cumulative_average_is_the_mean_of_the_models(flat):
    step, state, models = flat.step(ema=EmaConfig(form="cumulative"), average_from=2), flat.state(averaged=True), []
    for _ in range(6):
        state, _ = step(state, BATCH)
        models.append(jax.tree.map(np.asarray, state.params))
    for name, array in models[0].items():
        mean = np.mean([model[name] for model in models[2:]], axis=0)
        assert array.shape == mean.shape
        np.testing.assert_allclose(state.average[name], mean, rtol=1e-5, atol=1e-6, err_msg=name)


NAN = {"image": np.where(np.arange(8)[:, None, None, None] == 3, np.nan, BATCH["image"]), "label": BATCH["label"]}


def test_a_step_without_numbers_is_skipped_where_that_is_wanted(flat):
    options = {"ema": EmaConfig(decay=0.9), "on_nan": "skip"}
    step, state = flat.step(**options), flat.state(averaged=True)
    state, _ = step(state, BATCH)
    before = jax.tree.map(np.array, state)
    state, metrics = step(state, NAN)
    assert (int(metrics["skipped"]), int(state.skipped), int(state.step)) == (1, 1, 2)
    same = state.replace(step=before.step, skipped=before.skipped)
    jax.tree.map(np.testing.assert_array_equal, same, before)
    state, metrics = step(state, BATCH)
    assert (int(metrics["skipped"]), int(state.skipped), int(state.step)) == (0, 0, 3)


def test_otherwise_it_is_told(flat):
    state, metrics = flat.step()(flat.state(), NAN)
    assert int(metrics["skipped"]) == 1
    assert int(state.skipped) == 1


def test_debugging_finds_the_operation(flat):
    step, state = flat.step(debug_nans=True), flat.state()
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        step(state, NAN)


def test_the_loss_scale_halves_at_an_overflow_and_grows_after_2000_good_steps():
    scale = LossScale.initial()
    scale = scale.after(jnp.bool_(False))
    assert (float(scale.scale), int(scale.good_steps)) == (2.0**14, 0)
    grown = jax.lax.fori_loop(0, 1999, lambda _, scale: scale.after(jnp.bool_(True)), scale)
    assert (float(grown.scale), int(grown.good_steps)) == (2.0**14, 1999)
    grown = grown.after(jnp.bool_(True))
    assert (float(grown.scale), int(grown.good_steps)) == (2.0**15, 0)
    least = jax.lax.fori_loop(0, 40, lambda _, scale: scale.after(jnp.bool_(False)), scale)
    assert float(least.scale) == 1.0


def test_the_loss_scale_cancels_and_an_overflow_is_skipped(tiny_model):
    parts = Parts("tiny_flat", dtype="float16", drop_rate=0.0, drop_path_rate=0.0)
    step, expected = parts.step(), Parts("tiny_flat", drop_rate=0.0, drop_path_rate=0.0)
    params = step(parts.state(scaled=True), BATCH)[0].params
    wanted = expected.step()(expected.state(), BATCH)[0].params
    for name, array in params.items():
        moved, right = array - parts.arrays[name], wanted[name] - parts.arrays[name]
        assert np.linalg.norm(moved - right) < 0.1 * np.linalg.norm(right) + 1e-4, name
    state = parts.state(scaled=True)
    state = state.replace(loss_scale=state.loss_scale.replace(scale=jnp.float32(2.0**60)))
    state, metrics = step(state, BATCH)
    assert int(metrics["skipped"]) == 1
    assert float(state.loss_scale.scale) == 2.0**59
    assert not [name for name, array in state.params.items() if (array != parts.arrays[name]).any()]


def test_several_views_have_the_loss_of_the_first_and_their_divergence(tiny_model, x64):
    """Equal views have none; and unlike them the first alone decides what is right."""
    parts = Parts("tiny_flat", drop_rate=0.0, drop_path_rate=0.0)
    options = {"loss": LossConfig(name="jsd"), "augment": AugmentConfig(splits=3)}
    step = parts.step(**options)
    same = {**BATCH, "image": np.repeat(BATCH["image"][:, None], 3, axis=1)}
    plain = parts.step()(parts.state(), BATCH)[1]
    np.testing.assert_allclose(step(parts.state(), same)[1]["loss"], plain["loss"], rtol=1e-9)
    other = same["image"].copy()
    other[:, 1:] = RNG.integers(0, 256, other[:, 1:].shape, np.uint8)
    metrics = step(parts.state(), {**same, "image": other})[1]
    assert float(metrics["loss"]) > float(plain["loss"])


def logits_of(parts):
    """Those of the batch, in training mode."""
    return jax.jit(parts.network.train)(parts.arrays, jnp.asarray(BATCH["image"]), jax.random.key(0))[0]


def test_the_loss_is_the_configured_one(tiny_model, x64):
    parts = Parts("tiny_flat", drop_rate=0.0, drop_path_rate=0.0)
    logits, smooth = logits_of(parts), optax.smooth_labels(jax.nn.one_hot(BATCH["label"], CLASSES), 0.4)
    each = optax.sigmoid_binary_cross_entropy(logits, smooth > 0.2)
    for config, expected in (
        (LossConfig(name="bce", label_smoothing=0.4, bce_threshold=0.2), each.mean()),
        (LossConfig(name="bce", label_smoothing=0.4, bce_threshold=0.2, bce_sum=True), each.sum(-1).mean()),
        (LossConfig(label_smoothing=0.4), optax.softmax_cross_entropy(logits, smooth).mean()),
    ):
        loss = parts.step(loss=config)(parts.state(), BATCH)[1]["loss"]
        np.testing.assert_allclose(loss, expected, rtol=1e-10)


def test_a_teacher_has_its_share_of_the_loss(tiny_model, x64):
    """Its answers are those without training, whatever the student's batch does to its norms."""
    parts = Parts("tiny_flat", drop_rate=0.0, drop_path_rate=0.0)
    teacher = network_teacher(parts.network, {name: 1.1 * array for name, array in parts.arrays.items()})
    config = LossConfig(teacher="-", distillation=0.3, temperature=2.0)
    own, other = logits_of(parts), jax.jit(parts.network.evaluate)(teacher.arrays, jnp.asarray(BATCH["image"]))
    apart = 4 * optax.kl_divergence(jax.nn.log_softmax(own / 2), jax.nn.softmax(other / 2)).mean()
    plain = optax.softmax_cross_entropy_with_integer_labels(own, BATCH["label"]).mean()
    step = make_train_step(parts.network, parts.optimizer, parts.config(loss=config), teacher=teacher)
    np.testing.assert_allclose(step(parts.state(), BATCH)[1]["loss"], 0.7 * plain + 0.3 * apart, rtol=1e-10)


def test_estimated_statistics_are_the_means_of_the_batches(tiny_model, x64):
    """Those that a step would leave if it kept nothing of the old ones; of several models, and of first views."""
    parts, still = (
        Parts("tiny_flat", drop_rate=rate, drop_path_rate=rate, bn_momentum=momentum)
        for rate, momentum in ((0.5, 0.9), (0.0, 0.0))
    )
    other = {name: 1.2 * array for name, array in parts.arrays.items()}
    batches = [BATCH, {"image": BATCH["image"][::-1] // 2}]
    views = [{"image": np.stack([batch["image"], 0 * batch["image"]], axis=1)} for batch in batches]
    estimate = make_estimate(parts.network)
    for found in (estimate([parts.arrays, other], batches), estimate([parts.arrays, other], views)):
        for model, arrays in zip((parts.arrays, other), found, strict=True):
            stats = [still.network.train(model, jnp.asarray(batch["image"]), jax.random.key(0))[1] for batch in batches]
            assert arrays.keys() == model.keys()
            for name, array in arrays.items():
                expected = (stats[0][name] + stats[1][name]) / 2 if name in stats[0] else model[name]
                np.testing.assert_allclose(array, expected, rtol=1e-10, atol=1e-12, err_msg=name)


def test_recomputation_changes_no_number(tiny_model, x64):
    kept, again = (Parts("tiny_flat", remat=remat, drop_rate=0.3) for remat in (False, True))
    expected = kept.step()(kept.state(), BATCH)[0].arrays
    for name, array in again.step()(again.state(), BATCH)[0].arrays.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.slow
def test_strict_settings_of_jax(strict_jax, flat):
    """With all that a step can do: mixing, erasing, accumulation, an average, a teacher, a second gradient."""
    augment = AugmentConfig(mixup=0.4, cutmix=1.0, erase_prob=0.5, erase_mode="rand", erase_count=2)
    other = {name: 1.1 * array for name, array in flat.arrays.items()}
    teacher = network_teacher(flat.network, other, ("pre_logits", "-1"))
    taught = {"teacher": "-", "distillation": 0.3, "feature_distillation": 0.5, "features": ("pre_logits", "-1")}
    losses = {"name": "bce", "bce_threshold": 0.2}, taught
    steps = [
        make_train_step(
            flat.network,
            flat.optimizer,
            flat.config(augment=augment, accumulate=2, ema=EmaConfig(decay=0.9), sam_rho=0.05, loss=LossConfig(**loss)),
            teacher=teacher if "teacher" in loss else None,
        )
        for loss in losses
    ]
    states, batch = [flat.state(averaged=True) for _ in steps], jax.device_put(BATCH)
    with strict_jax():
        for step, state in zip(steps, states, strict=True):
            _, metrics = step(state, batch)
            assert np.isfinite(metrics["loss"]) and not metrics["skipped"]
