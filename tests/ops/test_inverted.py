"""The inverted residual computed row by row equals its convolutions one after the other, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.ops import native
from jeffnet.ops.activations import ACTIVATIONS
from jeffnet.ops.conv import make_window
from jeffnet.ops.dense import inverted_residual, pack_bias, pack_kernel

SAME, LIKE = "SAME", "symmetric"


def _draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def _act(name, x):
    return ACTIVATIONS[name](x) if name else x


@pytest.mark.parametrize("whole", [False, True], ids=["half", "whole"])
@pytest.mark.parametrize("bands", [1, 2, 3])
@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding"),
    [
        ((9, 8), 3, 1, SAME),
        ((9, 8), 3, 2, SAME),  # padded on two sides, or on four
        ((8, 9), 3, 2, LIKE),
        ((7, 7), 5, 1, SAME),
        ((10, 7), 5, 2, LIKE),
        ((12, 6), 5, 2, SAME),
        ((5, 3), 7, 1, LIKE),  # a kernel larger than the picture
        ((3, 20), 3, 3, SAME),
    ],
)
def test_equals_one_convolution_after_the_other(size, kernel_size, stride, padding, bands, whole):
    if not native.available():
        pytest.skip("the C++ kernels cannot be built")
    channels, wide, features = 5, 3 * native.load().jeffnet_vector_floats() // 2, 19
    half = kernel_size // 2
    pads = padding if padding == SAME else ((half, half), (half, half))
    window = make_window(size, (kernel_size,) * 2, (stride,) * 2, pads)
    x, expand, expand_bias = _draw(2, *size, channels), _draw(1, 1, channels, wide), _draw(wide)
    kernel, bias = _draw(kernel_size, kernel_size, 1, wide), _draw(wide, 1)[:, 0]
    project, project_bias = _draw(1, 1, wide, features), _draw(features)
    out = window.out_size(size, (kernel_size,) * 2)
    if min(out) < 1 or bands > out[0]:
        pytest.skip("fewer rows than bands")
    shortcut = _draw(2, *out, features)
    last = {"project": (pack_kernel(project), pack_bias(project_bias)), "features": features, "shortcut": shortcut}
    with_last = last if whole else {}
    packed = (pack_kernel(expand), pack_bias(expand_bias))
    ours, means = inverted_residual(
        jnp.asarray(x), packed, (kernel, bias), window, ("silu", "hard_swish"), bands, **with_last
    )
    with jax.enable_x64(True):
        exact = _act("silu", jnp.asarray(x, jnp.float64) @ expand[0, 0].astype(np.float64) + expand_bias)
        exact = jax.lax.conv_general_dilated(
            exact, jnp.asarray(kernel, jnp.float64), window.strides, window.pads,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=wide,
        )  # fmt: skip
        exact = _act("hard_swish", exact + bias)
        if whole:
            exact = exact @ project[0, 0].astype(np.float64) + project_bias + shortcut
        else:
            middle = np.asarray(exact.mean((1, 2), keepdims=True))
            np.testing.assert_allclose(means, middle, rtol=0, atol=1e-6 * np.abs(middle).max())
        exact = np.asarray(exact)
    assert ours.shape == exact.shape and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-6 * np.abs(exact).max())
