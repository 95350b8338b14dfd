"""What the evaluation pipelines do alike: where it is asked for, pictures are turned by their EXIF orientation."""

import importlib.util
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.data.choices import LOADERS
from jeffnet.data.pipelines import open_pipeline
from jeffnet.data.preprocess import EvalTransform

TURN = Image.Transpose
# What stores an upright picture so that a reader has to turn it: the inverse of what `upright` does.
STORED = {
    2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE, 6: TURN.ROTATE_90,
    7: TURN.TRANSVERSE, 8: TURN.ROTATE_270,
}  # fmt: skip
UPRIGHT = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 24, 3), np.uint8))
NEEDS = {"tf": ("tensorflow", "tensorflow_datasets"), "pt": ("torch",), "grain": ()}


def orientation(value: int, kind: int = 3) -> bytes:
    """EXIF of one entry; a kind other than 3, a number of 16 bits, is not what an orientation has."""
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHH", 1, 0x0112, kind, 1, value, 0) + bytes(4)


# None of them says in which of the eight ways a picture lies.
BROKEN = {
    "zero": orientation(0),
    "nine": orientation(9),
    "text": orientation(0x3600, kind=2),
    "fraction": orientation(6, kind=5),
    "cut": orientation(6)[:-9],
    "noise": b"Exif\0\0" + bytes(range(40)),
    "loop": b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHII", 1, 0x8769, 4, 1, 8) + b"\0\0\0\x08",
    "empty": b"Exif\0\0",
}


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Each orientation without loss, and in JPEG, and what is broken."""
    stored = {value: UPRIGHT.transpose(turn) for value, turn in STORED.items()} | {1: UPRIGHT}
    found = {"upright.png": encoded(UPRIGHT, "PNG"), "upright.jpg": encoded(UPRIGHT, "JPEG")}
    for value, image in sorted(stored.items()):
        found[f"{value}.png"] = encoded(image, "PNG", exif=orientation(value))
        found[f"{value}.webp"] = encoded(image, "WEBP", lossless=True, exif=orientation(value))
        found[f"{value}.jpg"] = encoded(UPRIGHT, "JPEG", exif=orientation(value))
    return found | {f"{name}.jpg": encoded(UPRIGHT, "JPEG", exif=exif) for name, exif in BROKEN.items()}


@pytest.fixture(scope="module", params=["folder", "tar"])
def data(request: pytest.FixtureRequest, files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("data")
    if request.param == "tar":
        with tarfile.open(root / "val.tar", "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"one/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return str(root / "val.tar")
    (root / "one").mkdir()
    for name, content in files.items():
        (root / "one" / name).write_bytes(content)
    return str(root)


@pytest.mark.parametrize("loader", LOADERS)
def test_pictures_of_a_model_that_squashes_are_whole(loader: str, tmp_path: Path):
    """Its preprocessing alone says so, as that of published weights."""
    if any(importlib.util.find_spec(name) is None for name in NEEDS[loader]):
        pytest.skip(f"needs {NEEDS[loader]}")
    (tmp_path / "one").mkdir()
    UPRIGHT.save(tmp_path / "one" / "a.png")
    transform = EvalTransform(Preprocessing(16, 1.0, crop_mode="squash"))
    [batch] = list(open_pipeline(loader, str(tmp_path), "val", transform, 1, workers=0, tf_resize="pillow"))
    expected = np.asarray(UPRIGHT.resize((16, 16), Image.Resampling.BICUBIC), np.float32)
    np.testing.assert_allclose(batch["image"][0], expected, atol=1.0 if loader == "tf" else 0.0)


@pytest.mark.parametrize("loader", LOADERS)
def test_pictures_are_turned_where_that_is_asked_for(loader: str, data: str, files: dict[str, bytes]):
    if any(importlib.util.find_spec(name) is None for name in NEEDS[loader]):
        pytest.skip(f"needs {NEEDS[loader]}")

    def pixels(exif: bool, size: int = 16) -> dict[str, np.ndarray]:
        transform = EvalTransform(Preprocessing(size, crop_pct=0.8), exif=exif)
        batches = open_pipeline(loader, data, "val", transform, len(files), workers=0)
        [batch] = list(batches)
        assert batch["mask"].all()
        return {Path(batches.name(int(i))).name: batch["image"][row] for row, i in enumerate(batch["index"])}

    turned, stored = pixels(True), pixels(False)
    assert turned.keys() == files.keys()
    for value in range(1, 9):
        for ending in ("png", "webp"):
            np.testing.assert_array_equal(turned[f"{value}.{ending}"], turned["upright.png"])
        # The pictures in JPEG are stored alike: they come out turned, unless by two turns that make one.
        same = np.array_equal(turned[f"{value}.jpg"], stored[f"{value}.jpg"])
        assert same is (value == 1), value
        np.testing.assert_array_equal(stored[f"{value}.jpg"], stored["upright.jpg"])
        assert np.array_equal(stored[f"{value}.png"], stored["upright.png"]) is (value == 1)
    for name in BROKEN:
        np.testing.assert_array_equal(turned[f"{name}.jpg"], stored["upright.jpg"], err_msg=name)
    np.testing.assert_array_equal(turned["upright.png"], stored["upright.png"])


def test_a_jpeg_is_turned_by_tensorflow_as_by_pillow(files: dict[str, bytes], tmp_path: Path):
    """Pixels at their places, without a resize; the two decoders differ by little."""
    for name in NEEDS["tf"]:
        pytest.importorskip(name)
    (tmp_path / "one").mkdir()
    square = UPRIGHT.crop((0, 0, 4, 4)).resize((16, 16), Image.Resampling.NEAREST)
    for value in range(1, 9):
        (tmp_path / "one" / f"{value}.jpg").write_bytes(
            encoded(square, "JPEG", quality=98, subsampling=0, exif=orientation(value))
        )
    found = {}
    for loader in ("grain", "tf"):
        transform = EvalTransform(Preprocessing(16, crop_pct=1.0), exif=True)
        [batch] = list(open_pipeline(loader, str(tmp_path), "val", transform, 8, tf_resize="pillow"))
        found[loader] = batch["image"].astype(np.float32)
    assert np.abs(found["grain"] - found["tf"]).max() <= 6
    assert np.abs(found["grain"][0] - found["grain"][5]).max() > 50
