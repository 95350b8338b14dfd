"""Mixup and CutMix: targets follow pixels, application as in timm, and what is drawn."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.ops.mix import cut_box, draw_mixing, mix, mix_batch

RNG = np.random.default_rng(0)
OTHERS = np.array([0, 1, 3, 4])  # of five pictures the one in the middle is mixed with itself
BOTH = {"mixup": 0.8, "cutmix": 1.0, "prob": 1.0, "switch_prob": 0.5}


def labelled_pictures() -> tuple[jax.Array, jax.Array]:
    """Five pictures of one class each, which fill the channel of their class with ones."""
    targets = jnp.eye(5)
    return jnp.broadcast_to(targets[:, None, None], (5, 12, 7, 5)), targets


@pytest.mark.parametrize("mode", ["batch", "elem"])
@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_are_what_pictures_hold_on_average(alphas, mode):
    """For both ways of mixing, with rectangles cut off at the borders, an odd batch, and height other than width."""
    images, targets = labelled_pictures()
    options = {**BOTH, "mixup": alphas[0], "cutmix": alphas[1], "mode": mode}
    changed = 0
    for seed in range(8):
        new_images, new_targets = mix_batch(images, targets, jax.random.key(seed), **options)
        np.testing.assert_allclose(new_images.mean((1, 2)), new_targets, atol=1e-6)
        own = jnp.diag(new_targets)[:, None]
        np.testing.assert_allclose(new_targets, own * targets + (1 - own) * targets[::-1], atol=1e-6)
        changed += not np.array_equal(new_targets, targets)
    assert changed >= 6  # a rectangle may be empty


def timm_mixup(timm, monkeypatch, shares, cuts, boxes, mode):
    """timm's, drawing what it is told."""
    from timm.data import mixup

    result = mixup.Mixup(mixup_alpha=1, cutmix_alpha=1, mode=mode, label_smoothing=0.1, num_classes=9)
    remaining = iter(boxes[cuts].tolist())

    def next_box(*_, **__):
        top, bottom, left, right = next(remaining)
        return top, bottom, left, right

    monkeypatch.setattr(mixup, "rand_bbox", next_box)
    monkeypatch.setattr(result, "_params_per_elem", lambda _: (shares.copy(), cuts))
    monkeypatch.setattr(result, "_params_per_batch", lambda: (float(shares[0]), bool(cuts[0])))
    return result


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "elem"])
def test_application_equals_timm(kind, timm, monkeypatch, x64):
    """Of whole batches, and of pictures that each have their own share or rectangle."""
    import torch

    images, labels = RNG.normal(size=(6, 12, 7, 3)), RNG.integers(0, 9, 6)
    cuts = np.array([True, False, True, False, True, False]) if kind == "elem" else np.full(1, kind == "cutmix")
    shares, number = RNG.uniform(0.1, 0.9, len(cuts)), len(cuts)
    ends = np.stack([np.sort(RNG.integers(0, size + 1, (number, 2)), axis=1) for size in (12, 7)], axis=1)
    boxes = ends.reshape(number, 4)
    boxes[0] = 2, 9, 0, 5

    reference = timm_mixup(timm, monkeypatch, shares, cuts, boxes, "elem" if kind == "elem" else "batch")
    expected, expected_targets = reference(torch.tensor(images).permute(0, 3, 1, 2).clone(), torch.tensor(labels))
    smooth = 0.9 * np.eye(9)[labels] + 0.1 / 9
    share = jnp.where(cuts, 1, shares)
    box = jnp.where(cuts[:, None], boxes, 0)
    actual, actual_targets = jax.jit(mix)(jnp.asarray(images), jnp.asarray(smooth), share, box)
    np.testing.assert_allclose(actual, expected.permute(0, 2, 3, 1).numpy(), rtol=1e-12)
    np.testing.assert_allclose(actual_targets, expected_targets.numpy(), atol=1e-7)  # timm's are float32
    assert not np.allclose(actual, images)


def test_rectangles_equal_timms(timm, monkeypatch, x64):
    """For shares from nothing to everything and centres up to the borders, in two shapes."""
    from timm.data import mixup

    for height, width in ((12, 7), (9, 20)):
        share = np.concatenate([[0.0, 1.0], RNG.uniform(size=100)])
        row, column = RNG.integers(0, height, share.shape), RNG.integers(0, width, share.shape)
        expected = []
        for own, *centre in zip(share, row, column, strict=True):
            drawn = iter(centre)
            monkeypatch.setattr(np.random, "randint", lambda *_, drawn=drawn, **__: next(drawn))
            expected.append(mixup.rand_bbox((3, height, width), own))
        boxes = cut_box(jnp.asarray(share), jnp.asarray(row), jnp.asarray(column), height, width)
        np.testing.assert_array_equal(boxes, expected)


def drawn(number: int = 20_000, **options: float) -> SimpleNamespace:
    """Draws for pictures of 40 x 24: shares, areas of rectangles, and for which draws they count."""
    share, box = draw_mixing(jax.random.key(0), number, 40, 24, **{**BOTH, **options})
    share, (top, bottom, left, right) = np.asarray(share, np.float64), np.asarray(box).T
    area = (bottom - top) * (right - left) / (40 * 24)
    return SimpleNamespace(share=share, area=area, box=box, blended=share < 1, cut=area > 0)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_of_the_beta_distribution(alpha):
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1)), within five standard deviations of such an estimate."""
    share = drawn(mixup=alpha, cutmix=0.0).share
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(share.mean() - 0.5) < 5 * (variance / len(share)) ** 0.5
    spread = ((share - 0.5) ** 2).std() / len(share) ** 0.5
    assert abs(((share - 0.5) ** 2).mean() - variance) < 5 * spread


@pytest.mark.parametrize(("prob", "switch_prob"), [(1.0, 0.5), (0.7, 0.25), (0.3, 0.0)])
def test_draws_are_mixed_and_switched_as_often_as_asked(prob, switch_prob):
    """Small shares of CutMix may leave no rectangle, so its frequency is that of what was not blended."""
    draws = drawn(prob=prob, switch_prob=switch_prob)
    wanted = prob * (1 - switch_prob)
    assert abs(draws.blended.mean() - wanted) < 5 * (wanted * (1 - wanted) / 20_000) ** 0.5 + 1e-3
    assert not (draws.blended & draws.cut).any()
    empty = 1 - drawn(mixup=0.0).cut.mean()
    assert abs(draws.cut.mean() - prob * switch_prob * (1 - empty)) < 0.015


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_areas_of_rectangles_are_distributed_as_in_timm(alpha, timm):
    """Mean and deciles, with what the borders cut off. With mixup also possible they are the same."""
    from timm.data import mixup

    np.random.seed(0)
    reference = []
    for share in np.random.beta(alpha, alpha, 5000):
        top, bottom, left, right = mixup.rand_bbox((3, 40, 24), share)
        reference.append((bottom - top) * (right - left) / (40 * 24))
    alone = drawn(mixup=0.0, cutmix=alpha)
    beside = drawn(mixup=4.0, cutmix=alpha)
    for areas in (alone.area, beside.area[~beside.blended]):
        assert abs(areas.mean() - np.mean(reference)) < 5 * np.std(reference) / 5000**0.5
        deciles = np.linspace(0.1, 0.9, 9)
        np.testing.assert_allclose(np.quantile(areas, deciles), np.quantile(reference, deciles), atol=0.04)


def test_centres_reach_every_border():
    box = np.asarray(drawn(mixup=0.0).box)
    small = box[(box[:, 1] - box[:, 0] > 0) & (box[:, 1] - box[:, 0] < 4)]
    assert (small[:, 0].min(), small[:, 1].max()) == (0, 40)
    assert (small[:, 2].min(), small[:, 3].max()) == (0, 24)


def test_rows_are_independent_of_columns():
    """In a square picture, whose rows and columns one key would draw alike."""
    _, box = draw_mixing(jax.random.key(0), 20_000, 32, 32, **{**BOTH, "mixup": 0.0})
    small = np.asarray(box)[np.asarray(box[:, 1] - box[:, 0] < 4)]
    assert len(small) > 50
    assert abs(np.corrcoef(small[:, 0], small[:, 2])[0, 1]) < 5 * len(small) ** -0.5


@pytest.mark.parametrize("alphas", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_a_batch_has_one_draw_and_elements_their_own(alphas):
    images, targets = labelled_pictures()
    options = {**BOTH, "mixup": alphas[0], "cutmix": alphas[1]}
    _, of_batch = mix_batch(images, targets, jax.random.key(3), **options, mode="batch")
    _, of_elements = mix_batch(images, targets, jax.random.key(3), **options, mode="elem")
    of_batch, of_elements = (set(np.diag(x)[OTHERS].tolist()) for x in (of_batch, of_elements))
    assert len(of_batch) == 1
    assert len(of_elements) >= 3  # small rectangles may be equal


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_some_stay_as_they_are_bit_for_bit(mode):
    images = jax.random.normal(jax.random.key(9), (5, 6, 5, 3))
    targets = jnp.eye(5)
    untouched = []
    for seed in range(16):
        changed, _ = mix_batch(images, targets, jax.random.key(seed), **{**BOTH, "prob": 0.5, "mode": mode})
        untouched += (changed == images).all((1, 2, 3))[OTHERS].tolist()
        if mode == "batch":
            assert len(set(untouched[-4:])) == 1
    assert 0.2 < np.mean(untouched) < 0.8


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_compiled_it_does_the_same(mode):
    images, targets = labelled_pictures()
    compiled = jax.jit(partial(mix_batch, **BOTH, mode=mode))(images, targets, jax.random.key(1))
    for actual, expected in zip(
        compiled, mix_batch(images, targets, jax.random.key(1), **BOTH, mode=mode), strict=True
    ):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_keys_differ_and_repeat():
    images, targets = labelled_pictures()
    first, again, other = (
        mix_batch(images, targets, jax.random.key(seed), **BOTH, mode="elem")[1] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("off", [{"prob": 0.0}, {"mixup": 0.0, "cutmix": 0.0}])
def test_without_mixing_the_arrays_are_returned_themselves(off):
    images, targets = labelled_pictures()
    same_images, same_targets = mix_batch(images, targets, jax.random.key(0), **{**BOTH, **off}, mode="batch")
    assert same_images is images and same_targets is targets


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_rounded_once(dtype):
    """Products that were rounded too would be off by more than half a unit in the last place."""
    images = jax.random.uniform(jax.random.key(0), (4, 6, 5, 3), jnp.float32, 0, 255).astype(dtype)
    targets = jnp.eye(4, dtype=dtype)
    share, box = jnp.array([0.3]), jnp.array([[0, 3, 1, 2]])
    new_images, new_targets = jax.jit(mix)(images, targets, share, box)
    exact, exact_targets = mix(images.astype(jnp.float32), targets.astype(jnp.float32), share, box)
    assert new_images.dtype == dtype and new_targets.dtype == dtype
    unit = 0.51 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(new_images, np.float32), exact, rtol=unit)
    np.testing.assert_allclose(np.asarray(new_targets, np.float32), exact_targets, rtol=unit)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_pass_through_every_pixel_that_is_kept(dtype):
    """What the batch holds stays the same in all where each pair has one draw, so each pixel's gradient is 1."""
    images, targets = jnp.ones((5, 6, 5, 3), dtype), jnp.eye(5, dtype=dtype)

    def total(images, seed):
        return mix_batch(images, targets, jax.random.key(seed), **BOTH, mode="batch")[0].sum(dtype=jnp.float32)

    for seed in range(4):
        gradient = np.asarray(jax.grad(total)(images, seed), np.float32)
        np.testing.assert_allclose(gradient, 1, rtol=float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize(
    ("images", "targets", "mode", "fault"),
    [
        (jnp.zeros((4, 6, 5, 3)), jnp.zeros((4, 9)), "pair", "pair"),
        (jnp.zeros((4, 6, 5)), jnp.zeros((4, 9)), "batch", r"\(4, 6, 5\)"),
        (jnp.zeros((4, 6, 5, 3)), jnp.zeros(4), "batch", r"\(4,\)"),
        (jnp.zeros((4, 6, 5, 3)), jnp.zeros((2, 9)), "batch", r"\(2, 9\)"),
        (jnp.zeros((4, 6, 5, 3), jnp.uint8), jnp.zeros((4, 9)), "batch", "images of uint8"),
        (jnp.zeros((4, 6, 5, 3)), jnp.zeros((4, 9), jnp.int32), "batch", "targets of int32"),
    ],
)
def test_what_does_not_fit_is_an_error_naming_it(images, targets, mode, fault):
    with pytest.raises(ValueError, match=fault):
        mix_batch(images, targets, jax.random.key(0), **BOTH, mode=mode)
