"""Whatever a file of a data set, of labels, settings or results holds: it is read, or is an error that names it."""

import csv
import io
import json
import random
import signal
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jeffnet.data.arrays import open_npz
from jeffnet.data.images import read_image
from jeffnet.data.labels import read_label_map, read_real_labels
from jeffnet.data.open import open_source
from jeffnet.errors import JeffnetError
from jeffnet.train.recipe import load_recipe
from jeffnet.train.reports.environment import ENVIRONMENT_FILE, read_environments
from jeffnet.train.reports.journal import METRICS_FILE, read_rows
from jeffnet.train.run import read_config
from jeffnet.validation.results import ResultsFile

# A reader that takes longer hangs: the files have a few kilobytes.
_SECONDS = 20
_ODD_BYTES = (
    *(b"NaN", b"-Infinity", b"1e999", b"-1", b"3000000000", b"9" * 40, b"9" * 5000, b"0.5", b"true", b"null", b'""'),
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xed\xb2\x80",
        b"\r",
        b"\n\n",
        b",,,",
        b'"',
        b"[" * 3000,
        b'{"a":' * 3000,
        b"../x",
        b"/dev/zero",
    ),
)
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**64, 10**400, 0.5, float("nan"), float("inf"), "", "x", "1", "\ud800\n", "../x"),
    *([], {}, [[]], {"a": 1}, [1, "x", None], "x" * 10_000),
)


@dataclass(frozen=True)
class Reader:
    """Something that reads a file.

    Attributes:
      file: its name.
      write: fills the folder, in which the file then is.
      read: reads it, and all that is in it.
      named: whether errors name the file.
    """

    file: str
    write: Callable[[Path], None]
    read: Callable[[Path], object]
    named: bool = True


def _write(file: str, content: Callable[[], bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / file).write_bytes(content())

    return write


def _json(value: Any) -> Callable[[], bytes]:
    return lambda: json.dumps(value).encode()


def _picture(file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


def _npz() -> bytes:
    buffer = io.BytesIO()
    images, labels = np.zeros((3, 8, 8, 3), np.uint8), np.array([0, 1, 1])
    np.savez(buffer, images=images, labels=labels, classes=np.array(["cat", "dog"]))
    return buffer.getvalue()


def _tar(tar_format: int, members: dict[str, bytes]) -> Callable[[], bytes]:
    def content() -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
            for name, inside in members.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(inside)
                archive.addfile(entry, io.BytesIO(inside))
        return buffer.getvalue()

    return content


def _csv(rows: list[list[Any]]) -> Callable[[], bytes]:
    def content() -> bytes:
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        return text.getvalue().encode()

    return content


def _parquet(folder: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": _picture(), "path": f"{number}.png"} for number in range(3)]
    table = {"image": rows, "label": pyarrow.array([0, 1, 1], pyarrow.uint8())}
    parquet.write_table(pyarrow.table(table), folder / "val.parquet", compression="none", use_dictionary=False)


def _prepared(folder: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
    version = tfds.core.Version("1.0.0")
    identity = DatasetIdentity(name="toy", version=version, data_dir=str(folder), module_name="toy")
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(info, 3, file_format="array_record")
    writer.initialize_splits(["validation"])
    writer.add_examples({"validation": [{"image": _picture(), "label": number % 2} for number in range(3)]})
    writer.close_all()


def _names_of_classes(folder: Path) -> None:
    (folder / "val.tar").write_bytes(_tar(tarfile.PAX_FORMAT, {"1.png": _picture(), "1.cls": b"1"})())
    (folder / "classes.txt").write_bytes("cat\nhäher\n".encode())


def _every(source: Any) -> None:
    for index in range(len(source)):
        try:
            source[index]
        except JeffnetError as error:
            assert source.name(index) in str(error) or repr(source.name(index)) in str(error), str(error)


def _found(results: ResultsFile) -> None:
    results.find("m", None, {"data": "x"})
    from jeffnet.cli.validate import describe

    for row in results.rows:
        describe(row)


ROW = {
    **{
        "model": "m",
        "weights": None,
        "data": "x",
        "split": "val",
        "settings": {"data": "x"},
        "top1": 50.0,
        "top5": 99.5,
    },
    **{"loss": 0.5, "num_examples": 10, "images_per_second": 5.5, "published_top1": None, "top1_difference": None},
    "preprocessing": {
        **{"image_size": 32, "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bicubic"},
        **{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    },
}
RECIPE = {
    "model": {"name": "tf_efficientnet_b0"},
    "data": {"path": "x", "mean": [0.5, 0.5, 0.5]},
    "optimizer": {"learning_rate": 0.1},
    "epochs": 3,
}
SHARD = {
    "a/0001.png": _picture(),
    "a/0001.cls": b"1",
    "a/0002.png": _picture("BMP"),
    "a/0002.json": b'{"label": 0}',
    f"a/{'long' * 60}.png": _picture(),
    f"a/{'long' * 60}.cls": b"2",
    "classes.txt": b"cat\ndog\nfox\n",
}
READERS = {
    "label map in JSON": Reader(
        "map.json",
        _write("map.json", _json({"cat": 1, "dog": "b", "fox": 0})),
        lambda path: read_label_map(path, ("a", "b")),
    ),
    "label map in CSV": Reader(
        "map.csv",
        _write("map.csv", _csv([["cat", 1], ["dog", "b"], ["a, fox", "0"]])),
        lambda path: read_label_map(path, ("a", "b")),
    ),
    "ReaL labels": Reader("real.json", _write("real.json", _json([[1, 2], [], [999]])), read_real_labels),
    "recipe in JSON": Reader("recipe.json", _write("recipe.json", _json(RECIPE)), load_recipe),
    "run's configuration": Reader(
        "config.json", _write("config.json", _json(RECIPE)), lambda path: read_config(path.parent)
    ),
    "results in JSON": Reader(
        "results.json", _write("results.json", _json([ROW, ROW])), lambda path: _found(ResultsFile(path))
    ),
    "results in CSV": Reader(
        "results.csv",
        _write("results.csv", _csv([list(ROW), [json.dumps(value) for value in ROW.values()]])),
        lambda path: _found(ResultsFile(path)),
    ),
    "metrics": Reader(
        METRICS_FILE,
        _write(METRICS_FILE, lambda: b'{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n'),
        lambda path: read_rows(path.parent),
    ),
    "environments": Reader(
        ENVIRONMENT_FILE,
        _write(ENVIRONMENT_FILE, _json([{"versions": {"jax": "1"}, "devices": []}])),
        lambda path: read_environments(path.parent),
    ),
    "arrays": Reader("a.npz", _write("a.npz", _npz), lambda path: _every(open_npz(path, "val"))),
    **{
        f"tar in {name}": Reader(
            "val.tar",
            _write("val.tar", _tar(tar_format, SHARD)),
            lambda path: _every(open_source(str(path), "val", 3)),
        )
        for name, tar_format in (("ustar", tarfile.PAX_FORMAT), ("GNU", tarfile.GNU_FORMAT))
    },
    "names of classes": Reader(
        "classes.txt",
        _names_of_classes,
        lambda path: _every(open_source(str(path.with_name("val.tar")), "val", 3)),
        named=False,
    ),
    "parquet": Reader("val.parquet", _parquet, lambda path: _every(open_source(str(path), "val", 3))),
    **{
        f"TensorFlow Datasets' {file}": Reader(
            file, _prepared, lambda path: _every(open_source(str(path.parent), "val", 3)), named=False
        )
        for file in ("dataset_info.json", "features.json")
    },
    **{
        f"picture in {file_format}": Reader(
            "p.png", _write("p.png", lambda form=file_format: _picture(form)), lambda path: read_image(path)
        )
        for file_format in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
    },
}


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Another content: cut, with flipped bits, with odd texts or, if it is JSON, odd values, in another coding."""
    kind = chance.randrange(9)
    place = chance.randrange(len(content) + 1)
    end = min(place + chance.randrange(1, 40), len(content))
    if kind == 0:
        return content[:place]
    if kind == 1:
        changed = bytearray(content)
        for _ in range(chance.randrange(1, 6)):
            changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        return bytes(changed)
    if kind == 2:
        return content[:place] + chance.choice(_ODD_BYTES) + content[chance.choice((place, end)) :]
    if kind == 3:
        return content[:place] + content[end:]
    if kind == 4:
        return content[:end] + content[place:]
    if kind == 5:
        return content[:place] + chance.randbytes(end - place) + content[end:]
    if kind == 6:
        return chance.choice((b"", chance.randbytes(300), content * 2, content + b"\n"))
    try:
        if kind == 7:
            return content.decode().encode(chance.choice(("utf-16", "utf-32", "utf-8-sig")))
        return json.dumps(_with_odd_value(json.loads(content), chance)).encode()
    except ValueError:
        return content[:place] + bytes(end - place) + content[end:]


def _with_odd_value(value: Any, chance: random.Random) -> Any:
    if not value or not isinstance(value, dict | list) or chance.random() < 0.2:
        return chance.choice(_ODD_VALUES)
    value = value.copy()
    key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if isinstance(value, dict) and chance.random() < 0.2:
        del value[key]
    else:
        value[key] = _with_odd_value(value[key], chance)
    return value


@contextmanager
def _in_time() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise BaseException(f"still reading after {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _read_damaged(name: str, folder: Path, count: int) -> None:
    reader = READERS[name]
    reader.write(folder)
    path = next(folder.rglob(reader.file))
    content = path.read_bytes()
    reader.read(path)
    refused = 0
    for seed in range(count):
        path.write_bytes(damaged(content, random.Random(seed)))
        try:
            with _in_time():
                reader.read(path)
        except JeffnetError as error:
            refused += 1
            text = str(error)
            assert not reader.named or path.name in text or path.parent.name in text, (seed, text)
            assert "\n" not in text, (seed, text)
        except Exception as error:
            raise AssertionError(f"of seed {seed}: {type(error).__name__}: {error}") from error
    # Some readers pass over what is damaged.
    assert refused or name in ("metrics", "environments")


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_is_an_error_that_names_it(name: str, tmp_path: Path):
    _read_damaged(name, tmp_path, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_damaged_files_are_read_or_are_errors_that_name_them(name: str, tmp_path: Path):
    _read_damaged(name, tmp_path, 3000)
