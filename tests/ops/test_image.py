"""Normalisation on the device: the formula, its precision, and what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.errors import JeffnetError
from jeffnet.ops.image import normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 5, 4, channels), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_it_is_the_formula_for_every_input_type(dtype, x64):
    """In float64 to the last digits, with three different channels so that a swapped pair shows."""
    expected = (pixels().astype(np.float64) / 255 - np.array(MEAN)) / np.array(STD)
    result = normalize(pixels().astype(dtype), MEAN, STD, jnp.float64)
    assert result.dtype == jnp.float64
    np.testing.assert_allclose(result, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_it_rounds_once_to_the_requested_type(dtype):
    """Arithmetic in bfloat16 itself would be off by several units in the last place."""
    expected = (pixels().astype(np.float64) / 255 - np.array(MEAN)) / np.array(STD)
    result = jax.jit(normalize, static_argnums=(1, 2, 3))(pixels(), MEAN, STD, dtype)
    assert result.dtype == dtype
    unit = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, rtol=0.51 * unit + 1e-6, atol=1e-6)


def test_the_default_is_float32():
    assert normalize(pixels(), MEAN, STD).dtype == jnp.float32


def test_grey_takes_the_average_of_the_colours():
    result = normalize(pixels(1), MEAN, STD)
    np.testing.assert_allclose(result, (pixels(1) / 255 - np.mean(MEAN)) / np.mean(STD), rtol=1e-5, atol=1e-6)


def test_grey_takes_a_value_of_its_own():
    np.testing.assert_allclose(
        normalize(pixels(1), (0.5,), (0.25,)), (pixels(1) / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("shape", "mean", "std", "fault"),
    [
        ((1, 4, 4, 3), (0.5,), (0.5,), "mean"),
        ((1, 4, 4, 3), MEAN, (0.5,), "std"),
        ((1, 4, 4, 1), (0.5, 0.5), (0.5, 0.5), "mean"),
        ((1, 4, 4, 4), MEAN, STD, "mean"),
        ((4, 4, 3), MEAN, STD, r"\(4, 4, 3\)"),
    ],
)
def test_what_does_not_fit_is_an_error_naming_it(shape, mean, std, fault):
    with pytest.raises(JeffnetError, match=fault):
        normalize(np.zeros(shape, np.uint8), mean, std)
