"""Operations: timm's pixels for the same argument, timm's argument for the same magnitude."""

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jeffnet.data.augment import operations
from jeffnet.data.augment.magnitudes import OPERATIONS, Canvas, Noise, Step
from jeffnet.data.augment.operations import Fill

BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
# timm draws the radius inside the operation, and moves by less only as AugMix tells it to.
WITHOUT_A_TWIN = ("gaussian_blur_rand", "translate_x_short", "translate_y_short")
TWINS = [name for name in OPERATIONS if name not in WITHOUT_A_TWIN]
MAGNITUDES = [0, 0.3, 1, 2.4, 5, 7.7, 9, 10]


def camel_case(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


@pytest.fixture
def reference(timm: ModuleType) -> ModuleType:
    from timm.data import auto_augment

    return auto_augment


def argument(name: str, magnitude: float, draw: float = 0.75) -> float | None:
    make = OPERATIONS[name].argument
    return None if make is None else make(magnitude, draw)


@pytest.mark.parametrize("name", TWINS)
def test_arguments_equal_timms(name: str, reference: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """Of either sign: a draw on one side of the middle for us, on the other for timm. Above 10 too, for `mmax`."""
    level_to_argument = reference.LEVEL_TO_ARG[camel_case(name)]
    for draw in (0.25, 0.75):
        monkeypatch.setattr(reference, "random", SimpleNamespace(random=lambda draw=draw: 1 - draw))
        for magnitude in [*MAGNITUDES, 13.5]:
            ours = argument(name, magnitude, draw)
            if level_to_argument is None:
                assert ours is None
            else:
                assert (ours,) == level_to_argument(magnitude, {"translate_const": 250})


def applied(name: str, image: Image.Image, value: float | None, fill: Fill, resample: Image.Resampling) -> Image.Image:
    operation = OPERATIONS[name]
    arguments = () if value is None else (value, fill, resample) if operation.moves else (value,)
    return operation.function(image, *arguments)


@pytest.mark.parametrize("name", TWINS)
def test_pixels_equal_timms(name: str, reference: ModuleType, photographs: dict[str, Image.Image]):
    function = reference.NAME_TO_OP[camel_case(name)]
    for title, image in photographs.items():
        fill = (124, 116, 104) if image.mode == "RGB" else (115,)
        for magnitude in MAGNITUDES:
            value = argument(name, magnitude)
            if "posterize" in name and value == 0:
                continue  # Pillow 13 refuses to keep no bit at all, and timm with it
            for resample in (BICUBIC, BILINEAR):
                theirs = function(
                    image,
                    *(() if value is None else (value,)),
                    fillcolor=fill if image.mode == "RGB" else fill[0],
                    resample=resample,
                )
                ours = applied(name, image, value, fill, resample)
                assert ours.mode == image.mode and ours.size == image.size
                np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), err_msg=f"{title}, {magnitude}")


@pytest.mark.parametrize("axis", ["x", "y"])
def test_movement_by_pixels_equals_timms(axis: str, reference: ModuleType, photographs: dict[str, Image.Image]):
    move, twin = getattr(operations, f"translate_{axis}"), getattr(reference, f"translate_{axis}_abs")
    for pixels in (-7, 0, 3.5):
        ours = move(photographs["china"], pixels, (1, 2, 3), BICUBIC)
        theirs = twin(photographs["china"], pixels, fillcolor=(1, 2, 3), resample=BICUBIC)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_picture_is_changed_into_a_new_one(name: str, photographs: dict[str, Image.Image]):
    """At one magnitude or the other; only saturation has nothing to change in a grey picture."""
    for title, image in photographs.items():
        before = image.tobytes()
        results = [applied(name, image, argument(name, magnitude), (0,), BICUBIC).tobytes() for magnitude in (3, 9)]
        assert image.tobytes() == before
        nothing_to_do = "grey" in title and ("color" in name or name == "desaturate")
        assert (set(results) == {before}) == nothing_to_do


def test_autocontrast_uses_the_whole_range_and_keeps_the_order_of_values(photographs: dict[str, Image.Image]):
    dull = photographs["china in grey"].point([80 + value // 4 for value in range(256)])
    ours = np.asarray(OPERATIONS["auto_contrast"].function(dull)).astype(int)
    assert ours.min() == 0 and ours.max() >= 254 and 60 < ours.mean() < 200
    order = np.argsort(np.asarray(dull), axis=None)
    assert (np.diff(ours.ravel()[order]) >= 0).all()


def test_autocontrast_leaves_an_even_picture():
    image = Image.new("RGB", (5, 5), (10, 20, 30))
    np.testing.assert_array_equal(np.asarray(OPERATIONS["auto_contrast"].function(image)), np.asarray(image))


def test_posterize_never_makes_a_black_picture(photographs: dict[str, Image.Image]):
    """The magnitudes of AutoAugment 'v0' ask for no bit at all; TensorFlow, where it is from, then keeps one."""
    image = photographs["china"]
    assert argument("posterize", 2) == argument("posterize_increasing", 10) == 0
    for bits in (-2, 0, 1):
        np.testing.assert_array_equal(np.asarray(operations.posterize(image, bits)), np.asarray(image) & 0x80)
    assert operations.posterize(image, 8) is image


def test_full_desaturation_leaves_no_colour(photographs: dict[str, Image.Image]):
    grey = np.asarray(operations.desaturate(photographs["flower"], 1.0))
    np.testing.assert_array_equal(grey, np.asarray(photographs["flower in grey"])[:, :, None].repeat(3, axis=2))


@pytest.mark.parametrize(
    ("mode", "fill", "colour"),
    [
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("RGB", (7,), [7, 7, 7]),
        ("L", (7,), 7),
        ("L", (1, 2, 6), 3),
    ],
)
def test_what_comes_in_from_outside_has_the_colour_of_the_fill(mode: str, fill: Fill, colour: int | list[int]):
    white = Image.new(mode, (40, 20), "white")
    corners = {
        operations.rotate: (45, (0, 0)),
        operations.translate_x: (-10, (5, 0)),
        operations.translate_y: (10, (-5, 0)),
        operations.shear_x: (0.9, (-1, -1)),
        operations.shear_y: (-0.9, (0, -1)),
        operations.translate_x_relative: (0.5, (0, -5)),
        operations.translate_y_relative: (-0.5, (5, 0)),
    }
    for function, (value, (row, column)) in corners.items():
        pixels = np.asarray(function(white, value, fill, BICUBIC))
        assert pixels[row, column].tolist() == colour, function.__name__
        assert (pixels == 255).any(), function.__name__


class Recorder:
    """Stands in for a function of `operations`: keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, image: Image.Image, *arguments: object) -> Image.Image:
        self.calls.append(arguments)
        return image

    @property
    def values(self) -> np.ndarray:
        return np.array([call[0] for call in self.calls], float)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Takes the place of 'rotate', whose argument tells the magnitude: three times that, or the negative."""
    found = Recorder()
    monkeypatch.setitem(OPERATIONS, "rotate", replace(OPERATIONS["rotate"], function=found))
    yield found


IMAGE = Image.new("RGB", (4, 4))


@pytest.mark.parametrize("probability", [0, 0.2, 0.5, 0.9, 1])
def test_a_step_takes_place_as_often_as_its_probability_says(probability: float, recorder: Recorder):
    rng = np.random.default_rng(0)
    for _ in range(2000):
        Step("rotate", probability, 5)(IMAGE, rng, Noise(), Canvas())
    share = len(recorder.calls) / 2000
    assert share == probability if probability in (0, 1) else abs(share - probability) < 0.04


def test_either_sign_is_as_frequent(recorder: Recorder):
    rng = np.random.default_rng(0)
    for _ in range(2000):
        Step("rotate", 1, 5)(IMAGE, rng, Noise(), Canvas())
    assert set(recorder.values) == {-15, 15} and abs(recorder.values.mean()) < 15 * 0.09


def test_magnitudes_vary_by_the_standard_deviation_within_their_limits(recorder: Recorder):
    rng = np.random.default_rng(0)
    for _ in range(4000):
        Step("rotate", 1, 5)(IMAGE, rng, Noise(std=0.5), Canvas())
    magnitudes = np.abs(recorder.values) / 3
    assert abs(magnitudes.mean() - 5) < 0.04 and abs(magnitudes.std() - 0.5) < 0.03
    recorder.calls.clear()
    for _ in range(200):
        Step("rotate", 1, 11)(IMAGE, rng, Noise(std=3, most=12), Canvas())
        Step("rotate", 1, 0)(IMAGE, rng, Noise(std=3, most=12), Canvas())
    magnitudes = np.abs(recorder.values) / 3
    assert magnitudes.min() == 0 and magnitudes.max() == 12
    recorder.calls.clear()
    Step("rotate", 1, 15)(IMAGE, rng, Noise(), Canvas())
    assert abs(recorder.values[0]) == 30


def test_infinite_noise_is_uniform(recorder: Recorder):
    rng = np.random.default_rng(0)
    for _ in range(4000):
        Step("rotate", 1, 6)(IMAGE, rng, Noise(std=float("inf")), Canvas())
    quartiles = np.quantile(np.abs(recorder.values) / 3, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quartiles, [0, 1.5, 3, 4.5, 6], atol=0.2)


def test_the_filter_is_the_canvass_or_either(recorder: Recorder):
    rng = np.random.default_rng(0)
    for interpolation, expected in (
        ("bicubic", {BICUBIC}),
        ("bilinear", {BILINEAR}),
        ("random", {BICUBIC, BILINEAR}),
    ):
        recorder.calls.clear()
        for _ in range(20):
            Step("rotate", 1, 5)(IMAGE, rng, Noise(), Canvas((1, 2, 3), interpolation))
        assert {(fill, resample) for _, fill, resample in recorder.calls} == {((1, 2, 3), one) for one in expected}


def test_the_random_radius_is_uniform():
    radii = [argument("gaussian_blur_rand", 10, draw) for draw in (0, 0.5, 1)]
    assert radii == pytest.approx([0.1, 1.05, 2.0])
