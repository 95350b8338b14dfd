"""Every model computes what timm's does, in float64: names, shapes, logits, maps, gradients, running statistics.

Weights are random, BatchNorm's scales, biases and statistics included, so that a swapped pair of arrays cannot cancel.
The pictures are 44x54: what the strides leave of them is odd, even and not square by turns, which tells every padding
from every other, and the last maps keep 2x2 positions, without which training mode would be ill-conditioned.
"""

import contextlib
import functools
import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.arch.grammar import parse_stages
from jeffnet.arch.lower import lower, repeats_of
from jeffnet.arch.summary import array_specs
from jeffnet.arch.zoo import MODELS, list_models, model_plan, model_spec
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

# Padded as TensorFlow, timm has none of these: tests of Keras's files and of TensorFlow's checkpoints compare them.
WITHOUT_TIMM = re.compile(r"tf_(mobilenetv2|mnasnet|semnasnet)_")
ARCHITECTURES = [name for name in list_models() if not WITHOUT_TIMM.match(name)]
EDGE = tuple(name for name in ARCHITECTURES if re.fullmatch(r"tf_efficientnet_e[sml]", name))

# What `make test` compares: of each padding and operation one variant, and as many of its first stages, since gradients
# compile for up to a minute. Pruned networks are whole in timm. The others differ in widths, depths and kernels, which
# the test of names and shapes compares too.
QUICK = {
    "efficientnet_b0_gn": 3,
    "efficientnet_b1_pruned": None,
    "efficientnet_blur_b0": 3,
    "efficientnet_lite0": 3,
    "efficientnet_x_b3": 3,
    "fbnetv3_b": 3,
    "gc_efficientnetv2_rw_t": 4,
    "hardcorenas_a": 3,
    "lcnet_035": 6,
    "mobilenet_edgetpu_v2_xs": 3,
    "mobilenetv1_100": 3,
    "mobilenetv3_rw": 3,
    "mobilenetv4_conv_aa_medium": 2,
    "mobilenetv4_conv_small_035": 3,
    "mobilenetv4_hybrid_medium_075": 3,
    "semnasnet_050": 3,
    "tf_efficientnet_cc_b0_4e": 5,
    "tf_efficientnet_es": 3,
    "tf_efficientnetv2_b0": 4,
    "tf_mixnet_s": 3,
    "tf_mobilenetv3_small_075": 3,
}

# Of these, those whose operations no other has.
QUICK_TO_TRAIN = (
    *("efficientnet_b0_gn", "efficientnet_blur_b0", "efficientnet_x_b3", "gc_efficientnetv2_rw_t"),
    *("mobilenet_edgetpu_v2_xs", "mobilenetv4_hybrid_medium_075", "tf_efficientnet_cc_b0_4e", "tf_efficientnet_es"),
    *("tf_mixnet_s", "tf_mobilenetv3_small_075"),
)


def _architectures(quick):
    """The quick ones, then every architecture with all stages."""
    return pytest.mark.parametrize(
        ("name", "stages"),
        [
            *(pytest.param(name, QUICK[name], id=f"{name}-quick") for name in quick),
            *(pytest.param(name, None, id=name, marks=pytest.mark.slow) for name in ARCHITECTURES),
        ],
    )


# Networks with more blocks are compared without the repetitions of their blocks. One that is very deep is chaotic: a
# rounding more changes its logits by more than the tolerance, in timm itself. And L2's arrays would fill the memory.
MOST_BLOCKS = 24


def _blocks(spec):
    """The string of every block, in stages; those of repetitions are equal."""
    return [
        [re.sub(r"_r\d+", "_r1", text) for text, repeats in zip(stage, counts, strict=True) for _ in range(repeats)]
        for stage, counts in zip(spec.stages, repeats_of(spec, parse_stages(spec.stages)), strict=True)
    ]


def _kept(name, stages=None):
    """Which blocks of an architecture are compared, as numbers within each stage; None for all.

    The first of a stage has another input and another stride than the next: both are kept, where they are equal too.

    Args:
      name: of the architecture.
      stages: how many stages are kept; None keeps all, and without repetitions only where there are many blocks.
    """
    blocks = _blocks(model_spec(name))
    if stages is None and sum(map(len, blocks)) <= MOST_BLOCKS:
        return None
    return [[i for i, block in enumerate(stage) if i == 1 or block not in stage[:i]] for stage in blocks[:stages]]


def _spec(name, kept=None):
    """The architecture, of some blocks only."""
    spec = model_spec(name)
    if kept is None:
        return spec
    stages = tuple(tuple(stage[i] for i in numbers) for stage, numbers in zip(_blocks(spec), kept, strict=False))
    return replace(spec, stages=stages, depth=1.0)


def _model(name, kept=None, **options):
    plan = lower(_spec(name, kept), **{"num_classes": CLASSES, "drop_rate": 0.0, "drop_path_rate": 0.0} | options)
    return ImageClassifier(plan, dtype=jnp.float64, param_dtype=jnp.float64)


@contextlib.contextmanager
def _building(kept, output_stride):
    """timm builds these blocks only, with this output stride, which not all of its classes let one choose."""
    from timm.models import efficientnet, hardcorenas, mobilenetv3

    def decode(*arguments, **options):
        stages = decode_all(*arguments, **options)
        return stages if kept is None else [[stages[i][j] for j in blocks] for i, blocks in enumerate(kept)]

    def builder(**options):
        return builder_class(**options | {"output_stride": output_stride})

    decode_all, builder_class = efficientnet.decode_arch_def, efficientnet.EfficientNetBuilder
    with pytest.MonkeyPatch.context() as patch:
        for module in (efficientnet, hardcorenas, mobilenetv3):
            patch.setattr(module, "decode_arch_def", decode)
        for module in (efficientnet, mobilenetv3):
            patch.setattr(module, "EfficientNetBuilder", builder)
        yield


def _reference(timm, name, kept=None, output_stride=32, **options):
    """timm's model in float64 with random arrays, each at the scale that keeps activations near 1."""
    import torch

    torch.set_num_threads(1)  # pictures this small are no work to share, and waiting threads slow all other processes
    with torch.device("meta"), _building(kept, output_stride):
        reference = timm.create_model(name, **{"num_classes": CLASSES} | options)
    reference = reference.double().to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    # The kernels of experts are flat.
    experts = {
        f"{key}.weight": math.prod(module.weight_shape[1:])
        for key, module in reference.named_modules()
        if hasattr(module, "weight_shape")
    }
    for key, value in reference.state_dict().items():
        if value.ndim > 1:
            value.normal_(0, (2 / experts.get(key, value[0].numel())) ** 0.5, generator=generator)
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

    reference, model = _reference(timm, "efficientnet_lite0"), _model("efficientnet_lite0")
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


def test_there_are_149_architectures():
    """All of timm's but five that only its own tests use, or that have no weights and are not what they are called."""
    assert len(ARCHITECTURES) == 149
    assert QUICK.keys() <= {*ARCHITECTURES}
    # Models with other weights are of the architecture that their names begin with.
    assert all(model.spec == model_spec(name.partition(".")[0]) for name, model in MODELS.items())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_names_and_shapes_equal_timm(name, timm, no_draws):
    """Fails with a block too many, a width rounded otherwise, or a norm under another name."""
    import torch

    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    theirs = {key: tuple(value.shape) for key, value in state.items() if not key.endswith(".num_batches_tracked")}
    plan = model_plan(name)
    ours = {key: np.broadcast_to(np.float32(0), spec.shape) for key, spec in array_specs(plan).items()}
    assert {key: array.shape for key, array in to_source_names(ours, TIMM, plan).items()} == theirs


@_architectures(QUICK)
def test_evaluation_equals_timm(name, stages, timm, x64, record_property):
    """Logits and the feature map at every stride, with its name, width and stride."""
    import torch

    kept = _kept(name, stages)
    model, reference, images = _model(name, kept), _reference(timm, name, kept), _images()
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


@_architectures(QUICK_TO_TRAIN)
def test_training_equals_timm(name, stages, timm, x64, record_property):
    """Logits, the gradient of every parameter through a random linear functional of them, the updated statistics."""
    import torch

    kept = _kept(name, stages)
    model, reference, images = _model(name, kept), _reference(timm, name, kept), _images()
    if name in EDGE:
        _stride_the_expansion(reference)
    weights = np.random.default_rng(1).normal(size=(BATCH, CLASSES))
    variables = jax.tree.map(np.array, _variables(reference, model))  # copies: torch updates its statistics in place

    logits = reference.train()(_to_torch(images))
    (logits * torch.from_numpy(weights)).sum().backward()
    state = dict(reference.state_dict()) | {key: value.grad for key, value in reference.named_parameters()}
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
    record_property("statistics", max((errors[key] for key in statistics), default=0.0))
    assert _error(our_logits, logits.detach()) <= TOLERANCE
    assert {key: error for key, error in errors.items() if not error <= TOLERANCE} == {}


def _magnitude(name, arrays):
    """By what to measure the error of an array's gradient: its largest value.

    A bias has the gradient 0 where what follows subtracts it, such as a 1x1 convolution and the next BatchNorm, or a
    softmax: there is only rounding to see, to be measured by the gradients of the same layer's other arrays.
    """
    module, _, leaf = name.rpartition(".")
    others = ("scale", "kernel") if leaf == "bias" else ()
    return max(np.abs(arrays[key]).max() for key in (name, *(f"{module}.{each}" for each in others)) if key in arrays)


# How many stages are compared: those up to the one behind the last stride. One for each kind of block and padding; the
# slow ones add an attention, which sees all positions, and experts.
DILATED = {
    "efficientnet_x_b3": 6,
    "mobilenetv1_100": 5,
    "mobilenetv4_conv_small_035": 5,
    "tf_efficientnetv2_b0": 6,
}
SLOW_DILATED = {
    "mnasnet_small": 7,
    "mobilenetv4_hybrid_medium_075": 5,
    "tf_efficientnet_b0": 6,
    "tf_efficientnet_cc_b0_4e": 6,
}


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        ("tf_efficientnet_b0", 16),
        *((name, 8) for name in DILATED),
        *(pytest.param(name, 8, marks=pytest.mark.slow) for name in SLOW_DILATED),
    ],
)
def test_output_stride_equals_timm(name, output_stride, timm, x64):
    """Strides that become dilations, of both paddings and in every kind of block."""
    kept = _kept(name, (DILATED | SLOW_DILATED)[name])
    reference = _reference(timm, name, kept, output_stride=output_stride)
    assert _evaluation_error(reference, _model(name, kept, output_stride=output_stride), _images()) <= TOLERANCE


@pytest.mark.parametrize("kind", ["max", "avgmax"])
@pytest.mark.parametrize("name", ["mnasnet_small", "mobilenetv3_small_075"])
def test_global_pool_equals_timm(name, kind, timm, x64):
    """With the head convolution before the pooling, and behind it."""
    kept = _kept(name, 2)
    reference = _reference(timm, name, kept, global_pool=kind)
    assert _evaluation_error(reference, _model(name, kept, global_pool=kind), _images()) <= TOLERANCE


def test_other_input_channels_equal_timm(timm, x64):
    kept = _kept("mnasnet_small", 2)
    reference = _reference(timm, "mnasnet_small", kept, in_chans=5)
    images = np.random.default_rng(0).normal(size=(2, HEIGHT, WIDTH, 5))
    assert _evaluation_error(reference, _model("mnasnet_small", kept, in_chans=5), images) <= TOLERANCE


# Of every strided map the rows are even (64, 32, 16 ...) and the columns odd (65, 33, 17 ...).
EVEN_AND_ODD = _images(64, 65, 2)


def test_edgetpu_is_the_authors_function(timm, x64):
    """The stride of an edge residual is on its 1x1 projection, at even and at odd sizes."""
    kept = _kept("tf_efficientnet_es", 3)
    reference = _stride_the_projection(_reference(timm, "tf_efficientnet_es", kept))
    assert _evaluation_error(reference, _model("tf_efficientnet_es", kept), EVEN_AND_ODD) <= TOLERANCE


def test_edgetpu_differs_from_todays_timm(timm, x64):
    """timm strides the expansion with 'SAME' padding, which reads other rows of even maps: why its scores fell."""
    kept = _kept("tf_efficientnet_es", 3)
    reference = _reference(timm, "tf_efficientnet_es", kept)
    assert _evaluation_error(reference, _model("tf_efficientnet_es", kept), EVEN_AND_ODD) > 1e-3


def test_symmetric_edgetpu_is_timms_and_the_authors_function(timm, x64):
    """With PyTorch's padding timm's strided expansion computes what the authors' strided projection does."""
    kept = _kept("efficientnet_es", 3)
    model, timms = _model("efficientnet_es", kept), _reference(timm, "efficientnet_es", kept)
    assert _evaluation_error(timms, model, EVEN_AND_ODD) <= TOLERANCE
    assert _evaluation_error(_stride_the_projection(timms), model, EVEN_AND_ODD) <= TOLERANCE
