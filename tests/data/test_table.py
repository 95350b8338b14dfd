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
    with pytest.raises(
        DatasetError, match=r"row 3 .* has 'old' in column 'age', which is no number that float32 can hold: correct"
    ):
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


def test_a_picture_is_the_same_by_any_path(folder):
    """Absolute, with dots, through a linked folder, or as a linked file; the same name in two folders is another."""
    (folder / "linked").symlink_to(folder / "pictures")
    (folder / "linked.png").symlink_to(folder / "pictures" / "0.png")
    for other in (folder / "pictures" / "0.png", "linked/../pictures/./0.png", "linked/0.png", "linked.png"):
        rows = [*ROWS, {"path": str(other), "label": "dog", "split": "test"}]
        with pytest.raises(DatasetError, match=r"rows 1 and 5 of table .* are of one picture"):
            Table(write(folder / "twice.csv", rows), "train")
    for split in ("train", "test"):
        (folder / f"in_{split}").mkdir()
        Image.new("L", (5, 4)).save(folder / f"in_{split}" / "0.png")
    rows = [{"path": "0.png", "label": "cat", "split": split} for split in ("train", "test")]
    source = Table(write(folder / "in.csv", rows), "val", columns=Columns(folder=str(folder / "in_{split}")))
    assert source.file(0) == str(folder / "in_test" / "0.png")


def test_tables_of_splits_are_compared(folder):
    tables = [
        Table(write(folder / f"apart_{split}.csv", some), split, 1, columns=Columns(split="split"))
        for split, some in (
            ("train", ROWS[:2]),
            ("test", [ROWS[2]]),
            ("fold", [{"path": str(folder / "pictures" / "1.png"), "label": "dog", "split": "fold"}]),
        )
    ]
    tables[0].check_apart(tables[1])
    with pytest.raises(DatasetError, match=r"1 of 1 pictures of table .*apart_fold.csv' .* such as 'pictures/1.png'"):
        tables[0].check_apart(tables[2])


def jsonl(folder, name="cells.jsonl", **cells):
    """A table of the pictures whose rows have one cell each of these columns, NaN as pandas writes it."""
    rows = [row | {name: values[place] for name, values in cells.items()} for place, row in enumerate(ROWS)]
    return write(folder / name, rows)


def test_whole_numbers_and_gaps_in_cells(folder):
    nan, columns = float("nan"), Columns(group="film")
    data = jsonl(folder, label=[1.0, 2, 3, "1"], film=[0, 1.0, 2, 1])
    source = Table(data, "train", 1, columns=columns)
    assert source.classes == ("1", "2") and source.labels.tolist() == [0, 1, 0] and source.groups == ("0", "1", "1")
    for gap in (nan, None):
        with pytest.raises(DatasetError, match=r"row 2 .* has no label in column 'label'"):
            Table(jsonl(folder, label=[1, gap, 2, 2]), "train")
        with pytest.raises(DatasetError, match=r"row 2 .* has no group in column 'film'"):
            Table(jsonl(folder, film=[1, gap, 2, 2]), "train", columns=columns)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_texts_of_missing_values_are_gaps(ending, folder, caplog):
    """In every form of a table: 'nan' always, 'NA' and 'None' among numbers; among names these are classes."""

    def train(values, **columns):
        columns = Columns(**columns)
        rows = [row | {"label": label, "split": "train"} for row, label in zip(ROWS, values, strict=True)]
        return Table(write(folder / f"gaps{ending}", rows), "train", columns=columns)

    for gap in ("nan", "NaN", "<NA>"):
        for labels in (("cat", gap, "dog", "dog"), ("1", gap, "2.0", "2")):
            with pytest.raises(DatasetError, match=rf"row 2 .* has the label '{gap}', which is a missing one: label"):
                train(labels)
        with pytest.raises(DatasetError, match=r"row 2 of .* has no group in column 'label'"):
            train(("cat", gap, "dog", "dog"), group="label", labels=("split",))
    with pytest.raises(DatasetError, match=r"row 3 .* has the label 'NaN', which is a missing one"):
        train(("cat;dog", "dog", "dog; NaN", "dog"), separator=";", task="multi_label")
    for gap in ("NA", "None", "null", "N/A"):
        with pytest.raises(DatasetError, match=rf"row 4 .* has the label '{gap}' where others are numbers: label it"):
            train(("1", "2.5", "2", gap))
    with pytest.raises(DatasetError, match=r"row 1 .* has the label 'None' where others are numbers"):
        train(("1;None", "2", "2;1", "1"), separator=";", task="multi_label")
    assert not caplog.text
    assert train(("cat", "None", "dog", "None")).classes == ("None", "cat", "dog")
    assert "has a class 'None' (2 pictures): if that means no label, remove these rows" in caplog.text


def test_rows_of_no_split_are_told(folder, caplog):
    for ignored, used in (("Train", "train"), ("TEST", "test"), ("v al", "val"), ("Validation", "validation")):
        split = "train" if used == "train" else "val"
        data = jsonl(folder, split=[ignored, "train", "test", "train"])
        with pytest.raises(DatasetError, match=rf"has '{ignored}' \(1\), which would be ignored: write '{used}'"):
            Table(data, split)
    data = jsonl(folder, "none.jsonl", split=["train", "train", "test", float("nan")])
    Table(data, "train")
    Table(data, "val")
    Table(jsonl(folder, "fold.jsonl", split=[1.0, 1, 2, 3]), "1")
    assert [record.getMessage().partition(" has ")[2] for record in caplog.records] == [
        "rows of no known split, which are ignored: '' (1)"
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("head.csv", "path,label,label\npictures/0.png,cat,dog\n", "it has two columns 'label'"),
        (
            "image.json",
            {"images": [{"id": 1, "file_name": "a"}] * 2, "categories": []},
            "it has two images with the id 1",
        ),
        ("id.json", {"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "with the id 1"),
        ("name.json", {"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "categories 'a'"),
        ("folder.csv", "path,label\npictures,cat\n", "1 of 1 pictures that do not exist, such as .*pictures'"),
        ("digits.csv", f"path,label\npictures/0.png,{'1' * 5000}\n", "row 1 .* has a label of 5,000 characters, '1111"),
        ("null.csv", "path,label\npic\0tures/0.png,cat\n", "1 of 1 pictures that do not exist|cannot be read"),
    ],
)
def test_damaged_tables_are_one_line(name, text, message, folder):
    text = text if isinstance(text, str) else json.dumps(text | {"annotations": []})
    (folder / name).write_text(text)
    with pytest.raises(DatasetError, match=message) as error:
        Table(str(folder / name), "val")
    assert "\n" not in str(error.value)


def test_spaces_before_quotes_tabs_and_separators_of_lines(folder):
    (folder / "quoted.csv").write_text('path, label\npictures/0.png, "cat, black"\n')
    (folder / "TABS.TSV").write_text("path\tlabel\npictures/0.png\tcat, black\n")
    (folder / "lines.jsonl").write_text('{"path": "pictures/0.png", "text": "a\u2028b", "label": "cat, black"}\r\n\n')
    for name in ("quoted.csv", "TABS.TSV", "lines.jsonl"):
        assert Table(str(folder / name), "val").classes == ("cat, black",)


@pytest.mark.parametrize("number", ["1e39", "-inf", "1_0", pytest.param(10**400, id="10**400"), float("nan"), None])
def test_numbers_that_float32_cannot_hold(number, folder):
    data = jsonl(folder, age=[1, number, 3.4e38, "4"])
    with pytest.raises(DatasetError, match=r"row 2 .* in column 'age', which is no number that float32 can hold"):
        Table(data, "train", columns=Columns(labels=("age",), task="regression"))


def test_columns_that_cannot_be():
    with pytest.raises(ConfigError, match="label_columns 'a, a' has a column twice"):
        Columns(labels=("a", "a"))
    with pytest.raises(ConfigError, match="label_separator '' is empty"):
        Columns(separator="")
