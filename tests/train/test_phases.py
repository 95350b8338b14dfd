"""Phases: what grows does so evenly, mixing ends when it should, and what is configured reaches the pictures."""

from dataclasses import replace

import pytest

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.data.preprocess import EvalTransform, TrainTransform
from jeffnet.errors import ConfigError
from jeffnet.train.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, ProgressiveConfig
from jeffnet.train.phases import make_phases
from jeffnet.train.setup import run_preprocessing, train_transform

OWN = Preprocessing(300, 0.9, mean=(0.2, 0.4, 0.6))
CONFIG = Config(
    model=ModelConfig(name="tf_efficientnet_b0", drop_rate=0.4),
    data=DataConfig(path="-"),
    augment=AugmentConfig(policy="rand-m15-mstd0.5", mixup=0.2, cutmix=1.0),
    epochs=10,
)


def test_an_ordinary_run_is_one_phase():
    (phase,) = make_phases(CONFIG, OWN)
    assert (phase.first_epoch, phase.config, phase.image_size) == (0, CONFIG, 300)


def test_pictures_grow_to_their_size_in_training_not_in_tests():
    grows = replace(CONFIG, progressive=ProgressiveConfig(stages=2, image_size=150))
    assert [phase.image_size for phase in make_phases(grows, replace(OWN, train_size=200))] == [150, 200]


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (224, 256)),
        ({"image_size": 192}, (192, 192)),
        ({"train_size": 192}, (192, 256)),
        ({"image_size": 288, "train_size": 192}, (192, 288)),
        ({"crop_pct": 0.9}, (224, 256)),
    ],
)
def test_a_size_that_is_given_is_for_training_and_tests(options, sizes):
    config = replace(CONFIG, model=ModelConfig(name="efficientnet_b1"), data=DataConfig(path="-", **options))
    preprocessing = run_preprocessing(config)
    (phase,) = make_phases(config, preprocessing)
    assert (train_transform(phase, preprocessing).image_size, preprocessing.image_size) == sizes
    assert EvalTransform(preprocessing).shape == (sizes[1], sizes[1])


def test_what_grows_does_so_evenly_and_ends_as_configured():
    grows = ProgressiveConfig(stages=4, image_size=150, drop_rate=0.1, magnitude=6, mixup=0.05)
    phases = make_phases(replace(CONFIG, progressive=grows), OWN)
    assert [phase.first_epoch for phase in phases] == [0, 2, 5, 7]
    assert [phase.image_size for phase in phases] == [150, 200, 250, 300]
    assert [phase.config.model.drop_rate for phase in phases] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [phase.config.augment.mixup for phase in phases] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    magnitudes = [phase.config.augment.policy.split("-")[1] for phase in phases]
    assert magnitudes == ["m6", "m9", "m12", "m15"]
    assert phases[-1].config == replace(CONFIG, progressive=grows)


def test_dropout_grows_to_the_papers_where_none_is_configured():
    grows = ProgressiveConfig(stages=2, image_size=150, drop_rate=0.0)
    model = replace(CONFIG.model, drop_rate=None)
    first, last = make_phases(replace(CONFIG, model=model, progressive=grows), OWN)
    assert (first.config.model.drop_rate, last.config.model.drop_rate) == (0.0, None)


def test_mixing_ends_when_it_should():
    phases = make_phases(replace(CONFIG, augment=replace(CONFIG.augment, mix_off_epoch=8)), OWN)
    assert [(phase.first_epoch, phase.config.augment.mixes) for phase in phases] == [(0, True), (8, False)]
    (never,) = make_phases(replace(CONFIG, augment=replace(CONFIG.augment, mix_off_epoch=10)), OWN)
    assert never.config.augment.mixes
    with pytest.raises(ConfigError, match="mix_off_epoch"):
        AugmentConfig(mix_off_epoch=-1)


def test_the_transform_has_what_is_configured():
    chosen = AugmentConfig(
        scale=(0.3, 0.9),
        ratio=(0.5, 1.5),
        interpolation="random",
        hflip=0.1,
        vflip=0.2,
        color_jitter=0.3,
        policy="augmix",
        splits=3,
    )
    phase = replace(
        make_phases(CONFIG, OWN)[0], config=replace(CONFIG, augment=chosen, loss=LossConfig(name="jsd")), image_size=96
    )
    expected = TrainTransform(96, (0.3, 0.9), (0.5, 1.5), "random", 0.1, 0.2, 0.3, "augmix", 3, (51, 102, 153))
    assert train_transform(phase, OWN) == expected
