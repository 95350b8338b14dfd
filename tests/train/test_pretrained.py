"""What a run takes of the weights from which it starts, and of its teacher."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.errors import ConfigError, WeightsError
from jeffnet.linen import create_model, to_canonical
from jeffnet.train.config import LossConfig, ModelConfig
from jeffnet.train.phases import make_phases
from jeffnet.train.pretrained import continued, settled
from jeffnet.train.setup import make_setup, run_preprocessing
from jeffnet.weights.card import ModelCard
from jeffnet.weights.formats.safetensors import save_model

CLASSES = ("blue", "green", "red")
PREPROCESSING = Preprocessing(48, 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3, "squash")


@pytest.fixture
def weights(small_model, tmp_path):
    """Writes weights of the small model, of a seed of their own, and says where they are and what they hold."""

    def write(classes=(), name="start", **options):
        count = len(classes) or 3
        built = {key: value for key, value in options.items() if key in ("output_stride", "global_pool")}
        model, variables = create_model(small_model, num_classes=count, rng=5, **built)
        arrays = {key: np.asarray(array) for key, array in to_canonical(variables, model.plan).items()}
        arrays["classifier.bias"] = np.arange(count, dtype=np.float32)
        card = replace(ModelCard(small_model, count, 3, PREPROCESSING, tuple(classes)), **options)
        save_model(tmp_path / f"{name}.safetensors", arrays, card)
        return str(tmp_path / f"{name}.safetensors"), arrays

    return write


def _started(config, path):
    """The arrays with which a run begins."""
    config = settled(replace(config, model=replace(config.model, pretrained=path)))
    return make_setup(config).start().arrays


def test_what_is_not_said_is_taken_from_the_weights_and_what_is_said_stays(config, weights, small_model):
    path, _ = weights(output_stride=8, global_pool="max")
    own = replace(config, model=ModelConfig(pretrained=path), data=replace(config.data, image_size=None, crop_pct=0.9))
    taken = settled(own)
    assert (taken.model.name, taken.model.output_stride, taken.model.global_pool) == (small_model, 8, "max")
    assert run_preprocessing(taken) == replace(PREPROCESSING, crop_pct=0.9, train_size=48)
    setup = make_setup(taken)
    assert (setup.card.output_stride, setup.card.global_pool, setup.network.plan.global_pool) == (8, "max", "max")
    assert setup.card.preprocessing.crop_mode == "squash"
    assert settled(taken) == taken
    assert continued(own, taken) == taken


@pytest.mark.parametrize(
    ("given", "train_size", "sizes"),
    [
        ({}, None, (48, 48)),
        ({}, 40, (40, 48)),
        ({"image_size": 64}, 40, (64, 64)),
        ({"train_size": 32}, 40, (32, 48)),
        ({"image_size": 64, "train_size": 32}, 40, (32, 64)),
    ],
)
def test_sizes_are_those_of_the_weights_unless_they_are_given(given, train_size, sizes, config, weights, small_model):
    path, _ = weights(preprocessing=replace(PREPROCESSING, train_size=train_size))
    data = replace(config.data, **{"image_size": None, **given})
    own = replace(config, model=ModelConfig(pretrained=path), data=data)
    taken = settled(own)
    preprocessing = run_preprocessing(taken)
    assert make_phases(taken, preprocessing)[-1].image_size == sizes[0]
    assert preprocessing.image_size == sizes[1]
    assert run_preprocessing(continued(own, taken)) == run_preprocessing(settled(taken)) == preprocessing


def test_an_option_against_the_weights_is_said(config, weights, caplog):
    path, _ = weights(global_pool="max")
    _started(replace(config, model=replace(config.model, global_pool="avg")), path)
    assert "made with global_pool 'max', and used with 'avg'" in caplog.text


def test_weights_of_another_model_are_refused_by_name(config, weights, small_model):
    path, _ = weights()
    with pytest.raises(WeightsError, match=f"are of {small_model}, not of mobilenetv3_small_075.*--model.name"):
        settled(replace(config, model=ModelConfig(name="mobilenetv3_small_075", pretrained=path)))


def test_a_model_without_a_name_is_an_error_that_says_how_to_give_one(config):
    with pytest.raises(ConfigError, match=r"give model\.name, or a model\.pretrained"):
        settled(replace(config, model=ModelConfig()))


@pytest.mark.parametrize(
    ("classes", "kept"),
    [
        (CLASSES, (0, 1, 2)),
        ((), (0, 1, 2)),
        (("red", "blue", "green"), (1, 2, 0)),
        (("bus", "car", "tram"), None),
        (("blue", "green", "rot"), None),
    ],
)
def test_a_classifier_is_kept_by_the_names_of_its_classes(classes, kept, config, weights, caplog):
    path, arrays = weights(classes)
    started = _started(config, path)
    for name in ("classifier.kernel", "classifier.bias"):
        if kept is None:
            assert (started[name] != arrays[name]).any()
        else:
            np.testing.assert_array_equal(started[name], arrays[name][..., list(kept)])
    np.testing.assert_array_equal(started["conv_head.kernel"], arrays["conv_head.kernel"])
    assert ("new classifier: its classes are" in caplog.text) == (kept is None)
    assert ("put into the order blue, green, red" in caplog.text) == (kept == (1, 2, 0))


def test_a_new_classifier_is_not_the_one_of_the_same_seed(config, weights, small_model):
    path, _ = weights(("bus", "car", "tram"))
    model, variables = create_model(small_model, num_classes=3, rng=config.seed)
    fresh = to_canonical(variables, model.plan)["classifier.kernel"]
    assert (np.abs(_started(config, path)["classifier.kernel"] - fresh) > 1e-3).any()


def test_a_teachers_logits_come_in_the_order_of_the_datas_classes(config, weights, caplog):
    """Whatever the order in its file, it teaches the same."""
    logits = []
    for order in ((0, 1, 2), (2, 0, 1)):
        path, arrays = weights(tuple(CLASSES[place] for place in order), name=f"teacher{order}")
        classifier = {name: array[..., list(order)] for name, array in arrays.items() if name.startswith("classifier.")}
        card = ModelCard(config.model.name, 3, 3, PREPROCESSING, tuple(CLASSES[place] for place in order))
        save_model(path, arrays | classifier, card)
        teacher = make_setup(replace(config, loss=LossConfig(teacher=path))).lesson.teacher
        logits.append(teacher.apply(teacher.arrays, jnp.arange(32 * 32 * 3.0).reshape(1, 32, 32, 3) % 255).logits)
    np.testing.assert_array_equal(logits[0], logits[1])
    assert "put into the order blue, green, red" in caplog.text


def test_a_teacher_of_other_classes_is_refused(config, weights):
    path, _ = weights(("blue", "green", "rot"))
    with pytest.raises(ConfigError, match="other classes than the data: blue, green, rot, not blue, green, red"):
        make_setup(replace(config, loss=LossConfig(teacher=path)))
    path, _ = weights(CLASSES, global_pool="none")
    with pytest.raises(ConfigError, match="logits for every place"):
        make_setup(replace(config, loss=LossConfig(teacher=path)))
