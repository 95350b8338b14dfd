"""Fused models: the same function as the model, compiled once, in one file; arrays are random, BatchNorm's too."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.compilation_cache import compilation_cache
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import jeffnet.inference.fused as fused_module
import jeffnet.inference.fused_file as fused_file
import jeffnet.inference.fused_network as fused_network
from jeffnet.arch import zoo
from jeffnet.arch.lower import GLOBAL_POOLS, OUTPUT_STRIDES
from jeffnet.arch.operations import Conv
from jeffnet.arch.spec import ModelSpec
from jeffnet.backends import BACKENDS, load_backend
from jeffnet.errors import ConfigError, InputError, JeffnetError, WeightsError
from jeffnet.inference.fused import fuse, load_fused
from jeffnet.ops import native
from jeffnet.ops.conv import use_lowering
from jeffnet.weights.start import start_model, with_test_pooling

pytestmark = pytest.mark.usefixtures("tiny_model")
needs_cpp = pytest.mark.skipif(not native.available(), reason=f"no C++ kernels: {native.failure()}")


@pytest.fixture(autouse=True)
def programs_folder(monkeypatch):
    """Programs that earlier tests kept would hide what these compile."""
    monkeypatch.setattr(fused_module, "programs_folder", lambda: None)


CLASSES, BATCH, SIZE = 10, 3, (48, 64)
# Float32's own error on these networks is 1e-6 of the largest logit; their sums come in another order here.
TOLERANCE = 1e-5

# Every family. The first two have every kind of layer, both paddings, and both orders of head and pooling.
FAMILIES = (
    "tiny",
    "tiny_tf",
    "efficientnet_b0",
    "efficientnet_es",
    "efficientnet_lite0",
    "fbnetc_100",
    "mixnet_s",
    "mnasnet_small",
    "mobilenetv2_100",
    "mobilenetv3_small_075",
    "semnasnet_100",
    "spnasnet_100",
    "tf_efficientnet_b0.ns_jft_in1k",
    "tf_efficientnet_es",
    "tf_mixnet_s",
    "tf_mobilenetv3_small_minimal_100",
    "efficientnet_b0_gn",
    "efficientnet_cc_b0_4e",
    "efficientnet_x_b3",
    "gc_efficientnetv2_rw_t",
    "mobilenetv4_conv_blur_medium",
    "mobilenetv4_hybrid_medium",
    "tinynet_a",
)
# At 64 x 64 pixels, with their head after the pooling or without one, and with strided expansions.
SMALL = ("mobilenetv1_100", "mobilenetv4_conv_small", pytest.param("tf_efficientnetv2_b0", marks=pytest.mark.slow))
QUICK = 2


def random_start(name="tiny", dtype: Any = jnp.float32, **options: Any):
    """Random arrays for a model, at a scale that keeps activations near 1."""
    options = {"num_classes": CLASSES} | options
    start = start_model(name, **options)
    rng = np.random.default_rng(1)
    draws = {
        "kernel": lambda x: x * rng.uniform(0.8, 1.2, x.shape),
        "scale": lambda x: rng.uniform(0.5, 1.5, x.shape),
        "var": lambda x: rng.uniform(0.5, 1.5, x.shape),
        "bias": lambda x: rng.normal(0, 0.1, x.shape),
        "mean": lambda x: rng.normal(0, 0.1, x.shape),
    }
    arrays = {key: jnp.asarray(draws[key.rpartition(".")[2]](x), jnp.float32) for key, x in start.arrays.items()}
    return replace(start, arrays=arrays, dtype=dtype)


def build(start, backend="functional") -> Any:
    model = load_backend(backend).build(start)
    return model if isinstance(model, tuple) else (model,)


def fused_of(start, **options: Any):
    options = {"batch_size": BATCH, "image_size": SIZE} | options
    return fuse(*build(start), **options)


def images_of(batch=BATCH, size=SIZE, channels=3):
    return np.random.default_rng(0).normal(size=(batch, *size, channels)).astype(np.float32)


def exactly(start, images):
    """What the model gives in float64."""
    with jax.enable_x64(True):
        arrays = {name: jnp.asarray(np.asarray(array), jnp.float64) for name, array in start.arrays.items()}
        model, variables = build(replace(start, arrays=arrays, dtype=jnp.float64, param_dtype=jnp.float64))
        apply = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0})
        return np.asarray(apply(variables, images.astype(np.float64)))


_EXACT = {}


def exact_tiny(name="tiny"):
    """Start, pictures and exact logits of a small model, computed once."""
    if name not in _EXACT:
        start, images = random_start(name), images_of()
        _EXACT[name] = start, images, exactly(start, images)
    return _EXACT[name]


def error(ours, exact):
    """The largest difference over the largest magnitude."""
    ours = np.asarray(ours, np.float64)
    assert ours.shape == exact.shape and np.ptp(exact, axis=0).min() > 0
    return float(np.abs(ours - exact).max() / np.abs(exact).max())


def kernels(fused):
    """Which of our C++ functions an executable calls."""
    text = fused._compiled.as_text()
    return {name for name in native._TARGETS if f'custom_call_target="{name}"' in text}


# ------------------------------------------------------------------------------------------------- the same function


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if place < QUICK else pytest.mark.slow) for place, name in enumerate(FAMILIES)],
)
def test_every_family(name):
    start, images = random_start(name), images_of(2)
    fused = fused_of(start, batch_size=2)
    logits = fused(images)
    assert logits.shape == (2, CLASSES) and logits.dtype == jnp.float32
    assert error(logits, exactly(start, images)) < TOLERANCE
    assert ("jeffnet_dense" in kernels(fused)) == native.available()


@pytest.mark.parametrize("name", SMALL)
def test_recent_networks(name):
    """Kernels compute all of them."""
    start, images = random_start(name), images_of(2, (64, 64))
    fused = fused_of(start, batch_size=2, image_size=64)
    assert error(fused(images), exactly(start, images)) < TOLERANCE
    assert not fused.unfused or not native.available()


# What JAX computes of the models of `one_operation`; other operations have kernels.
UNFUSED = {
    "attention": {"conv_stem", "pw_exp", "dw_mid", "conv_head", "attn"},
    "group_norm": {
        *("conv_stem", "conv_pw", "conv_dw", "conv_pwl", "conv_head", "norm"),
        *("attn", "key_down", "value_down", "dw_start", "pw_exp", "dw_mid", "pw_proj"),
    },
    "experts": {"routing_fn", "conv_pw", "conv_dw", "conv_pwl"},
    "context": {"se", "reduce"},
}


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_every_operation(one_operation, threads, monkeypatch):
    """In one piece and in several, with bands and without."""
    monkeypatch.setattr(fused_network, "processors", lambda: range(threads))
    start, images = random_start(one_operation), images_of()
    fused = fused_of(start, piece=3 if threads == 1 else 2)
    assert error(fused(images), exactly(start, images)) < TOLERANCE
    unfused = {name.rpartition(".")[2] for name in fused.unfused}
    if native.available():
        assert unfused == UNFUSED.get(one_operation.removeprefix("tiny_of_"), set())
    else:
        assert "conv_stem" in unfused


def test_depthwise_convolutions_in_the_middle_are_fused(every_operation):
    """With the expansion before them and the projection after them, also where a depthwise convolution comes first."""
    if not native.available():
        pytest.skip(f"no C++ kernels: {native.failure()}")
    text = fused_of(random_start("tiny_of_uir")).program()
    assert text.count('custom_call_target="jeffnet_inverted"') == 2


OPTIONS = [
    ("tiny", {"num_classes": 0}),
    ("tiny_tf", {"num_classes": 0, "global_pool": "none", "in_chans": 1}),
    ("tiny", {"global_pool": "none", "in_chans": 5}),
    ("tiny", {"global_pool": "avgmax", "output_stride": 16}),
    ("tiny", {"global_pool": "max", "output_stride": 8}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_options(name, options):
    """In pieces of one picture, too: shapes after the network differ."""
    start = random_start(name, **options)
    images = images_of(channels=start.plan.in_chans)
    wanted = exactly(start, images)
    for piece in (1, None):
        assert error(fused_of(start, piece=piece)(images), wanted) < TOLERANCE


def test_an_abstract_model_is_refused():
    with pytest.raises(ConfigError, match="abstract"):
        fuse(*load_backend("functional").create_model("tiny", abstract=True), batch_size=1, image_size=32)


ODD_STAGES = {
    "kernels": (
        ("ir_r2_k3_s1_e3_c16_p3", "ir_r1_k3_s1_e3_c16_p1.1"),
        ("ir_r1_k3.5_s2_e3_c24_a1.3_se0.5_nre", "ds_r2_k3_s1_c24_p3.1_se0.25"),
        ("er_r2_k1.3_s1_e2_c24_p3_se0.5", "dsa_r1_k1_s2_c16_p1_nhs", "cn_r2_k3.1_s1_c16_skip"),
    ),
    "35 rows": (("ir_r1_k35_s1_e1_c16",),),
}


def odd_start(monkeypatch, stages, **options):
    """Random arrays for a model of the user's own."""
    spec = {name: options.pop(name) for name in ("padding", "act", "pool_first") if name in options}
    model = replace(zoo.MODELS["tiny"], spec=ModelSpec(stages=stages, stem=16, features=32, **spec))
    monkeypatch.setitem(zoo.MODELS, "odd", model)
    return random_start("odd", **options)


@pytest.mark.parametrize(
    "stages", [ODD_STAGES["kernels"], pytest.param(ODD_STAGES["35 rows"], marks=pytest.mark.slow)], ids=ODD_STAGES
)
def test_blocks_that_no_model_of_the_zoo_has(stages, monkeypatch):
    """Kernels of any size at any place of a block, and several of them."""
    start = odd_start(monkeypatch, stages)
    images = images_of(2, size=(24, 40))
    fused = fused_of(start, batch_size=2, image_size=(24, 40))
    assert error(fused(images), exactly(start, images)) < TOLERANCE


@st.composite
def block_strings(draw):
    kernels = st.lists(st.sampled_from([1, 3, 5]), min_size=1, max_size=2).map(lambda sizes: ".".join(map(str, sizes)))
    kind = draw(st.sampled_from(["ir", "ds", "dsa", "er", "cn"]))
    fields = [kind, f"r{draw(st.integers(1, 2))}", f"k{draw(kernels)}", f"s{draw(st.integers(1, 2))}"]
    fields.append(f"c{draw(st.sampled_from([8, 16, 24, 40]))}")
    if kind in ("ir", "er"):
        fields.append(f"e{draw(st.sampled_from([1, 2, 2.5, 4]))}")
    if kind != "cn" and draw(st.booleans()):
        fields.append(f"se{draw(st.sampled_from([0.1, 0.25, 1]))}")
    if kind != "cn" and draw(st.booleans()):
        fields.append(f"p{draw(kernels)}")
    if kind == "ir" and draw(st.booleans()):
        fields.append(f"a{draw(kernels)}")
    if draw(st.booleans()):
        fields.append(f"n{draw(st.sampled_from(['re', 'r6', 'hs', 'sw']))}")
    return "_".join([*fields, *draw(st.sampled_from([(), ("skip",), ("noskip",)]))])


@pytest.mark.slow
@settings(derandomize=True, deadline=None, database=None, max_examples=40)
@given(st.data())
def test_any_block(data):
    draw = data.draw
    stages = tuple((block,) for block in draw(st.lists(block_strings(), min_size=1, max_size=3)))
    options = {
        "padding": draw(st.sampled_from(["same", "symmetric"])),
        "pool_first": draw(st.booleans()),
        "in_chans": draw(st.sampled_from([1, 3, 20])),
        "global_pool": draw(st.sampled_from(GLOBAL_POOLS)),
        "output_stride": draw(st.sampled_from(OUTPUT_STRIDES)),
        "num_classes": draw(st.sampled_from([0, 1, CLASSES])),
    }
    size, threads = (draw(st.integers(1, 33)), draw(st.integers(1, 33))), draw(st.sampled_from([1, 2, 64]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_network, "processors", lambda: range(threads))
        start = odd_start(patch, stages, **options)
        images = images_of(2, size, start.plan.in_chans)
        exact = exactly(start, images)
        ours = np.asarray(fused_of(start, batch_size=2, image_size=size, piece=draw(st.integers(1, 2)))(images))
    assert ours.shape == exact.shape
    np.testing.assert_allclose(ours, exact, rtol=0, atol=TOLERANCE * max(1, np.abs(exact).max()))


def test_dilated_convolutions_of_all_channels(monkeypatch):
    """No model of the zoo has them; the C++ does not do them."""
    stages = (("cn_r1_k3_s2_c16",), ("er_r2_k3_s2_e2_c16",), ("er_r2_k3_s2_e2_c24",))
    model = replace(zoo.MODELS["tiny"], spec=ModelSpec(stages=stages, stem=16, features=32))
    monkeypatch.setitem(zoo.MODELS, "tiny_edge", model)
    start = random_start("tiny_edge", output_stride=8)
    ops = [op for block in start.plan.blocks for op in block.ops if isinstance(op, Conv)]
    assert {op.dilation for op in ops if op.parts[0].kernel_size == 3} == {1, 2}
    images = images_of()
    assert error(fused_of(start)(images), exactly(start, images)) < TOLERANCE


@pytest.mark.parametrize("name", ["tiny", "tiny_tf"])
def test_test_time_pooling(name):
    """Larger pictures than in training; where the head follows the pooling it is applied to every window."""
    start = random_start(name)
    start = with_test_pooling(start, 32)
    images = images_of(size=(64, 96))
    wanted = exactly(start, images)
    assert start.execution.test_window and error(fused_of(start, image_size=(64, 96))(images), wanted) < TOLERANCE
    assert error(fused_of(start, image_size=(64, 96), piece=2)(images), wanted) < TOLERANCE


@pytest.mark.parametrize("piece", [1, 2, 3, 100, None])
def test_pieces(piece):
    """Also such that do not divide the batch, and larger ones than it."""
    start, images, wanted = exact_tiny()
    fused = fused_of(start, piece=piece)
    assert error(fused(images), wanted) < TOLERANCE
    assert fused.piece == (min(piece, BATCH) if piece else fused.piece)


@pytest.mark.parametrize("threads", [1, 5, 64])
def test_any_number_of_threads(threads, monkeypatch):
    """For several, each picture is cut into bands, but not where most of a band would be computed twice."""
    start, images, wanted = exact_tiny()
    monkeypatch.setattr(fused_network, "processors", lambda: range(threads))
    assert error(fused_of(start, piece=1)(images), wanted) < TOLERANCE


def test_the_piece_is_chosen_by_the_cache(monkeypatch):
    """The largest that fits and divides the batch."""
    plan = random_start().plan

    def chosen(batch, size, cache):
        monkeypatch.setattr(fused_network, "cache_bytes", lambda: cache)
        return fused_network.best_piece(plan, batch, *size)

    assert chosen(12, (64, 64), 0) == 1 and chosen(12, (64, 64), 1 << 40) == 12
    # The largest pair: 32 x 32 outputs of 8 channels of the stem, and of the convolution after it.
    one = 2 * (32 * 32 * 8 * 4 * 2)
    pieces = [chosen(12, (64, 64), count * one) for count in (1, 2, 3, 5, 6, 11)]
    assert pieces == sorted(pieces) and all(12 % piece == 0 for piece in pieces)
    assert pieces[0] in (1, 2) and pieces[-1] in (6, 12)
    assert chosen(12, (64, 32), 6 * one) == chosen(12, (64, 64), 12 * one)
    assert chosen(7, (64, 64), 3 * one) == 1


def test_fewer_pictures_than_compiled_for():
    start, images, _ = exact_tiny()
    fused = fused_of(start)
    whole = np.asarray(fused(images))
    for count in range(1, BATCH + 1):
        np.testing.assert_array_equal(fused(images[:count]), whole[:count])
    np.testing.assert_array_equal(fused(jnp.asarray(images)), whole)
    np.testing.assert_array_equal(fused(images.astype(np.float64)), whole)


def test_every_backend_gives_the_same():
    start, images, wanted = exact_tiny("tiny_flat")
    outputs = [
        fuse(*model, batch_size=BATCH, image_size=SIZE)(images)
        for model in (*(build(start, backend) for backend in BACKENDS), (build(start, "linen"),))
    ]
    assert len(outputs) == 5 and error(outputs[0], wanted) < TOLERANCE
    for each in outputs[1:]:
        np.testing.assert_array_equal(each, outputs[0])


@needs_cpp
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("tiny", 1),
        ("tiny_tf", 1),
        ("mixnet_s", 1),
        pytest.param("efficientnet_cc_b0_4e", 1.2, marks=pytest.mark.slow),
        # It magnifies every rounding, so that errors differ by chance.
        pytest.param("gc_efficientnetv2_rw_t", 3, marks=pytest.mark.slow),
    ],
)
def test_bfloat16(name, most, tmp_path):
    """Nearer to the exact logits than JAX's operations in bfloat16, since sums, means and gates are not rounded."""
    start, images, wanted = exact_tiny(name)
    start = replace(start, dtype=jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        fused = fused_of(start)
    logits = fused(images)
    assert logits.dtype == jnp.float32 and fused.images.dtype == jnp.float32
    weights = [array for key, array in fused._arrays.items() if key.endswith("kernel") and array.ndim == 1]
    assert {array.dtype for array in weights} == {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)}
    with use_lowering("shifted"):
        plain = fused_of(start)
    assert fused.unfused == fused_of(replace(start, dtype=jnp.float32)).unfused and plain.images.dtype == jnp.bfloat16
    assert TOLERANCE < error(logits, wanted) < most * error(plain(images), wanted) < 0.2
    fused.save(tmp_path / "model.fused")
    np.testing.assert_array_equal(load_fused(tmp_path / "model.fused")(images), logits)


@needs_cpp
def test_bfloat16_of_each_piece_size_and_without_a_classifier():
    start, images, _ = exact_tiny("tiny_tf")
    start = replace(start, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(fused_of(start, piece=1)(images), fused_of(start, piece=3)(images))
    features = fused_of(random_start("tiny_tf", jnp.bfloat16, num_classes=0))(images)
    assert features.dtype == jnp.float32 and features.ndim == 2


@pytest.mark.parametrize(
    ("how", "name"),
    [("shifted", "tiny"), pytest.param("xla", "tiny_tf", marks=pytest.mark.slow), ("no compiler", "tiny")],
)
def test_without_the_cpp(how, name, monkeypatch):
    start, images, wanted = exact_tiny(name)
    if how == "no compiler":
        monkeypatch.setattr(native, "available", lambda: False)
        fused = fused_of(start, piece=2)
    else:
        with use_lowering(how):
            fused = fused_of(start, piece=2)
    assert not kernels(fused) and error(fused(images), wanted) < TOLERANCE
    assert {"conv_stem", "blocks.0.0.conv_dw", "classifier"} <= set(fused.unfused)


def test_what_is_not_finite_is_not_hidden():
    start, images, wanted = exact_tiny()
    images = images.copy()
    images[1, 5, 5, 0] = np.nan
    logits = np.asarray(fused_of(start)(images))
    assert np.isnan(logits[1]).all() and error(logits[[0, 2]], wanted[[0, 2]]) < TOLERANCE


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 is below 1"),
        ({"image_size": (32, 0)}, "image_size 0 is below 1"),
        ({"image_size": -3}, "image_size -3 is below 1"),
        ({"piece": 0}, "piece 0 is below 1"),
    ],
)
def test_sizes_below_one(options, message):
    with pytest.raises(ConfigError, match=message):
        fused_of(random_start(), **options)


def test_what_is_no_model():
    model, variables = build(random_start())
    for wrong in ((), ("tiny",), (variables,), (variables, model)):
        with pytest.raises(JeffnetError, match=r"is no model of jeffnet: give what create_model returned"):
            fuse(*wrong, batch_size=1, image_size=32)
    with pytest.raises(JeffnetError, match="give both"):
        fuse(model, batch_size=1, image_size=32)


def test_pictures_too_small_for_test_time_pooling():
    start = random_start()
    with pytest.raises(InputError, match="give larger pictures"):
        fused_of(with_test_pooling(start, 64), image_size=32)


@pytest.mark.parametrize("shape", [(BATCH + 1, *SIZE, 3), (1, *SIZE, 1), (1, *SIZE[::-1], 3), (*SIZE, 3)])
def test_pictures_of_another_shape(shape):
    start, *_ = exact_tiny()
    fused = fused_of(start)
    message = rf"images of shape \({', '.join(map(str, shape))}\): compiled for \(0 to 3, 48, 64, 3\); fuse for others"
    with pytest.raises(InputError, match=message):
        fused(np.zeros(shape, np.float32))


def test_pictures_that_are_no_array_or_no_floats():
    fused = fused_of(random_start("tiny_flat"))
    with pytest.raises(InputError, match="images of shape None"):
        fused(images_of().tolist())
    with pytest.raises(InputError, match="images of uint8: the model takes normalised floats"):
        fused(images_of().astype(np.uint8))


@pytest.mark.parametrize("options", [{}, {"num_classes": 0, "global_pool": "none"}], ids=str)
def test_no_pictures_give_no_logits(options):
    fused = fused_of(random_start("tiny_flat", **options))
    some, none = fused(images_of(2)), fused(images_of(0))
    assert none.shape == (0, *some.shape[1:]) and none.dtype == some.dtype


# ----------------------------------------------------------------------------------------------------- memory, files


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    """A fused model, its file, and its logits."""
    folder = tmp_path_factory.mktemp("fused")
    fused = fused_of(random_start(), piece=2)
    fused.save(folder / "tiny.fused")
    np.save(folder / "images.npy", images_of())
    logits = np.asarray(fused(images_of()))
    np.save(folder / "logits.npy", logits)
    return fused, folder / "tiny.fused", logits


def test_weights_are_held_once():
    """As arrays, not as constants of the executable: it is as large for 1,000 classes as for 10."""
    code, weights, parameters = {}, {}, {}
    for classes in (10, 1000):
        start = random_start(num_classes=classes)
        fused = fused_of(start)
        memory = fused.memory()
        weights[classes] = memory["weights"]
        parameters[classes] = sum(array.nbytes for array in start.arrays.values())
        assert memory["images"] == 4 * BATCH * SIZE[0] * SIZE[1] * 3
        code[classes] = len(fused_module.serialize_executable.serialize(fused._compiled)[0])
    more = parameters[1000] - parameters[10]
    assert abs(weights[1000] - weights[10] - more) < 0.02 * more
    assert abs(code[1000] - code[10]) < 0.02 * more


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv2_100", "tf_efficientnet_b0"])
def test_the_file_is_little_more_than_the_weights(name, tmp_path):
    start = random_start(name)
    fused = fused_of(start)
    fused.save(tmp_path / "model.fused")
    parameters = sum(array.nbytes for array in start.arrays.values())
    assert fused.memory()["weights"] < 1.01 * parameters
    assert (tmp_path / "model.fused").stat().st_size < 1.01 * parameters + 500_000
    assert fused.memory()["temporary"] < parameters


def test_saved_and_loaded(saved, tmp_path):
    """And saved again."""
    fused, path, logits = saved
    loaded = load_fused(str(path))
    np.testing.assert_array_equal(loaded(images_of()), logits)
    np.testing.assert_array_equal(loaded(images_of()[:1]), logits[:1])
    assert loaded.memory() == fused.memory() and loaded.unfused == fused.unfused
    assert (loaded.images, loaded.piece) == (fused.images, fused.piece) == (fused.images, 2)
    with pytest.raises(InputError, match="compiled for"):
        loaded(images_of(BATCH + 1))
    loaded.save(tmp_path / "again.fused")
    assert (tmp_path / "again.fused").read_bytes() == path.read_bytes()


PROGRAM = textwrap.dedent("""
    import sys
    import numpy as np
    import jax

    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))
    from jeffnet.inference.fused import load_fused

    path, images, logits = sys.argv[1], np.load(sys.argv[2]), np.load(sys.argv[3])
    fused = load_fused(path)
    ours = np.asarray(fused(images))
    assert not events, events
    assert (ours == logits).all(), np.abs(ours - logits).max()
    jax.jit(lambda x: x + 1)(1.0)
    assert any("trace" in name for name in events) and any("compile" in name for name in events), events
    print("equal")
""")


def run(program, *arguments, **environment):
    answer = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0 and answer.stdout == "equal\n", answer.stderr


@pytest.mark.parametrize("devices", [1, 3])
def test_another_process_compiles_nothing(saved, devices):
    """The same logits to the bit; more devices than it was compiled for do not matter."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    run(PROGRAM, saved[1], saved[1].with_name("images.npy"), saved[1].with_name("logits.npy"), XLA_FLAGS=flags)


SHARED = textwrap.dedent("""
    import sys
    import jax, numpy as np
    from jeffnet.errors import ConfigError
    from jeffnet.functional import create_model
    from jeffnet.inference.fused import fuse

    model = create_model("mnasnet_small", num_classes=10)
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3)).astype(np.float32)
    alone = np.asarray(fuse(*model, batch_size=8, image_size=32)(images))
    shared = fuse(*model, batch_size=8, image_size=32, devices=jax.local_devices())
    assert len(shared(images).sharding.device_set) == 4
    assert np.abs(np.asarray(shared(images)) - alone).max() <= 1e-5 * np.abs(alone).max()
    assert np.abs(np.asarray(shared(images[:5])) - alone[:5]).max() <= 1e-5 * np.abs(alone).max()
    for wrong in (lambda: fuse(*model, batch_size=6, image_size=32, devices=jax.local_devices()),
                  lambda: shared.save(sys.argv[1])):
        try:
            wrong()
        except ConfigError:
            continue
        raise AssertionError
    print("equal")
""")


def test_devices_share_a_batch(tmp_path):
    run(SHARED, tmp_path / "none", XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert not (tmp_path / "none").exists()


TWICE = textwrap.dedent("""
    import sys
    import numpy as np
    from jeffnet.functional import create_model
    from jeffnet.inference.fused import fuse, load_fused

    path, images = sys.argv[1], np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    fused = fuse(*create_model("mnasnet_small", num_classes=10), batch_size=1, image_size=32)
    fused.save(path)
    assert (np.asarray(load_fused(path)(images)) == np.asarray(fused(images))).all()
    print("equal")
""")


@pytest.mark.slow
def test_what_a_second_process_saves(tmp_path):
    """XLA cannot write an executable that it has read: it must not come from JAX's persistent cache."""
    settings = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    for _ in range(2):
        run(TWICE, tmp_path / "model.fused", **settings)


def test_nothing_goes_into_the_compilation_cache(tmp_path):
    """From where it could not be saved; what else is compiled goes there still."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        for name, value in zip(names, (str(tmp_path), 0.0), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        fused_of(random_start("tiny_flat"), batch_size=2)
        entries = [path.name for path in tmp_path.iterdir()]
        assert not any("apply" in name for name in entries), entries
        jax.jit(lambda x: x * 5 - 3, compiler_options={"xla_backend_optimization_level": 0})(jnp.ones(77))
        assert len(list(tmp_path.iterdir())) > len(entries)
        assert getattr(jax.config, names[1]) == 0
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def rewritten(path, to, change):
    """A copy of a fused model's file with another description."""
    with safe_open(path, "numpy") as file:
        ((key, entry),) = file.metadata().items()
    arrays, about = load_file(path), json.dumps(change(json.loads(entry.partition(" ")[2])))
    save_file(arrays, to, {key: f"{fused_file._checksum(about, arrays)} {about}"})
    return to


def test_a_flipped_bit_anywhere_is_an_error(saved, tmp_path):
    """In the header, in the executable and in the arrays: before anything of it is run."""
    whole, path = bytearray(saved[1].read_bytes()), tmp_path / "flipped.fused"
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    places = [*range(9), *rng.integers(8, header, 100), *rng.integers(header, len(whole), 30), header, len(whole) - 1]
    for place in places:
        whole[place] ^= (bit := 1 << int(rng.integers(8)))
        path.write_bytes(whole)
        with pytest.raises(WeightsError, match=r"flipped\.fused' (is damaged|is no fused model)"):
            load_fused(path)
        whole[place] ^= bit
    assert whole == saved[1].read_bytes()


@pytest.mark.parametrize("condition", ["jax", "jaxlib", "platform", "device", "kernels"])
def test_a_file_for_another_machine(condition, saved, tmp_path):
    def change(about):
        assert set(about["made for"]) == {"jax", "jaxlib", "platform", "device", "kernels"}
        return {**about, "made for": {**about["made for"], condition: "other"}}

    path = rewritten(saved[1], tmp_path / "other.fused", change)
    with pytest.raises(
        WeightsError, match=rf"other\.fused' was compiled elsewhere \({condition}: other, here .*fuse"
    ) as error:
        load_fused(path)
    assert (
        len(str(error.value).removeprefix(f"'{path}'").splitlines()[0])
        == len(str(error.value).removeprefix(f"'{path}'"))
        < 120
    )
    same = rewritten(saved[1], tmp_path / "same.fused", lambda about: about)
    np.testing.assert_array_equal(load_fused(same)(images_of()), saved[2])


def test_a_file_for_a_machine_with_a_compiler(saved, monkeypatch):
    if not native.available():
        pytest.skip(f"no C++ kernels: {native.failure()}")
    monkeypatch.setattr(native, "available", lambda: False)
    with pytest.raises(WeightsError, match=r"compiled elsewhere \(kernels: kernels-[0-9a-f]+, here none\)"):
        load_fused(saved[1])


def test_a_file_of_another_format(saved, tmp_path):
    path = rewritten(saved[1], tmp_path / "other.fused", lambda about: {**about, "format": 99})
    with pytest.raises(WeightsError, match=r"compiled elsewhere \(another format\)"):
        load_fused(path)


def test_a_file_of_another_kind(saved, tmp_path):
    with pytest.raises(WeightsError, match=r"none\.fused' is no file"):
        load_fused(tmp_path / "none.fused")
    with pytest.raises(WeightsError, match="is no file"):
        load_fused(tmp_path)
    save_file({"a": np.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"weights\.safetensors' is no fused model: make one by"):
        load_fused(tmp_path / "weights.safetensors")
    whole = saved[1].read_bytes()
    for name, content in (("empty", b""), ("short", whole[:-1000]), ("tiny", whole[:4]), ("text", b"hello " * 100)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=f"{name}' is no fused model, or is cut off: "):
            load_fused(tmp_path / name)


def test_a_file_that_cannot_be_written(saved, tmp_path):
    with pytest.raises(JeffnetError, match="cannot write"):
        saved[0].save(tmp_path / "none" / "model.fused")
    assert not list(tmp_path.iterdir())


def test_options_of_the_compiler_reach_it():
    start, *_ = exact_tiny()
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        fused_of(start, compiler_options={"xla_no_such_option": 1})
