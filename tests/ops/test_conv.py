"""The forms of convolution that the CPU runs equal XLA's own, in values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jeffnet.ops import conv
from jeffnet.ops.conv import NHWC, conv_general_dilated, depthwise_conv

SAME, VALID = "SAME", "VALID"


def _draw(*shape, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), dtype)


def _xla(images, kernel, strides, padding, dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        images,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=NHWC,
        feature_group_count=groups,
    )


def _assert_same_function(ours, reference, images, kernel):
    """Values, and both gradients through a random linear functional, to 1e-12 of their largest magnitude."""
    shape = jax.eval_shape(reference, images, kernel).shape
    weights = _draw(*shape)

    def value_and_gradients(function):
        def run(*inputs):
            value, pull_back = jax.vjp(function, *inputs)
            return value, *pull_back(weights)

        return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(images, kernel)

    for value, wanted in zip(value_and_gradients(ours), value_and_gradients(reference), strict=True):
        assert value.shape == wanted.shape and value.dtype == wanted.dtype == jnp.float64
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-12 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize(
    ("size", "kernel_size", "strides", "padding", "dilation"),
    [
        ((8, 8), (3, 3), (1, 1), SAME, (1, 1)),
        ((8, 8), (3, 3), (2, 2), SAME, (1, 1)),
        ((9, 9), (3, 3), (2, 2), SAME, (1, 1)),
        ((8, 9), (5, 5), (2, 2), SAME, (1, 1)),
        ((9, 8), (5, 5), (2, 2), ((2, 2), (2, 2)), (1, 1)),
        ((8, 8), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),
        ((9, 7), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        ((9, 7), (3, 3), (1, 1), VALID, (1, 1)),
        ((9, 7), (3, 3), (2, 2), VALID, (1, 1)),
        ((9, 7), (3, 3), (1, 1), ((0, 2), (1, 0)), (1, 1)),  # unlike on all four sides
        ((9, 8), (3, 3), (1, 1), SAME, (2, 2)),
        ((9, 8), (5, 5), (1, 1), ((8, 8), (8, 8)), (4, 4)),
        ((9, 8), (3, 3), (2, 2), SAME, (2, 2)),
        ((9, 8), (3, 5), (2, 1), SAME, (1, 2)),  # height and width unlike
        ((2, 1), (5, 5), (2, 2), SAME, (1, 1)),  # a kernel larger than the picture
        ((1, 1), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        ((3, 2), (11, 11), (1, 1), SAME, (1, 1)),
        ((6, 6), (1, 1), (1, 1), SAME, (1, 1)),
        ((7, 6), (1, 1), (2, 2), SAME, (1, 1)),
    ],
)
def test_depthwise_equals_xla(size, kernel_size, strides, padding, dilation, x64):
    images, kernel = _draw(2, *size, 5), _draw(*kernel_size, 1, 5)
    _assert_same_function(
        lambda x, k: depthwise_conv(x, k, strides, padding, dilation),
        lambda x, k: _xla(x, k, strides, padding, dilation, groups=5),
        images,
        kernel,
    )


@pytest.mark.parametrize(
    ("kernel", "strides", "padding", "groups", "form"),
    [
        ((3, 3, 1, 6), (2, 2), SAME, 6, "depthwise"),
        ((5, 5, 1, 6), (1, 1), ((2, 2), (2, 2)), 6, "depthwise"),
        ((1, 1, 6, 4), (1, 1), SAME, 1, "product"),
        ((1, 1, 6, 4), (1, 1), VALID, 1, "product"),
        ((1, 1, 6, 4), (1, 1), ((0, 0), (0, 0)), 1, "product"),
        ((1, 1, 6, 4), (1, 1), ((1, 0), (0, 0)), 1, "xla"),  # padded, it grows
        ((1, 1, 6, 4), (2, 2), SAME, 1, "xla"),  # EdgeTPU's strided projection
        ((3, 3, 6, 4), (1, 1), SAME, 1, "xla"),
        ((3, 3, 2, 6), (1, 1), SAME, 3, "xla"),  # grouped, not depthwise
        ((3, 3, 1, 12), (1, 1), SAME, 6, "xla"),  # two outputs a channel
        ((1, 1, 3, 4), (1, 1), SAME, 2, "xla"),
    ],
)
def test_every_form_equals_xla(kernel, strides, padding, groups, form, x64, monkeypatch):
    """And is the form that it says: a depthwise or a 1x1 convolution that XLA computes here would be right but slow."""
    images, weights = _draw(2, 7, 6, 6), _draw(*kernel)

    def ours(x, k):
        return conv_general_dilated(
            x, k, strides, padding, lhs_dilation=(1, 1), rhs_dilation=(1, 1), feature_group_count=groups
        )

    _assert_same_function(ours, lambda x, k: _xla(x, k, strides, padding, groups=groups), images, weights)
    operations = str(jax.make_jaxpr(ours)(images, weights))
    assert ("conv_general_dilated" in operations) == (form == "xla")
    assert ("dot_general" in operations) == (form == "product")
    # On an accelerator all of them are XLA's.
    monkeypatch.setattr(conv.jax, "default_backend", lambda: "gpu")
    assert "conv_general_dilated" in str(jax.make_jaxpr(lambda *inputs: ours(*inputs))(images, weights))


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


@pytest.mark.parametrize(
    ("features", "kernel_size", "groups", "strides"), [(6, 3, 6, 2), (6, 5, 6, 1), (4, 1, 1, 1), (4, 3, 1, 2)]
)
def test_flax_layers_take_it(features, kernel_size, groups, strides, x64):
    """The arguments that `flax.linen.Conv` passes are those that it reads."""
    options = dict(strides=strides, feature_group_count=groups, param_dtype=jnp.float64)
    images = _draw(2, 7, 6, 6)
    native = nn.Conv(features, (kernel_size, kernel_size), **options)
    ours = nn.Conv(features, (kernel_size, kernel_size), **options, conv_general_dilated=conv_general_dilated)
    variables = native.init(jax.random.key(0), images)
    np.testing.assert_allclose(ours.apply(variables, images), native.apply(variables, images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("kernel", [(3, 3, 1, 6), (1, 1, 6, 4), (3, 3, 6, 4)], ids=["depthwise", "product", "xla"])
def test_dtypes_stay(kernel, dtype):
    images, weights = _draw(2, 7, 6, 6, dtype=dtype), _draw(*kernel, dtype=dtype)
    groups = 6 // kernel[2]
    assert conv_general_dilated(images, weights, (1, 1), SAME, feature_group_count=groups).dtype == dtype
    if groups == 6:
        gradient = jax.grad(lambda x: depthwise_conv(x, weights, (1, 1), SAME).sum())(images)
        assert gradient.dtype == dtype


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_accumulates_in_float32(dtype):
    """121 products of 1 and 1 + 1/2 summed one by one in bfloat16 would stop growing; only the result is rounded."""
    images, kernel = _draw(1, 11, 11, 4, dtype=dtype), _draw(11, 11, 1, 4, dtype=dtype)
    exact = depthwise_conv(images.astype(jnp.float32), kernel.astype(jnp.float32), (1, 1), VALID)
    np.testing.assert_array_equal(depthwise_conv(images, kernel, (1, 1), VALID), exact.astype(dtype))
