"""Which form a convolution takes, and that each of them equals XLA's own, in values and gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jeffnet.errors import ConfigError
from jeffnet.ops import conv, native
from jeffnet.ops.conv import LOWERINGS, NHWC, conv_general_dilated, lowering, make_window, use_lowering

SAME, VALID = "SAME", "VALID"


def _draw(*shape, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), dtype)


def _xla(images, kernel, strides, padding, groups=1):
    return lax.conv_general_dilated(
        images, kernel, strides, padding, dimension_numbers=NHWC, feature_group_count=groups
    )


def _compiled(function, *inputs):
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})(*inputs)


def _assert_same_function(ours, reference, images, kernel):
    """Values, gradients of a random quadratic functional and of their length, to 1e-12 of their largest magnitude."""
    weights = _draw(*jax.eval_shape(reference, images, kernel).shape)

    def derivatives(function):
        def gradients(*inputs):
            return jax.grad(lambda *inputs: (weights * function(*inputs) ** 2).sum(), (0, 1))(*inputs)

        def length(*inputs):
            return sum((each**2).sum() for each in gradients(*inputs))

        def run(*inputs):
            return function(*inputs), gradients(*inputs), jax.grad(length, (0, 1))(*inputs)

        return jax.tree.leaves(_compiled(run, images, kernel))

    for value, wanted in zip(derivatives(ours), derivatives(reference), strict=True):
        assert value.shape == wanted.shape and value.dtype == wanted.dtype == jnp.float64
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-12 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize(
    ("kernel", "strides", "padding", "groups", "form"),
    [
        ((3, 3, 1, 6), (2, 2), SAME, 6, "depthwise_conv"),
        ((5, 5, 1, 6), (1, 1), ((2, 2), (2, 2)), 6, "depthwise_conv"),
        ((1, 1, 6, 4), (1, 1), SAME, 1, "pointwise_conv"),
        ((1, 1, 6, 4), (1, 1), VALID, 1, "pointwise_conv"),
        ((1, 1, 6, 4), (1, 1), ((0, 0), (0, 0)), 1, "pointwise_conv"),
        ((1, 1, 6, 4), (1, 1), ((1, 0), (0, 0)), 1, "full_conv"),  # padded, it grows
        ((1, 1, 6, 4), (2, 2), SAME, 1, "full_conv"),  # EdgeTPU's strided projection
        ((3, 3, 6, 4), (1, 1), SAME, 1, "full_conv"),
        ((3, 3, 6, 4), (1, 1), ((-1, 0), (0, -1)), 1, "conv_general_dilated"),  # crops
        ((3, 3, 2, 6), (1, 1), SAME, 3, "conv_general_dilated"),  # grouped, not depthwise
        ((3, 3, 1, 12), (1, 1), SAME, 6, "conv_general_dilated"),  # two outputs a channel
        ((3, 3, 1, 6), (1, 1), ((-1, 0), (0, -1)), 6, "conv_general_dilated"),  # crops
        ((1, 1, 3, 4), (1, 1), SAME, 2, "conv_general_dilated"),
    ],
)
def test_every_form_equals_xla(kernel, strides, padding, groups, form, x64, monkeypatch):
    """And is the form that it says: a depthwise or a 1x1 convolution that XLA computes here would be right but slow."""
    images, weights = _draw(2, 7, 6, 6), _draw(*kernel)

    def ours(x, k):
        return conv_general_dilated(
            x, k, strides, padding, lhs_dilation=(1, 1), rhs_dilation=(1, 1), feature_group_count=groups
        )

    _assert_same_function(ours, lambda x, k: _xla(x, k, strides, padding, groups), images, weights)
    assert _operations(ours, images, weights) == [form]
    # On an accelerator all of them are XLA's.
    monkeypatch.setattr(conv.jax, "default_backend", lambda: "gpu")
    assert _operations(ours, images, weights) == ["conv_general_dilated"]


def _operations(function, *inputs):
    # What was traced before is kept by function.
    equations = jax.make_jaxpr(lambda *inputs: function(*inputs))(*inputs).eqns
    return [equation.primitive.name for equation in equations if "conv" in equation.primitive.name]


@pytest.mark.parametrize("name", LOWERINGS)
@pytest.mark.parametrize(
    "kernel", [(3, 3, 1, 16), (1, 1, 16, 16), (3, 3, 16, 16)], ids=["depthwise", "pointwise", "full"]
)
def test_every_lowering_is_the_same_function(name, kernel, x64):
    if name == "native" and not native.available():
        pytest.skip(f"no C++ kernels: {native.failure()}")
    groups = 16 // kernel[2]
    reference = functools.partial(_xla, strides=(1, 1), padding=SAME, groups=groups)
    with use_lowering(name):
        ours = functools.partial(conv_general_dilated, window_strides=(1, 1), padding=SAME, feature_group_count=groups)
        _assert_same_function(ours, reference, _draw(2, 5, 4, 16), _draw(*kernel))
        plain = _operations(ours, _draw(2, 5, 4, 16), _draw(*kernel)) == ["conv_general_dilated"]
        assert plain == (name == "xla")


def test_the_lowering_is_chosen_inside_out(monkeypatch):
    monkeypatch.delenv("JEFFNET_CONV", raising=False)
    assert lowering() == "auto"
    monkeypatch.setenv("JEFFNET_CONV", "shifted")
    assert lowering() == "shifted"
    with use_lowering("xla"):
        assert lowering() == "xla"
        with pytest.raises(KeyError), use_lowering("native"):
            assert lowering() == "native"
            raise KeyError
        assert lowering() == "xla"
    assert lowering() == "shifted"
    monkeypatch.setenv("JEFFNET_CONV", "")
    assert lowering() == "auto"


def test_a_lowering_that_does_not_exist_is_refused(monkeypatch):
    wanted = "is not one of auto, native, shifted, xla"
    with pytest.raises(ConfigError, match=f"lowering 'fast' {wanted}"), use_lowering("fast"):
        pass
    monkeypatch.setenv("JEFFNET_CONV", "xls")
    with pytest.raises(ConfigError, match=f"JEFFNET_CONV 'xls' {wanted}"):
        conv_general_dilated(jnp.ones((1, 2, 2, 3)), jnp.ones((1, 1, 3, 4)), (1, 1), SAME)


def test_a_single_channel_is_right_in_every_form(x64):
    images = _draw(2, 5, 6, 1)
    for kernel in (_draw(3, 3, 1, 1), _draw(1, 1, 1, 1), _draw(3, 3, 1, 4)):
        _assert_same_function(
            lambda x, k: conv_general_dilated(x, k, (1, 1), SAME, feature_group_count=1),
            lambda x, k: _xla(x, k, (1, 1), SAME),
            images,
            kernel,
        )


def test_a_dilated_input_is_left_to_xla(x64):
    images, kernel = _draw(1, 4, 4, 3), _draw(3, 3, 1, 3)
    options = {"padding": ((1, 1), (1, 1)), "lhs_dilation": (2, 2), "feature_group_count": 3}
    reference = lax.conv_general_dilated(images, kernel, (1, 1), dimension_numbers=NHWC, **options)
    ours = conv_general_dilated(images, kernel, (1, 1), **options)
    np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", [SAME, "same", "SAME_LOWER", VALID, [(1, 2), (0, 1)]], ids=str)
def test_padding_is_that_of_jax(padding):
    """Zeros around a picture count as nothing, so sums of ones tell how many rows and columns were added where."""
    images, kernel = jnp.ones((1, 6, 7, 2)), jnp.ones((3, 4, 1, 2))
    ours = conv_general_dilated(images, kernel, (2, 2), padding, feature_group_count=2)
    np.testing.assert_array_equal(ours, _xla(images, kernel, (2, 2), padding, groups=2))


def test_a_window_knows_its_padding():
    assert make_window((7, 6), (3, 3), (2, 2), SAME) == ((2, 2), ((1, 1), (0, 1)), (1, 1))
    assert make_window((7, 6), (3, 3), (1, 1), SAME, (2, 1)) == ((1, 1), ((2, 2), (1, 1)), (2, 1))


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 3, 2, 6), {"padding": SAME}),  # each group would have two channels
        ((3, 3, 1, 6), {"padding": "SOME"}),
        ((3, 3, 1, 6), {"padding": SAME, "rhs_dilation": (0, 1)}),
    ],
    ids=["kernel", "padding", "dilation"],
)
def test_what_jax_refuses_is_refused_alike(kernel, options):
    inputs, options = (jnp.ones((2, 7, 6, 6)), jnp.ones(kernel), (1, 1)), {**options, "feature_group_count": 6}
    with pytest.raises((ValueError, TypeError, RuntimeError)) as wanted:
        lax.conv_general_dilated(*inputs, dimension_numbers=NHWC, **options)
    with pytest.raises(wanted.type) as ours:
        conv_general_dilated(*inputs, **options)
    assert str(ours.value) == str(wanted.value)


@pytest.mark.parametrize("kernel", [(3, 3, 1, 6), (1, 1, 6, 4)], ids=["depthwise", "pointwise"])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64])
def test_other_numbers_are_left_to_xla(dtype, kernel):
    inputs, groups = (jnp.full((2, 7, 6, 6), 2**12 + 1, dtype), jnp.full(kernel, 2**12 + 1, dtype)), 6 // kernel[2]
    ours = conv_general_dilated(*inputs, (1, 1), SAME, feature_group_count=groups)
    np.testing.assert_array_equal(ours, _xla(*inputs, (1, 1), SAME, groups))


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 1, 6), 2), ((1, 1, 6, 4), 1)], ids=["depthwise", "pointwise"])
def test_an_exported_program_takes_pictures_of_any_size(kernel, stride, x64):
    sizes, groups = jax.export.symbolic_shape("count, height, width"), 6 // kernel[2]

    def function(x, k):
        return conv_general_dilated(x, k, (stride, stride), SAME, feature_group_count=groups)

    shapes = jax.ShapeDtypeStruct((*sizes, 6), float), jax.ShapeDtypeStruct(kernel, float)
    exported = jax.export.export(jax.jit(function))(*shapes)
    inputs = _draw(2, 5, 4, 6), _draw(*kernel)
    wanted = _xla(*inputs, (stride, stride), SAME, groups)
    np.testing.assert_allclose(exported.call(*inputs), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("features", "kernel_size", "groups", "strides"), [(6, 3, 6, 2), (6, 5, 6, 1), (4, 1, 1, 1), (4, 3, 1, 2)]
)
def test_flax_layers_take_it(features, kernel_size, groups, strides, x64):
    """The arguments that `flax.linen.Conv` passes are those that it reads."""
    options = dict(strides=strides, feature_group_count=groups, param_dtype=jnp.float64)
    images = _draw(2, 7, 6, 6)
    layer = nn.Conv(features, (kernel_size, kernel_size), **options)
    ours = nn.Conv(features, (kernel_size, kernel_size), **options, conv_general_dilated=conv_general_dilated)
    variables = layer.init(jax.random.key(0), images)
    np.testing.assert_allclose(ours.apply(variables, images), layer.apply(variables, images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("kernel", [(3, 3, 1, 6), (1, 1, 6, 4), (3, 3, 6, 4)], ids=["depthwise", "pointwise", "full"])
def test_dtypes_stay(kernel, dtype):
    images, weights = _draw(2, 7, 6, 6, dtype=dtype), _draw(*kernel, dtype=dtype)

    def function(x, k):
        return conv_general_dilated(x, k, (1, 1), SAME, feature_group_count=6 // kernel[2])

    assert function(images, weights).dtype == dtype
    for gradient in jax.grad(lambda x, k: function(x, k).sum(), (0, 1))(images, weights):
        assert gradient.dtype == dtype
