"""From a data set's labels to a model's classes."""

import json
from importlib.resources import files

import numpy as np
import pytest

from jeffnet.arch.imagenet import imagenet_classes
from jeffnet.data.choices import SUBSETS
from jeffnet.data.labels import label_table, read_label_map, read_real_labels, real_index, subset_mask
from jeffnet.errors import DatasetError

WNIDS = tuple(imagenet_classes())


def test_names_decide_whatever_their_order_and_number():
    np.testing.assert_array_equal(label_table(["c", "a"], 4, ("a", "b", "c", "d")), [2, 0])
    table = label_table(["n01440764", "n03888257"], 1000)
    np.testing.assert_array_equal(table, [0, WNIDS.index("n03888257")])
    assert table.dtype == np.int32


def test_a_thousand_sorted_identifiers_or_titles_are_imagenets_order():
    np.testing.assert_array_equal(label_table(sorted(WNIDS), 1000), np.arange(1000))
    np.testing.assert_array_equal(label_table(list(imagenet_classes().values()), 1000), np.arange(1000))


def test_folders_named_by_numbers_are_not_taken_in_the_order_of_text():
    """As in ImageNet-V2: '10' sorts before '2'."""
    names = sorted(str(number) for number in range(1000))
    np.testing.assert_array_equal(label_table(names, 1000), [int(name) for name in names])


def test_ten_digits_are_no_ten_kinds_of_fish():
    for model_classes in (WNIDS, ()):
        with pytest.raises(DatasetError, match="the model has not: 0, 1, 2, 3, 4 and 5 more; it has n01440764"):
            label_table([str(digit) for digit in range(10)], 1000, model_classes)


def test_an_order_that_timm_would_not_have_is_said(caplog):
    names = sorted(str(number) for number in range(1, 13))
    np.testing.assert_array_equal(label_table(names, 12), np.arange(12))
    assert "1, 10, 11, 12, 2 and 7 more; timm sorts folders as 1, 2, 3, 4, 5 and 7 more: give a" in caplog.text
    caplog.clear()
    label_table(names, 12, names)
    label_table(["x", "y"], 2)
    assert caplog.text == ""


def test_order_decides_only_where_nothing_has_names():
    np.testing.assert_array_equal(label_table(["x", "y", "z"], 3), [0, 1, 2])
    with pytest.raises(DatasetError, match=r"2 classes, the model 3.*label map"):
        label_table(["x", "y"], 3)
    with pytest.raises(DatasetError, match=r"classes that the model has not: x, y, z; it has a, b, c"):
        label_table(["x", "y", "z"], 3, ("a", "b", "c"))
    with pytest.raises(DatasetError, match="has not: 0, 1; it has cat, dog"):
        label_table(["0", "1"], 2, ("cat", "dog"))
    with pytest.raises(DatasetError, match="7 classes"):
        label_table(["7", "8", "9", "10", "11", "12", "13"], 10)


def test_a_label_map_decides_before_names(tmp_path):
    table = {"json": '{"x": 2, "y": "a"}', "csv": "x,2\ny,a\n\n"}
    for suffix, text in table.items():
        (tmp_path / f"map.{suffix}").write_text(text)
        mapping = read_label_map(tmp_path / f"map.{suffix}", ("a", "b", "c"))
        assert mapping == {"x": 2, "y": 0}
        np.testing.assert_array_equal(label_table(["y", "x"], 3, ("x", "y", "c"), mapping), [0, 2])
    (tmp_path / "map.csv").write_text("dog,English springer\ncat,n02123045\n")
    assert read_label_map(tmp_path / "map.csv") == {"dog": WNIDS.index("n02102040"), "cat": WNIDS.index("n02123045")}
    with pytest.raises(DatasetError, match="lacks z"):
        label_table(["x", "z"], 3, (), mapping)
    with pytest.raises(DatasetError, match="outside the model's 2 classes"):
        label_table(["x"], 2, (), mapping)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "neither"),
        ("[1, 2]", "no class of the model"),
        ("x\n", "neither"),
        ("x,nothing\n", "no class of the model"),
        ("x,1\nx,2\n", "has 'x' twice"),
        ('{"x": 1, "x": 2}', "has 'x' twice"),
        ('{"x": true}', "no class of the model"),
        ('{"x": [1]}', "no class of the model"),
        ('{"x": 1e999}', "no class of the model"),
        (f"x,{'9' * 5000}", "no class of the model"),
        ("x,a,b\n", "it has the row 'x,a,b'"),
        ("x," + "y" * 200_000, "neither"),
        ('{"x":' * 5000, "neither"),
        ("x,\u0430", r"'\\u0430' \(which only looks like 'a'\)"),
    ],
)
def test_what_is_no_label_map_is_refused(tmp_path, text, fault):
    (tmp_path / "map").write_text(text)
    with pytest.raises(DatasetError, match=fault):
        read_label_map(tmp_path / "map", ("a",))
    with pytest.raises(DatasetError, match="cannot be read"):
        read_label_map(tmp_path / "none")


def test_real_labels_belong_to_the_number_in_a_pictures_name(tmp_path):
    (tmp_path / "real.json").write_text(json.dumps([[], [970, 795], [3]]))
    real = read_real_labels(tmp_path / "real.json")
    assert real == [frozenset(), frozenset({970, 795}), frozenset({3})]
    assert real_index("val/n01/ILSVRC2012_val_00000002.JPEG", 0, 7, 3) == 1
    assert real_index("ILSVRC2012_val_00000003_n01751748.JPEG", 0, 7, 3) == 2
    assert real_index("anything", 2, 3, 3) == 2
    for name, examples in (("ILSVRC2012_val_00000004.JPEG", 3), ("anything", 2)):
        with pytest.raises(DatasetError, match="no ReaL labels"):
            real_index(name, 0, examples, 3)
    for text in ("[1]", '{"1": [2]}', '["12"]', "[[" * 5000):
        (tmp_path / "real.json").write_text(text)
        with pytest.raises(DatasetError, match="no list of lists"):
            read_real_labels(tmp_path / "real.json")
    for text in ("[[], [NaN]]", "[[], [1e999]]", "[[], [-1]]", "[[], [true]]", '[[], ["1"]]'):
        (tmp_path / "real.json").write_text(text)
        with pytest.raises(DatasetError, match="for picture 2: classes are numbers from 0 on"):
            read_real_labels(tmp_path / "real.json")


def test_subsets_are_those_of_their_papers():
    everything = np.arange(0)
    masks = {name: subset_mask(name, 1000, everything) for name in SUBSETS[:-1]}
    assert [int(mask.sum()) for mask in masks.values()] == [200, 200, 1000, 1000]
    # Neither has the tench; both have the stingray, and ImageNet-R alone the goldfish.
    tench, goldfish, stingray = (WNIDS.index(wnid) for wnid in ("n01440764", "n01443537", "n01498041"))
    assert masks["imagenet-a"][[tench, goldfish, stingray]].tolist() == [False, False, True]
    assert masks["imagenet-r"][[tench, goldfish, stingray]].tolist() == [False, True, True]
    np.testing.assert_array_equal(np.flatnonzero(subset_mask("data", 5, np.array([3, 1]))), [1, 3])
    with pytest.raises(DatasetError, match=r"'imagenet-a' has not: n01440764"):
        subset_mask("imagenet-a", 1000, np.array([0]))
    with pytest.raises(DatasetError, match="the model has 10"):
        subset_mask("imagenet-r", 10, np.array([0]))
    with pytest.raises(DatasetError, match="not one of"):
        subset_mask("imagenet-x", 1000, np.array([0]))


def test_imagenet_a_and_r_equal_timms(timm):

    folder = files("timm.data") / "_info"
    for letter in "ar":
        expected = [int(line) for line in (folder / f"imagenet_{letter}_indices.txt").read_text().split()]
        np.testing.assert_array_equal(np.flatnonzero(subset_mask(f"imagenet-{letter}", 1000, np.arange(0))), expected)
