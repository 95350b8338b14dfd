"""Batches for a loop of one's own are those of training and validation."""

import numpy as np
import pytest
from PIL import Image

import jeffnet
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.data.batches import Shard
from jeffnet.data.loaders import eval_loader, train_loader
from jeffnet.data.open import open_source
from jeffnet.data.preprocess import EvalTransform, TrainTransform
from jeffnet.errors import ConfigError

PREPROCESSING = Preprocessing(20, 1.0, "bilinear", train_size=16)
GREY = (124, 116, 104)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(11):
        path = folder / ("train" if number < 8 else "val") / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 30, 3), np.uint8)).save(path)
    return folder


def test_training_batches_are_those_of_the_recipes(pictures):
    batches = jeffnet.data.loader(
        pictures, "train", 4, model=PREPROCESSING, augment={"vflip": 0.5, "repeats": 2}, seed=5, threads=0
    )
    transform = TrainTransform(16, interpolation="bilinear", vflip=0.5, fill=GREY)
    source = open_source(str(pictures), "train", 3)
    for batch, expected in zip(range(3), train_loader(source, transform, 4, 5, 0, repeats=2), strict=False):
        batch = next(batches)
        np.testing.assert_array_equal(batch["image"], expected["image"])
        np.testing.assert_array_equal(batch["label"], expected["label"])
    assert (batches.classes, batches.num_examples, batches.steps_per_epoch) == (("cat", "dog"), 8, 2)


def test_they_continue_and_are_shared(pictures):
    options = {"model": PREPROCESSING, "augment": "rand-m9", "threads": 0}
    whole = jeffnet.data.loader(pictures, "train", 4, **options)
    next(whole)
    state, second = whole.get_state(), next(whole)
    parts = [jeffnet.data.loader(pictures, "train", 2, shard=Shard(index, 2), **options) for index in (0, 1)]
    for part in parts:
        part.set_state(state)
    np.testing.assert_array_equal(np.concatenate([next(part)["image"] for part in parts]), second["image"])


def test_validation_batches_hold_every_picture_once(pictures):
    batches = jeffnet.data.loader(pictures, "val", 2, train=False, model=PREPROCESSING, threads=0)
    expected = list(eval_loader(open_source(str(pictures), "val", 3), EvalTransform(PREPROCESSING), 2, 0))
    for batch, other in zip(batches, expected, strict=True):
        for name in ("image", "label", "mask", "index"):
            np.testing.assert_array_equal(batch[name], other[name])
    assert sum(int(batch["mask"].sum()) for batch in batches) == 3


def test_entries_of_whole_batches_are_refused(pictures):
    for entry, message in (("mixup", "whole batches: .*jeffnet.ops.mix"), ("colour", "there are color_jitter, ")):
        with pytest.raises(ConfigError, match=f"no entry '{entry}' .*{message}"):
            jeffnet.data.loader(pictures, augment={entry: 0.5})
    with pytest.raises(ConfigError, match="augment is for training"):
        jeffnet.data.loader(pictures, "val", train=False, augment="rand-m9")
