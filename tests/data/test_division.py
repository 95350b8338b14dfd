"""Dividing pictures into training and validation, and into folds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jeffnet.data.columns import Columns
from jeffnet.data.division import Division, divide
from jeffnet.data.open import open_source
from jeffnet.data.sources import ImageFolder, Subset
from jeffnet.data.splits import UNDIVIDED
from jeffnet.data.table import Table
from jeffnet.errors import DatasetError

CLASSES = tuple("abcdefgh")


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(5, 60), min_size=1, max_size=8),
    st.one_of(st.floats(0.02, 0.98), st.integers(2, 5)),
    st.integers(0, 2**32 - 1),
)
def test_every_class_is_in_every_part_with_its_share(counts, how, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    shares = [1 - how, how] if isinstance(how, float) else [1 / how] * how
    parts = divide(labels, CLASSES, shares, seed)
    np.testing.assert_array_equal(parts, divide(labels, CLASSES, shares, seed))
    for label, count in enumerate(counts):
        got = np.bincount(parts[labels == label], minlength=len(shares))
        assert got.sum() == count and got.min() >= 1
        assert np.abs(got - np.maximum(np.array(shares) * count, 1)).max() < 2
    if isinstance(how, int):  # what is left of a class goes to another fold than what is left of the one before
        sizes = np.bincount(parts, minlength=how)
        assert sizes.max() - sizes.min() <= 1


def test_another_seed_divides_otherwise():
    labels = np.repeat([0, 1], 50)
    assert (divide(labels, CLASSES, [0.8, 0.2], 0) != divide(labels, CLASSES, [0.8, 0.2], 1)).any()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(0.8, 0.2), (0.25,) * 4]))
def test_groups_stay_together_and_classes_keep_their_shares(seed, shares):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 600)
    labels = np.where(rng.random(600) < 0.7, groups % 3, rng.integers(0, 3, 600))  # most of a group are of one class
    parts = divide(labels, CLASSES, shares, seed, [f"patient {group}" for group in groups])
    assert all(len(set(parts[groups == group])) == 1 for group in set(groups.tolist()))
    for label in range(3):
        got = np.bincount(parts[labels == label], minlength=len(shares)) / (labels == label).sum()
        assert np.abs(got - shares).max() < 0.08


@pytest.mark.parametrize(
    ("labels", "shares", "groups", "message"),
    [
        ([0, 0, 1], [0.8, 0.2], None, "class 'b' has 1 picture, which cannot be divided into 2 parts"),
        ([0, 0, 0, 1, 1], [1 / 3] * 3, None, "class 'b' has 2 pictures, which cannot be divided into 3 parts"),
        ([0, 0, 1, 1], [0.5, 0.5], ["x", "y", "x", "x"], "class 'b' has 1 group, which cannot be divided into 2"),
    ],
)
def test_a_class_that_cannot_be_divided_is_named(labels, shares, groups, message):
    with pytest.raises(DatasetError, match=message):
        divide(np.array(labels), CLASSES, shares, 0, groups)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of two classes without splits."""
    root = tmp_path_factory.mktemp("whole")
    for name in ("bee", "owl, barn"):
        (root / name).mkdir()
        for number in range(6):
            (root / name / f"{number}.png").touch()
    return root


def test_a_division_is_kept_as_a_table(folder, tmp_path):
    """Which reads as one, whatever the names are, and is of these pictures only."""
    source = ImageFolder(folder, UNDIVIDED)
    validated = divide(source.labels, source.classes, [0.7, 0.3], 3) == 1
    table = Division.of(source, validated).table(source)
    again = Division.parse(table, "split.csv")
    np.testing.assert_array_equal(again.validated(source, "split.csv"), validated)
    (tmp_path / "split.csv").write_text(table)
    read = Table(str(tmp_path / "split.csv"), "val", columns=Columns(folder=str(folder)))
    val = Subset(source, np.flatnonzero(validated))
    assert read.names == tuple(map(val.name, range(len(val)))) and len(val) == 4
    np.testing.assert_array_equal(read.labels, val.labels)
    with pytest.raises(DatasetError, match=r"lacks 8 pictures beside those of 'split\.csv', such as 'bee/"):
        again.validated(val, "split.csv")
    with pytest.raises(DatasetError, match="also has 8 pictures"):
        Division.of(val, np.ones(4, np.bool_)).validated(source, "split.csv")
    with pytest.raises(DatasetError, match=r"'split\.csv' is damaged in row 3"):
        Division.parse("path,class,split\na,b,val\na,b,other\n", "split.csv")


def test_the_split_to_divide_is_the_training_split_or_all_there_is(folder, tmp_path):
    assert len(open_source(str(folder), UNDIVIDED, 3)) == 12
    for name in ("bee", "owl"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "0.png").touch()
        (tmp_path / "val" / name / "1.png").touch()
    assert ImageFolder(tmp_path, UNDIVIDED).names == ("train/bee/0.png", "train/owl/0.png")
    (tmp_path / "train").rename(tmp_path / ".hidden")
    with pytest.raises(DatasetError, match="has no folder 'train'"):
        ImageFolder(tmp_path, UNDIVIDED)
