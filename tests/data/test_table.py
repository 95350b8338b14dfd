"""Tables of pictures: every form of a table gives the same pictures and labels, and every mistake one line."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from jeffnet.data.columns import Columns
from jeffnet.data.open import open_source
from jeffnet.data.table import Table
from jeffnet.errors import ConfigError, DatasetError, JeffnetError

ROWS = [
    {"path": f"pictures/{number}.png", "label": label, "split": split}
    for number, (label, split) in enumerate([("cat", "train"), ("dog", "train"), ("cat", "test"), ("dog", "train")])
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four grey pictures, whose grey is their number."""
    folder = tmp_path_factory.mktemp("tables")
    (folder / "pictures").mkdir()
    for number in range(4):
        Image.new("L", (5, 4), number).save(folder / "pictures" / f"{number}.png")
    return folder


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".json":
        names = sorted({row["label"] for row in rows})
        content = {"categories": [{"id": 7 + 5 * number, "name": name} for number, name in enumerate(names)]}
        content["images"] = [{"id": 90 - number, "file_name": row["path"]} for number, row in enumerate(rows)]
        # Two objects of one category are one label.
        content["annotations"] = [
            {"image_id": 90 - number, "category_id": 7 + 5 * names.index(row["label"])}
            for number, row in enumerate(rows)
            for _ in range(2)
        ]
        path.write_text(json.dumps(content))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def content(source):
    assert source.labels.dtype == np.int32 and source.labels.shape == (len(source),)
    return [(source.classes[example.label], np.asarray(example.image)[0, 0], example.name) for example in source]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables_of_any_form_give_their_pictures_and_labels(ending, folder):
    data = write(folder / f"table{ending}", ROWS)
    columns = Columns(path="path")
    train = open_source(data, "train", 1, columns=columns)
    assert content(train) == [("cat", 0, "pictures/0.png"), ("dog", 1, "pictures/1.png"), ("dog", 3, "pictures/3.png")]
    validation = open_source(data, "val", 1, classes=("cat", "dog"), columns=columns)
    assert content(validation) == [("cat", 2, "pictures/2.png")] and validation.classes == ("cat", "dog")


def test_a_table_for_each_split_and_coco(folder):
    """Its pictures are in a folder for each split, relative to which they are named; categories are in their order."""
    rows = [row | {"path": row["path"].removeprefix("pictures/")} for row in ROWS]
    for split, some in {"train": rows[:2], "test": rows[2:]}.items():
        write(folder / f"instances_{split}.json", some)
        (folder / f"{split}_pictures").symlink_to(folder / "pictures")
    data, columns = str(folder / "instances_{split}.json"), Columns(folder=str(folder / "{split}_pictures"))
    assert content(Table(data, "train", 1, columns=columns)) == [("cat", 0, "0.png"), ("dog", 1, "1.png")]
    assert content(Table(data, "val", 1, columns=columns)) == [("cat", 2, "2.png"), ("dog", 3, "3.png")]


def test_columns_of_any_name_and_numbers_as_labels(folder):
    rows = [
        {"split": "x", "where": row["path"], "kind": str(10 - index), "fold": index % 2}
        for index, row in enumerate(ROWS)
    ]
    columns = Columns("where", ("kind",), "fold")
    source = Table(write(folder / "own.csv", rows), "1", 1, columns=columns)
    assert source.classes == ("7", "9") and content(source) == [("9", 1, ROWS[1]["path"]), ("7", 3, ROWS[3]["path"])]
    everything = Table(
        write(folder / "own2.csv", [row | {"split": "val"} for row in rows]),
        "val",
        1,
        columns=Columns("where", ("kind",)),
    )
    assert everything.classes == ("7", "8", "9", "10") and everything.labels.tolist() == [3, 2, 1, 0]


MISTAKES = {
    "missing file": (
        lambda rows: rows[1].update(path="pictures/nowhere.png"),
        "1 of 3 pictures that do not exist",
    ),
    "no label": (lambda rows: rows[1].update(label=" "), "row 2 of table .* has no label in column 'label'"),
    "no path": (lambda rows: rows[1].update(path=""), "row 2 of table .* has no path of a picture: remove it"),
    "two rows": (lambda rows: rows[3].update(path="./pictures/0.png"), "rows 1 and 4 of table .* are of one picture"),
    "one class": (lambda rows: [row.update(label="cat") for row in rows], "has one class, 'cat': training needs 2"),
    "no split": (lambda rows: [row.update(split="test") for row in rows], "has no split 'train': only test"),
    "no column": (
        lambda rows: [row.pop("label") for row in rows],
        "no column called label or labels or class: give",
    ),
    "no split column": (lambda rows: [row.pop("split") for row in rows], "has no column of splits, so that one would"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_one_line(mistake, folder):
    rows = [dict(row) for row in ROWS]
    change, message = MISTAKES[mistake]
    change(rows)
    with pytest.raises(DatasetError, match=message) as error:
        open_source(write(folder / "mistake.csv", rows), "train", 1)
    assert "\n" not in str(error.value)


def test_other_mistakes_are_one_line_too(folder):
    data = write(folder / "table.csv", ROWS)
    (folder / "torn.csv").write_text("path,label\npictures/0.png,cat,dog\n")
    (folder / "torn.jsonl").write_text('{"path": "a"')
    (folder / "torn.json").write_text('{"images": []}')
    (folder / "empty.csv").write_text("path,label\n")
    for name, split, columns, message in (
        ("table.csv", "train", Columns("place"), "no column 'place': give path_column, one of path, label, split"),
        ("table.csv", "train", Columns(split="fold"), "no column 'fold': give split_column"),
        ("table.csv", "train", Columns(labels=("label", "path")), "not 2 label_columns: give one of them, or task"),
        ("none.csv", "train", Columns(), "does not exist: check the path"),
        ("none_{split}.csv", "train", Columns(), "has no table for split 'train': expected .*none_train.csv"),
        ("torn.csv", "val", Columns(), r"cannot be read \(row 1 has more cells than there are columns\): repair"),
        ("torn.jsonl", "val", Columns(), "cannot be read"),
        ("torn.json", "val", Columns(), "it lacks 'categories', which COCO's annotations have"),
        ("empty.csv", "val", Columns(), "has no rows"),
        ("pictures", "val", Columns("path"), "is no table: leave out what is said of its columns"),
    ):
        with pytest.raises(JeffnetError, match=message) as error:
            open_source(str(folder / name), split, 1, columns=columns)
        assert "\n" not in str(error.value)
    with pytest.raises(DatasetError, match="labels that are not among the classes: cat; they are cow, dog"):
        open_source(data, "val", 1, classes=("cow", "dog"))
    with pytest.raises(ConfigError, match="task 'many' is not one of single_label"):
        Columns(task="many")


LABELS = [["cat"], ["dog", "cat"], ["cow"], ["dog"]]


def several(folder, name, rows, **columns):
    columns = Columns("path", task="multi_label", **columns)
    return Table(write(folder / name, rows), "train", 1, columns=columns)


def test_several_labels_in_any_form(folder):
    """With a separator, as a list, as a column a class, and as COCO's annotations."""
    paths = [{"path": row["path"], "split": "train"} for row in ROWS]
    joined = [row | {"label": " ; ".join(found)} for row, found in zip(paths, LABELS, strict=True)]
    lists = [row | {"label": found} for row, found in zip(paths, LABELS, strict=True)]
    flags = [
        row | {name: int(name in found) for name in ("cat", "cow", "dog")}
        for row, found in zip(paths, LABELS, strict=True)
    ]
    wanted = [[1, 0, 0], [1, 0, 1], [0, 1, 0], [0, 0, 1]]
    for source in (
        several(folder, "joined.csv", joined, separator=";"),
        several(folder, "lists.jsonl", lists),
        several(folder, "flags.csv", flags, labels=("cat", "cow", "dog")),
        several(folder, "flags.jsonl", flags, labels=("cat", "cow", "dog")),
    ):
        assert source.classes == ("cat", "cow", "dog") and source.task == "multi_label"
        assert source.labels.dtype == np.float32 and source.labels.tolist() == wanted
        assert source[1].label.tolist() == [1, 0, 1]


def test_cocos_pictures_without_annotations_have_no_label(folder):
    content = json.loads((folder / "instances_train.json").read_text())
    content["annotations"] = content["annotations"][2:]
    (folder / "coco.json").write_text(json.dumps(content))
    columns = Columns(folder=str(folder / "pictures"), task="multi_label")
    source = Table(str(folder / "coco.json"), "val", 1, columns=columns)
    assert source.labels.tolist() == [[0, 0], [0, 1]] and source.classes == ("cat", "dog")


def test_numbers(folder):
    rows = [
        {"path": row["path"], "split": "train", "age": 1.5 * place, "size": "-2e1"} for place, row in enumerate(ROWS)
    ]
    columns = Columns(labels=("size", "age"), task="regression")
    source = Table(write(folder / "numbers.csv", rows), "train", 1, columns=columns)
    assert source.classes == ("size", "age") and source.labels.tolist() == [[-20, 1.5 * place] for place in range(4)]
    rows[2]["age"] = "old"
    with pytest.raises(DatasetError, match=r"row 3 .* has 'old' in column 'age', which is no number: correct it"):
        Table(write(folder / "numbers.csv", rows), "train", 1, columns=columns)


def test_mistakes_in_several_labels_are_one_line(folder):
    rows = [{"path": row["path"], "split": "train", "label": "cat;dog"} for row in ROWS]
    with pytest.raises(DatasetError, match=r"row 1 .* has a text as labels, 'cat;dog': say how they are separated"):
        several(folder, "mistake.csv", rows)
    with pytest.raises(DatasetError, match=r"row 2 .* has no labels: name some, or give a column of 0 and 1"):
        several(folder, "mistake.csv", [rows[0], rows[1] | {"label": " ; "}], separator=";")
    with pytest.raises(DatasetError, match=r"row 1 .* has 2 labels .cat, dog.: give it one, or task multi_label"):
        open_source(write(folder / "mistake.jsonl", [row | {"label": ["cat", "dog"]} for row in rows]), "train", 1)
    flags = [row | {"cat": 1, "dog": 2} for row in rows]
    with pytest.raises(DatasetError, match=r"row 1 .* has '2' in column 'dog', which is neither 0 nor 1: correct it"):
        several(folder, "mistake.csv", flags, labels=("cat", "dog"))
    with pytest.raises(DatasetError, match="no column 'cow': give label_columns"):
        several(folder, "mistake.csv", flags, labels=("cat", "cow"))
