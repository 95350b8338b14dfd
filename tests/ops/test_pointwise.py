"""The 1x1 convolution as a primitive: its kernel's gradient in C++ against float64, all else against JAX's product."""

import os
import subprocess
import sys
import textwrap
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jeffnet.errors import ConfigError
from jeffnet.ops import native
from jeffnet.ops.pointwise import pointwise_conv

compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
TARGET = "custom_call @jeffnet_outer_product("


@pytest.fixture
def cpp():
    """For tests of the C++ kernels."""
    needs_cpp()


def needs_cpp():
    if not native.available():
        pytest.skip(f"no C++ kernels: {native.failure()}")


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def by(lowering):
    return lambda images, kernel: pointwise_conv(images, kernel, lowering=lowering)


def product(images, kernel):
    return jnp.einsum("nhwc,cf->nhwf", images, kernel, precision="highest")


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


# ------------------------------------------------------------------------------------------------------------ the C++


def assert_outer_product(shape, features):
    """The kernel's gradient equals float64's but for 16 roundings of the sum of magnitudes."""
    images, gradient = (draw(*shape, size, seed=seed).astype(np.float32) for seed, size in enumerate(features))
    function = compiled(lambda images, g: jax.linear_transpose(lambda k: by("native")(images, k), kernel)(g)[0])
    kernel = jax.ShapeDtypeStruct(features, jnp.float32)
    assert TARGET in function.lower(images, gradient).as_text()
    ours = function(images, gradient)
    a, b = (each.astype(np.float64).reshape(-1, each.shape[-1]) for each in (images, gradient))
    assert ours.dtype == np.float32 and ours.shape == features
    assert (np.abs(ours - a.T @ b) <= 16 * 2.0**-24 * (np.abs(a).T @ np.abs(b))).all()


@pytest.mark.parametrize("rows", [(1, 1, 1), (3, 5, 1), (2, 9, 13), (1, 100, 100)], ids=str)
@pytest.mark.parametrize("features", [(1, 16), (8, 48), (21, 100), (50, 17), (36, 63), (5, 97)], ids=str)
def test_kernel_gradient(rows, features, cpp):
    """Rests of all loops: 8, 4 and single rows of the result, one to three vectors of columns; parts of the rows."""
    assert_outer_product(rows, features)


@settings(derandomize=True, deadline=None, database=None, max_examples=10)
@given(st.integers(1, 3000), st.tuples(st.integers(1, 50), st.integers(16, 100)))
def test_kernel_gradient_of_any_size(rows, features):
    needs_cpp()
    assert_outer_product((1, rows, 1), features)


@pytest.mark.slow
@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(st.integers(1, 10_000), st.tuples(st.integers(1, 300), st.integers(16, 300)))
def test_kernel_gradient_of_many_sizes(rows, features):
    needs_cpp()
    assert_outer_product((1, rows, 1), features)


def test_what_is_not_a_number_stays_so(cpp):
    images, kernel, gradient = draw(2, 3, 3, 9), draw(9, 17), draw(2, 3, 3, 17)
    images[1, 2, 2, 8] = np.nan
    kernel_bar = compiled(first(by("native")))(*(each.astype(np.float32) for each in (images, kernel, gradient)))[2]
    np.testing.assert_array_equal(np.isnan(kernel_bar).any(1), np.arange(9) == 8)
    assert np.isnan(kernel_bar[8]).all()


# ----------------------------------------------------------------------------------- derivatives and transformations


@pytest.mark.parametrize("lowering", ["auto", "shifted"])
def test_derivatives_equal_those_of_the_product(lowering, x64):
    """In float64, for which there is no C++."""
    inputs = draw(2, 3, 4, 5), draw(5, 16), draw(2, 3, 4, 16)
    assert_equal(compiled(first(by(lowering)))(*inputs), compiled(first(product))(*inputs))
    inputs = draw(2, 3, 4, 5), draw(5, 16), draw(2, 3, 4, 5, seed=1), draw(5, 16, seed=1)
    assert_equal(compiled(second(by(lowering)))(*inputs), compiled(second(product))(*inputs))


def test_derivatives_of_the_cpp(cpp):
    """In float32, and of second order too, where it multiplies again."""
    inputs = [each.astype(np.float32) for each in (draw(2, 3, 4, 5), draw(5, 16))]
    inputs += [each.astype(np.float32) for each in (draw(2, 3, 4, 5, seed=1), draw(5, 16, seed=1))]
    function = compiled(second(by("native")))
    assert function.lower(*inputs).as_text().count(TARGET) > 1
    ours = function(*inputs)
    with jax.enable_x64(True):
        assert_equal(ours, compiled(second(product))(*(each.astype(np.float64) for each in inputs)), 2e-6)


MAPPED = [
    ((0, None), (3, 2, 3, 2, 5), (5, 16)),
    ((None, 2), (2, 3, 2, 5), (5, 16, 3)),
    ((4, 1), (2, 3, 2, 5, 3), (5, 3, 16)),
]


@pytest.mark.parametrize(("axes", "images", "kernel"), MAPPED, ids=str)
def test_vmap(axes, images, kernel, x64):
    """Of the function and of its gradients, and gradients through it."""

    def mapped(function):
        def run(*inputs):
            loss = lambda *inputs: jnp.sin(function(*inputs)).sum()  # noqa: E731
            whole = lambda *inputs: jnp.sin(jax.vmap(function, axes)(*inputs)).sum()  # noqa: E731
            gradients = jax.vmap(jax.grad(loss, (0, 1)), axes)(*inputs)
            return jax.vmap(function, axes)(*inputs), gradients, jax.grad(whole, (0, 1))(*inputs)

        return run

    inputs = draw(*images), draw(*kernel)
    assert_equal(compiled(mapped(by("auto")))(*inputs), compiled(mapped(product))(*inputs))


def test_jit_and_checkpoint_change_nothing(cpp):
    inputs = [each.astype(np.float32) for each in (draw(2, 3, 3, 9), draw(9, 17), draw(2, 3, 3, 17))]
    function = by("native")
    wanted = first(function)(*inputs)
    for changed in (compiled(first(function)), compiled(first(jax.checkpoint(function)))):
        assert_equal(changed(*inputs), wanted, 1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
    """XLA's product, of the same dtype, whose sums are float32."""
    inputs = [jnp.asarray(each, dtype) for each in (draw(2, 5, 5, 40), draw(40, 16), draw(2, 5, 5, 16))]
    function = compiled(first(by("auto")))
    assert TARGET not in function.lower(*inputs).as_text()
    with jax.enable_x64(True):
        wanted = compiled(first(product))(*(np.asarray(each, np.float64) for each in inputs))
    for value, exact in zip(function(*inputs), wanted, strict=True):
        assert value.dtype == dtype
        np.testing.assert_allclose(np.asarray(value, np.float64), exact, rtol=float(jnp.finfo(dtype).eps), atol=1e-2)


def test_precision_reaches_the_product():
    text = (
        jax.jit(partial(pointwise_conv, precision="highest")).lower(jnp.ones((1, 2, 2, 4)), jnp.ones((4, 3))).as_text()
    )
    assert "precision = [HIGHEST, HIGHEST]" in text


# ---------------------------------------------------------------------------------------------- platforms and devices


def calls(lowering, *inputs):
    return TARGET in jax.jit(first(by(lowering))).lower(*inputs).as_text()


def ones(channels=16, features=16, batch=2, dtype=jnp.float32):
    return (
        jnp.ones((batch, 3, 3, channels), dtype),
        jnp.ones((channels, features), dtype),
        jnp.ones((batch, 3, 3, features), dtype),
    )


def test_what_is_computed_in_cpp(cpp):
    lanes = native.load().jeffnet_vector_floats()
    assert calls("auto", *ones(1, lanes)) and calls("native", *ones(1, lanes))
    assert not calls("shifted", *ones(1, lanes))
    assert not calls("native", *ones(64, lanes - 1))
    for empty in ({"batch": 0}, {"channels": 0}, {"features": 0}):
        assert not calls("native", *ones(**empty))
        assert not any(np.asarray(each).any() for each in compiled(first(by("native")))(*ones(**empty))[2:])


def test_without_a_compiler_xla_multiplies_or_it_says_why(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "failure", lambda: "no C++ compiler was found")
    assert not calls("auto", *ones())
    with pytest.raises(
        ConfigError, match=r"lowering 'native': no C\+\+ compiler was found; choose 'auto' or 'shifted'"
    ):
        calls("native", *ones())


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_the_product(platform):
    text = jax.jit(first(by("auto"))).trace(*ones()).lower(lowering_platforms=(platform,)).as_text()
    assert "custom_call" not in text and text.count("stablehlo.dot_general") == 3


def test_an_exported_program_runs_anywhere():
    """It must not need what was compiled here, and takes any number of pictures."""
    count = jax.export.symbolic_shape("count")[0]
    sizes = (count, 3, 3, 5), (5, 16), (count, 3, 3, 16)
    shapes = [jax.ShapeDtypeStruct(size, np.float32) for size in sizes]
    exported = jax.export.export(jax.jit(first(by("auto"))), platforms=("cpu", "cuda", "tpu"))(*shapes)
    assert "custom_call @jeffnet" not in exported.mlir_module()
    loaded = jax.export.deserialize(exported.serialize())
    for batch in (1, 4):
        inputs = [draw(*size).astype(np.float32) for size in ((batch, 3, 3, 5), (5, 16), (batch, 3, 3, 16))]
        assert_equal(loaded.call(*inputs), compiled(first(product))(*inputs), 1e-6)


PROGRAM = textwrap.dedent("""
    from functools import partial
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from jeffnet.ops import native
    from jeffnet.ops.conv import conv_general_dilated

    draw = np.random.default_rng(0).normal
    images, kernel = (draw(size=size).astype(np.float32) for size in ((8, 3, 2, 8), (1, 1, 8, 16)))

    def gradients(images, kernel):
        loss = lambda *inputs: (conv_general_dilated(*inputs, (1, 1), "SAME") ** 3).sum()
        return jax.grad(loss, (0, 1))(images, kernel)

    outputs = images.astype(np.float64) @ kernel[0, 0].astype(np.float64)
    g = 3 * outputs ** 2
    wanted = g @ kernel[0, 0].T, np.einsum("nhwc,nhwf->cf", images, g)[None, None]

    def check(function, opaque, *shardings):
        inputs = [jax.device_put(*pair) for pair in zip((images, kernel), shardings)]
        lowered = jax.jit(function).lower(*inputs)
        for ours, exact in zip(lowered.compile()(*inputs), wanted, strict=True):
            np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
        assert ("custom_call @jeffnet" in lowered.as_text()) == (opaque and native.available()), opaque

    batch, everywhere, columns = P("data"), P(), P(None, None, None, "data")
    check(gradients, True, *[jax.devices()[0]] * 2)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
        placed = partial(NamedSharding, mesh)
        with jax.set_mesh(mesh):
            check(gradients, False, placed(batch), placed(everywhere))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    placed = partial(NamedSharding, mesh)
    for names in ((batch, everywhere), (columns, P(None, None, "data")), (everywhere, columns), (everywhere,) * 2):
        check(gradients, False, *map(placed, names))
    # The kernel's gradient is the sum over the devices.
    split = dict(in_specs=(batch, everywhere), out_specs=(batch, everywhere))
    check(jax.shard_map(gradients, mesh=mesh, **split), True, placed(batch), placed(everywhere))
    grid = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    partly = jax.shard_map(gradients, mesh=grid, axis_names={"data"}, **split)
    check(partly, False, *[NamedSharding(grid, everywhere)] * 2)
    print("equal")
""")


def test_several_devices_find_what_one_finds():
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0 and answer.stdout == "equal\n", answer.stderr
