"""How often classes are drawn, and that no picture of a class comes again before the others."""

import itertools

import numpy as np
import pytest
from PIL import Image

from jeffnet.data import loader
from jeffnet.data.arrays import ArraySource
from jeffnet.data.batches import WHOLE, Shard
from jeffnet.data.loaders import train_loader
from jeffnet.data.preprocess import TrainTransform
from jeffnet.data.sampling import class_draws, picture_order
from jeffnet.data.sources import Example
from jeffnet.errors import ConfigError

COUNTS = (40, 9, 0, 1)
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))
SOURCE = ArraySource(np.arange(50, dtype=np.uint8)[:, None, None].repeat(64, 1).reshape(50, 8, 8), LABELS, list("abcd"))
PLAIN = TrainTransform(8, scale=(1, 1), ratio=(1, 1), hflip=0)


@pytest.mark.parametrize(
    ("sampling", "draws"), [("natural", (40, 9, 0, 1)), ("square_root", (31, 14, 0, 5)), ("balanced", (17, 17, 0, 16))]
)
def test_classes_are_drawn_in_their_shares(sampling, draws):
    """In proportion to 40, 9 and 1, to their roots 6.3, 3 and 1, and to one another; 50 in all."""
    assert tuple(class_draws(np.array(COUNTS), sampling)) == draws
    order = picture_order(SOURCE, 3, sampling)
    for epoch in range(3):
        drawn = LABELS[[int(order[place]) for place in range(50 * epoch, 50 * (epoch + 1))]]
        assert np.bincount(drawn, minlength=4).tolist() == list(draws)


@pytest.mark.parametrize("sampling", ["natural", "square_root", "balanced"])
def test_every_picture_of_a_class_comes_as_often_as_the_others(sampling):
    """But for one time: the row of a class is a permutation of its pictures after the other, another one each time."""
    order = picture_order(SOURCE, 5, sampling)
    drawn = np.array([int(order[place]) for place in range(1000)])
    for number in (0, 1):
        times = np.bincount(drawn[LABELS[drawn] == number], minlength=50)[number == LABELS]
        assert times.min() >= 1 and times.max() - times.min() <= 1
    assert (drawn[:50] != drawn[50:100]).any()
    assert (drawn != [int(picture_order(SOURCE, 6, sampling)[place]) for place in range(1000)]).any()


def test_a_balanced_row_goes_on_and_is_shared_like_any_other():
    """From the middle of an epoch, on any number of hosts."""

    def batches(count, shard=WHOLE, state=None, size=8):
        made = train_loader(SOURCE, PLAIN, size, 1, 2, shard=shard, sampling="balanced")
        if state:
            made.set_state(state)
        found = [batch["image"][:, 0, 0, 0] for batch in itertools.islice(made, count)]
        return np.array(found), made.get_state()

    whole, _ = batches(20)
    first, state = batches(9)
    rest, _ = batches(11, state=state)
    np.testing.assert_array_equal(np.concatenate([first, rest]), whole)
    halves = [batches(20, Shard(index, 2), size=4)[0] for index in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole)
    assert (whole != batches(20)[0]).sum() == 0 and (np.bincount(LABELS[whole[:6].ravel()], minlength=4)[3]) > 10


def test_sampling_needs_labels_and_a_name(tmp_path):
    class Unread:
        classes, channels = ("a", "b"), 1

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return Example(Image.new("L", (8, 8)), index % 2, "")

        def name(self, index):
            return ""

    picture_order(Unread(), 0)
    with pytest.raises(ConfigError, match="sampling 'balanced' needs the labels of all pictures"):
        picture_order(Unread(), 0, "balanced")
    with pytest.raises(ConfigError, match="sampling 'even' is not one of natural, square_root, balanced"):
        train_loader(SOURCE, PLAIN, 8, 1, sampling="even")
    with pytest.raises(ConfigError, match="sampling is for training"):
        loader("digits", "val", train=False, sampling="balanced", channels=1)
