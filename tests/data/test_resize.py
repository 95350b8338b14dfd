"""Resizing gives Pillow's bytes, by the C++ library and without it, wherever Pillow has the pixels."""

import io
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jeffnet.data import resize as resizing
from jeffnet.data.images import read_image
from jeffnet.data.resize import resize
from jeffnet.ops import native

FILTERS = [each for each in Image.Resampling if each.name in ("BOX", "BILINEAR", "HAMMING", "BICUBIC", "LANCZOS")]


@pytest.fixture(params=["C++", "Pillow"])
def by(request, monkeypatch) -> str:
    """Who does the work; a library that refuses what it should do is noticed."""
    if request.param == "Pillow":
        monkeypatch.setattr(resizing, "native", lambda: None)
    elif resizing.native() is None:
        pytest.skip("no C++ library")
    else:
        monkeypatch.setattr(resizing, "_by_pillow", None)
    return request.param


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    # Copied, since Pillow maps grey arrays.
    return Image.fromarray(np.random.default_rng([width, height]).integers(0, 256, shape, np.uint8)).copy()


def parts(side: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.lists(st.integers(0, side), min_size=2, max_size=2, unique=True).map(lambda ends: (min(ends), max(ends)))


@st.composite
def problems(draw):
    """A picture, and what `resize` is to do with it."""
    sides = st.one_of(st.integers(1, 8), st.integers(1, 120))
    image = noise(draw(sides), draw(sides), draw(st.sampled_from(["RGB", "L"])))
    size = draw(sides), draw(sides)
    options = {"flips": draw(st.tuples(st.booleans(), st.booleans()))}
    width, height = image.size
    if draw(st.booleans()):
        (left, right), (top, bottom) = draw(parts(width)), draw(parts(height))
        options["crop"] = left, top, right, bottom
        width, height = right - left, bottom - top
    if draw(st.booleans()):
        (left, right), (top, bottom) = (
            sorted(draw(st.tuples(*[st.floats(0, side, width=32)] * 2))) for side in (width, height)
        )
        options["box"] = left, top, right, bottom
    if draw(st.booleans()):
        (left, right), (top, bottom) = map(draw, map(parts, size))
        options["window"] = left, top, right, bottom
    return image, size, draw(st.sampled_from(FILTERS)), options


def reference(image, size, resample, crop=None, box=None, window=None, flips=(False, False)) -> np.ndarray:
    image = (image.crop(crop) if crop else image).resize(size, resample, box)
    image = image.crop(window) if window else image
    for flip, turn in zip(flips, (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM), strict=True):
        image = image.transpose(turn) if flip else image
    return np.asarray(image).reshape(image.height, image.width, -1)


def test_any_resize_is_pillows(by):
    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @given(problems())
    def check(problem):
        image, size, resample, options = problem
        np.testing.assert_array_equal(resize(image, size, resample, **options), reference(*problem[:3], **options))

    check()


def test_a_border_around_the_result_is_left_alone(by):
    image, canvas = noise(30, 20), np.full((20, 24, 3), 5, np.uint8)
    inside = canvas[3:13, 4:20]
    assert resize(image, (16, 10), Image.Resampling.BICUBIC, out=inside) is inside
    np.testing.assert_array_equal(inside, reference(image, (16, 10), Image.Resampling.BICUBIC))
    inside[:] = 5
    assert (canvas == 5).all()


def stored(kind: str, folder: Path) -> Image.Image:
    """A picture whose pixels Pillow holds in another way."""
    if kind == "array":
        return Image.fromarray(np.asarray(noise(33, 27, "L")))  # mapped
    if kind == "file":
        noise(33, 27, "L").save(folder / "a.bmp")  # mapped from its bottom up, and rows end at multiples of four bytes
        return Image.open(folder / "a.bmp")
    if kind == "blocks":
        return noise(2500, 2000)  # of more than 16 MiB
    if kind == "transparent":
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (27, 33, 4), np.uint8)).save(file, "png")
        return read_image(file.getvalue())
    file = io.BytesIO()
    noise(90, 70).save(file, kind, quality=80)
    return read_image(file.getvalue())


@pytest.mark.parametrize("kind", ["array", "file", "blocks", "transparent", "jpeg", "png", "webp"])
def test_wherever_pillow_has_the_pixels(kind, by, tmp_path):
    image = stored(kind, tmp_path)
    expected = reference(image.copy(), (20, 15), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resize(image, (20, 15), Image.Resampling.BICUBIC), expected)


def test_where_pillow_aligns_rows_their_gaps_are_no_pixels(by):
    before = Image.core.get_alignment()
    Image.core.set_alignment(64)
    try:
        image = noise(33, 27)
        expected = reference(image, (20, 15), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(resize(image, (20, 15), Image.Resampling.BICUBIC), expected)
    finally:
        Image.core.set_alignment(before)


@pytest.mark.parametrize(
    ("resample", "box"), [(3, (0, 0, 31, 20)), (3, (9, 0, 3, 20)), (3, (-1, 0, 3, 20)), (77, None)]
)
def test_what_cannot_be_is_pillows_error(resample, box):
    with pytest.raises(ValueError, match=r"[Bb]ox |resampling filter"):
        resize(noise(30, 20), (5, 5), resample, box=box)


def test_without_a_compiler_pillow_does_it_and_the_log_says_why(monkeypatch, caplog):
    def unavailable(*_):
        raise native.NativeUnavailableError("no compiler")

    monkeypatch.setattr(resizing, "open_library", unavailable)
    resizing._library.cache_clear()
    try:
        with caplog.at_level(logging.INFO, "jeffnet.data"):
            assert resizing.native() is None and resizing.native() is None
    finally:
        resizing._library.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "Pillow prepares pictures, more slowly than C++: no compiler"
    ]


def test_worker_processes_need_no_jax():
    program = "import sys; from jeffnet.data import pytorch, resize; resize.native(); print('jax' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "False\n"
