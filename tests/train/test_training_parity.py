"""Training does what timm's does: from the same weights and batches, 20 steps have the same losses, in float64."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jeffnet.arch.summary import array_specs
from jeffnet.arch.zoo import model_plan, model_preprocessing, model_spec
from jeffnet.train.config import Config, DataConfig, LossConfig, ModelConfig, OptimizerConfig
from jeffnet.train.network import Network
from jeffnet.train.optim import make_optimizer
from jeffnet.train.state import initial_state
from jeffnet.train.step import make_train_step
from jeffnet.weights.naming import to_canonical_names
from jeffnet.weights.start import Start
from jeffnet.weights.stored import stored
from jeffnet.weights.timm import TIMM

STEPS, BATCH, SIZE, CLASSES = 20, 8, 48, 5
OPTIMIZERS = {
    "sgd": (OptimizerConfig(name="sgd", momentum=0.9, weight_decay=1e-4), 0.001),
    "rmsproptf": (OptimizerConfig(name="rmsproptf", decay=0.9, momentum=0.9, epsilon=1e-3, weight_decay=1e-5), 0.002),
}
# Compiling a step takes up to a minute.
CASES = [
    pytest.param("mobilenetv3_small_100", "rmsproptf"),
    pytest.param("mobilenetv3_small_100", "sgd", marks=pytest.mark.slow),
    *(
        pytest.param(name, optimizer, marks=pytest.mark.slow)
        for name in ("tf_efficientnet_b0", "mixnet_s")
        for optimizer in OPTIMIZERS
    ),
]


def _batches():
    """Two batches by turns, which can be learned by heart."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, BATCH, SIZE, SIZE, 3), np.uint8)
    labels = rng.integers(0, CLASSES, (2, BATCH)).astype(np.int32)
    for step in range(STEPS):
        yield images[step % 2], labels[step % 2]


@functools.lru_cache
def _normalized(name):
    own = model_preprocessing(name)
    return lambda images: (images / 255 - np.array(own.mean)) / np.array(own.std)


def _timm_optimizer(name, parameters, config, rate):
    import torch

    if name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=config.momentum)
    from timm.optim import RMSpropTF

    return RMSpropTF(parameters, lr=rate, alpha=config.decay, momentum=config.momentum, eps=config.epsilon)


def _train_timm(timm, name, optimizer):
    """Initial arrays, losses, and the arrays at the end."""
    import torch
    from timm.loss import LabelSmoothingCrossEntropy

    torch.manual_seed(0)
    config, rate = OPTIMIZERS[optimizer]
    model = timm.create_model(name, num_classes=CLASSES, drop_rate=0.0, drop_path_rate=0.0)
    model = model.double().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Hardsigmoid):
            # torch's own has a gradient of 1/6 rounded to float32, in float64 too.
            module.forward = lambda x: torch.nn.functional.relu6(x + 3) / 6
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1 - model_spec(name).bn_momentum
    start = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    kernels = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    update = _timm_optimizer(optimizer, groups, config, rate)
    loss_of, losses = LabelSmoothingCrossEntropy(0.1), []
    for images, labels in _batches():
        pixels = torch.from_numpy(_normalized(name)(images).transpose(0, 3, 1, 2).copy())
        loss = loss_of(model(pixels), torch.from_numpy(labels).long())
        update.zero_grad()
        loss.backward()
        update.step()
        losses.append(loss.item())
    return start, np.array(losses), {key: value.numpy() for key, value in model.state_dict().items()}


def _arrays(state_dict, plan):
    """By canonical name."""
    arrays = to_canonical_names({name: stored(value) for name, value in state_dict.items()}, TIMM, plan)
    return {name: jnp.asarray(np.asarray(arrays[name]), jnp.float64) for name in array_specs(plan)}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("name", "optimizer"), CASES)
@pytest.mark.slow
def test_losses_and_statistics_equal_timms(name, optimizer, timm, x64):
    plan = model_plan(name, num_classes=CLASSES, drop_rate=0.0, drop_path_rate=0.0)
    start, expected, end = _train_timm(timm, name, optimizer)
    network = Network(Start(plan, {}, jnp.float64, jnp.float64), model_preprocessing(name), "linen")
    arrays = _arrays(start, plan)
    assert all(array.dtype == jnp.float64 for array in arrays.values())
    config, rate = OPTIMIZERS[optimizer]
    trained = {key: arrays[key] for key, spec in array_specs(plan).items() if spec.is_parameter}
    update = make_optimizer(config, optax.constant_schedule(rate), trained)
    whole = Config(
        model=ModelConfig(name=name), data=DataConfig(path="-"), optimizer=config, loss=LossConfig(label_smoothing=0.1)
    )
    step, state, losses = make_train_step(network, update, whole), initial_state(arrays, update), []
    for images, labels in _batches():
        state, metrics = step(state, {"image": images, "label": labels})
        losses.append(float(metrics["loss"]))
    assert np.ptp(expected) > 0.2  # something happens that could go wrong
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-8)
    final = _arrays(end, plan)
    for key, array in state.arrays.items():
        scale = max(np.abs(final[key]).max(), 1)  # biases of which a norm is taken have gradients of rounding alone
        np.testing.assert_allclose(array, final[key], rtol=0, atol=1e-8 * scale, err_msg=key)
