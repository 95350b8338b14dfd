"""BatchNorm with its activation as primitives: the C++ against formulas in float64, the reference against JAX's own."""

import os
import subprocess
import sys
import textwrap
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.errors import ConfigError
from jeffnet.ops import batch_norm, native
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.batch_norm import fits, norm_act_train
from jeffnet.ops.dense import ACTS

EPSILON = 1e-3
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture
def cpp():
    """For tests of the C++ kernels."""
    if not native.available():
        pytest.skip(f"no C++ kernels: {native.failure()}")


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def inputs_of(shape, dtype=np.float64):
    """x, scale, bias, and cotangents of the three outputs."""
    channels = shape[-1:]
    arrays = [draw(*shape), 1 + 0.3 * draw(*channels, seed=1), draw(*channels, seed=2)]
    arrays += [draw(*shape, seed=3), draw(*channels, seed=4), draw(*channels, seed=5)]
    return [each.astype(dtype) for each in arrays]


def by(lowering, act):
    return lambda x, scale, bias: norm_act_train(x, scale, bias, EPSILON, act, lowering)


def composed(act):
    """The same function of JAX's operations, without a primitive of our own."""

    def function(x, scale, bias):
        axes = tuple(range(x.ndim - 1))
        mean, var = jnp.mean(x, axes), jnp.var(x, axes)
        y = (x - mean) / jnp.sqrt(var + EPSILON) * scale + bias
        return ACTIVATIONS[act](y) if act else y, mean, var

    return function


def first(function):
    """The outputs and the gradients, given the outputs' cotangents."""

    def run(x, scale, bias, *cotangents):
        outputs, pull_back = jax.vjp(function, x, scale, bias)
        return *outputs, *pull_back(cotangents)

    return run


def second(function):
    """Derivatives in a direction, and, both ways, how the gradients of a nonlinear functional change."""

    def run(x, scale, bias, *direction):
        def gradients(*inputs):
            return jax.grad(lambda *inputs: sum(jnp.sin(each).sum() for each in function(*inputs)), (0, 1, 2))(*inputs)

        def slope(*inputs):
            return sum((each * towards).sum() for each, towards in zip(gradients(*inputs), direction, strict=True))

        at = x, scale, bias
        return jax.jvp(function, at, direction), jax.jvp(gradients, at, direction), jax.grad(slope, (0, 1, 2))(*at)

    return run


def assert_equal(ours, wanted, tolerance=1e-12):
    """To `tolerance` times the largest magnitude of each array."""
    ours, wanted = jax.tree.leaves(ours), jax.tree.leaves(wanted)
    assert [each.shape for each in ours] == [each.shape for each in wanted]
    for value, reference in zip(ours, wanted, strict=True):
        assert np.isfinite(reference).all()
        np.testing.assert_allclose(value, reference, rtol=0, atol=tolerance * float(np.abs(reference).max(initial=0)))


# ------------------------------------------------------------------------------------------------------------ the C++


def sigmoid(y):
    return 1 / (1 + np.exp(-y))


def ramp(y):
    return np.clip(y + 3, 0, 6) / 6


# Each activation, its slope, and where the slope jumps.
FORMULAS = {
    None: (lambda y: y, np.ones_like, ()),
    "relu": (lambda y: np.maximum(y, 0), lambda y: y > 0, (0,)),
    "relu6": (lambda y: np.clip(y, 0, 6), lambda y: (y > 0) & (y < 6), (0, 6)),
    "silu": (lambda y: y * sigmoid(y), lambda y: sigmoid(y) * (1 + y * (1 - sigmoid(y))), ()),
    "hard_swish": (
        lambda y: y * ramp(y),
        lambda y: np.where(np.abs(y) < 3, (2 * y + 3) / 6, y > 0),
        (-3, 3),
    ),
    "sigmoid": (sigmoid, lambda y: sigmoid(y) * (1 - sigmoid(y)), ()),
    "hard_sigmoid": (ramp, lambda y: (np.abs(y) < 3) / 6, (-3, 3)),
}


def test_every_activation_has_a_number():
    """All but GELU, whose norm XLA computes."""
    assert {name for name in ACTS if name} == ACTIVATIONS.keys() - {"gelu"} == {name for name in FORMULAS if name}
    assert sorted(ACTS.values()) == list(range(len(ACTS)))


def exactly(act, x, scale, bias, y_bar, mean_bar, var_bar):
    """Outputs and gradients in float64, each with the magnitude of what is summed up in it.

    Ioffe and Szegedy, arXiv:1502.03167, section 3, with cotangents of the mean and the variance besides.
    """
    activation, slope, _ = FORMULAS[act]
    count, mean, var = len(x), x.mean(0), x.var(0)
    deviation = 1 / np.sqrt(var + EPSILON)
    normal = (x - mean) * deviation
    inner = y_bar * slope(normal * scale + bias)
    scaled = inner * scale * deviation
    through_mean, through_var = (
        mean_bar / count - scaled.mean(0),
        2 * var_bar / count / deviation - (scaled * normal).mean(0),
    )
    sizes = np.abs(y_bar * scale * deviation), np.abs(scaled).mean(0), np.abs(scaled * normal).mean(0)
    return [
        (activation(normal * scale + bias), 1 + np.abs(normal * scale) + np.abs(bias)),
        (mean, np.abs(x).mean(0)),
        (var, var),
        (
            scaled + through_mean + normal * through_var,
            sizes[0]
            + sizes[1]
            + np.abs(mean_bar / count)
            + np.abs(normal) * (sizes[2] + np.abs(var_bar / deviation / count)),
        ),
        ((inner * normal).sum(0), np.abs(inner * normal).sum(0)),
        (inner.sum(0), np.abs(inner).sum(0)),
    ]


def without_jumps(act, x, scale, bias, y_bar):
    """The cotangent, 0 where float32 may be on the other side of a jump of the slope."""
    y = (x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON) * scale + bias
    near = [np.abs(y - place) < 1e-4 for place in FORMULAS[act][2]]
    return np.where(np.any(near, axis=0), 0, y_bar) if near else y_bar


def assert_exact_but_for_roundings(act, rows, channels):
    """To 16 roundings of float32 of what is summed up."""
    inputs = inputs_of((rows, channels), np.float32)
    inputs[3] = without_jumps(act, *inputs[:4]).astype(np.float32)
    ours = compiled(first(by("native", act)))(*inputs)
    for value, (exact, magnitude) in zip(
        ours, exactly(act, *(each.astype(np.float64) for each in inputs)), strict=True
    ):
        assert value.dtype == np.float32
        assert (np.abs(value - exact) <= 16 * 2.0**-24 * magnitude).all()


SHAPES = [
    *((act, 300, 40) for act in ACTS),
    ("silu", 1, 16),
    (None, 2, 17),
    ("relu6", 70, 24),
    ("hard_swish", 1300, 100),
]


@pytest.mark.parametrize(("act", "rows", "channels"), SHAPES, ids=str)
def test_cpp_is_exact_but_for_roundings(act, rows, channels, cpp):
    """One row and many; channels that fill vectors and that do not; one part of the work and several."""
    assert_exact_but_for_roundings(act, rows, channels)


@pytest.mark.parametrize("act", ["silu", "relu6"])
def test_cpp_is_exact_but_for_roundings_of_many_rows(act, cpp):
    """More than the parts into which work is divided, and than the chunks of each, hold."""
    assert_exact_but_for_roundings(act, 40_001, 16)


@pytest.mark.parametrize("rows", [63, 65, 1024, 40_000])
def test_a_large_mean_does_not_cancel(rows, cpp):
    """E[x^2] - E[x]^2 in float32 would be off by 6 where the variance is 1."""
    x = (1e4 + draw(rows, 24)).astype(np.float32)
    ones = np.ones(24, np.float32)
    y, mean, var = compiled(by("native", None))(x, ones, 0 * ones)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=4e-7)
    np.testing.assert_allclose(var, exact.var(0), rtol=1e-5)
    # A step of float32 is 0.001 at 10,000: the mean cannot be closer.
    normal = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + EPSILON)
    np.testing.assert_allclose(y, normal, rtol=0, atol=3e-3)


def test_means_far_apart_are_merged(cpp):
    """Each part of the rows lies around another number, so that merging makes nearly all of the variance."""
    x = (draw(40_000, 16) + 100 * (np.arange(40_000) // 4000)[:, None]).astype(np.float32)
    ones = np.ones(16, np.float32)
    _, mean, var = compiled(by("native", None))(x, ones, ones)
    np.testing.assert_allclose(mean, x.mean(0, np.float64), rtol=1e-6)
    np.testing.assert_allclose(var, x.var(0, np.float64), rtol=1e-5)


def test_a_channel_of_no_variance_is_its_bias(cpp):
    x, ones = np.full((5, 7, 3, 16), 7.0, np.float32), np.ones(16, np.float32)
    y, mean, var = compiled(by("native", None))(x, ones, 3 * ones)
    assert (y == 3).all() and (mean == 7).all() and (var == 0).all()


def test_what_is_not_a_number_stays_so(cpp):
    """And only in its channel: vectors of channels must not mix."""
    x = draw(100, 17).astype(np.float32)
    x[50, 16], x[60, 3] = np.nan, np.inf
    for act in ACTS:
        y, mean, var = compiled(by("native", act))(x, np.ones(17, np.float32), np.zeros(17, np.float32))
        bad = np.isin(np.arange(17), (3, 16))
        for value in (y[0], y[-1], var):
            np.testing.assert_array_equal(np.isnan(value), bad, str(act))
        np.testing.assert_array_equal(np.isfinite(mean), ~bad)


# ------------------------------------------------------------------------------------------------------ the reference


@pytest.mark.parametrize("act", ACTS)
def test_reference_equals_the_composition(act, x64):
    inputs = inputs_of((3, 4, 2, 5))
    assert_equal(compiled(first(by("shifted", act)))(*inputs), compiled(first(composed(act)))(*inputs))


@pytest.mark.parametrize("act", ["silu", None])
def test_reference_equals_the_composition_to_second_order(act, x64):
    inputs = inputs_of((4, 3, 5))
    assert_equal(compiled(second(by("shifted", act)))(*inputs), compiled(second(composed(act)))(*inputs))


def test_cpp_has_the_second_derivatives_of_the_reference(cpp):
    """In float32, where the first ones come from C++."""
    inputs = inputs_of((40, 17), np.float32)
    ours = compiled(second(by("native", "silu")))(*inputs)
    with jax.enable_x64(True):
        wanted = compiled(second(composed("silu")))(*(each.astype(np.float64) for each in inputs))
    assert_equal(ours, wanted, 3e-6)
    assert {each.dtype for each in jax.tree.leaves(ours)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("chosen", [0, 1, 2, (0, 2)])
def test_gradients_of_some_inputs(chosen, x64):
    inputs = inputs_of((6, 5))[:3]

    def gradients(function):
        return jax.grad(lambda *inputs: sum(jnp.sin(each).sum() for each in function(*inputs)), chosen)

    assert_equal(compiled(gradients(by("shifted", "silu")))(*inputs), compiled(gradients(composed("silu")))(*inputs))


@pytest.mark.parametrize("output", [0, 1, 2])
def test_gradients_of_one_output(output, cpp):
    """The others' cotangents are not there at all."""
    inputs = inputs_of((6, 16), np.float32)[:3]

    def gradients(function):
        return jax.grad(lambda *inputs: jnp.sin(function(*inputs)[output]).sum(), (0, 1, 2))

    ours = compiled(gradients(by("native", "silu")))(*inputs)
    with jax.enable_x64(True):
        wanted = compiled(gradients(composed("silu")))(*(each.astype(np.float64) for each in inputs))
    assert_equal(ours, wanted, 3e-6)


@pytest.mark.parametrize(
    ("lowering", "axes"),
    [("native", (2, 1, 0)), ("shifted", (2, 1, 0)), ("shifted", (0, None, None)), ("shifted", (None, 0, 1))],
    ids=str,
)
def test_vmap(lowering, axes):
    """Of the function and of its gradients; every member has statistics of its own."""
    if lowering == "native" and not native.available():
        pytest.skip(f"no C++ kernels: {native.failure()}")
    dtype, tolerance = (np.float32, 3e-6) if lowering == "native" else (np.float64, 1e-12)
    single = inputs_of((4, 3, 16))[:3]
    inputs = [
        each if axis is None else np.stack([each, each[..., ::-1] + 1, each**2], axis)
        for each, axis in zip(single, axes, strict=True)
    ]

    def mapped(function):
        loss = lambda *inputs: sum(jnp.sin(each).sum() for each in function(*inputs))  # noqa: E731
        return lambda *inputs: (jax.vmap(function, axes)(*inputs), jax.vmap(jax.grad(loss, (0, 1, 2)), axes)(*inputs))

    with jax.enable_x64(dtype == np.float64):
        ours = compiled(mapped(by(lowering, "silu")))(*(each.astype(dtype) for each in inputs))
    with jax.enable_x64(True):
        wanted = compiled(mapped(composed("silu")))(*inputs)
    assert_equal(ours, wanted, tolerance)


def test_gradients_through_vmap(x64):
    inputs = draw(3, 4, 5), *inputs_of((4, 5))[1:3]

    def gradients(function):
        mapped = jax.vmap(function, (0, None, None))
        return jax.grad(lambda *inputs: sum(jnp.sin(each).sum() for each in mapped(*inputs)), (0, 1, 2))

    assert_equal(compiled(gradients(by("shifted", "silu")))(*inputs), compiled(gradients(composed("silu")))(*inputs))


def test_jit_and_checkpoint_change_nothing(cpp):
    inputs = inputs_of((30, 2, 16), np.float32)
    function = by("native", "silu")
    wanted = first(function)(*inputs)
    for changed in (compiled(first(function)), compiled(first(jax.checkpoint(function)))):
        assert_equal(changed(*inputs), wanted, 1e-6)


def test_the_transpose_of_the_gradient_is_the_derivative(x64):
    """The gradient is linear in the outputs' cotangents, all of them or some."""
    inputs = inputs_of((4, 3))

    def transposed(x, scale, bias, *direction):
        outputs, pull_back = jax.vjp(by("shifted", "silu"), x, scale, bias)
        zeros = jnp.zeros_like(outputs[1])
        (of_all,) = jax.linear_transpose(pull_back, outputs)(direction)
        (of_first,) = jax.linear_transpose(lambda y_bar: pull_back((y_bar, zeros, zeros)), outputs[0])(direction)
        return *of_all, of_first

    def wanted(x, scale, bias, *direction):
        outputs = jax.jvp(composed("silu"), (x, scale, bias), direction)[1]
        return *outputs, outputs[0]

    assert_equal(compiled(transposed)(*inputs), compiled(wanted)(*inputs))


def test_one_array_of_the_size_of_the_input_is_kept(cpp):
    """What the backward pass needs: the input alone, which is what makes training fit."""
    inputs = inputs_of((30, 2, 16), np.float32)[:3]
    _, pull_back = jax.vjp(by("native", "silu"), *inputs)
    assert [each.shape for each in jax.tree.leaves(pull_back) if each.size >= inputs[0].size] == [(30, 2, 16)]


# ---------------------------------------------------------------------------------------------- platforms and devices


def calls(function, *inputs):
    """The names of the C++ functions in a program."""
    text = jax.jit(function).lower(*inputs).as_text()
    return [name for name in native._TARGETS if f"custom_call @{name}(" in text]


FORWARD = ["jeffnet_statistics", "jeffnet_normalize"]
BACKWARD = ["jeffnet_normalize_sums", "jeffnet_normalize_gradient"]


def test_which_functions_are_called(cpp):
    inputs = inputs_of((30, 16), np.float32)
    for lowering in ("auto", "native"):
        assert calls(by(lowering, "silu"), *inputs[:3]) == FORWARD
        assert calls(first(by(lowering, "silu")), *inputs) == FORWARD + BACKWARD
    assert calls(first(by("shifted", "silu")), *inputs) == []


def test_what_fits(cpp):
    lanes = native.load().jeffnet_vector_floats()
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731

    def of(x, scale=None, act=None):
        scale = f32(x.shape[-1]) if scale is None else scale
        return fits(x, scale, scale, act)

    assert all(of(f32(2, 3, 3, lanes + more), act=act) for act in ACTS for more in (0, 1))
    assert of(f32(2, lanes)) and not of(f32(2, lanes - 1)) and not of(f32(0, lanes))
    assert not of(f32(2, lanes), act="tanh")
    half = jax.ShapeDtypeStruct((lanes,), jnp.bfloat16)
    assert not of(f32(2, lanes), half) and not of(jax.ShapeDtypeStruct((2, lanes), jnp.bfloat16))


def test_other_default_platforms_do_not_fit(monkeypatch):
    arrays = jnp.ones((2, 64)), jnp.ones(64), jnp.ones(64)
    monkeypatch.setattr(batch_norm.jax, "default_backend", lambda: "gpu")
    assert not fits(*arrays, None)


def test_without_a_compiler_the_reference_is_used_or_it_says_why(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "failure", lambda: "no C++ compiler was found")
    inputs = inputs_of((30, 16), np.float32)
    assert not fits(*map(jnp.asarray, inputs[:3]), None)
    assert calls(first(by("auto", "silu")), *inputs) == []
    with pytest.raises(
        ConfigError, match=r"lowering 'native': no C\+\+ compiler was found; choose 'auto' or 'shifted'"
    ):
        calls(by("native", "silu"), *inputs[:3])


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_get_the_reference(platform):
    inputs = inputs_of((30, 16), np.float32)
    text = jax.jit(first(by("auto", "silu"))).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()
    assert "custom_call @jeffnet" not in text and "stablehlo.reduce" in text


def test_an_exported_program_runs_anywhere():
    """It must not need what was compiled here, and takes any number of rows."""
    rows = jax.export.symbolic_shape("rows")[0]
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((rows, 16), (16,), (16,))]
    exported = jax.export.export(jax.jit(first(by("auto", "silu"))), platforms=("cpu", "cuda", "tpu"))(*shapes, *shapes)
    assert "custom_call @jeffnet" not in exported.mlir_module()
    loaded = jax.export.deserialize(exported.serialize())
    for count in (2, 30):
        inputs = inputs_of((count, 16), np.float32)
        assert_equal(loaded.call(*inputs), compiled(first(composed("silu")))(*inputs), 1e-5)


PROGRAM = textwrap.dedent("""
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    from jeffnet.ops import native
    from jeffnet.ops.norm import norm_train

    draw = np.random.default_rng(0).normal
    x, scale, bias = (draw(size=size).astype(np.float32) for size in ((8, 3, 2, 16), 16, 16))

    def gradients(x, scale, bias):
        def loss(*inputs):
            y, mean, var = norm_train(*inputs, 1e-3, jnp.float32, "silu")
            return (y ** 3).sum() + (mean ** 2).sum() + (var ** 3).sum(), (mean, var)
        gradients, statistics = jax.grad(loss, (0, 1, 2), has_aux=True)(x, scale, bias)
        return *statistics, *gradients

    def check(function, wanted, opaque, *shardings):
        inputs = [jax.device_put(*pair) for pair in zip((x, scale, bias), shardings)]
        lowered = jax.jit(function).lower(*inputs)
        for ours, exact in zip(lowered.compile()(*inputs), wanted, strict=True):
            np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-5 * np.abs(exact).max())
        assert ("custom_call @jeffnet" in lowered.as_text()) == (opaque and native.available()), opaque

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    typed = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    batch, everywhere, channels = P("data"), P(), P(None, None, None, "data")
    whole = [np.asarray(each) for each in jax.jit(gradients)(x, scale, bias)]
    np.testing.assert_allclose(whole[0], x.mean((0, 1, 2)), atol=1e-6)
    check(gradients, whole, True, *[jax.devices()[0]] * 3)
    for names in ((batch, everywhere, everywhere), (channels, P("data"), P("data")), (everywhere,) * 3):
        check(gradients, whole, False, *(NamedSharding(mesh, each) for each in names))
        with jax.set_mesh(mesh):
            check(gradients, whole, False, *(NamedSharding(mesh, each) for each in names))
    with jax.set_mesh(typed):
        for names in ((batch, everywhere, everywhere), (everywhere,) * 3):
            check(gradients, whole, False, *(NamedSharding(typed, each) for each in names))
    # Each device normalises by its own pictures; the gradients of what they share are summed.
    each = [jax.jit(gradients)(x[2 * device : 2 * device + 2], scale, bias) for device in range(4)]
    mean, var, x_bar, scale_bar, bias_bar = map(list, zip(*each))
    parts = [np.stack(mean), np.stack(var), np.concatenate(x_bar), sum(scale_bar), sum(bias_bar)]
    split = dict(mesh=mesh, in_specs=(batch, everywhere, everywhere), check_vma=True)

    def stacked(x, scale, bias):
        mean, var, *rest = gradients(x, scale, bias)
        return mean[None], var[None], *rest

    mapped = jax.shard_map(stacked, out_specs=(batch, batch, batch, everywhere, everywhere), **split)
    check(mapped, parts, True, *[NamedSharding(mesh, everywhere)] * 3)

    # With the axis named, they form one batch again.
    def together(x, scale, bias):
        return norm_train(x, scale, bias, 1e-3, jnp.float32, "silu", axis_name="data")[1:]

    mapped = jax.shard_map(together, out_specs=(everywhere, everywhere), **split)
    check(mapped, whole[:2], False, *[NamedSharding(mesh, everywhere)] * 3)
    print("equal")
""")


def test_several_devices():
    """Under `jit` the statistics are those of the whole batch, inside `shard_map` each device's own."""
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0 and answer.stdout == "equal\n", answer.stderr
