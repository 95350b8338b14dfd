"""Optimizers: the same steps as the reference implementations, and what holds for all of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jeffnet.errors import ConfigError
from jeffnet.train import config as configuration
from jeffnet.train.config import OptimizerConfig, ParamGroup
from jeffnet.train.optim import OPTIMIZERS, make_optimizer

STEPS = 50
SHAPES = {
    "conv_stem.kernel": (3, 3, 2, 4),
    "bn1.scale": (4,),
    "bn1.bias": (4,),
    "blocks.0.0.conv_dw.kernel": (3, 3, 1, 4),
    "classifier.kernel": (4, 4),
    "classifier.bias": (4,),
}
KERNELS = [name for name, shape in SHAPES.items() if len(shape) > 1]
DECAY = 0.03


def draw(shapes, seed, steps=()):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(*steps, *shape)) for name, shape in shapes.items()}


PARAMS = draw(SHAPES, 0)
GRADIENTS = draw(SHAPES, 1, (STEPS,))
GRADIENT = {name: gradients[0] for name, gradients in GRADIENTS.items()}
NOTHING = jax.tree.map(np.zeros_like, PARAMS)
# Not the same at any two steps, which tells whether momentum has the rate of its own step.
RATES = np.linspace(0.08, 0.02, STEPS)


def constant(rate):
    return optax.constant_schedule(rate)


def run(config, rates=RATES, gradients=GRADIENTS, params=PARAMS):
    """Parameters after a step for each of the gradients."""
    optimizer = make_optimizer(config, lambda count: jnp.asarray(rates)[count], params)

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jax.tree.map(jnp.asarray, params)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, gradients)[0][0])((params, optimizer.init(params)))


def updates_of(config, *gradients, params=PARAMS, schedule=None):
    """For each of the gradients in turn, while the parameters stay."""
    optimizer = make_optimizer(config, schedule or constant(0.05), params)
    params = jax.tree.map(jnp.asarray, params)
    state, result = optimizer.init(params), []
    for gradient in gradients:
        # Not compiled as a whole: single operations are quicker to compile, and the same for all optimizers.
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
        result.append(updates)
    return result


def assert_close(arrays, expected, rtol=1e-11, atol=1e-14):
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, rtol=rtol, atol=atol, err_msg=name)


@pytest.fixture
def torch(timm):
    """In float64, also where an optimizer counts."""
    import torch

    torch.set_default_dtype(torch.float64)
    yield torch
    torch.set_default_dtype(torch.float32)


# Who has which option.
OPTIONS = {
    "momentum": "sgd momentum nesterov rmsprop rmsproptf lars adafactor muon",
    "nesterov": "sgd lars muon",
    "decay": "rmsprop rmsproptf adafactor",
    "b1": "adam adamw adabelief nadamw lamb lion muon",
    "b2": "adam adamw adabelief nadamw lamb lion muon",
    "epsilon": "adam adamw adabelief nadamw lamb rmsprop rmsproptf lars adafactor muon",
    "trust_coefficient": "lars",
}

# Our options, the reference's name in `torch.optim` or `timm.optim`, and the same options there.
REFERENCES = {
    "sgd": ({"momentum": 0.8}, "SGD", {"momentum": 0.8}),
    "sgd, plain": ({"name": "sgd", "momentum": 0.0}, "SGD", {}),
    "momentum": ({}, "SGD", {"momentum": 0.9}),
    "nesterov": ({"momentum": 0.8}, "SGD", {"momentum": 0.8, "nesterov": True}),
    "adam": ({"b1": 0.8, "b2": 0.9, "epsilon": 1e-3}, "Adam", {"betas": (0.8, 0.9), "eps": 1e-3}),
    "adam, decoupled": ({"name": "adam", "decoupled": True}, "AdamW", {}),
    "adamw": ({}, "AdamW", {}),
    "adamw, not decoupled": ({"name": "adamw", "decoupled": False}, "Adam", {}),
    # A momentum that grows at once to what it is in the end is constant.
    "nadamw": ({"b1": 0.8}, "NAdam", {"betas": (0.8, 0.999), "momentum_decay": 1e9, "decoupled_weight_decay": True}),
    "rmsprop": ({}, "RMSprop", {}),
    "rmsprop, others": (
        {"name": "rmsprop", "momentum": 0.7, "decay": 0.8, "epsilon": 1e-2},
        "RMSprop",
        {"momentum": 0.7, "alpha": 0.8, "eps": 1e-2},
    ),
    "rmsproptf": ({}, "RMSpropTF", {"momentum": 0.9, "alpha": 0.9, "eps": 1e-3}),
    "rmsproptf, decoupled": (
        {"name": "rmsproptf", "decoupled": True, "momentum": 0.7},
        "RMSpropTF",
        {"momentum": 0.7, "alpha": 0.9, "eps": 1e-3, "decoupled_decay": True},
    ),
    "adabelief": ({}, "AdaBelief", {"rectify": False}),
    "adabelief, not decoupled": (
        {"name": "adabelief", "decoupled": False, "epsilon": 1e-8},
        "AdaBelief",
        {"rectify": False, "decoupled_decay": False, "eps": 1e-8},
    ),
    "lion": ({}, "Lion", {}),
    "lamb": ({}, "Lamb", {"max_grad_norm": None}),
    "lars": ({"momentum": 0.8}, "Lars", {"momentum": 0.8, "eps": 0}),
    "lars, others": (
        {"name": "lars", "nesterov": True, "trust_coefficient": 0.02, "epsilon": 0.1},
        "Lars",
        {"momentum": 0.9, "nesterov": True, "trust_coeff": 0.02, "eps": 0.1},
    ),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_steps_are_those_of_the_reference(timm, torch, x64, case):
    import timm.optim

    options, reference, theirs = REFERENCES[case]
    config = OptimizerConfig(**{"name": case, "weight_decay": DECAY, **options})
    params = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in PARAMS.items()}
    groups = [{"params": [param], "weight_decay": DECAY if param.ndim > 1 else 0.0} for param in params.values()]
    # The momentum of timm's LARS, unlike that of the paper, has not the rate in it.
    rates = np.full(STEPS, 0.05) if reference == "Lars" else RATES
    kind = getattr(torch.optim, reference, None) or getattr(timm.optim, reference)
    optimizer = kind(groups, lr=0.05, **theirs)
    for step, rate in enumerate(rates):
        for name, param in params.items():
            param.grad = torch.tensor(GRADIENTS[name][step])
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    assert_close(run(config, rates), {name: param.detach().numpy() for name, param in params.items()})


def test_rmsproptf_is_tensorflows(x64):
    """The very operation that TensorFlow's own optimizer runs; its squares start at 1."""
    tf = pytest.importorskip("tensorflow")

    expected = {}
    for name, array in PARAMS.items():
        value, squares, momentum = (tf.Variable(start) for start in (array, np.ones_like(array), np.zeros_like(array)))
        for rate, gradient in zip(RATES, GRADIENTS[name], strict=True):
            tf.raw_ops.ResourceApplyRMSProp(
                var=value.handle,
                ms=squares.handle,
                mom=momentum.handle,
                lr=tf.constant(rate, tf.float64),
                rho=tf.constant(0.9, tf.float64),
                momentum=tf.constant(0.9, tf.float64),
                epsilon=tf.constant(1e-3, tf.float64),
                grad=gradient,
            )
        expected[name] = value.numpy()
    assert_close(run(OptimizerConfig(name="rmsproptf")), expected)


def test_adafactor_is_the_papers(x64):
    """Algorithm 4 of arXiv:1804.04235 for matrices of at least 128 rows and columns, and 5 for the rest."""
    shapes = {"blocks.0.0.conv_pw.kernel": (1, 1, 130, 128), "bn1.scale": (5,)}
    params, gradients = draw(shapes, 0), draw(shapes, 1, (10,))
    expected = {}
    for name, start in params.items():
        value, squares = np.squeeze(start.copy()), 0.0
        rows = columns = 0.0
        for step, gradient in enumerate(np.squeeze(gradients[name]), 1):
            kept = 1 - step**-0.8
            if value.ndim > 1:
                rows = kept * rows + (1 - kept) * np.mean(gradient**2 + 1e-30, axis=1, keepdims=True)
                columns = kept * columns + (1 - kept) * np.mean(gradient**2 + 1e-30, axis=0, keepdims=True)
                squares = rows @ columns / rows.mean()
            else:
                squares = kept * squares + (1 - kept) * (gradient**2 + 1e-30)
            update = gradient / np.sqrt(squares)
            update /= max(1, np.sqrt(np.mean(update**2)))
            decay = DECAY * value if value.ndim > 1 else 0
            value = value - RATES[step - 1] * (max(1e-3, np.sqrt(np.mean(value**2))) * update + decay)
        expected[name] = value.reshape(start.shape)
    # optax computes the share of old squares in float32.
    config = OptimizerConfig(name="adafactor", weight_decay=DECAY)
    assert_close(run(config, RATES, gradients, params), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", OPTIONS["momentum"].split())
def test_momentum_goes_on_at_a_rate_of_zero_where_it_has_the_rate_in_it(x64, name):
    config = OptimizerConfig(name=name, momentum=0.5)
    first, second = updates_of(config, GRADIENT, NOTHING, schedule=lambda count: jnp.where(count == 0, 0.1, 0))
    goes_on = 0.5 if name in ("rmsproptf", "lars", "adafactor") else 0
    assert_close(second, {name: goes_on * update for name, update in first.items()})


def test_muon_moves_kernels_by_orthogonal_matrices(x64):
    """With the singular vectors of the gradient, and a root mean square of about 0.2."""
    shapes = {"blocks.0.0.conv.kernel": (3, 3, 4, 16), "blocks.0.0.conv_pw.kernel": (1, 1, 24, 8)}
    params, gradients = draw(shapes, 0), draw(shapes, 1)
    (updates,) = updates_of(OptimizerConfig(name="muon"), gradients, params=params, schedule=constant(1.0))
    for name, update in updates.items():
        left, _, right = np.linalg.svd(gradients[name].reshape(-1, update.shape[-1]), full_matrices=False)
        stretched = -left.T @ np.asarray(update).reshape(-1, update.shape[-1]) @ right.T
        size = 0.2 * np.sqrt(max(len(left), len(right)))
        np.testing.assert_allclose(stretched, np.diag(np.diag(stretched)), atol=1e-9)
        assert (abs(np.diag(stretched) / size - 0.95) < 0.3).all()
        assert 0.15 < np.sqrt(np.mean(np.square(update))) < 0.25


def test_muon_leaves_all_but_the_inner_kernels_to_adam(x64):
    (muon,), (adam,) = (updates_of(OptimizerConfig(name=name), GRADIENT) for name in ("muon", "adam"))
    same = [name for name in SHAPES if np.allclose(muon[name], adam[name], rtol=1e-12)]
    assert same == [name for name in SHAPES if name != "conv_stem.kernel"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_quadratic_is_minimised(name):
    params = {name: jnp.asarray(PARAMS[name]) for name in ("blocks.0.0.conv_dw.kernel", "conv_stem.kernel", "bn1.bias")}
    rate = {"sgd": 0.02, "momentum": 0.02, "nesterov": 0.02, "lars": 0.02, "rmsproptf": 0.01}.get(name, 0.1)
    options = {"trust_coefficient": 0.5} if name == "lars" else {}
    config = OptimizerConfig(name=name, weight_decay=1e-4, **options)
    optimizer = make_optimizer(config, optax.linear_schedule(rate, 0, 150), params)
    target = {name: jnp.cos(param) for name, param in params.items()}

    def loss_of(params):
        return sum(jnp.sum((params[name] - target[name]) ** 2) for name in params)

    def step(carry, _):
        params, state = carry
        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    (params, _), losses = jax.jit(lambda carry: jax.lax.scan(step, carry, length=150))((params, optimizer.init(params)))
    assert np.isfinite(losses).all()
    assert loss_of(params) < 0.02 * losses[0]
    assert all(param.dtype == np.float32 for param in params.values())


@pytest.mark.parametrize("decoupled", [None, False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_shrinks_kernels_and_leaves_norms_and_biases_alone(x64, name, decoupled):
    """Where gradients are 0."""
    for decay_all in (False, True):
        config = OptimizerConfig(name=name, weight_decay=0.1, decoupled=decoupled, decay_all=decay_all)
        (updates,) = updates_of(config, NOTHING)
        for param, start in PARAMS.items():
            moved = np.linalg.norm(start + np.asarray(updates[param])) / np.linalg.norm(start) - 1
            assert moved < -1e-4 if param in KERNELS or decay_all else moved == 0, param


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "lamb"])
def test_decoupled_decay_is_beside_the_step_at_the_rate_of_the_schedule(x64, name):
    """p - rate * decay * p, with the factor of a group, at every step; LAMB's is within its trust ratio."""
    group = ParamGroup(pattern="classifier.*", learning_rate=0.5, weight_decay=0.4)
    bare = OptimizerConfig(name=name, decoupled=True, groups=(dataclasses.replace(group, weight_decay=None),))
    config = dataclasses.replace(bare, weight_decay=0.1, groups=(group,))

    def schedule(count):
        return jnp.where(count == 0, 0.1, 0.2)

    _, update = updates_of(config, GRADIENT, GRADIENT, schedule=schedule)
    _, without = updates_of(bare, GRADIENT, GRADIENT, schedule=schedule)
    for name, param in PARAMS.items():
        decay = 0.5 * 0.4 if name.startswith("classifier.") else 0.1 if name in KERNELS else 0.0
        np.testing.assert_allclose(update[name] - without[name], -0.2 * decay * param, rtol=1e-9, atol=1e-14)


def test_lambs_decay_is_within_its_trust_ratio(x64):
    """Without gradients a step is as long as the parameter, times the rate, however small the decay."""
    for decay in (1e-3, 1e-1):
        (update,) = updates_of(OptimizerConfig(name="lamb", weight_decay=decay), NOTHING)
        for name in KERNELS:
            np.testing.assert_allclose(update[name], -0.05 * PARAMS[name], rtol=1e-9)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "lars"])
def test_coupled_decay_joins_the_gradient_after_it_is_clipped(x64, name):
    """LARS takes the norm of the gradient alone."""
    config = OptimizerConfig(name=name, decoupled=False, clip_norm=0.5)
    length = np.sqrt(sum(np.sum(gradient**2) for gradient in GRADIENT.values()))
    joined = {
        name: 0.5 / length * gradient + (0.1 * PARAMS[name] if name in KERNELS else 0)
        for name, gradient in GRADIENT.items()
    }
    (update,) = updates_of(dataclasses.replace(config, weight_decay=0.1), GRADIENT)
    (expected,) = updates_of(dataclasses.replace(config, clip_norm=None), joined)
    assert_close(update, expected, rtol=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rate_of_a_group_and_of_the_schedule_is_a_factor_on_all_that_moves(x64, name):
    gradients = [{name: gradients[step] for name, gradients in GRADIENTS.items()} for step in range(2)]
    config = OptimizerConfig(name=name, weight_decay=0.1)
    plain = updates_of(config, *gradients)
    for update in updates_of(config, *gradients, schedule=constant(0.0)):
        assert_close(update, NOTHING)

    groups = (ParamGroup(pattern="b*", learning_rate=0.0), ParamGroup(pattern="conv_stem.*", learning_rate=3.0))
    factors = {"conv_stem": 3.0, "bn1": 0.0, "blocks": 0.0, "classifier": 1.0}
    assert_all_scaled(updates_of(dataclasses.replace(config, groups=groups), *gradients), plain, factors)
    factors = {"conv_stem": 0.25, "bn1": 0.25, "blocks": 0.5, "classifier": 1.0}
    assert_all_scaled(updates_of(dataclasses.replace(config, layer_decay=0.5), *gradients), plain, factors)


def assert_all_scaled(updates, plain, factors):
    for scaled, update in zip(updates, plain, strict=True):
        assert min(abs(np.asarray(array)).max() for array in update.values()) > 1e-6
        assert_close(scaled, {name: factors[name.split(".")[0]] * array for name, array in update.items()})


def test_adaptive_clipping_is_timms(torch, x64):
    """Of each output channel, whatever the layout; the classifier's gradients stay."""
    from timm.utils.agc import adaptive_clip_grad

    shapes = {**SHAPES, "blocks.0.0.se.conv_reduce.kernel": (1, 1, 6, 2), "blocks.0.0.se.conv_reduce.bias": (2,)}
    params, gradients = draw(shapes, 0), draw(shapes, 1)
    params["blocks.0.0.se.conv_reduce.kernel"][..., 1] = 0
    # Some units are clipped, others are not.
    gradients = {name: array * np.logspace(-2, 0, array.shape[-1]) for name, array in gradients.items()}
    clipped = dict(gradients)
    for name in shapes:
        if not name.startswith("classifier."):
            axes = (3, 2, 0, 1) if len(shapes[name]) == 4 else (0,)
            param = torch.nn.Parameter(torch.tensor(params[name].transpose(axes)))
            param.grad = torch.tensor(gradients[name].transpose(axes))
            adaptive_clip_grad(param, clip_factor=0.1)
            clipped[name] = param.grad.numpy().transpose(np.argsort(axes))
    config = OptimizerConfig(name="sgd", momentum=0.0, clip_adaptive=0.1)
    (updates,) = updates_of(config, gradients, params=params, schedule=constant(1.0))
    assert_close(updates, {name: -array for name, array in clipped.items()})
    changed = clipped["conv_stem.kernel"] != gradients["conv_stem.kernel"]
    assert changed.any() and not changed.all()


def test_values_are_clipped_one_by_one_and_norms_all_together(x64):
    config = OptimizerConfig(name="sgd", momentum=0.0)
    (update,) = updates_of(dataclasses.replace(config, clip_value=0.4), GRADIENT, schedule=constant(1.0))
    assert_close(update, {name: -np.clip(gradient, -0.4, 0.4) for name, gradient in GRADIENT.items()})

    length = np.sqrt(sum(np.sum(gradient**2) for gradient in GRADIENT.values()))
    for limit, factor in ((0.5 * length, 0.5), (2 * length, 1)):
        (update,) = updates_of(dataclasses.replace(config, clip_norm=limit), GRADIENT, schedule=constant(1.0))
        assert_close(update, {name: -factor * gradient for name, gradient in GRADIENT.items()})


@pytest.mark.parametrize("option", OPTIONS)
def test_an_optimizer_takes_its_own_options_only(option):
    """Those that the configuration's description lists."""
    for name in OPTIMIZERS:
        config = OptimizerConfig(name=name, **{option: True if option == "nesterov" else 0.5})
        if name in OPTIONS[option].split():
            make_optimizer(config, constant(0.1), PARAMS)
        else:
            own = ", ".join(other for other, owners in OPTIONS.items() if name in owners.split())
            with pytest.raises(ConfigError, match=f"'{name}' has no option '{option}'; it has {own}$"):
                make_optimizer(config, constant(0.1), PARAMS)


def test_the_configuration_knows_every_optimizer():
    assert tuple(OPTIMIZERS) == configuration.OPTIMIZERS


@pytest.mark.parametrize(
    ("entry", "values"),
    {
        "learning_rate": [0.0, -0.1, float("nan"), float("inf")],
        "weight_decay": [-0.1],
        "layer_decay": [0.0, -0.5, 1.1],
        "clip_norm": [0.0, -1.0],
        "clip_value": [0.0],
        "clip_adaptive": [0.0],
        "trust_coefficient": [0.0],
        "momentum": [-0.1, 1.0],
        "decay": [-0.1, 1.0],
        "b1": [-0.1, 1.0],
        "b2": [1.0],
        "epsilon": [-1e-8],
    }.items(),
)
def test_values_out_of_range_are_refused(entry, values):
    for value in values:
        with pytest.raises(ConfigError, match=rf"optimizer\.{entry} "):
            OptimizerConfig(**{entry: value})


# optax corrects Adam's bias by a power of a float and a whole number.
PROMOTES_DTYPES = ("adam", "adamw", "nadamw", "adabelief", "lamb", "muon")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ranks_and_dtypes_are_promoted_explicitly(name):
    config = OptimizerConfig(name=name, weight_decay=DECAY, clip_norm=1.0, clip_adaptive=0.1)
    optimizer = make_optimizer(config, constant(0.1), PARAMS)
    dtypes = "standard" if name in PROMOTES_DTYPES else "strict"
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion(dtypes):
        params = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, jnp.float32), PARAMS)
        jax.eval_shape(optimizer.update, params, jax.eval_shape(optimizer.init, params), params)
