"""Every lowering of a depthwise convolution equals XLA's: values, derivatives, transformations, dtypes, devices."""

import os
import subprocess
import sys
import textwrap
from functools import partial
from itertools import cycle, product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jeffnet.arch import zoo
from jeffnet.arch.lower import OUTPUT_STRIDES, lower
from jeffnet.arch.operations import Conv, Downsample, ExpertConv
from jeffnet.arch.summary import output_size
from jeffnet.errors import ArchitectureError, ConfigError
from jeffnet.ops import native
from jeffnet.ops.conv import NHWC, make_window
from jeffnet.ops.depthwise import Window, depthwise_conv

FORMS = ("native", "shifted")
PLAIN = Window((1, 1), ((1, 1), (1, 1)), (1, 1))
STRIDED = Window((2, 2), ((0, 1), (1, 1)), (1, 1))
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(params=FORMS)
def form(request):
    return needs(request.param)


def needs(form):
    if form == "native" and not native.available():
        pytest.skip(f"no C++ kernels: {native.failure()}")
    return form


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def by_xla(window):
    def function(images, kernel):
        return lax.conv_general_dilated(
            images,
            kernel,
            window.strides,
            window.pads,
            rhs_dilation=window.dilation,
            dimension_numbers=NHWC,
            feature_group_count=images.shape[3],
        )

    return function


def by(form, window):
    return lambda images, kernel: depthwise_conv(images, kernel, window, form)


def first(function):
    """The convolution and both gradients, given the gradient of the outputs."""

    def run(images, kernel, gradient):
        outputs, pull_back = jax.vjp(function, images, kernel)
        return outputs, *pull_back(gradient)

    return run


def second(function):
    """Values, derivatives in a direction, gradients and, both ways, how a quadratic functional's gradients change."""

    def run(images, kernel, weights, *direction):
        def gradients(*inputs):
            return jax.grad(lambda *inputs: (weights * function(*inputs) ** 2).sum(), (0, 1))(*inputs)

        def slope(*inputs):
            return sum((each * towards).sum() for each, towards in zip(gradients(*inputs), direction, strict=True))

        forward = jax.jvp(function, (images, kernel), direction)
        forward_over_reverse = jax.jvp(gradients, (images, kernel), direction)
        return forward, forward_over_reverse, jax.grad(slope, (0, 1))(images, kernel)

    return run


def assert_equal(ours, wanted, tolerance=1e-12):
    ours, wanted = jax.tree.leaves(ours), jax.tree.leaves(wanted)
    assert [(each.shape, each.dtype) for each in ours] == [(each.shape, each.dtype) for each in wanted]
    for value, reference in zip(ours, wanted, strict=True):
        largest = float(np.abs(reference).max(initial=0))
        np.testing.assert_allclose(value, reference, rtol=0, atol=tolerance * largest)


def assert_derivatives_equal(forms, order, window, image, kernel):
    """To 1e-12 of the largest magnitude of each array."""
    with jax.enable_x64(True):
        images, weights = draw(*image), draw(*kernel, seed=1)
        outputs = jax.eval_shape(by_xla(window), images, weights).shape
        inputs = [images, weights, draw(*outputs, seed=2)]
        if order is second:
            inputs += [draw(*image, seed=3), draw(*kernel, seed=4)]
        functions = [by_xla(window), *(by(form, window) for form in forms)]
        wanted, *ours = compiled(lambda *inputs: [order(function)(*inputs) for function in functions])(*inputs)
        for outputs in ours:
            assert_equal(outputs, wanted)


# ----------------------------------------------------------------------------------------- kernels that models have


class Case(NamedTuple):
    """One kind of depthwise convolution of the zoo, on a small picture that pads, strides and overhangs alike."""

    kernel: int
    stride: int
    dilation: int
    padding: object
    height: int

    @property
    def window(self):
        sides = (self.height, self.height)
        return make_window(sides, (self.kernel, self.kernel), (self.stride,) * 2, self.padding, (self.dilation,) * 2)


def small_height(kernel, dilation, height):
    """A height of the same parity; if the kernel was larger than the picture it is so again."""
    if (kernel - 1) * dilation + 1 > height:
        return min(height, 7 - height % 2)
    return (kernel - 1) * dilation // 2 + 4 + ((kernel - 1) * dilation // 2 + height) % 2


def zoo_cases():
    cases = set()
    for name, output_stride in product(zoo.list_models(), OUTPUT_STRIDES):
        try:
            plan = lower(zoo.model_spec(name), output_stride=output_stride)
        except ArchitectureError:
            continue  # of networks whose strides cannot be dilations
        height = zoo.model_preprocessing(name).image_size
        for op in plan.operations:
            convs = (op.conv,) if isinstance(op, ExpertConv) else op.convolutions
            for conv in convs:
                for part in conv.parts:
                    if part.is_depthwise:
                        small = small_height(part.kernel_size, conv.dilation, height)
                        cases.add(Case(part.kernel_size, conv.stride, conv.dilation, part.padding, small))
            if isinstance(op, Conv | ExpertConv):
                height = output_size(convs[0].parts[0], convs[0].stride, convs[0].dilation, height)
            elif isinstance(op, Downsample):
                height = (height + 2 * op.padding - len(op.taps)) // 2 + 1
    return sorted(cases, key=str)


CASES = zoo_cases()
CHANNELS = (16, 24, 40, 100)


def label(case):
    return f"{case.kernel}-s{case.stride}-d{case.dilation}-{case.padding}-{case.height}".replace(" ", "")


def test_the_cases_are_those_of_the_zoo():
    """An empty list would pass every test below."""
    assert {case.kernel for case in CASES} == {2, 3, 5, 7, 9, 11}
    assert {case.stride for case in CASES} == {1, 2} and {case.dilation for case in CASES} == {1, 2, 4}
    assert {case.height % 2 for case in CASES} == {0, 1} and {type(case.padding) for case in CASES} == {str, tuple}


@pytest.mark.parametrize("case", CASES, ids=label)
def test_every_kernel_of_the_zoo_equals_xla(case):
    # Shifted, every position of a kernel is compiled: the larger ones are in the slow test.
    forms = FORMS if case.kernel == 3 else FORMS[:1]
    kernel = (case.kernel, case.kernel, 1, 9)
    assert_derivatives_equal(map(needs, forms), first, case.window, (2, case.height, case.height, 9), kernel)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=label)
def test_every_kernel_of_the_zoo_equals_xla_to_second_order(case, form):
    kernel = (case.kernel, case.kernel, 1, 17)
    assert_derivatives_equal([form], second, case.window, (2, case.height, case.height, 17), kernel)


def by_definition(window, images, kernel, gradient):
    """Outputs and both gradients in numpy: for large pictures XLA takes minutes."""
    padded = np.pad(images, ((0, 0), *window.pads, (0, 0)))
    outputs, spread, sums = np.zeros_like(gradient), np.zeros_like(padded), np.zeros_like(kernel)
    for tap in np.ndindex(kernel.shape[:2]):
        starts = [at * step for at, step in zip(tap, window.dilation, strict=True)]
        ends = [start + size * by for start, size, by in zip(starts, gradient.shape[1:3], window.strides, strict=True)]
        view = (slice(None), *map(slice, starts, ends, window.strides))
        outputs += padded[view] * kernel[tap]
        spread[view] += gradient * kernel[tap]
        sums[tap] = (padded[view] * gradient).sum((0, 1, 2))
    (top, _), (left, _) = window.pads
    return outputs, spread[:, top : top + images.shape[1], left : left + images.shape[2]], sums


def assert_rounded(case, channels, height, width):
    """Float32 equals float64 but for a few roundings of the sum of the magnitudes of what it adds up."""
    window = make_window((height, width), (case.kernel,) * 2, (case.stride,) * 2, case.padding, (case.dilation,) * 2)
    shapes = [(2, height, width, channels), (case.kernel, case.kernel, 1, channels)]
    shapes.append((2, *window.out_size(shapes[0][1:3], shapes[1][:2]), channels))
    inputs = [draw(*shape, seed=seed).astype(np.float32) for seed, shape in enumerate(shapes)]
    ours = compiled(first(by("native", window)))(*inputs)
    doubles = [each.astype(np.float64) for each in inputs]
    magnitudes = by_definition(window, *map(np.abs, doubles))
    for value, exact, magnitude in zip(ours, by_definition(window, *doubles), magnitudes, strict=True):
        assert value.dtype == jnp.float32
        assert (np.abs(np.asarray(value, np.float64) - exact) <= 16 * 2.0**-24 * magnitude).all()


@pytest.mark.parametrize(("case", "channels"), list(zip(CASES, cycle(CHANNELS), strict=False)), ids=str)
def test_float32_of_the_zoo_is_exact_but_for_roundings(case, channels):
    """Rows long enough for every width of the C++ loops: whole tiles, a rest, the borders."""
    needs("native")
    assert_rounded(case, channels, case.height, 24 * case.stride - case.height % 2)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=label)
def test_float32_of_the_zoo_in_many_sizes(case):
    needs("native")
    for width, channels in zip(range(24, 34), cycle(CHANNELS), strict=False):
        assert_rounded(case, channels, case.height, width * case.stride - case.height % 2)


# ------------------------------------------------------------------------------------------------- any other window


@st.composite
def problems(draw, most_taps, cpp=False):
    """A window, the shape of the pictures and that of the kernel; all are the C++ kernels' own with `cpp`."""
    pair = lambda elements: st.tuples(elements, elements)  # noqa: E731
    kernel = draw(pair(st.integers(1, most_taps)))
    image = draw(pair(st.integers(1, 14)))
    sides = pair(pair(st.integers(0, 5)))
    padding = draw(st.one_of(st.sampled_from(["SAME", "VALID"]), sides))
    strides, dilation = draw(pair(st.integers(1, 3))), draw(pair(st.integers(1, 4)))
    channels = draw(st.sampled_from([8, 9, 16, 17, 24, 31, 33] if cpp else [1, 2, 7, 8, 9, 16, 17, 24, 31, 33]))
    if cpp:
        strides, dilation = draw(st.sampled_from([(strides, (1, 1)), ((1, 1), dilation)]))
    window = make_window(image, kernel, strides, padding, dilation)
    return window, (draw(st.integers(1, 3)), *image, channels), (*kernel, 1, channels)


sampled = partial(settings, derandomize=True, deadline=None, database=None)


@sampled(max_examples=10)
@given(problems(most_taps=11, cpp=True))
def test_any_window_of_the_kernels_in_cpp_equals_xla(problem):
    assert_derivatives_equal([needs("native")], second, *problem)


@sampled(max_examples=10)
@given(problems(most_taps=3))
def test_any_window_of_a_small_kernel_equals_xla(problem):
    assert_derivatives_equal(["shifted"], second, *problem)


@pytest.mark.slow
@sampled(max_examples=100)
@given(problems(most_taps=11))
def test_many_windows_equal_xla(problem):
    assert_derivatives_equal(map(needs, FORMS), second, *problem)


@pytest.mark.parametrize("stride", [3, 4, 5, 6, 9, 10])
def test_float32_of_any_stride(stride):
    """The loops for strides 1 and 2 are for no other one, whatever the kernel's width."""
    needs("native")
    for taps in (1, 2, 3, 4, 5, 7, 9, 11):
        assert_rounded(Case(taps, stride, 1, ((0, 0), (0, 0)), taps + stride), 16, taps + stride, taps + 8 * stride)


@pytest.mark.parametrize(
    ("image", "kernel"),
    [
        ((0, 8, 8, 9), (3, 3, 1, 9)),  # no picture
        ((2, 1, 2, 9), (5, 5, 1, 9)),  # a kernel beyond the padded picture
        ((2, 0, 4, 9), (3, 3, 1, 9)),
        ((2, 40, 3, 16), (35, 1, 1, 16)),  # more rows than the C++ keeps count of
    ],
    ids=str,
)
@pytest.mark.parametrize("window", [PLAIN, STRIDED], ids=["plain", "strided"])
def test_what_is_empty_or_huge_equals_xla(window, image, kernel):
    assert_derivatives_equal(map(needs, FORMS), first, window, image, kernel)


# --------------------------------------------------------------------------------------------------- transformations


def mapped(in_axes):
    return lambda function: jax.vmap(function, in_axes)


def gradient_of_mapped(in_axes):
    return lambda function: jax.grad(lambda x, k: jnp.sin(jax.vmap(function, in_axes)(x, k)).sum(), (0, 1))


def mapped_gradient(in_axes):
    return lambda function: jax.vmap(jax.grad(lambda x, k: jnp.sin(function(x, k)).sum(), (0, 1)), in_axes)


IMAGE, KERNEL = (2, 6, 5, 9), (3, 3, 1, 9)
MAPPED = [
    (mapped((0, None)), (3, *IMAGE), KERNEL),
    (mapped((3, None)), (2, 6, 5, 3, 9), KERNEL),
    (mapped((-1, None)), (*IMAGE, 3), KERNEL),
    (mapped((None, 0)), IMAGE, (3, *KERNEL)),
    (mapped((None, -1)), IMAGE, (*KERNEL, 3)),
    (mapped((0, 0)), (3, *IMAGE), (3, *KERNEL)),
    (mapped((1, 2)), (2, 3, 6, 5, 9), (3, 3, 3, 1, 9)),
    (lambda f: jax.vmap(jax.vmap(f, (0, None)), (None, 0)), (3, *IMAGE), (2, *KERNEL)),
    (lambda f: jax.vmap(jax.vmap(f, (0, 1)), (1, 0)), (3, 2, *IMAGE), (2, 3, *KERNEL)),
    (gradient_of_mapped((0, None)), (3, *IMAGE), KERNEL),
    (gradient_of_mapped((0, 0)), (3, *IMAGE), (3, *KERNEL)),
    (mapped_gradient((0, None)), (3, *IMAGE), KERNEL),  # of every example, by the kernel that they share
    (mapped_gradient((None, 0)), IMAGE, (3, *KERNEL)),
    # Of a sum: the gradient of the outputs is not mapped.
    (lambda f: jax.vmap(jax.grad(lambda x, k: f(x, k).sum(), (0, 1)), (0, None)), (3, *IMAGE), KERNEL),
    (lambda f: jax.vmap(jax.grad(lambda x, k: f(x, k).sum(), (0, 1)), (None, 0)), IMAGE, (3, *KERNEL)),
    (mapped_gradient((4, 4)), (*IMAGE[:4], 3), (*KERNEL[:4], 3)),
    (lambda f: jax.jacfwd(lambda x, k: f(x, k).sum((1, 2)), 1), (1, 3, 3, 2), (2, 2, 1, 2)),
    (lambda f: jax.jacrev(lambda x, k: f(x, k).sum((1, 2)), 1), (1, 3, 3, 2), (2, 2, 1, 2)),
    (lambda f: jax.hessian(lambda x, k: (f(x, k) ** 3).sum(), 1), (1, 3, 3, 2), (2, 2, 1, 2)),
]


@pytest.mark.parametrize(("transform", "image", "kernel"), MAPPED)
def test_vmap_equals_that_of_xla(transform, image, kernel, x64):
    inputs = draw(*image), draw(*kernel)
    ours = compiled(transform(by(needs("native"), STRIDED)))(*inputs)
    assert_equal(ours, compiled(transform(by_xla(STRIDED)))(*inputs))


@pytest.mark.parametrize("count", [0, 1])
def test_vmap_over_few_equals_that_of_xla(count, form, x64):
    inputs = draw(count, *IMAGE), draw(count, *KERNEL)
    for transform in (mapped((0, 0)), mapped_gradient((0, 0))):
        assert_equal(transform(by(form, STRIDED))(*inputs), transform(by_xla(STRIDED))(*inputs))


def test_jit_and_remat_change_nothing(form, x64):
    inputs = draw(*IMAGE), draw(*KERNEL), draw(2, 3, 3, 9, seed=1)
    function = by(form, STRIDED)
    wanted = first(by_xla(STRIDED))(*inputs)
    for changed in (first(function), compiled(first(function)), compiled(first(jax.checkpoint(function)))):
        assert_equal(changed(*inputs), wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_accumulates_in_float32(dtype, form):
    """Only results are rounded: a sum of hundreds of products in half precision would be off by many of its steps."""
    images, kernel = (jnp.asarray(draw(2, 12, 12, 16), dtype), jnp.asarray(draw(5, 5, 1, 16), dtype))
    window = Window((1, 1), ((0, 0), (0, 0)), (1, 1))
    inputs = images, kernel, jnp.asarray(draw(2, 8, 8, 16, seed=1), dtype)
    ours = compiled(first(by(form, window)))(*inputs)
    with jax.enable_x64(True):
        wanted = compiled(first(by_xla(window)))(*(np.asarray(each, np.float64) for each in inputs))
    for value, exact in zip(ours, wanted, strict=True):
        assert value.dtype == dtype
        half_step = float(jnp.finfo(dtype).eps) / 2
        np.testing.assert_allclose(np.asarray(value, np.float64), exact, rtol=half_step, atol=1e-4)


# ---------------------------------------------------------------------------------------------- platforms and devices


def called(function, *inputs):
    return "custom_call @jeffnet_depthwise" in jax.jit(function).lower(*inputs).as_text()


def test_the_kernels_in_cpp_are_what_runs():
    """All would be right without them, and slow."""
    needs("native")
    inputs = jnp.ones((2, 9, 9, 64)), jnp.ones((3, 3, 1, 64))
    text = jax.jit(first(by("auto", PLAIN))).lower(*inputs, jnp.ones((2, 9, 9, 64))).as_text()
    for target in ("", "_input_gradient", "_kernel_gradient"):
        assert f"@jeffnet_depthwise{target}(" in text
    assert called(by("native", PLAIN), *inputs) and not called(by("shifted", PLAIN), *inputs)
    for dtype in (jnp.bfloat16, jnp.float16):
        assert called(by("auto", PLAIN), *(each.astype(dtype) for each in inputs))


def test_without_a_compiler_auto_goes_on_and_native_says_why(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "failure", lambda: "no C++ compiler was found")
    inputs = jnp.ones((2, 9, 9, 64)), jnp.ones((3, 3, 1, 64))
    assert not called(by("auto", PLAIN), *inputs)
    with pytest.raises(
        ConfigError, match=r"lowering 'native': no C\+\+ compiler was found; choose 'auto' or 'shifted'"
    ):
        called(by("native", PLAIN), *inputs)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_the_convolution_of_xla(platform):
    inputs = jnp.ones((2, 9, 9, 64)), jnp.ones((3, 3, 1, 64)), jnp.ones((2, 9, 9, 64))
    text = jax.jit(first(by("auto", PLAIN))).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == 3 and "jeffnet_depthwise(" not in text


def test_an_exported_program_runs_anywhere(x64):
    """It must not need what was compiled here, and takes any number of pictures."""
    count = jax.export.symbolic_shape("count")[0]
    shapes = [jax.ShapeDtypeStruct((count, *IMAGE[1:]), float), jax.ShapeDtypeStruct(KERNEL, float)]
    shapes.append(jax.ShapeDtypeStruct((count, 3, 3, 9), float))
    function = jax.jit(first(by("auto", STRIDED)))
    exported = jax.export.export(function, platforms=("cpu", "cuda", "tpu"))(*shapes)
    assert "custom_call @jeffnet" not in exported.mlir_module()
    loaded = jax.export.deserialize(exported.serialize())
    for batch in (1, 3):
        inputs = draw(batch, *IMAGE[1:]), draw(*KERNEL), draw(batch, 3, 3, 9, seed=1)
        assert_equal(loaded.call(*inputs), first(by_xla(STRIDED))(*inputs))


PROGRAM = textwrap.dedent("""
    import sys
    from functools import partial
    import jax, jax.numpy as jnp, numpy as np
    from jax import lax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from jeffnet.ops import native
    from jeffnet.ops.conv import conv_general_dilated, use_lowering

    jax.config.update("jax_enable_x64", True)
    draw = np.random.default_rng(0).normal
    images, weights = draw(size=(8, 7, 6, 16)), draw(size=(8, 4, 3, 8))
    kernels = draw(size=(3, 3, 1, 16)), draw(size=(1, 1, 16, 8))

    def gradients(convolution, images, kernels, weights):
        def loss(images, kernels):
            outputs = convolution(images, kernels[0], (2, 2), "SAME", feature_group_count=16)
            return (weights * convolution(outputs, kernels[1], (1, 1), "SAME") ** 2).sum()
        return jax.grad(loss, (0, 1))(images, kernels)

    reference = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    wanted = gradients(reference, images, kernels, weights)

    def check(form, function, opaque, *shardings):
        inputs = [jax.device_put(*pair) for pair in zip((images, kernels, weights), shardings)]
        lowered = jax.jit(function).lower(*inputs)
        ours = jax.tree.leaves(lowered.compile()(*inputs))
        for ours, exact in zip(ours, jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-12 * np.abs(exact).max())
        expected = opaque and form == "native"
        assert ("custom_call @jeffnet" in lowered.as_text()) == expected, (form, opaque)

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    grid = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    typed = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    batch, everywhere, channels = P("data"), P(), P(None, None, None, "data")
    split = dict(in_specs=(batch, everywhere, batch), out_specs=(batch, everywhere))
    for form in sys.argv[1:]:
        ours = partial(gradients, conv_general_dilated)
        with use_lowering(form):
            placed = partial(NamedSharding, mesh)
            check(form, ours, False, placed(batch), placed(everywhere), placed(batch))
            check(form, ours, False, placed(channels), (placed(channels), placed(channels)), placed(channels))
            # The gradient of what all devices share is the sum over them.
            shard_map = jax.shard_map(ours, mesh=mesh, check_vma=True, **split)
            check(form, shard_map, True, *[placed(everywhere)] * 3)
            partly = jax.shard_map(ours, mesh=grid, axis_names={"data"}, **split)
            check(form, partly, False, *[NamedSharding(grid, everywhere)] * 3)
            with jax.set_mesh(typed):
                placed = partial(NamedSharding, typed)
                check(form, ours, False, placed(batch), placed(everywhere), placed(batch))
    print("equal")
""")


def test_several_devices_find_what_one_finds():
    forms = FORMS if native.available() else FORMS[1:]
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, *forms],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0 and answer.stdout == "equal\n", answer.stderr


def test_strides_with_dilation_and_few_channels_are_shifted():
    """What the C++ does not do must not reach it."""
    needs("native")
    both = Window((2, 1), ((0, 0), (0, 0)), (1, 2))
    few = native.load().jeffnet_least_channels(4) - 1
    wide, narrow = jnp.ones((2, 9, 9, 64)), jnp.ones((2, 9, 9, few))
    assert not called(by("native", both), wide, jnp.ones((3, 3, 1, 64)))
    assert not called(by("native", PLAIN), narrow, jnp.ones((3, 3, 1, few)))
    assert called(by("native", PLAIN), jnp.ones((2, 9, 9, few + 1)), jnp.ones((3, 3, 1, few + 1)))
    assert not called(
        by("native", PLAIN), jnp.ones((2, 99, 9, 64)), jnp.ones((native.load().jeffnet_most_rows() + 1, 3, 1, 64))
    )
