"""Convolutions with bias, activation, gate and shortcut in C++: against float64, and activations at their limits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from jeffnet.ops import native
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.conv import NHWC, make_window
from jeffnet.ops.dense import (
    ACTS,
    dense_conv,
    depthwise_act,
    grouped_dense_conv,
    inverted_residual,
    mixed_depthwise_act,
    pack_bias,
    pack_kernel,
)
from jeffnet.ops.depthwise import Window

pytestmark = [
    pytest.mark.skipif(not native.available(), reason=f"no C++ kernels: {native.failure()}"),
]

PLAIN = Window((1, 1), ((0, 0), (0, 0)), (1, 1))
ROUNDING = 2.0**-24
F32, BF16 = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)
# What storing a value changes, and, beyond rounding, an activation that is computed for bfloat16, relative to it.
STORED, COARSE = {F32: 0.0, BF16: 2.0**-8}, 2e-4
sampled = settings(derandomize=True, deadline=None, database=None, max_examples=25)


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


# --------------------------------------------------------------------------------------------- activations in float64


def ramp(x):
    return np.clip(x + 3, 0, 6) / 6


def sigmoid(x):
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


# What each is, and its slope; none of them is steeper than 1.1.
FORMULAS = {
    None: (lambda x: x, np.ones_like),
    "relu": (lambda x: np.maximum(x, 0), lambda x: 1.0 * (x > 0)),
    "relu6": (lambda x: np.clip(x, 0, 6), lambda x: 1.0 * ((x > 0) & (x < 6))),
    "silu": (lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * sigmoid(-x))),
    "hard_swish": (lambda x: x * ramp(x), lambda x: np.where(np.abs(x) < 3, (2 * x + 3) / 6, 1.0 * (x > 0))),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * sigmoid(-x)),
    "hard_sigmoid": (ramp, lambda x: (np.abs(x) < 3) / 6),
}


def test_every_activation_has_a_number():
    """All but GELU, which is computed after the kernel."""
    assert {name for name in ACTS if name} == ACTIVATIONS.keys() - {"gelu"} and FORMULAS.keys() == ACTS.keys()
    assert sorted(ACTS.values()) == list(range(len(ACTS)))


def activated(x, act, dtype=F32):
    """By a kernel of one 1."""
    one, zero = pack_kernel(np.ones((1, 1, 1, 1), np.float32)), pack_bias(np.zeros(1, np.float32))
    images = jnp.asarray(x).reshape(1, 1, -1, 1)
    return np.asarray(dense_conv(images, one, zero, (1, 1), 1, PLAIN, act, dtype=dtype)).ravel()


def slope(x, act):
    """By the derivative of BatchNorm, of which all but the slope is left out."""
    lanes = native.load().jeffnet_vector_floats()
    rows = jnp.broadcast_to(jnp.asarray(x)[:, None], (len(x), lanes))
    one, zero = jnp.ones(lanes), jnp.zeros(lanes)
    call = jax.ffi.ffi_call("jeffnet_normalize_gradient", jax.ShapeDtypeStruct(rows.shape, jnp.float32))
    factors = (zero, one, zero, jnp.ones_like(rows), zero, zero)
    return np.asarray(call(rows, *factors, act=np.int64(ACTS[act])))[:, 0]


def finite_inputs(least):
    """-10,000 to 10,000, with all magnitudes down to `least`, and the neighbours of the corners."""
    magnitudes = np.concatenate([np.geomspace(least, 1e4, 3000), np.linspace(0, 120, 3001)])
    corners = np.array([-6, -3, 0, 3, 6], np.float32)
    around = [np.nextafter(corners[corners != 0], np.float32(side)) for side in (-np.inf, np.inf)]
    return np.concatenate([-magnitudes, magnitudes, corners, *around], dtype=np.float32)


@pytest.mark.parametrize("act", ACTS)
def test_activations_of_all_magnitudes(act):
    """Relative to float64, denormals too; below 1e-30 nothing is left to add to."""
    x = finite_inputs(least=1e-44)
    exact = FORMULAS[act][0](x.astype(np.float64))
    np.testing.assert_allclose(activated(x, act), exact, rtol=8 * ROUNDING, atol=1e-30)


@pytest.mark.parametrize("act", ACTS)
def test_activations_in_bfloat16_of_all_magnitudes(act):
    """Computed more coarsely, and rounded; of what is not finite, as in float32 but where that is 0 or no number."""
    x = finite_inputs(least=1e-37)
    exact = FORMULAS[act][0](x.astype(np.float64))
    ours = activated(x, act, BF16)
    assert ours.dtype == BF16
    np.testing.assert_allclose(ours.astype(np.float64), exact, rtol=STORED[BF16] + COARSE, atol=1e-30)
    special = activated(np.array([np.nan, -np.nan, np.inf], np.float32), act, BF16).astype(np.float32)
    np.testing.assert_array_equal(special[:2], np.nan)
    assert special[2] == activated(np.array([np.inf], np.float32), act)[0]


@pytest.mark.parametrize("act", ACTS)
def test_slopes_of_all_magnitudes(act):
    x = finite_inputs(least=1e-37)  # XLA's threads take denormals for 0
    np.testing.assert_allclose(slope(x, act), FORMULAS[act][1](x.astype(np.float64)), rtol=0, atol=16 * ROUNDING)


def test_activations_of_what_is_not_finite():
    """What is not a number stays so: zeros in its place would hide a network that has diverged."""
    limits = {
        None: (-np.inf, np.inf),
        "relu": (0, np.inf),
        "relu6": (0, 6),
        "hard_sigmoid": (0, 1),
        "sigmoid": (0, 1),
    }
    x = np.array([np.nan, -np.inf, np.inf, -np.nan], np.float32)
    for act in ACTS:
        ours = activated(x, act)
        assert np.isnan(ours[[0, 3]]).all(), act
        if act in limits:
            np.testing.assert_allclose(ours[1:3], limits[act], atol=1e-37, err_msg=str(act))
        else:  # the product of infinity and 0
            assert not np.isfinite(ours[1]) and ours[2] == np.inf


# ---------------------------------------------------------------------------------------------------- all channels


class Problem(NamedTuple):
    images: tuple[int, ...]
    kernel: tuple[int, ...]
    window: Window
    act: str | None = None
    gated: bool = False
    shortcut: bool = False


def by_definition(images, kernel, window, depthwise=False):
    """A convolution in numpy, of the dtype of its operands."""
    padded = np.pad(images, ((0, 0), *window.pads, (0, 0)))
    size = window.out_size(images.shape[1:3], kernel.shape[:2])
    outputs = np.zeros((len(images), *size, kernel.shape[-1]))
    for tap in np.ndindex(kernel.shape[:2]):
        starts = [at * step for at, step in zip(tap, window.dilation, strict=True)]
        ends = [start + count * by for start, count, by in zip(starts, size, window.strides, strict=True)]
        view = padded[(slice(None), *map(slice, starts, ends, window.strides))]
        outputs += view * kernel[tap][0] if depthwise else view @ kernel[tap]
    return outputs


@pytest.mark.parametrize("groups", [1, 4])
def test_the_definition_is_that_of_xla(groups, x64):
    images, kernel = draw(2, 7, 6, 4).astype(float), draw(3, 2, 4 // groups, 4).astype(float)
    window = Window((2, 1), ((1, 0), (2, 3)), (1, 2))
    wanted = lax.conv_general_dilated(
        images,
        kernel,
        window.strides,
        window.pads,
        rhs_dilation=window.dilation,
        dimension_numbers=NHWC,
        feature_group_count=groups,
    )
    np.testing.assert_allclose(by_definition(images, kernel, window, groups > 1), wanted, rtol=0, atol=1e-13)


def assert_rounded(ours, linear, magnitude, act, shortcut, dtype=F32, relative=0.0):
    """Within 16 roundings of what is summed up, through the activation, from the exact result, which is stored.

    `relative` is what may be lost besides, of the magnitude.
    """
    activated = FORMULAS[act][0](linear)
    exact = activated + (0 if shortcut is None else shortcut.astype(np.float64))
    assert ours.dtype == dtype and ours.shape == exact.shape
    error = np.abs(np.asarray(ours, np.float64) - exact) - STORED[dtype] * np.abs(exact) - relative * magnitude
    assert (error <= 16 * ROUNDING * (1 + magnitude + np.abs(exact))).all()


def assert_means_rounded(means, linear, magnitude, act, relative=0.0):
    """Of the exact results over each picture."""
    exact = FORMULAS[act][0](linear).mean((1, 2), keepdims=True)
    assert means.dtype == np.float32 and means.shape == exact.shape
    assert (np.abs(means - exact) <= (16 * ROUNDING + relative) * (1 + magnitude.mean((1, 2), keepdims=True))).all()


def assert_dense(problem, maps=F32, dtype=F32):
    """From pictures and weights of the dtype `maps` to outputs of `dtype`."""
    images, kernel = draw(*problem.images).astype(maps), draw(*problem.kernel, seed=1).astype(maps)
    window = problem.window
    outputs = (len(images), *window.out_size(images.shape[1:3], kernel.shape[:2]), kernel.shape[3])
    bias = draw(kernel.shape[3], seed=2)
    gate = draw(len(images), 1, 1, images.shape[3], seed=3) if problem.gated else None
    shortcut = draw(*outputs, seed=4).astype(dtype) if problem.shortcut else None
    more = window, problem.act, gate, shortcut, dtype
    ours = dense_conv(images, pack_kernel(kernel), pack_bias(bias), kernel.shape[:2], len(bias), *more)
    # What the gate multiplies is of the pictures' dtype again.
    images = images if gate is None else (images.astype(np.float32) * gate).astype(maps)
    double = images.astype(np.float64), kernel.astype(np.float64)
    magnitude = by_definition(*map(np.abs, double), window) + np.abs(bias)
    coarse = COARSE if BF16 in (maps, dtype) else 0.0
    assert_rounded(ours, by_definition(*double, window) + bias, magnitude, problem.act, shortcut, dtype, coarse)


FEATURES = (1, 15, 16, 17, 33, 48, 49, 100)


@pytest.mark.parametrize(
    ("act", "gated", "shortcut"),
    [
        *((act, True, True) for act in ACTS),
        *(("silu", *more) for more in ((True, False), (False, True), (False, False))),
    ],
    ids=str,
)
def test_pointwise(act, gated, shortcut):
    assert_dense(Problem((2, 3, 7, 13), (1, 1, 13, 17), PLAIN, act, gated, shortcut))


@pytest.mark.parametrize("features", (1, 16, 17, 48, 49, 100))
@pytest.mark.parametrize("rows", [1, 5, 6, 7, 8, 123])
def test_rests_of_rows_and_columns(rows, features):
    """A block is 8 rows by three vectors or 6 by two; the last ones are smaller, and write nothing past the outputs."""
    assert_dense(Problem((1, rows, 1, 5), (1, 1, 5, features), PLAIN, "relu", False, True))


UNEVEN, EVEN = ((0, 1), (1, 0)), ((2, 2), (2, 2))


@pytest.mark.parametrize(
    ("size", "padding"), [(1, "SAME"), *((size, pad) for size in (3, 5) for pad in ("SAME", UNEVEN, EVEN))]
)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("image", [(9, 17), (5, 4), (40, 8)], ids=str)
def test_kernels_and_strides(image, stride, size, padding):
    """Lines with an inner part and without one; kernels larger than the picture."""
    window = make_window(image, (size, size), (stride, stride), padding)
    assert_dense(Problem((2, *image, 3), (size, size, 3, 24), window, "silu", False, stride == 1))


def test_a_padded_pointwise_kernel():
    assert_dense(Problem((2, 5, 6, 4), (1, 1, 4, 16), Window((1, 1), ((1, 0), (2, 1)), (1, 1))))


@pytest.mark.parametrize(
    ("image", "kernel"),
    [
        ((1, 1, 1, 1280), (1, 1, 1280, 1000)),  # a classifier: the columns are shared out
        ((3, 1, 1, 64), (1, 1, 64, 200)),
        ((2, 70, 70, 3), (3, 3, 3, 32)),  # a stem: many groups of lines
        ((1, 30, 30, 96), (3, 3, 96, 20)),  # each line is a group
        ((2, 8, 8, 960), (1, 1, 960, 160)),
    ],
    ids=str,
)
@pytest.mark.parametrize("gated", [False, True])
def test_large(image, kernel, gated):
    stride = 2 if image[3] == 3 else 1
    window = make_window(image[1:3], kernel[:2], (stride, stride), "SAME")
    assert_dense(Problem(image, kernel, window, "silu", gated, True))


@st.composite
def problems(draw):
    pair = lambda elements: st.tuples(elements, elements)  # noqa: E731
    kernel, strides = draw(pair(st.integers(1, 5))), draw(pair(st.integers(1, 3)))
    image = draw(st.tuples(st.integers(1, 9), st.integers(1, 40)))
    window = make_window(image, kernel, strides, draw(st.one_of(st.just("SAME"), pair(pair(st.integers(0, 5))))))
    assume(0 not in window.out_size(image, kernel))
    channels, features = draw(st.integers(1, 20)), draw(st.sampled_from(FEATURES))
    more = draw(st.sampled_from(list(ACTS))), draw(st.booleans()), draw(st.booleans())
    return Problem((draw(st.integers(1, 3)), *image, channels), (*kernel, channels, features), window, *more)


@pytest.mark.slow
@settings(sampled, max_examples=300)
@given(problems())
def test_many_problems(problem):
    assert_dense(problem)


@pytest.mark.parametrize(("maps", "dtype"), [(F32, BF16), (BF16, F32), (BF16, BF16)], ids=str)
@pytest.mark.parametrize(
    "problem",
    [
        *(Problem((2, 3, 7, 14), (1, 1, 14, 17), PLAIN, act, True, True) for act in ACTS),
        *(Problem((1, rows, 1, 6), (1, 1, 6, 100), PLAIN, "silu", False, rows > 6) for rows in (1, 6, 7, 123)),
        *(Problem((1, 9, 1, 2), (1, 1, 2, features), PLAIN, None, False, True) for features in (1, 16, 48, 49)),
        Problem((2, 9, 17, 6), (3, 3, 6, 24), make_window((9, 17), (3, 3), (1, 1), "SAME"), "relu6", True, True),
        Problem((2, 40, 8, 5), (5, 2, 5, 24), make_window((40, 8), (5, 2), (2, 2), UNEVEN), "hard_swish"),
        Problem((2, 5, 6, 4), (1, 1, 4, 16), Window((1, 1), ((1, 0), (2, 1)), (1, 1))),
        Problem((2, 8, 8, 960), (1, 1, 960, 160), PLAIN, None, True, True),
        Problem((3, 1, 1, 128), (1, 1, 128, 1000), PLAIN),
    ],
    ids=str,
)
def test_bfloat16(problem, maps, dtype):
    """Products are exact and sums float32, so that nothing is lost but what storing rounds off."""
    assert_dense(problem, maps, dtype)


def test_odd_stretches_of_bfloat16_are_refused():
    kernel = np.ones((1, 1, 6, 16), BF16)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: dense: the shares are not those"):
        shares = [(pack_kernel(kernel[:, :, :2]), pack_bias(np.ones(16, np.float32)), count, 16) for count in (3, 3)]
        jax.block_until_ready(grouped_dense_conv(jnp.ones((1, 2, 2, 6), BF16), shares, (1, 1), PLAIN))


def test_the_gate_is_of_each_picture():
    """Rows of two pictures lie in one block."""
    images, gate = np.ones((3, 1, 3, 1), np.float32), np.array([1, 10, 100], np.float32).reshape(3, 1, 1, 1)
    kernel, bias = pack_kernel(np.ones((1, 1, 1, 1), np.float32)), pack_bias(np.zeros(1, np.float32))
    outputs = dense_conv(images, kernel, bias, (1, 1), 1, PLAIN, gate=gate)
    np.testing.assert_array_equal(np.asarray(outputs).ravel(), [1, 1, 1, 10, 10, 10, 100, 100, 100])


def test_a_kernel_that_is_not_packed_is_refused():
    with pytest.raises(jax.errors.JaxRuntimeError, match="not packed for this processor"):
        dense_conv(jnp.ones((1, 2, 2, 4)), jnp.ones(4 * 5), jnp.ones(5), (1, 1), 5, PLAIN).block_until_ready()


# -------------------------------------------------------------------------------------------------------- depthwise


def assert_depthwise(images, kernel, window, act, maps=F32):
    images, kernel, bias = draw(*images).astype(maps), draw(*kernel, seed=1), draw(images[3], seed=2)
    ours, means = depthwise_act(images, kernel, bias, window, act)
    double = images.astype(np.float64), kernel.astype(np.float64)
    magnitude = by_definition(*map(np.abs, double), window, depthwise=True) + np.abs(bias)
    linear = by_definition(*double, window, depthwise=True) + bias
    coarse = 0.0 if maps == F32 else COARSE
    assert_rounded(ours, linear, magnitude, act, None, maps, coarse)
    assert_means_rounded(means, linear, magnitude, act, STORED[maps] + coarse)


@pytest.mark.parametrize("image", [(9, 21), (27, 40)], ids=str)
@pytest.mark.parametrize("act", ACTS)
def test_depthwise_in_bfloat16(act, image):
    for size, stride, channels in ((3, 1, 17), (5, 2, 40), (4, 3, 16)):
        window = make_window(image, (size, size), (stride, stride), "SAME")
        assert_depthwise((2, *image, channels), (size, size, 1, channels), window, act, BF16)


@pytest.mark.parametrize("image", [(9, 21), (27, 40)], ids=str)
@pytest.mark.parametrize(("act", "channels"), [*((act, 17) for act in ACTS), ("silu", 16), ("silu", 40)], ids=str)
def test_depthwise(act, channels, image):
    """A small picture is copied first, a large one is not."""
    window = make_window(image, (3, 3), (1, 1), "SAME")
    assert_depthwise((2, *image, channels), (3, 3, 1, channels), window, act)


@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_depthwise_kernels(stride, dilation, size):
    for image, padding in (((9, 22), "SAME"), ((4, 3), "SAME"), ((14, 13), ((1, 3), (2, 0))), ((61, 30), "SAME")):
        window = make_window(image, (size, size), (stride, stride), padding, (dilation, dilation))
        assert 0 not in window.out_size(image, (size, size))
        assert_depthwise((2, *image, 24), (size, size, 1, 24), window, "silu")


@pytest.mark.parametrize("image", [(9, 21), (27, 40)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_mixed_depthwise_equals_its_shares(image, stride):
    """To the bit; the shares are no multiples of a vector, and lie at no multiples of one."""
    images, parts = draw(2, *image, 81), []
    for place, (size, channels) in enumerate(((3, 17), (5, 40), (9, 24))):
        window = make_window(image, (size, size), (stride, stride), "SAME")
        parts.append((draw(size, size, 1, channels, seed=place), draw(channels, seed=place), window))
    shares = np.split(images, [17, 57], axis=3)
    expected = [depthwise_act(share, *part, "silu") for share, part in zip(shares, parts, strict=True)]
    for ours, each in zip(mixed_depthwise_act(images, parts, "silu"), zip(*expected, strict=True), strict=True):
        np.testing.assert_array_equal(ours, np.concatenate(each, axis=3))


@pytest.mark.parametrize(("gated", "shortcut"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("stride", [1, 2])
def test_grouped_dense_equals_its_groups(stride, gated, shortcut):
    """To the bit, as for the depthwise one."""
    images, sizes, window = draw(2, 9, 14, 29), ((5, 33), (24, 16)), Window((stride, stride), ((0, 0), (0, 0)), (1, 1))
    gate = draw(2, 1, 1, 29, seed=3) if gated else None
    added = draw(2, *window.out_size((9, 14), (1, 1)), 49, seed=4) if shortcut else None
    kernels = [(pack_kernel(draw(1, 1, *size)), pack_bias(draw(size[1], seed=1))) for size in sizes]
    groups = [(*kernel, *size) for kernel, size in zip(kernels, sizes, strict=True)]
    ours = grouped_dense_conv(images, groups, (1, 1), window, "relu6", gate, added)
    expected = [
        dense_conv(
            images[..., inputs],
            *kernel,
            (1, 1),
            size[1],
            window,
            "relu6",
            None if gate is None else gate[..., inputs],
            None if added is None else added[..., outputs],
        )
        for kernel, size, inputs, outputs in zip(
            kernels, sizes, (slice(5), slice(5, None)), (slice(33), slice(33, None)), strict=True
        )
    ]
    np.testing.assert_array_equal(ours, np.concatenate(expected, axis=3))


def test_shares_that_are_not_those_of_the_pictures_are_refused():
    images, window = jnp.ones((1, 20, 20, 48)), Window((1, 1), ((0, 0), (0, 0)), (1, 1))
    part = (jnp.ones((3, 3, 1, 16)), jnp.ones(16), window)
    for count in (1, 2, 4):
        with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: depthwise: the kernels do not have"):
            jax.block_until_ready(mixed_depthwise_act(images, [part] * count))
    kernel, bias = pack_kernel(np.ones((1, 1, 16, 16), np.float32)), pack_bias(np.ones(16, np.float32))
    for count in (1, 2, 4):
        with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT: dense: the shares are not those"):
            jax.block_until_ready(grouped_dense_conv(images, [(kernel, bias, 16, 16)] * count, (1, 1), window))


# ------------------------------------------------------------------------------------------------ inverted residuals


class Inverted(NamedTuple):
    """A 1x1 convolution from the input's channels to `wide`, a depthwise one, and one to `features`, where not 0."""

    image: tuple[int, ...]
    wide: int
    size: int
    stride: int
    padding: object
    bands: int
    acts: tuple[str | None, str | None] = ("silu", "silu")
    features: int = 0
    shortcut: bool = False


def assert_inverted(problem, maps=F32):
    """The bound of `assert_rounded` on the last sum, through which the errors of those before it are carried."""
    wide, size, channels = problem.wide, problem.size, problem.image[3]
    window = make_window(problem.image[1:3], (size, size), (problem.stride,) * 2, problem.padding)
    x = draw(*problem.image).astype(maps)
    kernels = [draw(1, 1, channels, wide).astype(maps), draw(size, size, 1, wide, seed=1)]
    biases, project, shortcut, more = [draw(wide, seed=2), draw(wide, seed=3)], None, None, []
    if problem.features:
        more = [draw(1, 1, wide, problem.features, seed=4).astype(maps), draw(problem.features, seed=5)]
        project = pack_kernel(more[0]), pack_bias(more[1])
    if problem.shortcut:
        shortcut = draw(len(x), *window.out_size(x.shape[1:3], (size, size)), problem.features, seed=6).astype(maps)
    ours, means = inverted_residual(
        x,
        (pack_kernel(kernels[0]), pack_bias(biases[0])),
        (kernels[1], biases[1]),
        window,
        problem.acts,
        problem.bands,
        project,
        problem.features,
        shortcut,
    )
    double = [each.astype(np.float64) for each in kernels]
    first, second = (FORMULAS[act][0] for act in problem.acts)
    widened, size_of = (
        first(x.astype(np.float64) @ double[0][0, 0] + biases[0]),
        np.abs(x.astype(np.float64)) @ np.abs(double[0][0, 0]) + 1,
    )
    linear = by_definition(widened, double[1], window, depthwise=True) + biases[1]
    magnitude = by_definition(size_of, np.abs(double[1]), window, depthwise=True) + np.abs(biases[1])
    # Rows of the depthwise convolution are stored, for the last sum.
    stored, coarse = STORED[maps], 0.0 if maps == F32 else 4 * COARSE
    if problem.features:
        last = more[0][0, 0].astype(np.float64)
        exact, magnitude = second(linear) @ last + more[1], (magnitude + 1) @ np.abs(last) + np.abs(more[1])
        assert_rounded(ours, exact, magnitude, None, shortcut, maps, stored + coarse)
    else:
        assert_rounded(ours, linear, magnitude, problem.acts[1], None, maps, coarse)
        assert_means_rounded(means, linear, magnitude, problem.acts[1], stored + coarse)


@pytest.mark.parametrize("bands", [1, 2])
@pytest.mark.parametrize(
    "problem",
    [
        *(Inverted((2, 9, 11, 6), 24, size, stride, "SAME", 1) for size, stride in ((3, 1), (5, 2), (1, 1))),
        Inverted((2, 9, 11, 6), 60, 3, 1, "SAME", 1, ("silu", "hard_swish"), 20),  # sums of two panels
        Inverted((5, 5, 6, 8), 130, 5, 1, "SAME", 1, ("relu6", "relu"), 33, True),
        Inverted((2, 23, 40, 400), 60, 3, 2, ((1, 2), (2, 1)), 1, features=20),  # rows in groups
        Inverted((2, 23, 40, 400), 50, 5, 1, "SAME", 1),
    ],
    ids=str,
)
def test_inverted_residual_in_bfloat16(problem, bands):
    assert_inverted(problem._replace(bands=bands), BF16)


def test_the_sums_of_an_inverted_residual_are_not_rounded_on_the_way():
    """A hundred panels of 1 / 256 of the last: each would vanish if the sums were bfloat16."""
    wide, lanes = 4800, native.load().jeffnet_panel_floats()
    last = np.full((1, 1, wide, 16), 1 / (256 * lanes), np.float32)
    last[0, 0, :lanes] = 1 / lanes
    x, ones, zero = jnp.ones((1, 1, 1, 2), BF16), np.ones((1, 1, 1, wide), np.float32), np.zeros(wide, np.float32)
    expand = pack_kernel(np.full((1, 1, 2, wide), 0.5).astype(BF16)), pack_bias(zero)
    project = pack_kernel(last.astype(BF16)), pack_bias(np.zeros(16, np.float32))
    ours, _ = inverted_residual(x, expand, (ones, zero), PLAIN, (None, None), 1, project, 16)
    exact = last.astype(BF16).astype(np.float64)[0, 0].sum(0)
    assert exact[0] > 1.3
    np.testing.assert_allclose(np.asarray(ours, np.float64)[0, 0, 0], exact, rtol=STORED[BF16])


@pytest.mark.parametrize("bands", [1, 2, 5])
@pytest.mark.parametrize("features", [0, 20])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (1, 1)])
def test_inverted_residual(size, stride, features, bands):
    """More bands than rows of the outputs, too."""
    for padding in ("SAME", ((1, 0), (0, 1))):
        assert_inverted(Inverted((2, 9, 11, 5), 24, size, stride, padding, bands, features=features))


@pytest.mark.parametrize("bands", [1, 2])
@pytest.mark.parametrize("features", [0, 20])
@pytest.mark.parametrize(("size", "stride"), [(5, 1), (3, 2)])
def test_rows_of_a_large_picture_come_in_groups(size, stride, features, bands):
    """What a group widens is kept for the next: rows of 40 x 400 values are more than a group has room for."""
    assert_inverted(Inverted((2, 23, 40, 400), 60, size, stride, ((1, 2), (2, 1)), bands, features=features))


@pytest.mark.parametrize("act", ACTS)
def test_activations_of_an_inverted_residual(act):
    assert_inverted(Inverted((2, 5, 9, 7), 17, 3, 1, "SAME", 2, (act, None), 16, True))
    assert_inverted(Inverted((2, 5, 9, 7), 17, 3, 1, "SAME", 2, ("relu", act)))


@st.composite
def inverted_residuals(draw):
    image = draw(st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.integers(1, 9)))
    size = draw(st.integers(1, 7))
    stride, bands = draw(st.integers(1, min(3, size))), draw(st.integers(1, 9))
    sides = st.tuples(st.integers(0, 4), st.integers(0, 4))
    padding = draw(st.one_of(st.just("SAME"), st.tuples(sides, sides)))
    assume(0 not in make_window(image[1:3], (size, size), (stride,) * 2, padding).out_size(image[1:3], (size, size)))
    features = draw(st.sampled_from([0, 1, 16, 50]))
    acts = draw(st.tuples(st.sampled_from(list(ACTS)), st.sampled_from(list(ACTS))))
    wide, shortcut = draw(st.sampled_from([16, 17, 40, 48, 60, 113])), features > 0 and draw(st.booleans())
    return Inverted(image, wide, size, stride, padding, bands, acts, features, shortcut)


@sampled
@given(inverted_residuals())
def test_any_inverted_residual(problem):
    assert_inverted(problem)


@pytest.mark.slow
@settings(sampled, max_examples=300)
@given(inverted_residuals())
def test_many_inverted_residuals(problem):
    assert_inverted(problem)
