"""Problems of any shape and value for the C++ code, each compared with `jax.lax` or Pillow; a program for sanitizers.

python tests/ops/kernel_fuzz.py --build        # compile the kernels with sanitizers
LD_PRELOAD=... python tests/ops/kernel_fuzz.py --sanitized --examples 500 --seed 1
"""

import argparse
import ctypes
import math
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from jax import lax
from PIL import Image

from jeffnet.data.resize import native as native_resize
from jeffnet.ops import native
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.batch_norm import _cotangents, _native_cotangents, _native_forward, _reference
from jeffnet.ops.conv import NHWC, conv_general_dilated, make_window, use_lowering
from jeffnet.ops.conv_primitives import bind
from jeffnet.ops.dense import ACTS, dense_conv, depthwise_act, inverted_residual, pack_bias, pack_kernel
from jeffnet.ops.depthwise import Window
from jeffnet.ops.full_conv import _kernel_p
from jeffnet.ops.native import build, limits

SANITIZERS = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREADS = 8
# A sum's rounding error, over the sum of the magnitudes of what it adds up; sums have up to some thousand terms.
ROUNDING = 64 * 2.0**-24
# XLA's threads take denormals for 0.
LEAST = 1e-35

# Problems of bfloat16 store what they compute, and in inverted residuals what is between.
HALF_ROUNDING = 2.0**-7

compiled = lambda function: jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})  # noqa: E731
ran: Counter[str] = Counter()

# ------------------------------------------------------------------------------------------------------------- values

VALUES = ("normal", "large", "denormal", "zero", "infinite", "nan")


def numbers(kind: str, *shape: int, place: int = 0) -> Any:
    """Float32; `place` tells the operands of one problem apart."""
    rng = np.random.default_rng([place, *shape])
    values = rng.normal(size=shape)
    match kind:
        case "large":
            values *= 10.0 ** rng.integers(-6, 7, shape)
        case "denormal":
            values *= 1e-40
        case "zero":
            values *= rng.integers(0, 2, shape)
    values = values.astype(np.float32)
    if kind in ("infinite", "nan") and values.size:
        spots = rng.integers(0, values.size, 1 + values.size // 50)
        values.flat[spots] = np.nan if kind == "nan" else np.inf * np.sign(values.flat[spots])
    return values


def assert_near(ours: Any, exact: Any, magnitude: Any, problem: Any, rounding: float = ROUNDING) -> None:
    """Within rounding where float32 can hold the sums; what has come of a NaN, in `exact` too, is one."""
    ours, exact, magnitude = (np.asarray(each, np.float64) for each in (ours, exact, magnitude))
    assert ours.shape == exact.shape, problem
    expected = ~np.isnan(exact) & (magnitude < 1e37)
    with np.errstate(invalid="ignore"):
        wrong = expected & ~(np.abs(ours - exact) <= rounding * magnitude + LEAST)
    if problem.values == "nan":  # after an activation an infinity may be a number
        wrong |= np.isnan(exact) & ~np.isnan(ours)
    assert not wrong.any(), (problem, np.argwhere(wrong)[:3].tolist())


def together(function: Callable[..., Any], *operands: Any) -> Any:
    """What a function gives, called by eight threads at once: to all of them the same bits."""
    call = compiled(function).lower(*operands).compile()
    with ThreadPoolExecutor(THREADS) as pool:
        first, *others = [
            jax.tree.map(np.asarray, each.result())
            for each in [pool.submit(lambda: jax.block_until_ready(call(*operands))) for _ in range(2 * THREADS)]
        ]
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)
    return first


def run(problem: Any, function: Callable[..., Any], *operands: Any) -> Any:
    return together(function, *operands) if problem.threaded else compiled(function)(*operands)


# -------------------------------------------------------------------------------------------------------- convolutions


def sizes(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


class Problem(NamedTuple):
    images: tuple[int, int, int, int]
    kernel: tuple[int, int]
    window: Window
    values: str
    act: str | None
    features: int
    threaded: bool


@st.composite
def problems(draw: Any, negative_pads: bool = False) -> Problem:
    # What the kernels do not compute is drawn now and then, each thing by itself.
    odd = draw(st.integers(0, 9))
    image = draw(sizes(0, 40))
    kernel = draw(st.one_of(sizes(1, 5), sizes(1, 11), st.sampled_from([(1, 20), (32, 1), (1, 64)])))
    kernel = draw(st.sampled_from([(33, 1), (40, 2)])) if odd == 0 else kernel
    strides, dilation = draw(st.one_of(sizes(1, 2), sizes(1, 12))), draw(st.one_of(st.just((1, 1)), sizes(1, 4)))
    if odd != 1:
        strides, dilation = draw(st.sampled_from([(strides, (1, 1)), ((1, 1), dilation)]))
    sides = st.tuples(*[sizes(-2 if odd == 2 and negative_pads else 0, 9)] * 2)
    padding = draw(st.one_of(st.sampled_from(["SAME", "VALID"]), sides))
    window = make_window(image, kernel, strides, padding, dilation)
    channels = draw(st.sampled_from([1, 2, 8, 15] if odd == 3 else [16, 17, 24, 31, 32, 33, 50]))
    features, act = draw(st.sampled_from([1, 7, 16, 48, 50])), draw(st.sampled_from(list(ACTS)))
    values, threaded = draw(st.sampled_from(VALUES)), draw(st.integers(0, 9)) == 0
    return Problem((draw(st.integers(0, 3)), *image, channels), kernel, window, values, act, features, threaded)


def convolve(images: Any, kernel: Any, window: Window, groups: int = 1) -> Any:
    pads = {"padding": window.pads, "rhs_dilation": window.dilation, "feature_group_count": groups}
    return lax.conv_general_dilated(images, kernel, window.strides, dimension_numbers=NHWC, **pads)


def exactly(function: Callable[..., Any], *operands: Any) -> tuple[Any, Any]:
    """A multilinear function in float64, and that of the magnitudes of its operands.

    Where an operand that is not finite takes part, the result is NaN. That of XLA can be so elsewhere: it multiplies
    by the zeros of paddings.
    """
    with jax.enable_x64(True), use_lowering("xla"):
        call = compiled(function)
        finite = [np.where(np.isfinite(each), each, 0).astype(np.float64) for each in operands]
        magnitudes = [np.abs(each) for each in finite]
        exact, magnitude, marked = (
            jax.tree.map(np.asarray, call(*each))
            for each in (
                finite,
                magnitudes,
                [each + ~np.isfinite(at) for each, at in zip(magnitudes, operands, strict=True)],
            )
        )

    def mark(exact: Any, magnitude: Any, marked: Any) -> Any:
        return np.where(marked > magnitude * (1 + 1e-9), np.nan, exact)

    return jax.tree.map(mark, exact, magnitude, marked), magnitude


def activated(act: str | None, exact: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(ACTIVATIONS[act](jnp.asarray(exact))) if act else exact


def check_depthwise(problem: Problem) -> None:
    """Values and both gradients, whatever form is taken."""
    images = numbers(problem.values, *problem.images)
    channels, window = problem.images[3], problem.window
    kernel = numbers("normal", *problem.kernel, 1, channels, place=1)
    shape = jax.eval_shape(lambda a, b: convolve(a, b, window, channels), images, kernel).shape
    gradient = numbers("normal", *shape, place=2)

    def ours(images: Any, kernel: Any) -> Any:
        how = {"rhs_dilation": window.dilation, "feature_group_count": channels}
        return conv_general_dilated(images, kernel, window.strides, window.pads, **how)

    def all_of(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(images: Any, kernel: Any, gradient: Any) -> Any:
            outputs, pull_back = jax.vjp(function, images, kernel)
            return outputs, *pull_back(gradient)

        return run

    with use_lowering("native"):
        results = run(problem, all_of(ours), images, kernel, gradient)
    reference = all_of(lambda a, b: convolve(a, b, window, channels))
    for value, exact, magnitude in zip(results, *exactly(reference, images, kernel, gradient), strict=True):
        assert_near(value, exact, magnitude, problem)
    inside = all(pad >= 0 for side in window.pads for pad in side)
    fits = inside and channels > 1 and limits.depthwise_input_gradient((*problem.kernel, 1, channels), window)
    ran["depthwise by the kernels" if fits else "depthwise by JAX"] += 1


def stored(problem: Problem) -> tuple[Any, float]:
    """The dtype of pictures, for half of the problems bfloat16, and what rounding may take off."""
    half = sum(problem.images) % 2
    return (jnp.bfloat16, HALF_ROUNDING) if half else (np.float32, ROUNDING)


def check_depthwise_act(problem: Problem) -> None:
    maps, rounding = stored(problem)
    images, channels = numbers(problem.values, *problem.images).astype(maps), problem.images[3]
    kernel, bias = numbers("normal", *problem.kernel, 1, channels, place=1), numbers("normal", channels, place=2)
    if not limits.depthwise(kernel.shape, problem.window):
        return
    call = lambda images, kernel, bias: depthwise_act(images, kernel, bias, problem.window, problem.act)  # noqa: E731
    outputs, means = run(problem, call, images, kernel, bias)
    linear = lambda images, kernel, bias: convolve(images, kernel, problem.window, channels) + bias  # noqa: E731
    exact, magnitude = exactly(linear, images, kernel, bias)
    exact, magnitude = activated(problem.act, exact), magnitude + 1  # an exponential has an error of its own
    assert outputs.dtype == maps
    assert_near(outputs, exact, 2 * magnitude, problem, rounding)
    places = exact.shape[1] * exact.shape[2]
    if places:
        mean = exact.mean((1, 2), keepdims=True)
        assert_near(means, mean, 2 * magnitude.mean((1, 2), keepdims=True), problem, rounding)
    else:
        assert np.isnan(means).all()
    ran["depthwise with activation"] += 1


def packed(kernel: Any, bias: Any) -> tuple[Any, Any]:
    return pack_kernel(kernel), pack_bias(bias)


def check_dense(problem: Problem) -> None:
    window, size = problem.window._replace(dilation=(1, 1)), (1 + problem.kernel[0] % 5, 1 + problem.kernel[1] % 5)
    features, (maps, rounding) = problem.features, stored(problem)
    even = problem.images[3] * size[1] % 2 == 0
    # Outputs of bfloat16 may come of float32.
    outputs_of, maps = maps, maps if even else np.float32
    images = numbers(problem.values, *problem.images).astype(maps)
    kernel = numbers("normal", *size, problem.images[3], features, place=1).astype(maps)
    bias, gate, shortcut = numbers("normal", features, place=2), None, None
    shape = jax.eval_shape(lambda a, b: convolve(a, b, window), images, kernel).shape
    if not limits.dense(kernel.shape, window):
        return
    if features % 2:
        gate = numbers("normal", len(images), 1, 1, images.shape[3], place=3)
    if features % 3:
        shortcut = numbers("normal", *shape, place=4).astype(outputs_of)
    call = lambda images: dense_conv(  # noqa: E731
        images, *packed(kernel, bias), size, features, window, problem.act, gate, shortcut, outputs_of
    )
    outputs = run(problem, call, images)
    linear = lambda images, kernel, bias: convolve(images, kernel, window) + bias  # noqa: E731
    images = images if gate is None else (images.astype(np.float32) * gate).astype(maps)
    exact, magnitude = exactly(linear, images, kernel, bias)
    exact, magnitude = activated(problem.act, exact), magnitude + 1
    if shortcut is not None:
        added = shortcut.astype(np.float64)
        exact, magnitude = exact + added, magnitude + np.abs(added)
    assert outputs.dtype == outputs_of
    assert_near(outputs, exact, 2 * magnitude, problem, rounding)
    ran[f"dense, {jnp.dtype(maps)} to {jnp.dtype(outputs_of)}"] += 1


def check_full(problem: Problem) -> None:
    """The gradient of a convolution by its kernel; the other two are those of `check_dense`."""
    window, size = Window(problem.window.strides, problem.window.pads, (1, 1)), problem.kernel[:2]
    images, features = numbers(problem.values, *problem.images), 16 + problem.features % 40
    g = numbers("normal", len(images), *window.out_size(images.shape[1:3], size), features, place=1)
    shape = (*size, images.shape[3], features)
    if not limits.full(shape, window) or 0 in (*images.shape, *g.shape):
        return
    how: Any = {"window": window, "size": size, "precision": None, "lowering": "native"}
    ours = run(problem, lambda images: bind(_kernel_p, images, jnp.asarray(g), **how), images)
    like = jax.ShapeDtypeStruct(shape, np.float64)
    by_kernel = lambda images, g: jax.linear_transpose(lambda kernel: convolve(images, kernel, window), like)(g)[0]  # noqa: E731
    assert_near(ours, *exactly(by_kernel, images, g), problem)
    ran["full"] += 1


def check_inverted(problem: Problem) -> None:
    """The rounding of the first sums is carried through the others: no activation is much steeper than 1."""
    size = problem.kernel[0]
    (top, _), (left, _) = problem.window.pads
    window = Window((problem.window.strides[0], problem.window.strides[0]), ((top, size), (left, size)), (1, 1))
    features, wide, (maps, rounding) = problem.features, 16 + problem.images[3] % 20, stored(problem)
    if problem.images[3] % 2:
        maps, rounding = np.float32, ROUNDING
    x = numbers(problem.values, *problem.images).astype(maps)
    kernel, bias = numbers("normal", size, size, 1, wide, place=1), numbers("normal", wide, place=2)
    first = numbers("normal", 1, 1, x.shape[3], wide, place=3).astype(maps), numbers("normal", wide, place=4)
    last = numbers("normal", 1, 1, wide, features, place=5).astype(maps), numbers("normal", features, place=6)
    if not limits.inverted(x.shape, kernel.shape, window) or (problem.values == "large"):
        return
    whole, bands = features % 2 == 0, 1 + problem.images[3] % 5
    expand, last_packed = packed(*first), packed(*last)
    size_of = (len(x), *window.out_size(x.shape[1:3], (size, size)), features)
    shortcut = numbers("normal", *size_of, place=7).astype(maps) if whole and features > 16 else None
    project = last_packed if whole else None

    def call(x: Any) -> Any:
        return inverted_residual(
            x, expand, (kernel, bias), window, ("relu6", problem.act), bands, project, features, shortcut
        )

    outputs, means = run(problem, call, x)
    plain = Window((1, 1), ((0, 0), (0, 0)), (1, 1))
    add = lambda window, groups: lambda x, kernel, bias: convolve(x, kernel, window, groups) + bias  # noqa: E731
    exact, magnitude = exactly(add(plain, 1), x, *first)
    exact, (_, magnitude) = activated("relu6", exact), exactly(add(window, wide), magnitude + 1, np.abs(kernel), bias)
    exact, _ = exactly(add(window, wide), exact, kernel, bias)
    exact, magnitude = activated(problem.act, exact), magnitude + 1
    if whole:
        exact, _ = exactly(add(plain, 1), exact, *last)
        _, magnitude = exactly(add(plain, 1), magnitude, *last)
        if shortcut is not None:
            added = shortcut.astype(np.float64)
            exact, magnitude = exact + added, magnitude + np.abs(added)
    elif exact.shape[1] * exact.shape[2]:
        mean = exact.mean((1, 2), keepdims=True)
        assert_near(means, mean, 3 * magnitude.mean((1, 2), keepdims=True), problem, rounding)
    assert outputs.dtype == maps
    assert_near(outputs, exact, 3 * magnitude, problem, rounding)
    ran[f"inverted residual, {jnp.dtype(maps)}"] += 1


# ------------------------------------------------------------------------------------------------------------ matrices


class Matrix(NamedTuple):
    rows: int
    channels: int
    other: int
    values: str
    act: str | None
    threaded: bool


matrices = st.builds(
    Matrix,
    st.one_of(st.integers(1, 70), st.integers(1, 3000)),
    st.sampled_from([16, 17, 31, 32, 48, 50, 100]),
    st.sampled_from([1, 3, 8, 12, 17, 40]),
    st.sampled_from(VALUES),
    st.sampled_from(list(ACTS)),
    st.booleans(),
)


def check_outer(problem: Matrix) -> None:
    a, b = (
        numbers("normal", problem.rows, problem.other),
        numbers(problem.values, problem.rows, problem.channels, place=1),
    )
    assert limits.outer_product(problem.other, problem.channels)
    shape = jax.ShapeDtypeStruct((problem.other, problem.channels), np.float32)
    call = jax.ffi.ffi_call("jeffnet_outer_product", shape)
    product = run(problem, call, a, b)
    assert_near(product, *exactly(lambda a, b: jnp.einsum("ra,rb->ab", a, b), a, b), problem)
    ran["outer product"] += 1


def check_norm(problem: Matrix) -> None:
    """Outputs, statistics and cotangents of BatchNorm with its activation; values that do not cancel."""
    values = problem.values if problem.values in ("normal", "zero", "denormal", "nan", "infinite") else "normal"
    x = numbers(values, problem.rows, problem.channels)
    scale, bias = (numbers("normal", problem.channels, place=place) for place in (1, 2))
    bars = [numbers("normal", *each, place=3) for each in (x.shape, scale.shape, bias.shape)]
    how = {"epsilon": 1e-3, "act": problem.act, "lowering": "native"}
    assert limits.norm(problem.channels)

    def ours(x: Any, scale: Any, bias: Any, *bars: Any) -> Any:
        outputs = _native_forward(x, scale, bias, **how)
        return outputs, _native_cotangents(x, scale, bias, *outputs[1:], *bars, **how)

    operands = (x, scale, bias, *bars)
    outputs, cotangents = run(problem, ours, *operands)
    with jax.enable_x64(True):
        doubles = [np.asarray(each, np.float64) for each in operands]
        exact = compiled(lambda *each: _reference(*each, **how))(*doubles[:3])
        derivative = compiled(lambda *each: _cotangents(*each[:3], each[1], each[1], *each[3:], **how))(*doubles)
    for value, wanted in zip((*outputs, *cotangents), (*exact, *derivative), strict=True):
        wanted = np.asarray(wanted)
        whole = np.isfinite(wanted)
        # Slopes jump at the corners of some activations, where rounding decides: the tests of BatchNorm compare those.
        smooth = problem.act in (None, "silu", "sigmoid") or value is outputs[0]
        if smooth:
            largest = np.abs(wanted[whole]).max(initial=1) * math.sqrt(problem.rows)
            assert (np.abs(np.asarray(value)[whole] - wanted[whole]) <= 256 * 2.0**-24 * largest).all(), problem
            assert not np.isfinite(np.asarray(value)[np.isnan(wanted)]).any(), problem
    ran["BatchNorm"] += 1


# ----------------------------------------------------------------------------------------------- calls that do not fit

odd_numbers = st.one_of(st.integers(-3, 40), st.sampled_from([2**15, 2**31, 2**62, -(2**62), 2**63 - 1, -(2**63)]))


class Call(NamedTuple):
    """A foreign call: shapes, attributes, and how many operands come before the results."""

    target: str
    shapes: list[list[int]]
    operands: int
    window: list[int]
    numbers: dict[str, int]
    flags: dict[str, bool]
    dtypes: list[Any]


@st.composite
def calls(draw: Any) -> Call:
    """A call that the kernels take, in which up to three things are changed."""
    n, h, w, c, k, s, f = draw(
        st.tuples(
            *(st.sampled_from(each) for each in ((1, 2), (7, 12), (9, 30), (16, 17, 48), (1, 3), (1, 2), (16, 5)))
        )
    )
    out_h, out_w, lanes = (h - k) // s + 1, (w - k) // s + 1, native.load().jeffnet_vector_floats()
    padded = lambda channels: -(-channels // lanes) * lanes  # noqa: E731
    picture, taps, output, row = [n, h, w, c], [k, k, 1, c], [n, out_h, out_w, c], [c]
    expanded, means, matrix = [n, out_h, out_w, f], [n, 1, 1, c], [n * h * w, c]
    packed, gated, shortcut = [[k * k * c * padded(f)], [padded(f)]], draw(st.booleans()), draw(st.booleans())
    window, acts = [s, s, 0, 0, 1, 1], {"act": draw(st.integers(0, 6))}
    flags = {"gated": gated, "shortcut": shortcut}
    doubled = lambda shape: [*shape[:-1], 2 * shape[-1]]  # noqa: E731
    thin = [[c * padded(f)], [padded(f)]]
    more = [means] * gated + [expanded] * shortcut
    widen, narrow = [[f * padded(c)], [padded(c)]], [[c * padded(f)], [padded(f)], expanded]
    inverted = {**acts, "expand_act": 3, "parts": draw(st.integers(1, 3))}
    call = draw(
        st.sampled_from(
            [
                Call("jeffnet_depthwise", [picture, taps, output], 2, window, {}, {}, []),
                Call("jeffnet_depthwise_input_gradient", [output, taps, picture], 2, window, {}, {}, []),
                Call("jeffnet_depthwise_kernel_gradient", [picture, output, taps], 2, window, {}, {}, []),
                Call("jeffnet_depthwise_act", [picture, taps, row, output, means], 3, window, acts, {}, []),
                Call(
                    "jeffnet_depthwise_act",
                    [doubled(picture), taps, row, [1, 1, 1, c], row, doubled(output), doubled(means)],
                    5,
                    window + window,
                    acts,
                    {},
                    [],
                ),
                Call(
                    "jeffnet_dense",
                    [picture, *packed, *more, expanded],
                    3 + len(more),
                    [k, k, s, s, 0, 0, c, f],
                    acts,
                    flags,
                    [],
                ),
                Call(
                    "jeffnet_dense",
                    [doubled(picture), *thin, *thin, *map(doubled, more), doubled(expanded)],
                    5 + len(more),
                    [1, 1, s, s, 0, 0, c, f, c, f],
                    acts,
                    flags,
                    [],
                ),
                Call(
                    "jeffnet_inverted", [[n, h, w, f], *widen, taps, row, output, means], 5, [s, 0, 0], inverted, {}, []
                ),
                Call(
                    "jeffnet_inverted",
                    [[n, h, w, f], *widen, taps, row, *narrow, expanded, [1]],
                    8,
                    [s, 0, 0],
                    inverted,
                    {},
                    [],
                ),
                Call(
                    "jeffnet_dense_kernel_gradient",
                    [[n, h, w, f], output, [k, k, f, c]],
                    2,
                    [s, s, 0, 0],
                    {},
                    {},
                    [],
                ),
                Call("jeffnet_outer_product", [[n * h * w, f], matrix, [f, c]], 2, [], {}, {}, []),
                Call("jeffnet_statistics", [matrix, row, row], 1, [], {}, {}, []),
                Call("jeffnet_normalize", [matrix, row, row, row, matrix], 4, [], acts, {}, []),
                Call("jeffnet_normalize_sums", [matrix, row, row, row, matrix, row, row], 5, [], acts, {}, []),
                Call(
                    "jeffnet_normalize_gradient", [matrix, row, row, row, matrix, row, row, matrix], 7, [], acts, {}, []
                ),
            ]
        )
    )
    call = call._replace(
        shapes=[list(shape) for shape in call.shapes], window=list(call.window), dtypes=[np.float32] * len(call.shapes)
    )
    # Besides pictures and outputs, packed weights and shortcuts are bfloat16.
    others = {
        "jeffnet_depthwise_act": [],
        "jeffnet_dense": [*range(1, len(call.window) - 6, 2), *[call.operands - 1] * shortcut],
        "jeffnet_inverted": [1] if call.operands == 5 else [1, 5, 7],
    }
    if call.target in others and draw(st.booleans()):
        for place in (0, call.operands, *others[call.target]):
            call.dtypes[place] = jnp.bfloat16
    for _ in range(draw(st.integers(0, 3))):
        kind, shape = (
            draw(st.sampled_from(["axis", "axis", "axes", "number", "flag", "dtype"])),
            draw(st.sampled_from(call.shapes)),
        )
        match kind:
            case "axis" if shape:
                axis = draw(st.integers(0, len(shape) - 1))
                shape[axis] = draw(
                    st.sampled_from([0, 1, 2, 16, 33, shape[axis] + 1, shape[axis] * 2, max(0, shape[axis] - 1)])
                )
            case "axes":
                shape[:] = draw(st.lists(st.sampled_from([0, 1, 2, 16, 33]), max_size=5))
            case "number" if call.window or call.numbers:
                name = draw(st.sampled_from([*range(len(call.window)), *call.numbers]))
                (call.window if isinstance(name, int) else call.numbers)[name] = draw(odd_numbers)
            case "flag" if call.flags:
                call.flags.update(dict.fromkeys([draw(st.sampled_from(list(call.flags)))], draw(st.booleans())))
            case "dtype":
                call.dtypes[:] = draw(
                    st.sampled_from(
                        [
                            [np.float64] * len(call.shapes),
                            [draw(st.sampled_from([np.float32, jnp.bfloat16, np.float64])) for _ in call.shapes],
                        ]
                    )
                )
    return call


def check_call(call: Call) -> None:
    """It is done, or refused with a status; nothing outside the buffers is touched, which only a sanitizer sees."""
    buffers = list(zip(call.shapes, call.dtypes, strict=True))
    operands = [np.ones(shape, dtype) for shape, dtype in buffers[: call.operands]]
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in buffers[call.operands :]]
    attributes: dict[str, Any] = {name: np.int64(value) for name, value in call.numbers.items()} | call.flags
    if call.window:
        attributes["window"] = np.array(call.window, np.int64)
    with jax.enable_x64(True):
        function = jax.ffi.ffi_call(call.target, results if len(results) > 1 else results[0])
        try:
            jax.block_until_ready(jax.jit(lambda *each: function(*each, **attributes))(*operands))
            ran["any call, done"] += 1
        except jax.errors.JaxRuntimeError as error:
            # XLA itself counts operands and checks their types.
            assert str(error).startswith("INVALID_ARGUMENT: "), (call, error)
            ran["any call, refused"] += 1


# ------------------------------------------------------------------------------------------------------------ pictures


class Resize(NamedTuple):
    """A call of `jeffnet_resize` that it takes, and what is changed in it."""

    width: int
    height: int
    pixel: int
    resample: int
    new_width: int
    new_height: int
    box: list[float]
    window: list[int]
    flips: int
    gap: int
    changes: dict[str, Any]


_sides = st.one_of(st.integers(1, 9), st.integers(1, 70), st.integers(1, 400))
_odd_floats = st.one_of(st.floats(width=32), st.floats(-2, 100, width=32))


@st.composite
def resizes(draw: Any) -> Resize:
    width, height, new_width, new_height = (draw(_sides) for _ in range(4))
    new_width, new_height = draw(
        st.sampled_from([(new_width, new_height)] * 8 + [(width, new_height), (width, height)])
    )
    kind = draw(st.sampled_from(["all", "whole numbers", "any"]))
    edges = []
    for side in (width, height):
        place = st.integers(0, side) if kind == "whole numbers" else st.floats(0, side, width=32)
        edges.append([0, side] if kind == "all" else sorted(map(float, draw(st.tuples(place, place)))))
    places = [draw(st.lists(st.integers(0, side), min_size=2, max_size=2)) for side in (new_width, new_height)]
    wanted = [
        sorted(place) if len(set(place)) == 2 else [0, side]
        for place, side in zip(places, (new_width, new_height), strict=True)
    ]
    names = ["width", "height", "pixel", "resample", "new_width", "new_height", "flips", "in_bytes", "out_bytes"]
    names += ["in_stride", "out_stride"]
    changes: dict[str, Any] = {}
    if draw(st.booleans()):
        changes = draw(st.dictionaries(st.sampled_from(names), odd_numbers, max_size=3))
        changes |= draw(st.dictionaries(st.sampled_from(["box 0", "box 1", "box 2", "box 3"]), _odd_floats, max_size=2))
        odd_window = st.sampled_from(["window 0", "window 1", "window 2", "window 3"])
        changes |= draw(st.dictionaries(odd_window, odd_numbers, max_size=2))
    return Resize(
        *(width, height, draw(st.sampled_from([1, 3, 4])), draw(st.integers(1, 5)), new_width, new_height),
        [edges[0][0], edges[1][0], edges[0][1], edges[1][1]],
        [wanted[0][0], wanted[1][0], wanted[0][1], wanted[1][1]],
        *(draw(st.integers(0, 3)), draw(st.sampled_from([0, 0, 1, 7])), changes),
    )


def check_resize(problem: Resize) -> None:
    """Pillow's bytes, and gaps between rows stay as they were; or of a changed call nothing outside the buffers."""
    library = native_resize()
    assert library is not None
    width, height, channels = problem.width, problem.height, 1 if problem.pixel == 1 else 3
    # Black, white and noise, with all overshoots; of the last row there is no gap, which a sanitizer would not see.
    rng = np.random.default_rng([width, height])
    noise = rng.integers(0, 256, (height, width, problem.pixel), np.uint8)
    stark = rng.integers(0, 2, noise.shape, np.uint8) * 255
    pixels = np.where(rng.random((height, 1, 1)) < 0.5, noise, stark)
    left, top, right, bottom = problem.window
    rows, row = bottom - top, channels * (right - left)
    in_stride, out_stride = width * problem.pixel + problem.gap, row + problem.gap
    picture = np.full(height * in_stride - problem.gap, 7, np.uint8)
    gapped = np.lib.stride_tricks.as_strided(picture, (height, width * problem.pixel), (in_stride, 1))
    gapped[:] = pixels.reshape(height, -1)
    result = np.full(rows * out_stride - problem.gap, 9, np.uint8)
    values: dict[str, Any] = {
        **{
            name: getattr(problem, name) for name in ("width", "height", "pixel", "resample", "new_width", "new_height")
        },
        **{f"box {place}": edge for place, edge in enumerate(problem.box)},
        **{f"window {place}": edge for place, edge in enumerate(problem.window)},
        **{"flips": problem.flips, "in_bytes": picture.size, "out_bytes": result.size},
        **{"in_stride": in_stride, "out_stride": out_stride},
    } | problem.changes
    status = library.jeffnet_resize(
        picture.ctypes.data,
        min(values["in_bytes"], picture.size),
        *(values[name] for name in ("in_stride", "width", "height", "pixel", "resample")),
        (ctypes.c_float * 4)(*(values[f"box {place}"] for place in range(4))),
        *(values["new_width"], values["new_height"]),
        (ctypes.c_int64 * 4)(*(values[f"window {place}"] for place in range(4))),
        values["flips"],
        result.ctypes.data,
        min(values["out_bytes"], result.size),
        values["out_stride"],
    )
    if problem.changes:
        assert status in (0, 1, 2), problem
        ran["any resize, done" if status == 0 else "any resize, refused"] += 1
        return
    assert status == 0, problem
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels[:, :, :3])
    size, resample = (problem.new_width, problem.new_height), Image.Resampling(problem.resample)
    whole = np.asarray(image.resize(size, resample, box=tuple(problem.box)))
    expected = whole[top:bottom, left:right][:: -1 if problem.flips & 2 else 1, :: -1 if problem.flips & 1 else 1]
    found = np.lib.stride_tricks.as_strided(result, (rows, row), (out_stride, 1))
    np.testing.assert_array_equal(found, expected.reshape(rows, row), err_msg=str(problem))
    # Between the rows nothing is written.
    between = np.concatenate([result, np.full(problem.gap, 9, np.uint8)]).reshape(rows, out_stride)[:, row:]
    assert (between == 9).all(), problem
    ran["resize"] += 1


class Colours(NamedTuple):
    """A call of `jeffnet_change_colours`; `buffer` has that many bytes."""

    buffer: int
    count: int
    channels: int
    changes: list[int]
    factors: list[float]


_numbers = st.one_of(st.integers(0, 70), odd_numbers)
_steps = st.lists(st.tuples(st.one_of(st.integers(0, 2), odd_numbers), _odd_floats), max_size=4)
colours = st.builds(
    lambda buffer, count, channels, steps: (
        Colours(buffer, count, channels, *map(list, zip(*steps, strict=True)))
        if steps
        else Colours(buffer, count, channels, [], [])
    ),
    st.integers(1, 210),
    _numbers,
    st.one_of(st.sampled_from([1, 3]), odd_numbers),
    _steps,
)


def check_colours(problem: Colours) -> None:
    """Done within the buffer, or refused and nothing changed; that it is Pillow's, the tests of the jitter show."""
    library = native_resize()
    assert library is not None
    pixels = np.random.default_rng(0).integers(0, 256, problem.buffer, np.uint8)
    before, steps = pixels.copy(), len(problem.changes)
    status = library.jeffnet_change_colours(
        *(pixels.ctypes.data, pixels.nbytes, problem.count, problem.channels, steps),
        (ctypes.c_int64 * steps)(*problem.changes),
        (ctypes.c_float * steps)(*problem.factors),
    )
    right = problem.channels in (1, 3) and 1 <= problem.count <= problem.buffer // problem.channels
    right = right and all(0 <= change <= 2 for change in problem.changes) and bool(np.isfinite(problem.factors).all())
    assert status == (0 if right else 1), problem
    unchanged = problem.count * problem.channels if right else 0
    np.testing.assert_array_equal(pixels[unchanged:], before[unchanged:])
    ran["colours, done" if right else "colours, refused"] += 1


CHECKS: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "depthwise": (check_depthwise, problems(negative_pads=True)),
    "depthwise_act": (check_depthwise_act, problems()),
    "dense": (check_dense, problems()),
    "full": (check_full, problems()),
    "inverted": (check_inverted, problems()),
    "outer": (check_outer, matrices),
    "norm": (check_norm, matrices),
    "call": (check_call, calls()),
    "resize": (check_resize, resizes()),
    "colours": (check_colours, colours),
}


def sanitized_flags() -> tuple[str, ...]:
    return (*(flag for flag in build.FLAGS if flag != "-O3"), *SANITIZERS)


def sanitizer_libraries() -> list[str]:
    """What must be loaded before Python, where the compiler has it."""
    program = native.compiler()
    ask = lambda name: subprocess.check_output([program, f"-print-file-name={name}"], text=True).strip()  # noqa: E731
    found = [ask(name) for name in ("libasan.so", "libubsan.so")] if program else []
    return found if found and all(Path(path).is_absolute() for path in found) else []


def fuzz(name: str, examples: int, start: int | None = None) -> None:
    """Draws and checks so many problems; `start` seeds them, and None takes always the same."""
    check, strategy = CHECKS[name]
    options = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=start is None,
        suppress_health_check=tuple(HealthCheck),  # pyright: ignore[reportArgumentType]
        # Shrinking takes longer than the search; the smallest problem matters less than a quick answer.
        phases=(Phase.generate,),
    )
    run = options(given(strategy)(check))
    (seed(start)(run) if start is not None else run)()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", action="store_true", help="compile with sanitizers, and load nothing")
    parser.add_argument("--sanitized", action="store_true", help="use what --build compiled")
    parser.add_argument("--examples", type=int, default=100, help="of each kind")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--only", choices=CHECKS, nargs="+", default=list(CHECKS))
    options = parser.parse_args(arguments)
    if options.build or options.sanitized:
        native.FLAGS = build.FLAGS = sanitized_flags()
    if options.build:
        for library in build.LIBRARIES:
            native._path(library)
        return
    native.load()
    for name in options.only:
        fuzz(name, options.examples, options.seed)
        print(name, dict(ran), flush=True)
    print("no fault:", dict(ran), "sum", sum(ran.values()))


if __name__ == "__main__":
    main()
