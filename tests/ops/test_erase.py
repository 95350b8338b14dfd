"""Random erasing: what is drawn, against timm; and what is filled in."""

import random
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

from jeffnet.errors import JeffnetError
from jeffnet.ops.erase import MODES, draw_boxes, random_erasing
from jeffnet.ops.image import normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPTIONS = {"prob": 1.0, "mode": "const", "count": 1, "mean": MEAN, "std": STD}
PICTURES = 2000


def images(dtype: DTypeLike = jnp.float32, channels: int = 3) -> jax.Array:
    """256 pictures of whole numbers, which are none of the colours that are filled in."""
    return jax.random.randint(jax.random.key(9), (256, 20, 14, channels), 0, 256).astype(dtype)


def measured(erased: np.ndarray) -> SimpleNamespace:
    """Of maps of erased pixels, `(N, H, W)`: how many have any, and how tall, wide and far from the corner they lie."""
    touched = erased[erased.any(axis=(1, 2))]
    rows, columns = touched.any(2), touched.any(1)
    return SimpleNamespace(
        share=len(touched) / len(erased),
        area=touched.mean((1, 2)),
        tall=rows.sum(1),
        wide=columns.sum(1),
        top=rows.argmax(1),
        left=columns.argmax(1),
    )


def drawn(height: int, width: int, prob: float, count: int) -> np.ndarray:
    """Maps of pixels that are erased."""
    options = {**OPTIONS, "prob": prob, "count": count}
    erased = random_erasing(jnp.full((PICTURES, height, width, 1), -1.0), jax.random.key(0), **options)
    return np.asarray(erased != -1)[..., 0]


@cache
def timm_drawn(height: int, width: int, prob: float, count: int) -> np.ndarray:
    import torch
    from timm.data.random_erasing import RandomErasing

    random.seed(0)
    erase = RandomErasing(prob, mode="const", max_count=count, device="cpu")
    return (erase(torch.ones(PICTURES, 1, height, width)) == 0).numpy()[:, 0]


def assert_same_distribution(actual: np.ndarray, expected: np.ndarray) -> None:
    """Means are within five standard deviations of their difference, and so are those of the squares."""
    for power in (1, 2):
        one, two = actual.astype(float) ** power, expected.astype(float) ** power
        deviation = (one.var() / len(one) + two.var() / len(two)) ** 0.5
        assert abs(one.mean() - two.mean()) < 5 * deviation


@pytest.mark.parametrize(("height", "width", "prob", "count"), [(24, 24, 0.3, 1), (24, 32, 1.0, 3), (6, 48, 0.8, 3)])
def test_rectangles_are_distributed_as_in_timm(height, width, prob, count, timm):
    """Also in narrow pictures, into which most of them do not fit at the first attempt, and some not at all."""
    actual = measured(drawn(height, width, prob, count))
    expected = measured(timm_drawn(height, width, prob, count))
    assert abs(actual.share - expected.share) <= 5 * (2 * expected.share * (1 - expected.share) / PICTURES) ** 0.5
    for name in ("area", "tall", "wide", "top", "left"):
        assert_same_distribution(getattr(actual, name), getattr(expected, name))


def test_a_rectangle_is_a_rectangle_within_area_and_ratio():
    """Up to the rounding of its sides."""
    erased = drawn(24, 32, 1.0, 1)
    assert erased.any(axis=(1, 2)).all()
    full = erased.any(2, keepdims=True) & erased.any(1, keepdims=True)
    np.testing.assert_array_equal(erased, full)
    sizes = measured(erased)
    assert ((sizes.tall + 0.5) * (sizes.wide + 0.5) >= 0.02 * 24 * 32).all()
    assert ((sizes.tall - 0.5) * (sizes.wide - 0.5) <= 24 * 32 / 3).all()
    assert ((sizes.tall + 0.5) / (sizes.wide - 0.5) >= 0.3).all()
    assert ((sizes.tall - 0.5) / (sizes.wide + 0.5) <= 1 / 0.3).all()


def test_every_number_of_rectangles_up_to_the_count_is_as_likely():
    boxes = np.asarray(draw_boxes(jax.random.key(0), PICTURES, 64, 64, prob=1, count=3, area=(0.1, 0.1), ratio=(1, 1)))
    sides = boxes[..., 1] - boxes[..., 0]
    numbers = (sides > 0).sum(0)
    assert set(numbers.tolist()) == {1, 2, 3}
    assert (abs(np.bincount(numbers)[1:] / PICTURES - 1 / 3) < 5 * (2 / 9 / PICTURES) ** 0.5).all()
    # They share the area.
    np.testing.assert_array_equal(sides.max(0), np.round(np.sqrt(0.1 * 64 * 64 / numbers)))


def test_heights_rows_and_columns_are_drawn_independently():
    """Of rectangles of one area, so that size and place do not depend on each other by what fits."""
    boxes = draw_boxes(jax.random.key(0), PICTURES, 64, 64, prob=1, count=3, area=(0.1, 0.1), ratio=(0.9, 1.1))
    top, bottom, left, right = np.moveaxis(np.asarray(boxes[0]), -1, 0)
    correlations = np.corrcoef([bottom - top, top / (64 - (bottom - top)), left / (64 - (right - left))])
    np.testing.assert_allclose(correlations, np.eye(3), atol=5 * PICTURES**-0.5)


def test_what_never_fits_is_not_erased():
    """A square as large as a picture that is no square."""
    same = random_erasing(images(), jax.random.key(0), **OPTIONS, area=(1, 1), ratio=(1, 1))
    np.testing.assert_array_equal(same, images())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [3, 1])
def test_other_pixels_stay(mode, channels):
    before = images(channels=channels)
    options = {**OPTIONS, "mode": mode, "count": 3}
    after = random_erasing(before, jax.random.key(0), **options)
    changed = np.asarray((after != before).any(-1))
    assert changed.any(axis=(1, 2)).all()
    assert changed.mean() < 0.3


@pytest.mark.parametrize("channels", [3, 1])
def test_const_is_zero_after_normalisation(channels):
    before = images(channels=channels)
    after = random_erasing(before, jax.random.key(0), **OPTIONS)
    filled = np.asarray(normalize(after, MEAN, STD))[np.asarray(after != before).any(-1)]
    assert len(filled) > 1000
    np.testing.assert_allclose(filled, 0, atol=1e-6)


@pytest.mark.parametrize("mode", ["rand", "pixel"])
def test_noise_is_standard_normal_after_normalisation(mode):
    """Per channel, and independent from one channel to another."""
    after = random_erasing(jnp.full((256, 20, 14, 3), 0.5), jax.random.key(0), **{**OPTIONS, "mode": mode})
    erased = np.asarray((after != 0.5).all(-1))
    values = np.asarray(normalize(after, MEAN, STD))[erased]
    colours = np.unique(values, axis=0)
    assert len(colours) == (256 if mode == "rand" else len(values))
    deviation = len(colours) ** -0.5
    assert (abs(colours.mean(0)) < 5 * deviation).all()
    assert (abs(np.cov(colours.T) - np.eye(3)) < 5 * 2**0.5 * deviation).all()
    assert abs((abs(colours) < 1).mean() - 0.6827) < 3 * deviation


def test_each_rectangle_has_a_colour_of_its_own():
    after = random_erasing(images(), jax.random.key(0), **{**OPTIONS, "mode": "rand", "count": 3})
    changed = np.asarray((after != images()).all(-1))
    numbers = [len(np.unique(np.asarray(picture)[mask], axis=0)) for picture, mask in zip(after, changed, strict=True)]
    assert set(numbers) == {1, 2, 3}


def test_keys_differ_and_repeat_and_compiled_it_does_the_same():
    options = {**OPTIONS, "mode": "pixel", "prob": 0.5}
    first, other = (random_erasing(images(), jax.random.key(seed), **options) for seed in (0, 1))
    compiled = jax.jit(lambda pictures, key: random_erasing(pictures, key, **options))(images(), jax.random.key(0))
    np.testing.assert_allclose(compiled, first, rtol=1e-5, atol=1e-3)
    assert (first != other).any()


def test_with_no_probability_nothing_changes():
    np.testing.assert_array_equal(random_erasing(images(), jax.random.key(0), **{**OPTIONS, "prob": 0.0}), images())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtypes_stay_and_gradients_are_those_of_the_pixels_that_stay(mode, dtype):
    options = {**OPTIONS, "mode": mode}
    after = random_erasing(images(dtype), jax.random.key(0), **options)
    assert after.dtype == dtype
    gradient = jax.grad(lambda x: random_erasing(x, jax.random.key(0), **options).sum(dtype=jnp.float32))(images(dtype))
    kept = np.asarray(gradient, np.float32)
    assert set(kept.ravel().tolist()) == {0.0, 1.0}
    np.testing.assert_array_equal((after == images(dtype)) | (kept == 0), True)
    assert (np.asarray(after != images(dtype)).any(-1) >= (kept == 0).any(-1)).mean() > 0.99


@pytest.mark.parametrize(
    ("change", "pictures", "error", "fault"),
    [
        ({"mode": "mean"}, images(), ValueError, "'mean'"),
        ({}, images()[0], ValueError, r"\(20, 14, 3\)"),
        ({}, images(jnp.uint8), ValueError, "uint8"),
        ({"mean": (0.5,)}, images(), JeffnetError, "mean"),
        ({"std": (0.5,)}, images(), JeffnetError, "std"),
    ],
)
def test_what_does_not_fit_is_an_error_naming_it(change, pictures, error, fault):
    with pytest.raises(error, match=fault):
        random_erasing(pictures, jax.random.key(0), **{**OPTIONS, **change})
