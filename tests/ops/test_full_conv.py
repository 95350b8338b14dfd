"""The convolution of all channels as a primitive: C++ against sums in float64, all else against XLA's convolution."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from jeffnet.errors import ConfigError
from jeffnet.ops import native
from jeffnet.ops.conv import make_window
from jeffnet.ops.depthwise import Window
from jeffnet.ops.full_conv import full_conv

compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
sampled = settings(derandomize=True, deadline=None, database=None, max_examples=12)
DENSE, GRADIENT = "custom_call @jeffnet_dense(", "custom_call @jeffnet_dense_kernel_gradient("
PLAIN, STRIDED = (make_window((9, 8), (3, 3), (stride, stride), "SAME") for stride in (1, 2))
# Padded by more than the kernel reaches, where XLA's own gradient on CPUs is wrong for some numbers of channels.
FAR = Window((1, 1), ((4, 4), (5, 0)), (1, 1))


@pytest.fixture
def cpp():
    """For tests of the C++ kernels."""
    needs_cpp()


def needs_cpp():
    if not native.available():
        pytest.skip(f"no C++ kernels: {native.failure()}")


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def by(lowering, window):
    return lambda images, kernel: full_conv(images, kernel, window, lowering=lowering)


def by_xla(window):
    return lambda images, kernel: lax.conv_general_dilated(
        images, kernel, window.strides, window.pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def first(function):
    """The outputs and both gradients, given the gradient of the outputs."""

    def run(images, kernel, gradient):
        outputs, pull_back = jax.vjp(function, images, kernel)
        return outputs, *pull_back(gradient)

    return run


def second(function):
    """Derivatives in a direction, and, both ways, how the gradients of a nonlinear functional change."""

    def run(images, kernel, *direction):
        def gradients(*inputs):
            return jax.grad(lambda *inputs: jnp.sin(function(*inputs)).sum(), (0, 1))(*inputs)

        def slope(*inputs):
            return sum((each * towards).sum() for each, towards in zip(gradients(*inputs), direction, strict=True))

        at = images, kernel
        return jax.jvp(function, at, direction), jax.jvp(gradients, at, direction), jax.grad(slope, (0, 1))(*at)

    return run


def assert_equal(ours, wanted, tolerance=1e-12):
    """To `tolerance` times the largest magnitude of each array."""
    ours, wanted = jax.tree.leaves(ours), jax.tree.leaves(wanted)
    assert [each.shape for each in ours] == [each.shape for each in wanted]
    for value, reference in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(value, reference, rtol=0, atol=tolerance * float(np.abs(reference).max(initial=0)))


# ------------------------------------------------------------------------------------------------------------- the C++


def by_definition(images, kernel, gradient, window):
    """The outputs and both gradients, as sums over the positions of the kernel."""
    pads, (rows, columns) = window.pads, gradient.shape[1:3]
    padded = np.pad(images, ((0, 0), *pads, (0, 0)))
    outputs, of_padded, of_kernel = np.zeros(gradient.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
    for i, j in itertools.product(*map(range, kernel.shape[:2])):
        under = np.s_[:, i :: window.strides[0], j :: window.strides[1]]
        view = padded[under][:, :rows, :columns]
        outputs += view @ kernel[i, j]
        of_padded[under][:, :rows, :columns] += gradient @ kernel[i, j].T
        of_kernel[i, j] = np.einsum("nhwc,nhwf->cf", view, gradient)
    (top, _), (left, _) = pads
    return outputs, of_padded[:, top : top + images.shape[1], left : left + images.shape[2]], of_kernel


def assert_exact(image, kernel, window, features=(3, 16)):
    """But for 16 roundings of the sums of magnitudes."""
    size = window.out_size(image, kernel)
    inputs = draw(2, *image, features[0]), draw(*kernel, *features), draw(2, *size, features[1])
    inputs = tuple(each.astype(np.float32) for each in inputs)
    function = compiled(first(by("native", window)))
    text = function.lower(*inputs).as_text()
    assert DENSE in text and GRADIENT in text
    double = [each.astype(np.float64) for each in inputs]
    exact, magnitudes = by_definition(*double, window), by_definition(*map(np.abs, double), window)
    for ours, wanted, magnitude in zip(function(*inputs), exact, magnitudes, strict=True):
        assert ours.dtype == np.float32 and ours.shape == wanted.shape
        assert (np.abs(ours - wanted) <= 16 * 2.0**-24 * magnitude).all()


@pytest.mark.parametrize("features", [(3, 32), (16, 16), (5, 49)], ids=str)
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 2), (5, 3), (2, 2)])
def test_outputs_and_gradients(size, stride, features, cpp):
    """Several threads' parts, and lines without an inner part."""
    for image, padding in (((13, 22), "SAME"), ((4, 3), ((1, 1), (2, 0)))):
        window = make_window(image, (size, size), (stride, stride), padding)
        assert_exact(image, (size, size), window, features)


def test_a_picture_padded_by_more_than_the_kernel_reaches(cpp):
    assert_exact((5, 4), (2, 2), FAR, (3, 16))


@st.composite
def problems(draw):
    pair = lambda elements: st.tuples(elements, elements)  # noqa: E731
    kernel, strides = draw(pair(st.integers(1, 5))), draw(pair(st.integers(1, 4)))
    image = draw(st.tuples(st.integers(1, 9), st.integers(1, 30)))
    window = make_window(image, kernel, strides, draw(st.one_of(st.just("SAME"), pair(pair(st.integers(0, 5))))))
    assume(0 not in window.out_size(image, kernel))
    return image, kernel, window, (draw(st.integers(1, 20)), draw(st.sampled_from([16, 17, 33, 64])))


@sampled
@given(problems())
def test_any_window(problem):
    needs_cpp()
    assert_exact(*problem)


@pytest.mark.slow
@settings(sampled, max_examples=150)
@given(problems())
def test_many_windows(problem):
    needs_cpp()
    assert_exact(*problem)


def test_what_is_not_a_number_stays_so(cpp):
    images, kernel, gradient = (draw(*size).astype(np.float32) for size in ((1, 9, 8, 2), (3, 3, 2, 16), (1, 9, 8, 16)))
    images[0, 4, 4, 1] = np.nan
    outputs, _, of_kernel = compiled(first(by("native", PLAIN)))(images, kernel, gradient)
    assert np.isnan(outputs[0, 3:6, 3:6]).all() and np.isnan(outputs).sum() == 9 * 16
    assert np.isnan(of_kernel[:, :, 1]).all() and not np.isnan(of_kernel[:, :, 0]).any()


# -------------------------------------------------------------------------------------- derivatives and transformations


@pytest.mark.parametrize("window", [PLAIN, STRIDED], ids=["plain", "strided"])
def test_derivatives(window, x64):
    """Of second order, in float64, for which there is no C++; and by C++ in float32."""
    inputs = draw(2, 9, 8, 3), draw(3, 3, 3, 16), draw(2, 9, 8, 3, seed=1), draw(3, 3, 3, 16, seed=1)
    wanted = compiled(second(by_xla(window)))(*inputs)
    assert_equal(compiled(second(by("auto", window)))(*inputs), wanted)
    function, halves = compiled(second(by("auto", window))), [each.astype(np.float32) for each in inputs]
    assert (function.lower(*halves).as_text().count(GRADIENT) > 1) == native.available()
    assert_equal(function(*halves), wanted, 1e-5)


MAPPED = [
    ((0, None), (3, 2, 9, 8, 2), (3, 3, 2, 16)),
    ((None, 2), (2, 9, 8, 2), (3, 3, 3, 2, 16)),
    ((4, 4), (2, 9, 8, 2, 3), (3, 3, 2, 16, 3)),
]


@pytest.mark.parametrize(("axes", "images", "kernel"), MAPPED, ids=str)
def test_vmap(axes, images, kernel, x64):
    """Of the function and of its gradients."""

    def mapped(function):
        def run(*inputs):
            loss = lambda *inputs: jnp.sin(function(*inputs)).sum()  # noqa: E731
            return jax.vmap(function, axes)(*inputs), jax.vmap(jax.grad(loss, (0, 1)), axes)(*inputs)

        return run

    inputs = draw(*images), draw(*kernel)
    assert_equal(compiled(mapped(by("auto", PLAIN)))(*inputs), compiled(mapped(by_xla(PLAIN)))(*inputs))


def test_checkpoint_changes_nothing(cpp):
    inputs = [draw(*size).astype(np.float32) for size in ((2, 9, 8, 3), (3, 3, 3, 16), (2, 5, 4, 16))]
    function = by("native", STRIDED)
    assert_equal(compiled(first(jax.checkpoint(function)))(*inputs), compiled(first(function))(*inputs), 0)


# ----------------------------------------------------------------------------------------------- platforms and devices


def calls(lowering, *inputs, window=PLAIN):
    return DENSE in jax.jit(first(by(lowering, window))).lower(*inputs).as_text()


def ones(features=16, batch=2, dtype=jnp.float32):
    return (
        jnp.ones((batch, 9, 8, 3), dtype),
        jnp.ones((3, 3, 3, features), dtype),
        jnp.ones((batch, 9, 8, features), dtype),
    )


def test_what_is_computed_in_cpp(cpp):
    lanes = native.load().jeffnet_vector_floats()
    assert calls("auto", *ones(lanes)) and calls("native", *ones(lanes))
    assert not calls("shifted", *ones(lanes)) and not calls("native", *ones(lanes - 1))
    assert not any(calls("native", *ones(dtype=dtype)) for dtype in (jnp.bfloat16, jnp.float16))
    assert not calls("native", *ones(batch=0)) and not calls("native", *ones(features=0))
    assert not np.asarray(compiled(first(by("native", PLAIN)))(*ones(batch=0))[2]).any()


def test_without_a_compiler_xla_computes_or_it_says_why(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "failure", lambda: "no C++ compiler was found")
    assert not calls("auto", *ones())
    with pytest.raises(ConfigError, match=r"lowering 'native': no C\+\+ compiler was found"):
        calls("native", *ones())


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_the_convolution_of_xla(platform):
    text = jax.jit(first(by("auto", PLAIN))).trace(*ones()).lower(lowering_platforms=(platform,)).as_text()
    assert "custom_call" not in text and text.count("stablehlo.convolution") == 3


def test_an_exported_program_runs_anywhere():
    """It must not need what was compiled here, and takes any number of pictures."""
    count = jax.export.symbolic_shape("count")[0]
    sizes = (count, 9, 8, 3), (3, 3, 3, 16), (count, 9, 8, 16)
    shapes = [jax.ShapeDtypeStruct(size, np.float32) for size in sizes]
    exported = jax.export.export(jax.jit(first(by("auto", PLAIN))), platforms=("cpu", "cuda", "tpu"))(*shapes)
    assert "custom_call @jeffnet" not in exported.mlir_module()
    inputs = [draw(*size).astype(np.float32) for size in ((4, 9, 8, 3), (3, 3, 3, 16), (4, 9, 8, 16))]
    ours = jax.export.deserialize(exported.serialize()).call(*inputs)
    assert_equal(ours, compiled(first(by_xla(PLAIN)))(*inputs), 1e-5)
