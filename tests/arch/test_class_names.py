"""Names of classes compared: by name, by number, by order, or not at all."""

import pytest

from jeffnet.arch.class_names import class_difference, class_indices, order_doubt
from jeffnet.arch.imagenet import LABEL_SETS, class_titles, imagenet_classes, label_set

WNIDS = tuple(imagenet_classes())
NUMBERS = tuple(map(str, range(12)))


def test_names_decide_whatever_their_order():
    assert class_indices(("b", "a"), 3, ("a", "b", "c")) == (1, 0)
    assert class_indices(("b", "d"), 3, ("a", "b", "c")) is None
    assert class_indices(("pear", "apple"), 2, ("bus", "car")) is None
    assert class_indices(WNIDS[5:2:-1], 1000) == (5, 4, 3)


@pytest.mark.parametrize("name", LABEL_SETS)
def test_models_of_imagenets_larger_sets_know_their_classes(name):
    """A data set of ImageNet-1k's folders has part of the classes of a model of ImageNet-21k."""
    known = tuple(label_set(name))
    shared = [wnid for wnid in WNIDS if wnid in label_set(name)]
    assert len(known) == LABEL_SETS[name] and len(shared) > 900
    assert class_indices(shared, len(known)) == tuple(known.index(wnid) for wnid in shared)
    assert class_indices(("banana", "pear"), len(known)) is None
    assert class_indices(NUMBERS, len(known)) is None
    assert class_indices(tuple(map(str, range(len(known)))), len(known))[-1] == len(known) - 1


def test_a_name_that_two_classes_have_decides_nothing():
    assert class_indices(("a", "b"), 3, ("a", "a", "b")) is None
    assert class_indices(("a", "a", "b"), 3, ("a", "a", "b")) == (0, 1, 2)


def test_numbers_are_classes_only_where_nothing_has_names():
    assert class_indices(sorted(NUMBERS), 12) == tuple(map(int, sorted(NUMBERS)))
    assert class_indices(NUMBERS[:7], 12) == tuple(range(7))  # labels of a part of a data set without names
    assert class_indices(("3", "7"), 12) is None
    assert class_indices(sorted(map(str, range(1000))), 1000, WNIDS)[:3] == (0, 1, 10)
    for ten_digits in (NUMBERS[:10], tuple(f"{n:02}" for n in range(10))):
        assert class_indices(ten_digits, 1000, WNIDS) is None
        assert class_indices(ten_digits, 1000) is None
    assert class_indices(NUMBERS, 12, tuple("abcdefghijkl")) is None


@pytest.mark.parametrize("names", [tuple(sorted(map(str, range(1, 13)))), ("Apple", "Cherry", "banana")])
def test_an_order_that_timm_would_not_have_is_in_doubt(names):
    natural = sorted(names, key=lambda name: (int(name) if name.isdecimal() else 0, name.lower()))
    assert class_indices(names, len(names)) == tuple(range(len(names)))
    assert f"timm sorts folders as {', '.join(natural[:3])}" in order_doubt(names, len(names))
    assert order_doubt(names, len(names), names) == ""  # the weights name them
    assert order_doubt(names[::-1], len(names)) == ""  # no folders' order
    assert order_doubt(("a", "b"), 2) == order_doubt(NUMBERS, 12) == ""


def test_timms_order_is_timms(timm):
    from timm.utils.misc import natural_key

    for names in (["b", "A", "a2", "a10", "10", "9", "x-1y", "x-01z", "é", "Z"], list(map(str, range(1, 30)))):
        doubt = order_doubt(sorted(names), len(names))
        assert f"timm sorts folders as {', '.join(sorted(names, key=natural_key)[:5])}" in doubt


@pytest.mark.parametrize(
    ("names", "others", "text"),
    [
        (("pear", "zapple"), ("apple", "pear"), "pear, zapple, not apple, pear"),
        (("caf\u00e9",), ("cafe\u0301",), r"'caf\xe9' (which only looks like 'cafe\u0301'), not "),
        (("a", "b", "c", "d", "e", "f"), ("a", "b", "c", "d", "e", "g"), "'f' in place 5 of 6, not 'g' of 6"),
        (("a", "b", "c", "d", "e", "f"), ("a", "b", "c", "d", "e", "f", "g"), "and 1 more, not "),
    ],
)
def test_a_difference_is_to_be_seen(names, others, text):
    assert text in class_difference(names, others)


def test_titles_of_imagenets_classes_are_distinct_and_say_which_meaning_a_word_has():
    titles = class_titles(WNIDS)
    assert len(set(titles)) == len(titles)
    assert {"ear (spike)", "pot (flowerpot)", "crane (bird)", "crane (machine)", "golf ball", "tench"} <= set(titles)
    assert class_titles(("pot", "n01440764")) == ("pot", "tench")
