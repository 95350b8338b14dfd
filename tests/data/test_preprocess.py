"""Resizing and cropping: timm's evaluation bit for bit, and the distribution of training crops."""

import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.data import resize as resizing
from jeffnet.data.augment.jitter import ColorJitter
from jeffnet.data.augment.magnitudes import GREY, Canvas
from jeffnet.data.augment.policies import parse_policy
from jeffnet.data.preprocess import EvalTransform, TrainTransform
from jeffnet.errors import ConfigError, ImageError

# Width and height: square, both orientations, odd, smaller than any crop, extreme.
SIZES = [(64, 64), (97, 64), (64, 97), (101, 75), (75, 101), (33, 200), (200, 33), (20, 31), (31, 20), (1, 7), (5, 1)]


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise, so that a shift by one pixel shows everywhere."""
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(31, 31), (28, 28), (48, 48), (40, 31), (28, 56)])
def test_evaluation_equals_timm_bit_for_bit(
    size: tuple[int, int], crop_mode: str, interpolation: str, mode: str, timm: ModuleType
):
    """Noise of many shapes; the odd margins of these sizes tell floor from round and the two ways of rounding.

    28 / 0.875 = 32 is resized in part only, since 32 is a power of two.
    """
    from timm.data.transforms_factory import create_transform

    channels = len(mode)
    mean = (0.485, 0.456, 0.406) if mode == "RGB" else (0.449,)
    for crop_pct in (0.8, 0.875, 0.9, 0.904, 0.95, 1.0):
        reference = create_transform(
            input_size=(channels, *size),
            is_training=False,
            interpolation=interpolation,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
            mean=mean,
            normalize=False,
        )
        transform = EvalTransform(
            Preprocessing(size[0], crop_pct, interpolation, mean, mean), None if size[0] == size[1] else size, crop_mode
        )
        for width, height in SIZES:
            image = picture(width, height, mode)
            ours = transform(image)
            theirs = reference(image).numpy().transpose(1, 2, 0)
            assert ours.dtype == np.uint8 and ours.shape == (*size, channels)
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{width}x{height}, crop_pct {crop_pct}")


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow resizes."""
    monkeypatch.setattr(resizing, "native", lambda: None)


def test_only_what_is_kept_is_resized_where_that_changes_nothing(no_library, monkeypatch: pytest.MonkeyPatch):
    """2,000 shapes of noise, against the whole picture resized and cut; and the short cut is really taken."""
    boxes = []
    resize = Image.Image.resize

    def spy(self: Image.Image, size: tuple[int, int], *args, **kwargs) -> Image.Image:
        boxes.append(kwargs.get("box"))
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", spy)
    rng = np.random.default_rng(0)
    transform = EvalTransform(Preprocessing(28))
    for number in range(2000):
        # Every fourth a square; long and thin ones too, which Pillow resizes in the other order.
        width, height = rng.integers(8, 200, 2)
        image = picture(width, width if number % 4 == 0 else height, "L", number)
        ours = transform(image)
        window = transform.window(*image.size)
        whole = resize(image, (window.width, window.height), Image.Resampling.BICUBIC)
        kept = whole.crop((window.left, window.top, window.left + 28, window.top + 28))
        np.testing.assert_array_equal(ours[..., 0], np.asarray(kept), err_msg=str(image.size))
    assert sum(box is not None for box in boxes) > 1500


def test_crop_pct_decides_how_much_is_seen():
    """Half of a picture of twice the size is its centre, untouched by the resize."""
    image = picture(80, 80)
    seen = EvalTransform(Preprocessing(40, crop_pct=0.5))(image)
    np.testing.assert_array_equal(seen, np.asarray(image)[20:60, 20:60])


@pytest.mark.parametrize("size", [(97, 61), (61, 97)])
def test_a_picture_too_long_to_resize_whole_gives_the_same_square(
    size: tuple[int, int], no_library, monkeypatch: pytest.MonkeyPatch
):
    """But for rounding of the filter's positions: of 255, noise shifted by one pixel would differ by 50 on average."""
    whole = EvalTransform(Preprocessing(48))(picture(*size))
    resized = []
    resize = Image.Image.resize

    def spy(self: Image.Image, size: tuple[int, int], *args, **kwargs) -> Image.Image:
        resized.append(size)
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", spy)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 48)
    in_part = EvalTransform(Preprocessing(48))(picture(*size))
    assert resized == [(48, 48)]
    assert np.abs(in_part.astype(int) - whole).mean() < 1


@pytest.mark.parametrize("library", ["resizing.native", "no_library"])
def test_a_thread_of_pixels_needs_no_gigabytes(library: str, request: pytest.FixtureRequest):
    """Resized whole it would be 0.8 gigabytes of 36 columns by 7,200,000 rows."""
    if library == "no_library":
        request.getfixturevalue(library)
    assert EvalTransform(Preprocessing(32))(picture(1, 200_000)).shape == (32, 32, 3)


def test_other_modes_are_refused():
    image = picture(9, 9).convert("RGBA")
    with pytest.raises(ImageError, match="'RGBA'"):
        EvalTransform(Preprocessing(8))(image)
    with pytest.raises(ImageError, match="'RGBA'"):
        TrainTransform(8)(image, np.random.default_rng(0))


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_training_images_are_squares_of_uint8(mode: str, channels: int):
    rng = np.random.default_rng(0)
    for width, height in SIZES:
        image = TrainTransform(24)(picture(width, height, mode), rng)
        assert image.shape == (24, 24, channels) and image.dtype == np.uint8 and image.flags.c_contiguous


def test_training_depends_on_the_generator_alone():
    image = picture(60, 40)
    transform = TrainTransform(24)
    first, again, other = (transform(image, np.random.default_rng(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_whole_picture_at_its_own_size_is_untouched_but_for_the_flip():
    image = picture(24, 24)
    straight, flipped = (
        TrainTransform(24, scale=(1, 1), ratio=(1, 1), hflip=flip)(image, np.random.default_rng(0)) for flip in (0, 1)
    )
    np.testing.assert_array_equal(straight, np.asarray(image))
    np.testing.assert_array_equal(flipped, np.asarray(image)[:, ::-1])


def test_flips_are_as_frequent_as_asked_and_independent():
    image = picture(8, 8)
    transform = TrainTransform(8, scale=(1, 1), ratio=(1, 1), hflip=0.25, vflip=0.5)
    pixels, rng = np.asarray(image), np.random.default_rng(0)
    views = [pixels, pixels[:, ::-1], pixels[::-1], pixels[::-1, ::-1]]
    counts = np.zeros(4)
    for _ in range(2000):
        found = transform(image, rng)
        counts += [np.array_equal(found, view) for view in views]
    np.testing.assert_allclose(counts / 2000, [0.375, 0.125, 0.375, 0.125], atol=0.04)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_by_default_a_view_is_a_crop_and_a_flip_drawn_in_this_order(mode: str):
    """What runs of earlier versions drew: they are continued bit for bit."""
    transform, rng, same = TrainTransform(24), np.random.default_rng(7), np.random.default_rng(7)
    for width, height in SIZES * 3:
        image = picture(width, height, mode)
        expected = np.asarray(image.crop(transform.crop_box(width, height, same)).resize((24, 24)))
        flipped = same.random() < 0.5
        ours = transform(image, rng)
        np.testing.assert_array_equal(ours.reshape(expected.shape), expected[:, ::-1] if flipped else expected)


def test_a_random_filter_is_one_of_two_for_each_picture():
    image = picture(40, 40)
    options: dict[str, Any] = {"scale": (1, 1), "ratio": (1, 1), "hflip": 0}
    fixed = [TrainTransform(24, interpolation=name, **options) for name in ("bicubic", "bilinear")]
    expected = {transform(image, np.random.default_rng(0)).tobytes() for transform in fixed}
    transform, rng = TrainTransform(24, interpolation="random", **options), np.random.default_rng(0)
    assert {transform(image, rng).tobytes() for _ in range(20)} == expected and len(expected) == 2


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_all_views_are_of_one_crop_and_the_first_is_that_crop(mode: str, channels: int):
    image = picture(60, 40, mode)
    plain = TrainTransform(24, vflip=0.5)
    views = replace(plain, policy="rand-m9-p1", color_jitter=0.4, splits=4)(image, np.random.default_rng(3))
    crop = plain(image, np.random.default_rng(3))
    assert views.shape == (4, 24, 24, channels) and views.dtype == np.uint8
    np.testing.assert_array_equal(views[0], crop)
    assert len({view.tobytes() for view in views}) == 4
    unchanged = replace(plain, splits=4)(image, np.random.default_rng(3))
    np.testing.assert_array_equal(unchanged, np.broadcast_to(crop, unchanged.shape))


def test_the_policy_comes_after_the_crop_and_before_the_jitter():
    """And moves pixels by the crop's filter."""
    image = picture(24, 24)
    whole = TrainTransform(24, scale=(1, 1), ratio=(1, 1), hflip=0)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        whole.crop_box(24, 24, rng)
        rng.random()
        changed = parse_policy("rand-p1-n3", Canvas(GREY, "bicubic"))(image, rng)
        expected = ColorJitter(0.3)(np.asarray(changed), rng)
        ours = replace(whole, policy="rand-p1-n3", color_jitter=0.3)(image, np.random.default_rng(seed))
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(("mode", "fill", "colour"), [("RGB", (9, 8, 7), [9, 8, 7]), ("L", (9, 8, 7), [8])])
def test_what_comes_in_from_outside_has_the_given_colour(mode: str, fill: tuple[int, ...], colour: list[int]):
    transform = TrainTransform(16, policy="trivial", fill=fill)
    rng, white = np.random.default_rng(0), Image.new(mode, (16, 16), "white")
    views = np.stack([transform(white, rng) for _ in range(40)])
    assert (views == colour).all(axis=-1).any()


def boxes(transform: TrainTransform, width: int, height: int, count: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([transform.crop_box(width, height, rng) for _ in range(count)])


def test_crops_keep_to_scale_ratio_and_picture():
    left, top, right, bottom = boxes(TrainTransform(8, scale=(0.2, 0.6), ratio=(0.5, 1.5)), 1000, 800).T
    assert min(left.min(), top.min()) == 0 and right.max() == 1000 and bottom.max() == 800
    areas, ratios = (right - left) * (bottom - top) / 800_000, (right - left) / (bottom - top)
    # Rounding to whole pixels moves either by less than a hundredth.
    assert 0.2 - 0.01 < areas.min() < 0.22 and 0.58 < areas.max() < 0.6 + 0.01
    assert 0.5 - 0.01 < ratios.min() < 0.52 and 1.45 < ratios.max() < 1.5 + 0.01


def test_area_is_uniform_and_the_ratio_uniform_in_its_logarithm():
    """Where every draw fits (a small share of a square), neither is skewed by rejection."""
    left, top, right, bottom = boxes(TrainTransform(8, scale=(0.1, 0.3), ratio=(0.5, 2.0)), 2000, 2000).T
    areas = (right - left) * (bottom - top) / 4e6
    logarithms = np.log((right - left) / (bottom - top))
    # 4,000 draws: the standard error of a quartile is below 0.008 of the range.
    np.testing.assert_allclose(np.quantile(areas, [0.25, 0.5, 0.75]), [0.15, 0.2, 0.25], atol=0.006)
    quartiles = math.log(2) * np.array([-0.5, 0, 0.5])
    np.testing.assert_allclose(np.quantile(logarithms, [0.25, 0.5, 0.75]), quartiles, atol=0.04)


@pytest.mark.parametrize(("width", "height"), [(300, 200), (90, 400)])
def test_crops_are_distributed_as_torchvisions(width: int, height: int, timm: ModuleType):
    """Means and deviations of all four edges, over draws from two unrelated generators."""
    import torch
    from torchvision.transforms import RandomResizedCrop

    image = Image.new("L", (width, height))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = np.array([(left, top, left + w, top + h) for top, left, h, w in draws])
    ours = boxes(TrainTransform(8), width, height)
    error = 5 * theirs.std(axis=0) * math.sqrt(2 / 4000)
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < error).all()
    assert (np.abs(ours.std(axis=0) - theirs.std(axis=0)) < error).all()


def test_a_central_crop_is_never_empty():
    """At least one pixel, where a fiftieth of 10 would be rounded to none."""
    transform = TrainTransform(8, scale=(1, 1), ratio=(0.01, 0.02))
    assert transform.crop_box(10, 10, np.random.default_rng(0)) == (4, 0, 5, 10)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((10, 1000), (0, 493, 10, 506)),  # 10 / (3/4) is 13.3 rows
        ((1000, 10), (493, 0, 506, 10)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_where_no_draw_fits_the_centre_is_taken(size: tuple[int, int], box: tuple[int, ...]):
    """A crop of all the area and of a ratio unlike the picture's never fits."""
    assert TrainTransform(8, scale=(1, 1)).crop_box(*size, np.random.default_rng(0)) == box


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 0},
        {"scale": (0, 1)},
        {"scale": (0.5, 0.4)},
        {"scale": (0.5, 1.1)},
        {"scale": (math.nan, 1)},
        {"ratio": (0, 1)},
        {"ratio": (2, 1)},
        {"ratio": (1, math.inf)},
        {"interpolation": "nearest"},
        {"hflip": -0.1},
        {"hflip": 1.1},
        {"vflip": math.nan},
        {"color_jitter": -0.1},
        {"policy": "v9"},
        {"splits": 0},
        {"fill": (1, 2)},
        {"fill": (0, 0, 256)},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_an_error_naming_it(options: dict):
    with pytest.raises(ConfigError, match=f"^{next(iter(options))} "):
        replace(TrainTransform(8), **options)
