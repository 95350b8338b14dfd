"""Every model computes what timm's does, in float64: names, shapes, logits, maps, gradients, running statistics.

Weights are random, BatchNorm's scales, biases and statistics included, so that a swapped pair of arrays cannot cancel.
The pictures are 44x54: what the strides leave of them is odd, even and not square by turns, which tells every padding
from every other, and the last maps keep 2x2 positions, without which training mode would be ill-conditioned.
"""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.arch.lower import lower
from jeffnet.arch.summary import array_specs
from jeffnet.arch.zoo import MODELS, model_plan, model_spec
from jeffnet.linen import ImageClassifier, build, to_canonical, to_start, to_variables
from jeffnet.weights.fit import fit
from jeffnet.weights.naming import to_canonical_names, to_source_names
from jeffnet.weights.start import with_test_pooling
from jeffnet.weights.stored import stored
from jeffnet.weights.timm import TIMM

TOLERANCE = 1e-10
CLASSES = 10
BATCH, HEIGHT, WIDTH = 4, 44, 54

# The compiler's optimisations take half of the time and change no float64 result by more than rounding.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0}

# One variant of each family, in one of its paddings or both.
ONE_OF_EACH = (
    "pt_efficientnet_lite0",
    "pt_fbnetc_100",
    "pt_mobilenetv2_100",
    "pt_spnasnet_100",
    "tf_efficientnet_b0",
    "tf_efficientnet_es",
    "tf_mixnet_s",
    "tf_mobilenetv3_small_075",
)


def _reference_name(name):
    """timm's name of the architecture: without `pt_`, and without what tells only the weights of a model."""
    return re.sub(r"_(ap|ns|ns_475)$", "", name.removeprefix("pt_"))


# Padded as TensorFlow, timm has none of these: tests of Keras's files and of TensorFlow's checkpoints compare them.
WITHOUT_TIMM = re.compile(r"tf_(mobilenetv2|mnasnet|semnasnet)_")
IN_TIMM = [name for name in MODELS if not WITHOUT_TIMM.match(name)]
# The first of ours of each architecture, by timm's name; the others differ from it in their weights only.
ARCHITECTURES = {_reference_name(name): name for name in reversed(IN_TIMM)}
EDGE = tuple(name for name in ARCHITECTURES if re.fullmatch(r"tf_efficientnet_e[sml]", name))


def _fast_ones(fast):
    """Every architecture once; `make test` takes the fast ones."""
    names = sorted(ARCHITECTURES.values())
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]
    )


# Gradients compile for up to a minute: one of each kind of block, in both paddings.
FAST_TO_TRAIN = ("pt_efficientnet_lite0", "tf_efficientnet_es", "tf_mobilenetv3_small_075")


def _spec(name):
    """The architecture; L2 as wide as it is but shallow, since its 480 million parameters would fill the memory."""
    spec = model_spec(name)
    return replace(spec, depth=1.0) if "_l2" in name else spec


def _model(name, **options):
    plan = lower(_spec(name), **{"num_classes": CLASSES, "drop_rate": 0.0, "drop_path_rate": 0.0} | options)
    return ImageClassifier(plan, dtype=jnp.float64, param_dtype=jnp.float64)


def _reference(timm, name, **options):
    """timm's model in float64 with random arrays, each at the scale that keeps activations near 1."""
    import torch

    torch.set_num_threads(1)  # pictures this small are no work to share, and waiting threads slow all other processes
    options = {"num_classes": CLASSES} | options
    with torch.device("meta"):
        if "_l2" in name:
            same = {"pad_type": "same", "bn_eps": 1e-3} if name.startswith("tf_") else {}
            reference = timm.models.efficientnet._gen_efficientnet(
                _reference_name(name), channel_multiplier=4.3, depth_multiplier=1.0, **same, **options
            )
        else:
            reference = timm.create_model(_reference_name(name), **options)
    reference = reference.double().to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for key, value in reference.state_dict().items():
        if value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif key.endswith(".bias"):
            value.normal_(0, 0.1, generator=generator)
        elif key.endswith((".weight", ".gamma")):
            value.uniform_(0.5, 1.5, generator=generator)
    for module in reference.modules():
        if hasattr(module, "filt"):  # of blur pooling, which is no part of the state
            taps = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
            module.filt = (taps[:, None] * taps).expand(module.filt.shape).clone()
        if isinstance(module, torch.nn.Hardsigmoid):
            # torch's own has a gradient of 1/6 rounded to float32, in float64 too: an error of 3e-8.
            module.forward = lambda x: torch.nn.functional.relu6(x + 3) / 6
    _randomize_statistics(reference, generator)
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # timm leaves torch's default to its tf_ models, which is not what the originals train with.
            module.momentum = 1 - model_spec(name).bn_momentum
    return reference.eval()


def _randomize_statistics(reference, generator):
    """Running statistics around those of a batch of noise.

    Any others would let the activations of a deep network grow from block to block until it is chaotic: one rounding
    more in the picture would change B5's logits by 1e-7 in timm itself.
    """
    import torch

    norms = [module for module in reference.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
        norm.momentum = 1.0
    with torch.no_grad():
        noise = torch.empty(32, reference.conv_stem.in_channels, HEIGHT, WIDTH, dtype=torch.float64)
        reference.train()(noise.normal_(generator=generator))
        for norm in norms:
            deviation, random = norm.running_var.sqrt(), torch.empty_like(norm.running_var)
            norm.running_mean += 0.1 * deviation * random.normal_(generator=generator)
            norm.running_var *= random.uniform_(0.8, 1.3, generator=generator)


def _stride_the_projection(reference):
    """EdgeTPU's blocks as their authors wrote them: the 3x3 expansion sees all positions, the projection strides."""
    for conv_exp, conv_pwl in _strided_edge_blocks(reference):
        conv_exp.stride, conv_pwl.stride = (1, 1), (2, 2)
    return reference


def _stride_the_expansion(reference):
    """The same outputs with the statistics of the strided positions: timm's layers with padding (1, 1)."""
    import torch

    for conv_exp, _ in _strided_edge_blocks(reference):
        conv_exp.padding = (1, 1)
        conv_exp.forward = functools.partial(torch.nn.Conv2d.forward, conv_exp)
    return reference


def _strided_edge_blocks(reference):
    blocks = [block for stage in reference.blocks for block in stage if hasattr(block, "conv_exp")]
    strided = [(block.conv_exp, block.conv_pwl) for block in blocks if block.conv_exp.stride == (2, 2)]
    assert len(strided) == 2
    return strided


def _images(height=HEIGHT, width=WIDTH, batch=BATCH):
    return np.random.default_rng(0).normal(size=(batch, height, width, 3))


def _to_torch(images):
    import torch

    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _from_timm(state, plan):
    arrays = to_canonical_names({name: stored(value) for name, value in state.items()}, TIMM, plan)
    return fit(arrays, plan, source="the reference", model="the model")


def _variables(reference, model):
    return to_variables(_from_timm(reference.state_dict(), model.plan))


def _run(function, *arguments):
    return jax.jit(function, compiler_options=COMPILER_OPTIONS)(*arguments)


def _error(ours, reference, magnitude=None):
    """The largest difference over the reference's largest magnitude."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    assert ours.shape == reference.shape and ours.dtype == reference.dtype == np.float64
    return float(np.abs(ours - reference).max() / (magnitude or np.abs(reference).max()))


def _evaluation_error(reference, model, images):
    import torch

    with torch.no_grad():
        logits = reference(_to_torch(images))
    return _error(_run(model.apply, _variables(reference, model), images), logits)


def test_test_time_pooling_equals_timm(timm, x64):
    """Windows of 2x2, the last map of pictures of 64 px, in maps of 3x4."""
    import torch
    from timm.layers import TestTimePoolHead

    reference, model = _reference(timm, "pt_efficientnet_lite0"), _model("pt_efficientnet_lite0")
    variables = _variables(reference, model)
    images = _images(76, 108)
    torch.set_default_dtype(torch.float64)  # of the head's layer, before the classifier's weights are copied into it
    try:
        head = TestTimePoolHead(reference, original_pool=2)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        logits = head(_to_torch(images))
    pooled, _ = build(with_test_pooling(to_start(model, variables), 64))
    assert _error(_run(pooled.apply, variables, images), logits) < TOLERANCE


def test_there_are_62_architectures():
    """What the slow tests run over: the 80 that timm has less 9 AdvProp, 8 NoisyStudent and the second L2 weights."""
    assert len(ARCHITECTURES) == 62
    assert set(ONE_OF_EACH) <= set(ARCHITECTURES.values())


@pytest.mark.parametrize("name", sorted(set(IN_TIMM) - set(ARCHITECTURES.values())))
def test_models_of_one_architecture_have_one_plan(name):
    """So that what is shown of the first of them holds for the others."""
    assert model_plan(name) == model_plan(ARCHITECTURES[_reference_name(name)])


@pytest.mark.parametrize("name", IN_TIMM)
def test_names_and_shapes_equal_timm(name, timm):
    """Fails with a block too many, a width rounded otherwise, or a norm under another name."""
    import torch

    with torch.device("meta"):
        state = timm.create_model(_reference_name(name)).state_dict()
    theirs = {key: tuple(value.shape) for key, value in state.items() if not key.endswith(".num_batches_tracked")}
    plan = model_plan(name)
    ours = {key: np.broadcast_to(np.float32(0), spec.shape) for key, spec in array_specs(plan).items()}
    assert {key: array.shape for key, array in to_source_names(ours, TIMM, plan).items()} == theirs


@_fast_ones(ONE_OF_EACH)
def test_evaluation_equals_timm(name, timm, x64, record_property):
    """Logits and the feature map at every stride, with its name, width and stride."""
    import torch

    model, reference, images = _model(name), _reference(timm, name), _images()
    if name in EDGE:
        _stride_the_projection(reference)
    with torch.no_grad():
        logits = reference(_to_torch(images))
        maps = reference.forward_intermediates(_to_torch(images), intermediates_only=True)

    def outputs(variables, images):
        return model.apply(variables, images), model.apply(variables, images, method="features")

    our_logits, our_maps = _run(outputs, _variables(reference, model), images)
    info = [(entry["module"], entry["num_chs"], entry["reduction"]) for entry in reference.feature_info]
    assert [(feature.name, feature.channels, feature.stride) for feature in model.feature_info] == info
    theirs = [logits] + [each.permute(0, 2, 3, 1) for each in maps]
    errors = [_error(ours, their) for ours, their in zip((our_logits, *our_maps), theirs, strict=True)]
    record_property("logits", errors[0])
    record_property("features", max(errors[1:]))
    assert max(errors) <= TOLERANCE


@_fast_ones(FAST_TO_TRAIN)
def test_training_equals_timm(name, timm, x64, record_property):
    """Logits, the gradient of every parameter through a random linear functional of them, the updated statistics."""
    import torch

    model, reference, images = _model(name), _reference(timm, name), _images()
    if name in EDGE:
        _stride_the_expansion(reference)
    weights = np.random.default_rng(1).normal(size=(BATCH, CLASSES))
    variables = jax.tree.map(np.array, _variables(reference, model))  # copies: torch updates its statistics in place

    logits = reference.train()(_to_torch(images))
    (logits * torch.from_numpy(weights)).sum().backward()
    state = {key: value.grad for key, value in reference.named_parameters()} | dict(reference.named_buffers())
    theirs = _from_timm(state, model.plan)

    def functional(params, batch_stats):
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
        )
        return (logits * weights).sum(), (logits, updated)

    gradient = jax.grad(functional, has_aux=True)
    params, (our_logits, updated) = _run(gradient, variables["params"], variables["batch_stats"])
    ours = to_canonical({"params": params, **updated}, model.plan)

    errors = {key: _error(ours[key], theirs[key], _magnitude(key, theirs)) for key in theirs}
    statistics = {key for key in errors if key.endswith((".mean", ".var"))}
    record_property("logits", _error(our_logits, logits.detach()))
    record_property("gradients", max(errors[key] for key in errors.keys() - statistics))
    record_property("statistics", max(errors[key] for key in statistics))
    assert _error(our_logits, logits.detach()) <= TOLERANCE
    assert {key: error for key, error in errors.items() if not error <= TOLERANCE} == {}


def _magnitude(name, arrays):
    """By what to measure the error of an array's gradient: its largest value.

    A BatchNorm's bias has the gradient 0 where a 1x1 convolution and the next BatchNorm follow, which subtracts it:
    there is only rounding to see, to be measured by the gradient of the same layer's scale.
    """
    module, _, leaf = name.rpartition(".")
    leaves = ("bias", "scale") if leaf == "bias" and f"{module}.scale" in arrays else (leaf,)
    return max(np.abs(arrays[f"{module}.{each}"]).max() for each in leaves)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["pt_mnasnet_small", "tf_efficientnet_b0"])
def test_output_stride_equals_timm(name, output_stride, timm, x64):
    """Strides that become dilations, of both paddings."""
    reference = _reference(timm, name, output_stride=output_stride)
    assert _evaluation_error(reference, _model(name, output_stride=output_stride), _images()) <= TOLERANCE


@pytest.mark.parametrize("kind", ["max", "avgmax"])
@pytest.mark.parametrize("name", ["pt_mnasnet_small", "pt_mobilenetv3_small_075"])
def test_global_pool_equals_timm(name, kind, timm, x64):
    """With the head convolution before the pooling, and behind it."""
    reference = _reference(timm, name, global_pool=kind)
    assert _evaluation_error(reference, _model(name, global_pool=kind), _images()) <= TOLERANCE


def test_other_input_channels_equal_timm(timm, x64):
    reference = _reference(timm, "pt_mnasnet_small", in_chans=5)
    images = np.random.default_rng(0).normal(size=(2, HEIGHT, WIDTH, 5))
    assert _evaluation_error(reference, _model("pt_mnasnet_small", in_chans=5), images) <= TOLERANCE


# Of every strided map the rows are even (64, 32, 16 ...) and the columns odd (65, 33, 17 ...).
EVEN_AND_ODD = _images(64, 65, 2)


def test_edgetpu_is_the_authors_function(timm, x64):
    """The stride of an edge residual is on its 1x1 projection, at even and at odd sizes."""
    reference = _stride_the_projection(_reference(timm, "tf_efficientnet_es"))
    assert _evaluation_error(reference, _model("tf_efficientnet_es"), EVEN_AND_ODD) <= TOLERANCE


def test_edgetpu_differs_from_todays_timm(timm, x64):
    """timm strides the expansion with 'SAME' padding, which reads other rows of even maps: why its scores fell."""
    reference = _reference(timm, "tf_efficientnet_es")
    assert _evaluation_error(reference, _model("tf_efficientnet_es"), EVEN_AND_ODD) > 1e-3


def test_symmetric_edgetpu_is_timms_and_the_authors_function(timm, x64):
    """With PyTorch's padding timm's strided expansion computes what the authors' strided projection does."""
    model, timms = _model("pt_efficientnet_es"), _reference(timm, "pt_efficientnet_es")
    assert _evaluation_error(timms, model, EVEN_AND_ODD) <= TOLERANCE
    assert _evaluation_error(_stride_the_projection(timms), model, EVEN_AND_ODD) <= TOLERANCE
