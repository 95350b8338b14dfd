"""Reading pictures: what comes out of every pixel format, and which error out of what is no picture."""

import io
import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jeffnet.data.images import FORMATS, SUFFIXES, converted, is_picture, orientation, read_image, upright
from jeffnet.errors import ImageError

COLOUR = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
GREY = COLOUR[:, :, 0]


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def with_alpha() -> Image.Image:
    return Image.fromarray(np.dstack([COLOUR, GREY]))


def palette() -> Image.Image:
    return Image.fromarray(COLOUR).quantize(16)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_pixels_of_a_lossless_file_are_those_written(file_format: str, tmp_path: Path):
    path = tmp_path / "picture.xyz"
    path.write_bytes(encoded(Image.fromarray(COLOUR), file_format))
    for source in (path, str(path), path.read_bytes()):
        image = read_image(source)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), COLOUR)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("image", "file_format"),
    [
        (Image.fromarray(GREY), "PNG"),
        (Image.fromarray(GREY > 127), "PNG"),
        (palette(), "PNG"),
        (Image.fromarray(COLOUR).convert("CMYK"), "JPEG"),
        (Image.fromarray(COLOUR).convert("YCbCr"), "JPEG"),
        (with_alpha(), "PNG"),
        (Image.fromarray(GREY).convert("LA"), "PNG"),
    ],
    ids=["grey", "1-bit", "palette", "CMYK", "YCbCr", "RGBA", "LA"],
)
def test_every_mode_is_converted_as_pillow_converts_it(image: Image.Image, file_format: str, channels: int):
    content = encoded(image, file_format)
    mode = {1: "L", 3: "RGB"}[channels]
    expected = Image.open(io.BytesIO(content)).convert(mode)
    read = read_image(content, channels)
    assert read.mode == mode
    np.testing.assert_array_equal(np.asarray(read), np.asarray(expected))


def test_alpha_is_dropped_not_blended():
    np.testing.assert_array_equal(np.asarray(read_image(encoded(with_alpha(), "PNG"))), COLOUR)


def test_a_palette_with_transparency_keeps_its_colours_without_a_warning():
    """Pillow's own conversion warns of the transparency it drops; warnings are errors here."""
    content = encoded(palette(), "PNG", transparency=bytes(range(16)))
    np.testing.assert_array_equal(np.asarray(read_image(content)), np.asarray(palette().convert("RGB")))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(file_format: str):
    """Widened by 257 = 65535 / 255, every 8-bit picture must come back exactly; Pillow alone makes it white."""
    content = encoded(Image.fromarray(GREY.astype(np.uint16) * 257), file_format)
    assert Image.open(io.BytesIO(content)).mode[0] == "I"
    np.testing.assert_array_equal(np.asarray(read_image(content, 1)), GREY)
    np.testing.assert_array_equal(np.asarray(read_image(content, 3)), np.dstack([GREY] * 3))


def test_integers_in_memory_whose_range_is_not_known_are_refused():
    """They may be of 8 bits or of 16: Pillow has the same mode for both."""
    with pytest.raises(ImageError, match="32-bit integers of unknown range: convert it to mode 'L'"):
        converted(Image.fromarray(GREY).convert("I"))


def test_16_bit_values_are_rounded_to_the_nearest():
    values = np.array([[0, 128, 129, 385, 386, 65406, 65407, 65535]], np.uint16)
    read = np.asarray(read_image(encoded(Image.fromarray(values), "PNG"), 1))
    np.testing.assert_array_equal(read, [[0, 0, 1, 1, 2, 254, 255, 255]])


@pytest.mark.parametrize(
    "pixels", [np.full((4, 4), 70_000, np.int32), np.full((4, 4), -1, np.int32), np.ones((4, 4), "f4")]
)
def test_pixels_of_unknown_range_are_refused(pixels: np.ndarray):
    with pytest.raises(ImageError, match=r"^image of \d+ bytes cannot be decoded \(its pixels "):
        read_image(encoded(Image.fromarray(pixels), "TIFF"))


def test_orientation_of_a_jpeg_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(encoded(Image.fromarray(COLOUR), "JPEG", exif=exif)).size == (17, 12)


@pytest.mark.parametrize(("value", "steps"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_upright_turns_by_the_orientation_and_once(value: int, steps: int):
    """Of colour and of grey, also of 16 bits, in every format that has metadata."""
    exif = Image.Exif()
    exif[0x0112] = value
    grey = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    for content, channels in (
        (encoded(Image.fromarray(COLOUR), "PNG", exif=exif), 3),
        (encoded(Image.fromarray(COLOUR), "WEBP", lossless=True, exif=exif), 1),
        (encoded(Image.fromarray(COLOUR), "JPEG", exif=exif), 3),
        (encoded(Image.fromarray(grey), "PNG", exif=exif), 1),
        (encoded(Image.fromarray(grey), "PNG", exif=exif), 3),
    ):
        stored = read_image(content, channels)
        turned = upright(stored)
        np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(stored), steps))
        assert turned is stored if value == 1 else orientation(stored) == value
        assert orientation(turned) == 1 and upright(turned) is turned


def test_the_file_is_closed_and_the_picture_complete(tmp_path: Path):
    path = tmp_path / "picture.png"
    Image.fromarray(COLOUR).save(path)
    image = read_image(path)
    path.unlink()
    np.testing.assert_array_equal(np.asarray(image), COLOUR)


def faulty_files(folder: Path) -> dict[str, str]:
    """File name and what the message must say."""
    noise = encoded(Image.fromarray(np.tile(COLOUR, (9, 9, 1))), "JPEG")
    png = encoded(Image.fromarray(COLOUR), "PNG")
    contents = {
        "empty.jpg": (b"", "is empty"),
        "text.png": (b"no picture" * 50, "not a picture in a known format"),
        "truncated.jpg": (noise[: len(noise) // 2], "truncated"),
        "header.jpg": (noise[:30], "cannot be decoded"),
        "broken.png": (png[:60] + bytes(20) + png[80:], "cannot be decoded"),
        "script.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not a picture"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    others = {"folder.jpg": "is a folder", "missing.jpg": "does not exist", "nul\0.jpg": "cannot be read"}
    return {name: fault for name, (_, fault) in contents.items()} | others


def test_a_faulty_file_is_an_error_of_one_line_naming_it_and_its_fault(tmp_path: Path):
    for name, fault in faulty_files(tmp_path).items():
        with pytest.raises(ImageError) as raised:
            read_image(tmp_path / name)
        message = str(raised.value)
        assert message.startswith(f"image {str(tmp_path / name)!r} ") and fault in message and "\n" not in message
        assert ": " in message  # and a way out


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_without_permission_is_an_error_naming_it(tmp_path: Path):
    path = tmp_path / "secret.png"
    Image.fromarray(COLOUR).save(path)
    path.chmod(0)
    with pytest.raises(ImageError, match=r"secret\.png' cannot be read \(Permission denied\)"):
        read_image(path)


@pytest.mark.parametrize("limit", [12 * 17 - 1, 12 * 17 // 2 - 1], ids=["Pillow warns", "Pillow raises"])
def test_a_decompression_bomb_is_an_error(limit: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings(record=True) as caught, pytest.raises(ImageError, match=f"more than {limit} pixels"):
        warnings.simplefilter("always")
        read_image(encoded(Image.fromarray(COLOUR), "PNG"))
    assert not caught


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_channels_than_1_and_3_are_refused(channels: int):
    with pytest.raises(ImageError, match=f"^{channels} channels"):
        read_image(encoded(Image.fromarray(COLOUR), "PNG"), channels)


def jpeg_with_corrupt_exif() -> bytes:
    """A whole picture whose metadata end early, as some of ImageNet's do: Pillow warns when it opens it."""
    entry = b"\x01\x0f\x00\x02\x00\x00\x00\x40\x00\x00\x7f\xff"
    exif = b"Exif\0\0MM\x00\x2a\x00\x00\x00\x08\x00\x01" + entry
    content = encoded(Image.fromarray(COLOUR), "JPEG")
    # Without its own header of resolution, for which Pillow then searches the EXIF data.
    start = 4 + int.from_bytes(content[4:6], "big")
    return content[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + content[start:]


def test_odd_metadata_neither_warn_nor_fail_in_any_thread():
    """Many threads that take turns very often: each must find and leave the process's filters of warnings intact."""
    content = jpeg_with_corrupt_exif()
    with pytest.warns(UserWarning):
        expected = np.asarray(Image.open(io.BytesIO(content)))
    filters, interval = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            images = list(pool.map(read_image, [content] * 400))
    finally:
        sys.setswitchinterval(interval)
    for image in images:
        np.testing.assert_array_equal(np.asarray(image), expected)
    assert list(warnings.filters) == filters


def test_pictures_are_told_by_every_ending_that_pillow_has_for_the_formats_read():
    Image.init()
    known = {ending for ending, file_format in Image.registered_extensions().items() if file_format in FORMATS}
    assert known - {".pfm"} == SUFFIXES
    timms, torchvisions = {".png", ".jpg", ".jpeg"}, {".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
    assert timms | torchvisions <= SUFFIXES
    assert is_picture("a.b.JPEG")
    assert not is_picture(".hidden.jpg")
    assert not is_picture("jpg")


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_a_picture_of_every_ending_is_read(suffix: str, tmp_path: Path):
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(COLOUR).save(path)
    assert read_image(path).size == (17, 12)


def test_what_is_no_file_or_far_too_large_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(2**40)
    for name, fault in (("pipe", "is a pipe"), ("device", "is a device"), ("sparse", "1,099,511,627,776 bytes")):
        with pytest.raises(ImageError, match=rf"{name}\.jpg' cannot be read \(it .*{fault}"):
            read_image(tmp_path / f"{name}.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"bytes, more than 6,000\): scale it down, or raise PIL.Image"):
        read_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(tmp_path / "a.png").size == (40, 60)
