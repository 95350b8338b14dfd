"""TensorFlow's evaluation pipeline: the authors' pixels, every example once, bad pictures named, TFDS' formats."""

import importlib.util
import io
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jeffnet import _tensorflow
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.data.batches import EvalBatch, EvalLoader, Shard
from jeffnet.data.preprocess import EvalTransform
from jeffnet.data.sources import Example, ImageFolder
from jeffnet.data.tensorflow import eval_loader
from jeffnet.errors import ConfigError, DatasetError, ImageError

if any(importlib.util.find_spec(name) is None for name in ("tensorflow", "tensorflow_datasets")):
    pytest.skip("TensorFlow is not installed", allow_module_level=True)

SMALL = EvalTransform(Preprocessing(8, crop_pct=1.0))
KEYS = ("image", "label", "mask", "index")


@pytest.fixture(scope="module")
def tf() -> Any:
    return _tensorflow.tensorflow()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("china.jpg"))


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def files(photo: Image.Image) -> dict[str, bytes]:
    """Contents of files: sizes that round differently, smaller and larger than the result, and every format."""
    sizes = [(640, 427), (500, 333), (333, 500), (457, 457), (101, 77), (31, 700), (7, 5), (2, 2), (1, 1)]
    found = {f"{w}x{h}.jpg": encoded(photo.resize((w, h)), "JPEG") for w, h in sizes}
    return found | {
        "fine.jpg": encoded(photo, "JPEG", subsampling=0, quality=97, progressive=True),
        "grey.jpg": encoded(photo.convert("L"), "JPEG"),
        "cmyk.jpg": encoded(photo.resize((300, 201)).convert("CMYK"), "JPEG"),
        "turned.jpg": encoded(photo.resize((300, 201)), "JPEG", exif=_orientation(6)),
        "rgb.png": encoded(photo.resize((301, 400)), "PNG"),
        "alpha.png": encoded(photo.resize((301, 400)).convert("RGBA"), "PNG"),
        "palette.png": encoded(photo.convert("P"), "PNG"),
        "grey.png": encoded(photo.convert("L"), "PNG"),
        "jpeg.png": encoded(photo.resize((260, 280)), "JPEG"),
        "x.bmp": encoded(photo, "BMP"),
        "x.webp": encoded(photo, "WEBP"),
        "gif.png": encoded(photo.resize((300, 200)), "GIF"),
    }


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def folder(root: Path, files: dict[str, bytes]) -> ImageFolder:
    """Two classes, the files in turn; their order is that of their names within a class."""
    for number, (name, content) in enumerate(files.items()):
        path = root / "val" / "ab"[number % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return ImageFolder(root, "val")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> ImageFolder:
    return folder(tmp_path_factory.mktemp("pictures"), files)


def authors(
    tf: Any, content: bytes, size: int, interpolation: str, resize: str, channels: int = 3, share: float | None = None
) -> np.ndarray:
    """`_decode_and_center_crop` of tensorflow/tpu, with the interpolations and formats that it had not."""
    share = size / (size + 32) if share is None else share
    is_jpeg = content[:2] == b"\xff\xd8"
    image = None if is_jpeg else tf.io.decode_image(content, channels=channels, expand_animations=False)
    shape = tf.io.extract_jpeg_shape(content) if image is None else tf.shape(image)
    height, width = int(shape[0]), int(shape[1])
    side = max(int(np.float32(share) * np.float32(min(height, width))), 1)
    top, left = ((height - side) + 1) // 2, ((width - side) + 1) // 2
    if image is None:
        image = tf.image.decode_and_crop_jpeg(content, [top, left, side, side], channels=channels)
    else:
        image = tf.image.crop_to_bounding_box(image, top, left, side, side)
    if resize == "legacy":
        operation = getattr(tf.compat.v1.image, f"resize_{interpolation}")
        return operation([image], [size, size])[0].numpy()
    image = tf.cast(image, tf.float32)
    return tf.image.resize(image, [size, size], interpolation, antialias=resize == "antialias").numpy()


def joined(loader: EvalLoader) -> EvalBatch:
    batches = list(loader)
    assert len(batches) == len(loader)
    image, label, mask, index = (np.concatenate([batch[key] for batch in batches]) for key in KEYS)
    return {"image": image, "label": label, "mask": mask, "index": index}


@pytest.mark.parametrize(
    ("size", "crop_pct", "interpolation", "resize"),
    [
        (224, 0.875, "bicubic", "legacy"),
        (300, 0.904, "bicubic", "legacy"),
        (224, 0.875, "bilinear", "legacy"),
        (224, 0.875, "bicubic", "half_pixel"),
        (224, 0.875, "bilinear", "antialias"),
    ],
)
def test_pixels_are_the_authors(size, crop_pct, interpolation, resize, tf, pictures: ImageFolder):
    """Among the sizes are those where 300 / 332 and the rounded 0.904 keep another number of pixels."""
    transform = EvalTransform(Preprocessing(size, crop_pct, interpolation))
    found = joined(eval_loader(pictures, "val", transform, len(pictures), resize=resize))
    assert found["image"].dtype == np.float32 and found["mask"].all()
    for index, image in enumerate(found["image"]):
        expected = authors(tf, pictures.path(index).read_bytes(), size, interpolation, resize)
        np.testing.assert_array_equal(image, expected, pictures.name(index))


def test_bicubic_pixels_are_neither_rounded_nor_clipped(pictures: ImageFolder):
    image = joined(eval_loader(pictures, "val", EvalTransform(Preprocessing(224)), 8))["image"]
    assert image.min() < 0 and image.max() > 255 and (image != image.round()).any()


def test_another_crop_pct_than_the_authors_is_kept(tf, pictures: ImageFolder):
    """0.882 would be the authors' for 240."""
    image = joined(eval_loader(pictures, "val", EvalTransform(Preprocessing(240, 0.875)), 8))["image"]
    for index in range(len(pictures)):
        content = pictures.path(index).read_bytes()
        np.testing.assert_array_equal(image[index], authors(tf, content, 240, "bicubic", "legacy", share=0.875))


def test_grey(tf, tmp_path: Path, files: dict[str, bytes]):
    """The formats without a grey decoder too; CMYK has none in libjpeg."""
    names = [name for name in files if name != "cmyk.jpg"]
    source = folder(tmp_path, {name: files[name] for name in names})
    source = ImageFolder(tmp_path, "val", channels=1)
    image = joined(eval_loader(source, "val", EvalTransform(Preprocessing(224)), 32))["image"]
    assert image.shape == (32, 224, 224, 1)
    for index in range(len(source)):
        content = source.path(index).read_bytes()
        if source.path(index).name in ("x.bmp", "x.webp", "gif.png"):
            colour = authors(tf, content, 224, "bicubic", "legacy")
            expected = colour @ np.float32([[0.2989], [0.587], [0.114]])
            assert np.abs(image[index] - expected).max() < 3
        else:
            np.testing.assert_array_equal(image[index], authors(tf, content, 224, "bicubic", "legacy", channels=1))


@pytest.mark.parametrize(
    ("size", "crop_pct", "mode", "box"),
    [
        ((96, 192), 0.875, "center", (40, 74, 600, 354)),
        ((192, 96), 0.5, "center", (267, 107, 373, 320)),
        ((64, 64), 1.0, "center", (107, 0, 534, 427)),
        ((64, 32), 1.0, "squash", (0, 0, 640, 427)),
        ((64, 32), 0.5, "squash", (160, 107, 480, 320)),
    ],
)
def test_sizes_that_are_no_squares_and_squash(size, crop_pct, mode, box, tf, photo: Image.Image, tmp_path: Path):
    """`box` is worked out by hand for 640 x 427; PNG, so that cutting first changes nothing."""
    source = folder(tmp_path, {"1.png": encoded(photo, "PNG")})
    transform = EvalTransform(Preprocessing(224, crop_pct), size, mode)
    (image,) = joined(eval_loader(source, "val", transform, 1))["image"]
    cut = np.asarray(photo.crop(box))
    np.testing.assert_array_equal(image, tf.compat.v1.image.resize_bicubic(cut[None], size)[0].numpy())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("size", "crop_pct", "mode"),
    [(None, 0.875, "center"), (None, 0.9, "center"), ((96, 160), 0.95, "center"), ((160, 96), 1.0, "squash")],
)
def test_pillows_pixels_but_for_rounding(size, crop_pct, mode, interpolation, tf, photo: Image.Image, tmp_path: Path):
    """Photographs smaller and larger than the result, upright and not, odd sizes; half a pixel beside would show."""
    shapes = [(640, 427), (427, 640), (201, 301), (90, 70), (128, 128), (333, 97)]
    files = {f"{number}.jpg": encoded(photo.resize(shape), "JPEG") for number, shape in enumerate(shapes)}
    files["6.png"] = encoded(photo.resize((211, 150)), "PNG")
    transform = EvalTransform(Preprocessing(128, crop_pct, interpolation), size, mode)
    source = folder(tmp_path, files)
    ours = joined(eval_loader(source, "val", transform, 4, resize="pillow"))["image"]
    for index in range(len(files)):
        theirs = transform(source[index].image).astype(np.float32)
        gap = np.abs(ours[index] - theirs)
        assert gap.mean() < 0.35 and (gap > 2).mean() < 0.002, (source.name(index), gap.mean(), gap.max())


class Noise:
    """Pictures of noise; the label of each is its number."""

    def __init__(self, length: int, mode: str = "RGB") -> None:
        self.classes = tuple(str(number) for number in range(length))
        self.channels = 3 if mode == "RGB" else 1
        shape = (length, 8, 8, 3) if mode == "RGB" else (length, 8, 8)
        self.pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        self.bad: set[int] = set()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Example:
        if index in self.bad:
            raise ImageError(f"image {self.name(index)!r} is broken")
        return Example(Image.fromarray(self.pixels[index]), index, self.name(index))

    def name(self, index: int) -> str:
        return f"noise {index}"

    def __repr__(self) -> str:
        return f"Noise({len(self)})"


@pytest.fixture(scope="module")
def noise() -> Noise:
    return Noise(10)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_example_comes_once_in_order_and_the_last_batch_is_padded(mode: str):
    source = Noise(10, mode)
    loader = eval_loader(source, "val", SMALL, 4)
    batches = list(loader)
    assert len(batches) == len(loader) == 3 and loader.num_examples == 10
    assert loader.classes == source.classes and loader.name(3) == "noise 3"
    for batch in batches:
        assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
            "image": ((4, 8, 8, source.channels), np.float32),
            "label": ((4,), np.int32),
            "mask": ((4,), np.bool_),
            "index": ((4,), np.int32),
        }
    found = joined(loader)
    np.testing.assert_array_equal(found["mask"], [True] * 10 + [False] * 2)
    np.testing.assert_array_equal(found["index"], [*range(10), -1, -1])
    np.testing.assert_array_equal(found["label"], [*range(10), 0, 0])
    np.testing.assert_array_equal(found["image"][:10], source.pixels.reshape(10, 8, 8, -1))
    assert not found["image"][10:].any()


@pytest.mark.parametrize("threads", [0, 3])
def test_threads_change_nothing(threads: int, pictures: ImageFolder):
    transform = EvalTransform(Preprocessing(32))
    one, other = (joined(eval_loader(pictures, "val", transform, 4, threads=count)) for count in (threads, None))
    for key in KEYS:
        np.testing.assert_array_equal(one[key], other[key])


def test_a_pass_can_be_broken_off_and_repeated(noise: Noise):
    loader = eval_loader(noise, "val", SMALL, 4)
    for _ in loader:
        break
    first, second = ([batch["index"].tolist() for batch in loader] for _ in range(2))
    assert first == second == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]


@pytest.mark.parametrize("count", [1, 3, 13])
def test_hosts_share_the_examples_and_have_as_many_batches(count: int, noise: Noise):
    """13 hosts are more than there are examples: some have nothing but padding."""
    loaders = [eval_loader(noise, "val", SMALL, 2, shard=Shard(index, count)) for index in range(count)]
    assert len({len(loader) for loader in loaders}) == 1
    found = [joined(loader) for loader in loaders]
    for index, batch in enumerate(found):
        np.testing.assert_array_equal(batch["index"][batch["mask"]], np.arange(index, 10, count))
        np.testing.assert_array_equal(batch["image"][batch["mask"]], noise.pixels[index::count])


@pytest.mark.parametrize(("asked", "given"), [(3, 3), (10, 10), (99, 10)])
def test_only_the_first_so_many(asked: int, given: int, noise: Noise):
    loader = eval_loader(noise, "val", SMALL, 4, num_examples=asked, shard=Shard(0, 1))
    assert loader.num_examples == given
    found = joined(loader)
    np.testing.assert_array_equal(found["index"][found["mask"]], range(given))


@pytest.mark.parametrize("bad", [[0, 5], [1, 2, 3, 4, 9], [4, 5, 6, 7], list(range(10))])
def test_skipped_pictures_are_masked_and_the_others_stay_what_they_are(bad: list[int], tmp_path: Path, tf):
    """Batches of 4: one, several in a batch and at its borders, the last example, a whole batch, all."""
    files = {f"{n}.png": encoded(Image.fromarray(Noise(10).pixels[n]), "PNG") for n in range(10)}
    source = folder(tmp_path, files)
    transform = EvalTransform(Preprocessing(16))
    expected = joined(eval_loader(source, "val", transform, 4))
    for index in bad:
        path = source.path(index)
        path.write_bytes((path.read_bytes()[:50], b"", b"no picture")[index % 3])
    found = joined(eval_loader(source, "val", transform, 4, on_bad_image="skip"))
    np.testing.assert_array_equal(found["index"], expected["index"])
    good = expected["mask"] & ~np.isin(expected["index"], bad)
    np.testing.assert_array_equal(found["mask"], good)
    for key in ("image", "label"):
        np.testing.assert_array_equal(found[key][good], expected[key][good])
        assert not found[key][~good].any()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", r"is not a JPEG, PNG, GIF, BMP or WebP file: convert or remove it"),
        (b"no picture", r"is not a JPEG, PNG, GIF, BMP or WebP file: convert or remove it"),
        (b"\xff\x0a jpeg xl", r"is not a JPEG, PNG, GIF, BMP or WebP file: convert or remove it"),
        (b"\xff\xd8\xff\xe0 cut short", r"cannot be decoded \(.+\): replace or remove it"),
        (b"\x89PNG\r\n\x1a\n", r"cannot be decoded \(.+\): replace or remove it"),
        (None, "does not exist: check the path"),
    ],
)
def test_a_bad_picture_is_an_error_naming_it_after_the_batches_before_it(content, fault, tmp_path: Path):
    files = {f"{n}.png": encoded(Image.fromarray(Noise(10).pixels[n]), "PNG") for n in range(10)}
    source = folder(tmp_path, files)
    path = source.path(6)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    iterator = iter(eval_loader(source, "val", SMALL, 2))
    assert [next(iterator)["index"].tolist() for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ImageError, match=rf"^image '.*{path.parent.name}.{path.name}' {fault}$") as raised:
        next(iterator)
    assert "\n" not in str(raised.value) and "{{" not in str(raised.value)


def test_a_bad_picture_whose_name_is_no_text_is_named(tmp_path: Path):
    """TensorFlow's message then cannot be decoded, and what arrives is another exception."""
    try:
        source = folder(tmp_path, {"1.png": b"", os.fsdecode(b"\xff.png"): encoded(Image.new("RGB", (9, 9)), "PNG")})
    except OSError:
        pytest.skip("file names are text here")
    assert joined(eval_loader(source, "val", SMALL, 2, on_bad_image="skip"))["mask"].tolist() == [False, True]
    source.path(1).unlink()
    assert not joined(eval_loader(source, "val", SMALL, 2, on_bad_image="skip"))["mask"].any()
    with pytest.raises(ImageError, match=r"udcff\.png' does not exist"):
        list(eval_loader(source, "val", SMALL, 1, shard=Shard(1, 2)))


def test_a_pipe_a_device_or_a_huge_file_is_an_error_at_once(tmp_path: Path):
    good = encoded(Image.new("RGB", (9, 9)), "PNG")
    source = folder(tmp_path, {f"{number}.png": good for number in range(4)})
    for number in (1, 2, 3):
        source.path(number).unlink()
    os.mkfifo(source.path(1))
    source.path(2).symlink_to("/dev/zero")
    with source.path(3).open("wb") as file:
        file.truncate(2**40)
    assert joined(eval_loader(source, "val", SMALL, 2, on_bad_image="skip"))["mask"].tolist() == [True] + [False] * 3
    for number, fault in ((1, "is a pipe"), (2, "is a device"), (3, "1,099,511,627,776 bytes")):
        with pytest.raises(ImageError, match=rf"\.png' cannot be read \(it .*{fault}"):
            list(eval_loader(source, "val", SMALL, 1, shard=Shard(number, 4)))


def test_a_truncated_photograph_is_named(tmp_path: Path, photo: Image.Image):
    content = encoded(photo, "JPEG")
    source = folder(tmp_path, {"1.jpg": content, "2.jpg": content[: len(content) // 2]})
    with pytest.raises(ImageError, match=r"2\.jpg' cannot be decoded"):
        list(eval_loader(source, "val", SMALL, 2))


def test_bad_pictures_of_a_source_are_its_own_errors():
    source = Noise(10)
    source.bad = {4, 5, 9}
    found = joined(eval_loader(source, "val", SMALL, 4, on_bad_image="skip"))
    np.testing.assert_array_equal(found["mask"], [*[True] * 4, False, False, *[True] * 3, False, False, False])
    np.testing.assert_array_equal(found["index"], [*range(10), -1, -1])
    with pytest.raises(ImageError, match=r"^image 'noise 4' is broken$"):
        list(eval_loader(source, "val", SMALL, 4))


def bombs() -> dict[str, bytes]:
    """Files whose headers promise 30,000 x 30,000 pixels."""
    one = Image.new("RGB", (64, 48))
    jpeg = bytearray(encoded(one, "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 30000, 30000)
    png = bytearray(encoded(one, "PNG"))
    png[16:24] = struct.pack(">II", 30000, 30000)
    gif = bytearray(encoded(one, "GIF"))
    gif[6:10] = struct.pack("<HH", 30000, 30000)
    webp = bytearray(encoded(one, "WEBP", exif=_orientation(1)))
    assert webp[12:16] == b"VP8X"
    webp[24:30] = struct.pack("<I", 29999)[:3] * 2
    return {"a.jpg": bytes(jpeg), "b.png": bytes(png), "c.gif": bytes(gif), "d.webp": bytes(webp)}


@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "webp"])
def test_a_decompression_bomb_is_refused(kind: str, tmp_path: Path):
    (content,) = (content for name, content in bombs().items() if name.endswith(kind))
    source = folder(tmp_path, {"1.png": content})
    fault = r"1\.png' has more than 89,478,485 pixels: scale it down, or raise PIL\.Image\.MAX_IMAGE_PIXELS if"
    with pytest.raises(ImageError, match=fault):
        list(eval_loader(source, "val", SMALL, 2))


def test_the_limit_of_pixels_is_pillows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    image = Image.new("RGB", (50, 40))
    source = folder(tmp_path, {name: encoded(image, kind) for name, kind in (("1.jpg", "JPEG"), ("2.png", "PNG"))})
    for limit, fits in ((2000, True), (1999, False), (None, True)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        found = joined(eval_loader(source, "val", SMALL, 2, on_bad_image="skip"))
        assert found["mask"].tolist() == [fits, fits]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"batch_size": 0}, "batch_size 0 "),
        ({"threads": -1}, "threads -1 "),
        ({"num_examples": -1}, "num_examples -1 "),
        ({"on_bad_image": "stop"}, "on_bad_image 'stop' "),
        ({"resize": "area"}, "resize 'area' is not one of legacy, half_pixel, antialias, pillow"),
        ({"transform": EvalTransform(Preprocessing(8), crop_mode="border")}, "crop_mode 'border' "),
    ],
)
def test_a_setting_out_of_range_is_an_error_naming_it(options: dict[str, Any], fault: str, noise: Noise):
    with pytest.raises(ConfigError, match=f"^{fault}"):
        eval_loader(noise, "val", **{"transform": SMALL, "batch_size": 4, **options})


@pytest.fixture(scope="module")
def tfds() -> Any:
    return importlib.import_module("tensorflow_datasets")


def prepared(tfds: Any, root: Path, files: Sequence[bytes], format_: str = "tfrecord", label: int | None = None) -> str:
    """Prepares a data set 'tiny/good' of three files: 'train' has all pictures, 'test' the first five."""

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "tiny"
        VERSION = tfds.core.Version("1.2.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="good")]  # noqa: RUF012

        def _info(self) -> Any:
            features = {
                "picture": tfds.features.Image(shape=(None, None, 3)),
                "class": tfds.features.ClassLabel(names=["cat", "dog", "fox"]),
                "caption": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("picture", "class"),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples(len(files)), "test": self._generate_examples(5)}

        def _generate_examples(self, count: int) -> Any:
            for number in range(count):
                image = io.BytesIO(files[number])
                yield number, {"picture": image, "class": number % 3 if label is None else label, "caption": "x"}

    builder = Tiny(data_dir=root, file_format=format_)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    return str(builder.data_path)


@pytest.fixture(scope="module")
def tiny(tfds, files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By format: where the pictures are prepared, all formats that TFDS takes and 20 examples in three files."""
    roots = {}
    for format_ in ("tfrecord", "array_record"):
        roots[format_] = tmp_path_factory.mktemp(format_)
        prepared(tfds, roots[format_], list(files.values()), format_)
    return roots


FORMATS = pytest.mark.parametrize("format_", ["tfrecord", "array_record"])


@FORMATS
def test_prepared_data_sets_are_read_in_order(format_: str, tf, tfds, tiny, files: dict[str, bytes]):
    loader = eval_loader("tfds:tiny/good", "train", EvalTransform(Preprocessing(224)), 8, data_dir=str(tiny[format_]))
    assert loader.classes == ("cat", "dog", "fox") and loader.num_examples == len(files)
    found = joined(loader)
    np.testing.assert_array_equal(found["label"][found["mask"]], [number % 3 for number in range(len(files))])
    for index, content in enumerate(files.values()):
        np.testing.assert_array_equal(found["image"][index], authors(tf, content, 224, "bicubic", "legacy"))


def test_names_are_the_ids_of_tfds(tfds, tiny, files: dict[str, bytes]):
    options = {
        "read_config": tfds.ReadConfig(add_tfds_id=True, interleave_cycle_length=1),
        "decoders": {"picture": tfds.decode.SkipDecoding()},
    }
    folder = tiny["tfrecord"] / "tiny/good/1.2.0"
    for split in ("train", "train[3:17]", "test+train[50%:]"):
        loader = eval_loader(str(folder), split, SMALL, 8)
        dataset = tfds.builder_from_directory(folder).as_dataset(split=split, **options)
        ids = [example["tfds_id"].decode() for example in dataset.as_numpy_iterator()]
        assert [loader.name(index) for index in range(loader.num_examples)] == ids
        assert len({name.partition("__")[0] for name in ids}) > 1 and len(set(ids)) == len(ids) > 10


@FORMATS
@pytest.mark.parametrize("split", [pytest.param("train[3:17]", marks=pytest.mark.slow), "test+train[60%:]"])
def test_parts_of_splits_hosts_and_first_examples(format_: str, split: str, tiny):
    """Against the whole of the part, read at once by one host."""
    folder = str(tiny[format_] / "tiny/good/1.2.0")
    whole = joined(eval_loader(folder, split, SMALL, 1))
    for count, most in ((2, None), (1, 7)):
        for index in range(count):
            loader = eval_loader(folder, split, SMALL, 2, shard=Shard(index, count), num_examples=most)
            found = joined(loader)
            rows = range(len(whole["index"]))[:most][index::count]
            np.testing.assert_array_equal(found["index"][found["mask"]], rows)
            for key in ("image", "label"):
                np.testing.assert_array_equal(found[key][found["mask"]], whole[key][rows])
            later = [index for batch in loader._read(1) for index in batch["index"]]  # as after a bad picture
            assert later == [*rows][2:]


@FORMATS
@pytest.mark.parametrize("data", ["tfds:tiny/good:1.2.0", "tfds:tiny/good:1.*.*", "tfds:tiny", "tiny/good"])
def test_val_is_the_test_split_where_there_is_no_other(format_: str, data: str, tiny, monkeypatch):
    """By version, by a part of it, by the default config, and by a folder of versions."""
    monkeypatch.chdir(tiny[format_])
    loader = eval_loader(data, "val", SMALL, 8, data_dir=str(tiny[format_]))
    assert loader.num_examples == 5 and loader.name(0).startswith("tiny-test.")


@FORMATS
def test_bad_pictures_of_a_prepared_data_set(format_: str, tfds, tmp_path: Path):
    """12 in three files: one in the first, two in a batch of the second, and the last."""
    good = encoded(Image.fromarray(Noise(1).pixels[0]), "PNG")
    files = [good if number not in (1, 5, 6, 11) else good[:60] for number in range(12)]
    folder = prepared(tfds, tmp_path, files, format_)
    found = joined(eval_loader(folder, "train", SMALL, 4, on_bad_image="skip"))
    np.testing.assert_array_equal(found["index"], range(12))
    np.testing.assert_array_equal(np.flatnonzero(~found["mask"]), [1, 5, 6, 11])
    np.testing.assert_array_equal(found["label"], [0 if n in (1, 5, 6, 11) else n % 3 for n in range(12)])
    fault = r"^image 'tiny-train\.\w+-00000-of-00003__1' of data set 'tiny/good/1\.2\.0' cannot be decoded"
    with pytest.raises(ImageError, match=fault):
        list(eval_loader(folder, "train", SMALL, 4))


@FORMATS
@pytest.mark.parametrize("kept", [None, 0.5])
def test_a_damaged_or_missing_record_file_is_an_error_naming_the_data_set(format_, kept, tfds, tmp_path: Path):
    """Half of the file ends, in a tfrecord, with one of its two records: TensorFlow then finds nothing damaged."""
    folder = prepared(tfds, tmp_path, [encoded(Image.new("RGB", (9, 9)), "PNG")] * 6, format_)
    path = Path(folder, f"tiny-train.{format_}-00001-of-00003")
    content = path.read_bytes()
    path.unlink()
    if kept is not None:
        path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(DatasetError, match=r"^data set 'tiny/good/1\.2\.0' cannot be read \(.+again$") as raised:
        list(eval_loader(folder, "train", SMALL, 4, on_bad_image="skip"))
    assert "\n" not in str(raised.value)


def test_pictures_without_a_label_are_an_error(tfds, tmp_path: Path):
    folder = prepared(tfds, tmp_path, [encoded(Image.new("RGB", (9, 9)), "PNG")] * 6, label=-1)
    with pytest.raises(DatasetError, match=r"'tiny/good/1\.2\.0' has pictures without a label, such as 'tiny-train"):
        list(eval_loader(folder, "train", SMALL, 4))


def test_what_is_not_prepared_is_not_downloaded(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for data in ("tfds:imagenet2012", "tfds:tiny/bad", "tfds:tiny:3.0.0", "tfds:no_such_data_set"):
        with pytest.raises(DatasetError, match=rf"^data set '{data}' is not prepared in {tmp_path}: prepare it "):
            eval_loader(data, "val", SMALL, 4, data_dir=str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny["tfrecord"]))
    assert eval_loader("tfds:tiny/good", "val", SMALL, 4).num_examples == 5
    with pytest.raises(DatasetError, match="is no name: give tfds:NAME"):
        eval_loader("tfds:kaggle:x", "val", SMALL, 4)


@pytest.mark.parametrize("split", ["validation", "train[200:]", "train[:0]", "train[nonsense]", ""])
def test_an_unknown_split_is_an_error_naming_those_there_are(split: str, tiny):
    with pytest.raises(DatasetError, match=r"has no split '.*' with examples: use one of test, train, or a part of it"):
        eval_loader("tfds:tiny/good", split, SMALL, 4, data_dir=str(tiny["tfrecord"]))


def test_an_image_folder_by_its_name_is_read_by_tensorflow(tf, pictures: ImageFolder):
    root = str(pictures.path(0).parents[2])
    loader = eval_loader(root, "val", EvalTransform(Preprocessing(224)), 8)
    assert loader.classes == ("a", "b") and loader.name(0) == pictures.name(0)
    found = joined(loader)
    np.testing.assert_array_equal(found["label"][found["mask"]], pictures.labels)
    content = pictures.path(3).read_bytes()
    np.testing.assert_array_equal(found["image"][3], authors(tf, content, 224, "bicubic", "legacy"))
    with pytest.raises(DatasetError, match="does not exist"):
        eval_loader(root + "/nowhere", "val", SMALL, 4)


def test_digits_by_their_name():
    loader = eval_loader("digits", "val", SMALL, 64, channels=1)
    batch = next(iter(loader))
    assert loader.classes == tuple("0123456789") and batch["image"].shape == (64, 8, 8, 1)


def test_the_users_tensorflow_stays_as_it_is(tf: Any, monkeypatch: pytest.MonkeyPatch, pictures: ImageFolder):
    """Its GPUs stay visible to it, what is done here is done on the CPU, and no environment variable is left."""
    devices: list[str] = []
    device = tf.device
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *_: pytest.fail("GPUs are hidden"))
    monkeypatch.setattr(tf, "device", lambda name: devices.append(name) or device(name))
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    batches = list(eval_loader(pictures, "val", SMALL, 4))
    assert {*devices} == {"CPU:0"} and len(devices) > len(batches)
    assert "TF_CPP_MIN_LOG_LEVEL" not in os.environ
    for own in (None, "1"):
        if own:
            monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", own)
        with _tensorflow.silence():
            assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == (own or "3")
        assert os.environ.get("TF_CPP_MIN_LOG_LEVEL") == own


def test_without_tensorflow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, noise: Noise):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(DatasetError, match=r"pip install tensorflow-cpu"):
        eval_loader(noise, "val", SMALL, 4)
