"""What users of Flax NNX expect of a module, done to ours."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jeffnet.arch.operations import SqueezeExcite
from jeffnet.backends import convert, to_start
from jeffnet.checkpoints import save_checkpoint
from jeffnet.errors import ArchitectureError
from jeffnet.nnx import BatchNorm, create_model, from_pretrained

pytestmark = pytest.mark.usefixtures("tiny_model")


def _images(batch=4, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, 16, 16, 3)).astype(np.float32)


def _create(**options):
    return create_model("tiny_tf", **{"num_classes": 3} | options)


@nnx.jit
def _call(model, images):
    return model(images)


@nnx.jit
def _train_step(model, optimizer, images, labels):
    def loss_of(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


def test_it_is_a_module_of_native_layers():
    model = _create()
    assert isinstance(model, nnx.Module)
    kinds = {type(module) for _, module in nnx.iter_modules(model)}
    assert {nnx.Conv, nnx.Linear, nnx.Dropout, BatchNorm} <= kinds and issubclass(BatchNorm, nnx.BatchNorm)
    assert model.blocks[1][0].conv_dw.kernel.shape == (5, 5, 1, 24)
    assert model.blocks[1][0].bn2.num_features == 24
    assert {type(op).__name__ for op in model.blocks[1][0].block.ops} == {"Conv", SqueezeExcite.__name__}


def test_split_and_merge():
    """A merged model computes the same; training a clone leaves the first alone."""
    model, images = _create(), _images()
    np.testing.assert_array_equal(_call(nnx.merge(*nnx.split(model)), images), _call(model, images))
    copy = nnx.clone(model)
    before = np.asarray(model.bn1.mean[...])
    copy.train()
    _call(copy, images)
    assert np.abs(np.asarray(copy.bn1.mean[...]) - before).max() > 0
    np.testing.assert_array_equal(model.bn1.mean[...], before)


def test_state_by_type_holds_parameters_statistics_and_random_numbers():
    model = _create()
    _, params, statistics, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    names = {"kernel", "scale", "bias"}
    assert {path[-1] for path, _ in nnx.to_flat_state(params)} == names
    assert {path[-1] for path, _ in nnx.to_flat_state(statistics)} == {"mean", "var"}
    assert {path[0] for path, _ in nnx.to_flat_state(rest)} == {"rngs"}


def test_a_new_model_evaluates_and_train_and_eval_switch():
    model, images = _create(drop_rate=0.5, drop_path_rate=0.5), _images()
    evaluated = _call(model, images)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
    np.testing.assert_array_equal(_call(model, images), evaluated)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    model.train()
    first, second = _call(model, images), _call(model, images)
    assert np.abs(first - second).max() > 0  # every call drops others
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
    assert all(jax.tree.leaves(changed))

    model.eval()
    np.testing.assert_array_equal(_call(model, images), _call(model, images))


def test_views_have_a_mode_of_their_own():
    """`nnx.view`, which NNX puts in the place of `train()` and `eval()`."""
    model, images = _create(drop_rate=0.5, drop_path_rate=0.5), _images()
    training = nnx.view(model, deterministic=False, use_running_average=False)
    assert np.abs(_call(training, images) - _call(training, images)).max() > 0
    np.testing.assert_array_equal(_call(model, images), _call(model, images))
    assert training.conv_stem.kernel is model.conv_stem.kernel


def test_random_numbers_may_be_given():
    """In a call's place of the model's own, which then do not move on."""
    model, images = _create(drop_rate=0.5, drop_path_rate=0.5), _images()
    model.train()

    @nnx.jit
    def called(model, rngs):
        return model(images, rngs=rngs)

    def call(seed):
        return called(model, nnx.Rngs(dropout=seed))

    first, again, other = call(0), call(0), call(1)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0
    assert int(model.rngs.dropout.count[...]) == 0


def test_gradients_of_parameters():
    model, images = _create(), _images()
    gradients = nnx.jit(nnx.grad(lambda model, images: (model(images) ** 2).sum()))(model, images)
    shapes = jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert jax.tree.map(jnp.shape, nnx.to_pure_dict(gradients)) == shapes
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients))


def test_an_optimizer_learns_and_nothing_is_traced_twice():
    """Two classes told by their brightness, to which it goes from chance."""
    model = create_model("tiny_flat", num_classes=2, drop_rate=0.1, drop_path_rate=0.1)
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    labels = np.arange(16) % 2
    model.train()
    losses = []
    for step in range(25):
        images = _images(16, seed=step) + labels[:, None, None, None].astype(np.float32)
        losses.append(float(_train_step(model, optimizer, images, labels)))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])


def test_an_evaluated_and_a_trained_call_compile_once_for_each_shape():
    traces = []

    @nnx.jit
    def call(model, images):
        traces.append((model.bn1.use_running_average, images.shape[0]))
        return model(images)

    model = _create(drop_rate=0.1)
    for mode, batch in (("eval", 2), ("eval", 2), ("train", 2), ("train", 2), ("eval", 2), ("eval", 3), ("train", 2)):
        getattr(model, mode)()
        call(model, _images(batch))
    assert traces == [(True, 2), (False, 2), (True, 3)]


def test_the_classifier_can_be_replaced(tmp_path):
    """And then the model trains, converts and is saved with as many classes as it has now."""
    model = _create()
    model.classifier = nnx.Linear(model.plan.num_features, 5, rngs=nnx.Rngs(0))
    assert _call(model, _images()).shape == (4, 5)
    assert to_start(model).plan.classifier.out_features == 5
    linen, variables = convert(model, "linen")
    np.testing.assert_allclose(linen.apply(variables, _images()), _call(model, _images()), rtol=1e-4, atol=1e-5)
    save_checkpoint(tmp_path / "five.safetensors", model, "tiny_tf")
    again, card = from_pretrained(tmp_path / "five.safetensors")
    assert card.num_classes == 5
    np.testing.assert_array_equal(again.classifier.kernel[...], model.classifier.kernel[...])


def test_a_layer_can_be_replaced():
    model, images = _create(), _images()
    model.blocks[1][1].conv_pwl = nnx.Conv(24, 16, (1, 1), use_bias=False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="48 // 1 != 24"):
        model(images)
    model.blocks[1][1].conv_pwl = nnx.Conv(48, 16, (1, 1), use_bias=False, rngs=nnx.Rngs(0))
    assert model(images).shape == (4, 3)


def test_a_model_made_under_eval_shape_allocates_nothing():
    abstract = nnx.eval_shape(lambda: _create())
    assert abstract.conv_stem.kernel.shape == (3, 3, 3, 8)
    assert isinstance(abstract.conv_stem.kernel.get_value(), jax.ShapeDtypeStruct)


def test_batch_norm_takes_no_mask():
    with pytest.raises(ArchitectureError, match="mask"):
        _create().bn1(jnp.ones((1, 2, 2, 8)), mask=jnp.ones((1,), bool))
