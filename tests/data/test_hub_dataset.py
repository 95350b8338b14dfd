"""Parquet files as `datasets` and as pyarrow write them: columns, labels, splits; and what is asked of the hub."""

import io
import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jeffnet.data.hub_dataset import HubDataset
from jeffnet.errors import DatasetError, ImageError

pytest.importorskip("datasets")
pq = pytest.importorskip("pyarrow.parquet")

import datasets  # noqa: E402
import datasets.config  # noqa: E402
import datasets.exceptions  # noqa: E402
import pyarrow as pa  # noqa: E402


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")


def encoded(value: int, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 0, 255)).save(buffer, file_format)
    return buffer.getvalue()


def red(image: Image.Image) -> int:
    pixel = image.convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def rows(first: int = 0, count: int = 4, column: str = "image", labels: Any = None) -> dict[str, list]:
    """The red of a picture is its number; its label that modulo 2."""
    numbers = range(first, first + count)
    return {
        column: [{"bytes": encoded(number), "path": f"{number}.png"} for number in numbers],
        "label": [number % 2 for number in numbers] if labels is None else labels,
    }


FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})


def by_datasets(path: Path, table: dict[str, list], features: datasets.Features = FEATURES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(table, features=features).to_parquet(path)
    return path


def by_pyarrow(path: Path, table: dict[str, list]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, row_group_size=2)
    return path


@pytest.fixture(autouse=True)
def no_progress_bars() -> None:
    datasets.disable_progress_bars()


def test_a_file_of_datasets_gives_its_pictures_labels_and_names(tmp_path: Path):
    source = HubDataset(by_datasets(tmp_path / "a.parquet", rows(5)), "val")
    assert source.classes == ("cat", "dog") and source.labels.tolist() == [1, 0, 1, 0]
    for index in range(4):
        image, label, name = source[index]
        assert (image.mode, image.size, red(image), label) == ("RGB", (5, 4), 5 + index, (5 + index) % 2)
        assert name == source.name(index) == f"a.parquet/{5 + index}.png" and type(label) is int
    assert HubDataset(tmp_path / "a.parquet", "val", channels=1)[0].image.mode == "L"
    with pytest.raises(IndexError):
        source[4]
    with pytest.raises(ImageError, match="2 channels"):
        HubDataset(tmp_path / "a.parquet", "val", channels=2)


def test_a_file_of_pyarrow_gives_structs_and_plain_integers(tmp_path: Path):
    table = {"caption": ["x"] * 4, **rows(3, column="photo", labels=[7, 0, 3, 0])}
    source = HubDataset(by_pyarrow(tmp_path / "a.parquet", table), "val")
    assert source.classes == tuple("01234567") and source.labels.tolist() == [7, 0, 3, 0]
    assert [red(source[index].image) for index in range(4)] == [3, 4, 5, 6]


def test_real_photographs_come_pixel_by_pixel(tmp_path: Path):
    photographs = pytest.importorskip("sklearn.datasets")
    pixels = [photographs.load_sample_image(name)[::4, ::4] for name in ("china.jpg", "flower.jpg")]
    table = {"img": [Image.fromarray(pixel) for pixel in pixels], "fine_label": [1, 0]}
    names = datasets.ClassLabel(names=["flower", "temple"])
    features = datasets.Features({"img": datasets.Image(), "fine_label": names})
    source = HubDataset(by_datasets(tmp_path / "a.parquet", table, features), "val")
    for index in range(2):
        np.testing.assert_array_equal(np.asarray(source[index].image), pixels[index])
    assert source.classes[source[0].label] == "temple" and source.name(0) == "a.parquet/0"


def test_a_picture_may_be_a_path_beside_the_table(tmp_path: Path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/1.png").write_bytes(encoded(11))
    (tmp_path / "2.png").write_bytes(encoded(12))
    table = {
        "image": [{"bytes": None, "path": path} for path in ("pictures/1.png", str(tmp_path / "2.png"), "3.png", None)],
        "label": [0, 1, 1, 0],
    }
    source = HubDataset(by_pyarrow(tmp_path / "a.parquet", table), "val")
    assert [red(source[index].image) for index in range(2)] == [11, 12]
    with pytest.raises(ImageError, match=r"a\.parquet/3\.png' does not exist"):
        source[2]
    with pytest.raises(ImageError, match=r"'a.parquet/3' has neither bytes nor a path"):
        source[3]


def test_a_path_leads_nowhere_outside_of_the_folder_but_through_links_in_it(tmp_path: Path):
    for name in ("outside.png", "data/deep/inside.png", "elsewhere/linked.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(7))
    folder = tmp_path / "data"
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    inside = ["deep/inside.png", "deep/../deep/./inside.png", str(folder / "deep" / "inside.png"), "link/linked.png"]
    outside = ["../outside.png", str(tmp_path / "outside.png"), "deep/../../outside.png", "/dev/zero", "link/../../x"]
    outside.append(f"{folder}-2/x.png")
    unreadable = ["~/x.png", "nul\0.png", "."]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": path} for path in inside + outside + unreadable], kind)
    table = pa.table({"image": images, "label": [0] * len(images)})
    pq.write_table(table, folder / "val.parquet")
    source = HubDataset(folder, "val")
    assert [red(source[number].image) for number in range(len(inside))] == [7] * len(inside)
    for number, path in enumerate(outside + unreadable, len(inside)):
        with pytest.raises(ImageError, match="is outside of" if path in outside else r"exist|cannot|folder"):
            source[number]
    (tmp_path / "name").symlink_to(folder)
    source = HubDataset(tmp_path / "name", "val")
    assert [red(source[number].image) for number in range(len(inside))] == [7] * len(inside)


def test_a_number_of_classes_that_is_none_makes_no_list_of_as_many_names(tmp_path: Path):
    features = {"image": {"_type": "Image"}, "label": {"num_classes": 3 * 10**9, "_type": "ClassLabel"}}
    table = pa.table(rows()).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "val.parquet")
    with pytest.raises(DatasetError, match=r"says it has 3,000,000,000 classes"):
        HubDataset(tmp_path / "val.parquet", "val")


def test_labels_of_small_integers_may_be_missing(tmp_path: Path):
    labels = pa.array([0, None, 1, 1], pa.uint8())
    pq.write_table(pa.table({**rows(), "label": labels}), tmp_path / "val.parquet")
    with pytest.raises(DatasetError, match="has the label -1"):
        HubDataset(tmp_path / "val.parquet", "val")


def test_a_text_in_place_of_a_pictures_bytes_is_not_taken_for_a_path(tmp_path: Path):
    (tmp_path / "secret.png").write_bytes(encoded(7))
    kind = pa.struct([("bytes", pa.string()), ("path", pa.string())])
    images = pa.array([{"bytes": str(tmp_path / "secret.png"), "path": None}], kind)
    pq.write_table(pa.table({"image": images, "label": [0]}), tmp_path / "val.parquet")
    with pytest.raises((ImageError, DatasetError)):
        HubDataset(tmp_path / "val.parquet", "val")[0]


def test_a_damaged_picture_is_named_when_it_is_read(tmp_path: Path):
    table = {"image": [{"bytes": b"no picture", "path": "x.jpg"}, {"bytes": b"", "path": None}], "label": [0, 1]}
    source = HubDataset(by_pyarrow(tmp_path / "a.parquet", table), "val")
    with pytest.raises(ImageError, match=r"image 'a.parquet/x.jpg' is not a picture"):
        source[0]
    with pytest.raises(ImageError, match=r"image 'a.parquet/1' is empty"):
        source[1]


@pytest.mark.parametrize(
    "names", ["{}-{:05d}-of-00002.parquet", "data/{}-{:05d}-of-00002.parquet", "{}/{:04d}.parquet"]
)
def test_folders_and_names_of_files_tell_the_split(names: str, tmp_path: Path):
    for split, first in {"train": 0, "validation": 10, "extra": 20}.items():
        for number in (1, 0):
            by_datasets(tmp_path / names.format(split, number), rows(first + 2 * number, 2))
    for split, first in {"train": 0, "val": 10, "validation": 10, "extra": 20}.items():
        source = HubDataset(tmp_path, split)
        assert [red(source[index].image) for index in range(len(source))] == list(range(first, first + 4))
    with pytest.raises(DatasetError, match="no split 'test': only train, validation"):
        HubDataset(tmp_path, "test")


def test_files_of_no_split_serve_as_val_only(tmp_path: Path):
    by_datasets(tmp_path / "set/a.parquet", rows())
    assert len(HubDataset(tmp_path / "set", "val")) == 4
    for data in (tmp_path / "set", tmp_path / "set/a.parquet"):
        with pytest.raises(DatasetError, match="no split 'train'"):
            HubDataset(data, "train")
    train = by_datasets(tmp_path / "set/train-00000-of-00001.parquet", rows())
    assert len(HubDataset(train, "train")) == 4
    with pytest.raises(DatasetError, match="no split 'val'"):
        HubDataset(train, "val")


def test_odd_characters_in_a_path_are_no_pattern(tmp_path: Path):
    assert len(HubDataset(by_datasets(tmp_path / "a[1] {b}/x.parquet", rows()), "val")) == 4


def test_the_label_is_found_among_several_columns(tmp_path: Path):
    two = {"coarse_label": [0] * 4, "fine_label": [3, 2, 1, 0]}
    classes = datasets.ClassLabel(names=list("abcd"))
    features = datasets.Features({"image": datasets.Image(), "coarse_label": classes, "fine_label": classes})
    source = HubDataset(by_datasets(tmp_path / "a.parquet", {"image": rows()["image"], **two}, features), "val")
    assert source.labels.tolist() == [3, 2, 1, 0]
    number = datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": number, "cls": classes})
    table = {"image": rows()["image"], "label": [9, 9, 9, 9], "cls": [0, 1, 2, 3]}
    assert HubDataset(by_datasets(tmp_path / "c.parquet", table, features), "val").labels.tolist() == [0, 1, 2, 3]
    features = datasets.Features({"image": datasets.Image(), "species": classes, "id": number})
    table = {"image": rows()["image"], "species": [1, 1, 2, 2], "id": [5, 6, 7, 8]}
    assert HubDataset(by_datasets(tmp_path / "b.parquet", table, features), "val").labels.tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ({"label": [0, 1]}, "no column of pictures, only label"),
        ({**rows(), "label": ["cat"] * 4}, "no column of labels, only image, label"),
        (rows(labels=[0, 1, -1, 1]), r"'a.parquet/2.png' has the label -1: this part of the data set has no labels"),
        (rows(labels=[0, 1, 1, None]), r"'a.parquet/3.png' has the label -1"),
    ],
)
def test_a_table_without_pictures_or_labels_is_an_error_of_one_line(table, fault: str, tmp_path: Path):
    by_pyarrow(tmp_path / "a.parquet", table)
    with pytest.raises(DatasetError, match=fault) as raised:
        HubDataset(tmp_path / "a.parquet", "val")
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read_are_an_error_of_one_line(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    (tmp_path / "empty").mkdir()
    faults = {
        "a.parquet": "cannot be loaded .*[Pp]arquet",
        "missing.parquet": "does not exist",
        "empty": "no parquet files",
    }
    for name, fault in faults.items():
        with pytest.raises(DatasetError, match=fault) as raised:
            HubDataset(tmp_path / name, "val")
        assert "\n" not in str(raised.value)


def test_many_threads_read_the_same_and_a_pickle_holds_no_pictures(tmp_path: Path):
    table = rows(0, 40)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    table["image"] += [{"bytes": buffer.getvalue(), "path": "noise.png"}] * 40
    table["label"] += [0] * 40
    source = HubDataset(by_datasets(tmp_path / "a.parquet", table), "val")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda index: red(source[index].image), list(range(40)) * 10)) == list(range(40)) * 10
    content = pickle.dumps(source)
    assert len(content) < 40 * len(buffer.getvalue()) / 4
    copy = pickle.loads(content)
    assert red(copy[7].image) == 7 and copy.name(39) == "a.parquet/39.png"


def test_the_network_is_not_touched_for_files_and_settings_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, asked = by_datasets(tmp_path / "a.parquet", rows()), []
    monkeypatch.setattr("datasets.load.get_session", lambda: asked.append(1))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    datasets.enable_progress_bars()
    HubDataset(path, "val")
    assert not asked and datasets.config.HF_HUB_OFFLINE is False
    assert not datasets.are_progress_bars_disabled()


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    path = by_datasets(tmp_path / "a.parquet", rows())
    (tmp_path / "b.parquet").write_bytes(b"no parquet at all")
    capfd.readouterr()
    datasets.enable_progress_bars()
    HubDataset(path, "val")
    with pytest.raises(DatasetError):
        HubDataset(tmp_path / "b.parquet", "val")
    assert capfd.readouterr() == ("", "")


class Hub:
    """In place of `datasets.load_dataset`: remembers what was asked for."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.asked = answer, []

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.asked.append((arguments, options, datasets.config.HF_HUB_OFFLINE))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer[options["split"]] if "split" in options else self.answer


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> Hub:
    stand_in = Hub(answer)
    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    return stand_in


@pytest.mark.parametrize(
    ("data", "config", "revision"),
    [
        ("hf:owner/name", None, None),
        ("hf:owner/name:full", "full", None),
        ("hf:owner/name@v1.0/a", None, "v1.0/a"),
        ("hf:owner/name:full@main", "full", "main"),
    ],
)
def test_a_name_of_the_hub_has_a_configuration_and_a_revision(
    data: str, config: str | None, revision: str | None, monkeypatch: pytest.MonkeyPatch
):
    tables = {split: datasets.Dataset.from_dict(rows(first), FEATURES) for split, first in (("test", 9), ("train", 0))}
    stand_in = hub(monkeypatch, tables)
    source = HubDataset(data, "val")
    assert stand_in.asked[0][:2] == (("owner/name",), {"name": config, "revision": revision})
    assert red(source[0].image) == 9 and source.name(0) == f"{data.removeprefix('hf:')}/test/9.png"
    with pytest.raises(DatasetError, match="no split 'extra': only test, train"):
        HubDataset(data, "extra")


def test_a_slice_of_a_split_is_passed_on(monkeypatch: pytest.MonkeyPatch):
    stand_in = hub(monkeypatch, {"train[:10%]": datasets.Dataset.from_dict(rows(), FEATURES)})
    assert len(HubDataset("hf:owner/name", "train[:10%]")) == 4
    assert stand_in.asked[0][1]["split"] == "train[:10%]"


def test_offline_is_offline_and_its_error_one_line(monkeypatch: pytest.MonkeyPatch):
    stand_in = hub(monkeypatch, ConnectionError("Couldn't reach 'owner/name' on the Hub\n(OfflineModeIsEnabled)"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for offline in ("", "1"):
        monkeypatch.setenv("JEFFNET_OFFLINE", offline)
        with pytest.raises(DatasetError, match=r"'hf:owner/name' cannot be loaded .*unset JEFFNET_OFFLINE") as raised:
            HubDataset("hf:owner/name", "val")
        assert "\n" not in str(raised.value)
    assert [offline for *_, offline in stand_in.asked] == [False, True]


def test_a_data_set_that_is_not_there_says_how_to_log_in(monkeypatch: pytest.MonkeyPatch):
    hub(monkeypatch, datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist on the Hub"))
    with pytest.raises(DatasetError, match="hf auth login"):
        HubDataset("hf:owner/name", "val")
    with pytest.raises(DatasetError, match="is not hf:owner/name"):
        HubDataset("hf:name", "val")


def test_without_datasets_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match=r"pip install datasets"):
        HubDataset("hf:owner/name", "val")
