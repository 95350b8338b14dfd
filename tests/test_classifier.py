"""A classifier takes pictures of any kind, gives names, and trains, validates and writes its model."""

import copy
import io
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import jeffnet
from jeffnet.arch.imagenet import imagenet_classes
from jeffnet.arch.zoo import model_preprocessing
from jeffnet.backends import BACKENDS, load_backend
from jeffnet.data.preprocess import EvalTransform, TrainTransform
from jeffnet.errors import ConfigError, ImageError, OutputError, WeightsError
from jeffnet.ops.image import normalize
from jeffnet.train.loop import resume
from jeffnet.train.recipe import load_recipe
from jeffnet.train.run import read_config

pytestmark = pytest.mark.users

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 50, 3), np.uint8)
CLASSES = ("cat", "<dog>", "eel")


@pytest.fixture(scope="module")
def classifier(tiny_model):
    model = jeffnet.create_model("tiny_flat", num_classes=3, rng=12)
    return jeffnet.Classifier(model, name="tiny_flat", classes=CLASSES)


@pytest.fixture(scope="module")
def expected(classifier):
    """What the model gives for `PIXELS`, step by step."""
    images = normalize(EvalTransform(model_preprocessing("tiny_flat"))(Image.fromarray(PIXELS))[None], *_normal())
    return np.asarray(jax.nn.softmax(classifier.model()(images)))[0]


def _normal():
    preprocessing = model_preprocessing("tiny_flat")
    return preprocessing.mean, preprocessing.std


def _png(image):
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def test_a_picture_of_any_kind_gives_the_same_names(classifier, expected, tmp_path):
    image, transparent = Image.fromarray(PIXELS), Image.fromarray(PIXELS).convert("RGBA")
    path = tmp_path / "photo.png"
    image.save(path)
    kinds = {
        "path": path, "text": str(path), "bytes": _png(image), "Pillow": image, "RGBA": transparent, "array": PIXELS,
        "floats": PIXELS / 255, "JAX": jax.numpy.asarray(PIXELS), "alpha": np.asarray(transparent),
        "integers": PIXELS.astype(np.int64),
    }  # fmt: skip
    for kind, picture in kinds.items():
        answer = classifier(picture)
        np.testing.assert_allclose(answer.probabilities, expected, rtol=1e-4, atol=1e-6, err_msg=kind)
        assert answer.top(2) == [
            (CLASSES[index], pytest.approx(expected[index], rel=1e-4)) for index in np.argsort(-expected)[:2]
        ]
    assert transparent.mode == "RGBA" and image.size == (50, 40)  # as they were
    several = classifier([path, PIXELS, image])
    assert len(several) == 3 and several.probabilities.shape == (3, 3) and several[1].name == several.names[2]
    np.testing.assert_allclose(several.probabilities, np.stack([expected] * 3), rtol=1e-4, atol=1e-6)
    assert classifier(np.stack([PIXELS] * 5)).probabilities.shape == (5, 3)
    assert len(classifier([])) == 0
    grey = Image.fromarray(PIXELS[:, :, 0])
    np.testing.assert_array_equal(classifier(PIXELS[:, :, 0]).probabilities, classifier(grey).probabilities)


def test_more_pictures_than_a_batch_keep_their_order(classifier):
    pictures = RNG.integers(0, 256, (21, 32, 32, 3), np.uint8)
    alone = np.stack([classifier(picture).probabilities for picture in pictures])
    np.testing.assert_allclose(classifier(list(pictures)).probabilities, alone, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(classifier.embed(pictures)[20], classifier.embed(pictures[20]), rtol=1e-4, atol=1e-6)


def test_what_is_no_picture_is_an_error(classifier, tmp_path):
    for picture, message in (
        (tmp_path / "none.png", "does not exist"),
        (b"nothing", "not a picture"),
        (np.zeros((3, 32, 32), np.uint8), r"of shape \(3, 32, 32\) is no picture: .*transpose\(1, 2, 0\)"),
        (PIXELS.astype(np.float32), "values from 0 to 255 is no picture: .*floats from 0 to 1"),
        (np.full((4, 4), np.nan), "no picture"),
        (np.zeros((4, 4, 3), bool), "no picture"),
        (7.0, "no picture"),
        (None, "no picture"),
    ):
        with pytest.raises(ImageError, match=message):
            classifier([PIXELS, picture])


def test_a_photograph_is_turned_upright_for_names_and_not_in_validation(classifier, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(PIXELS[::-1, ::-1]).save(tmp_path / "turned.png", exif=exif)
    turned = classifier(tmp_path / "turned.png")
    np.testing.assert_array_equal(turned.probabilities, classifier(PIXELS).probabilities)
    with Image.open(tmp_path / "turned.png") as opened:
        np.testing.assert_array_equal(classifier(opened).probabilities, turned.probabilities)
    as_stored = jeffnet.transform_for("tiny_flat")(tmp_path / "turned.png")
    np.testing.assert_array_equal(as_stored, jeffnet.transform_for("tiny_flat")(PIXELS[::-1, ::-1]))


def test_a_transform_gives_what_validation_sees(classifier):
    images = jeffnet.transform_for(classifier)([PIXELS, Image.fromarray(PIXELS)])
    assert images.shape == (2, 32, 32, 3) and images.dtype == np.float32
    pixels = EvalTransform(model_preprocessing("tiny_flat"))(Image.fromarray(PIXELS))
    np.testing.assert_array_equal(images, np.stack([normalize(pixels[None], *_normal())[0]] * 2))
    for model in (classifier.card, model_preprocessing("tiny_flat"), "tiny_flat"):
        np.testing.assert_array_equal(jeffnet.transform_for(model)(PIXELS), images[:1])
    assert jeffnet.transform_for("tiny_flat", image_size=20)([]).shape == (0, 20, 20, 3)


def test_a_transform_for_training_is_random_and_repeatable(tiny_model):
    transform = jeffnet.transform_for("tiny_flat", train=True)
    first, again = transform(PIXELS, rng=1), transform(PIXELS, rng=1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, transform(PIXELS, rng=2)) and not np.array_equal(transform(PIXELS), again)
    given = TrainTransform(16, scale=(1, 1), ratio=(1.25, 1.25), hflip=0.0)
    same = jeffnet.transform_for("tiny_flat", train=given)
    np.testing.assert_array_equal(same.pixels(PIXELS, 0)[0], given(Image.fromarray(PIXELS), np.random.default_rng(0)))
    with pytest.raises(ConfigError, match="2 views"):
        jeffnet.transform_for("tiny_flat", train=TrainTransform(16, splits=2))
    with pytest.raises(ConfigError, match="exif"):
        jeffnet.transform_for("tiny_flat", train=True, exif=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_of_any_backend_classifies(backend, classifier, expected):
    model = classifier.model(backend)
    given = model if isinstance(model, tuple) else (model,)
    assert isinstance(given[0], load_backend(backend).ImageClassifier)
    answer = jeffnet.Classifier(*given, name="tiny_flat", classes=CLASSES)(PIXELS)
    np.testing.assert_allclose(answer.probabilities, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match="does not say its name"):
        jeffnet.Classifier(*given)


def test_features_and_embeddings_are_the_models(classifier):
    images = jeffnet.transform_for("tiny_flat")(PIXELS)
    model = classifier.model()
    np.testing.assert_allclose(classifier.embed(PIXELS), model.pre_logits(images)[0], rtol=1e-4, atol=1e-5)
    for indices in (None, (-1,)):
        maps = classifier.features([PIXELS, PIXELS], indices)
        for found, wanted in zip(maps, model.features(images, indices), strict=True):
            np.testing.assert_allclose(found[1], wanted[0], rtol=1e-4, atol=1e-5)
    assert [each.channels for each in classifier.feature_info] == [
        each.shape[-1] for each in classifier.features(PIXELS)
    ]


def test_a_classifier_is_saved_with_its_names(classifier, expected, tmp_path):
    classifier.save(tmp_path / "a.safetensors")
    again = jeffnet.Classifier.from_pretrained(tmp_path / "a.safetensors")
    assert again.card == classifier.card and again.classes == CLASSES
    assert repr(again) == "Classifier(tiny_flat, 3 classes, 32 x 32 x 3)"
    np.testing.assert_allclose(again(PIXELS).probabilities, expected, rtol=1e-4, atol=1e-6)
    loaded = jeffnet.Classifier(jeffnet.from_pretrained(tmp_path / "a.safetensors", backend="linen"))
    np.testing.assert_array_equal(loaded(PIXELS).probabilities, again(PIXELS).probabilities)
    with pytest.raises(WeightsError, match="no classifier"):
        jeffnet.Classifier.from_pretrained(tmp_path / "a.safetensors", num_classes=0)(PIXELS)


def test_an_exported_file_classifies_and_has_no_features(classifier, expected, tmp_path):
    report = classifier.export(tmp_path / "a.stablehlo", check=False)
    exported = jeffnet.Classifier.from_pretrained(report.path)
    np.testing.assert_allclose(exported([PIXELS, PIXELS])[1].probabilities, expected, rtol=1e-4, atol=1e-6)
    again = pickle.loads(pickle.dumps(exported))
    np.testing.assert_array_equal(again(PIXELS).probabilities, exported(PIXELS).probabilities)
    with pytest.raises(WeightsError, match="exported file, which has logits only"):
        exported.embed(PIXELS)
    with pytest.raises(ConfigError, match="takes no options: dtype"):
        jeffnet.Classifier.from_pretrained(report.path, dtype="bfloat16")


def test_pickled_and_copied_classifiers_answer_alike(classifier):
    """As worker processes get them; answers come back in the same way."""
    answer = classifier(PIXELS)
    for other in (pickle.loads(pickle.dumps(classifier)), copy.deepcopy(classifier)):
        assert other.classes == CLASSES and other.card == classifier.card and repr(other) == repr(classifier)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(other(PIXELS))).probabilities, answer.probabilities)


def test_answers_show_themselves(classifier):
    answer = classifier(PIXELS)
    first, probability = answer.top(1)[0]
    assert repr(answer).splitlines()[0] == f"{probability:6.1%}  {first}"
    page = answer._repr_html_()
    assert "&lt;dog&gt;" in page and "<dog>" not in page and page.count("<img") == 1
    assert f"width:{100 * probability:.1f}%" in page
    several = classifier([PIXELS] * 20)
    assert several._repr_html_().count("<img") == 16 and several._repr_html_().endswith("and 4 more")
    assert len(repr(several).splitlines()) == 17


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Red and blue pictures, of which there are few."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(24):
        color = ("blue", "red")[number % 2]
        path = folder / ("train", "val")[number // 16] / color / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = RNG.integers(0, 60, (32, 32, 3), np.uint8)
        pixels[..., 0 if color == "red" else 2] += 180
        Image.fromarray(pixels).save(path)
    return folder


def test_fine_tuning_gives_another_classifier(classifier, pictures, tmp_path):
    """Which has learnt the colours; the one before is as it was."""
    before = classifier(PIXELS).probabilities
    tuned = classifier.fine_tune(
        pictures,
        epochs=3,
        batch_size=4,
        output=tmp_path / "run",
        progress=False,
        data={"crop_pct": 1.0},
        optimizer={"learning_rate": 0.05},
        model={"bn_momentum": 0.5},
        min_epoch_steps=4,
    )
    assert tuned.classes == ("blue", "red") and tuned.card.model == "tiny_flat"
    scores = tuned.evaluate(pictures)
    assert scores.examples == 8 and scores.top1 > 80
    right = [tuned(path).name == path.parent.name for path in sorted((pictures / "val").rglob("*.png"))]
    assert 100 * np.mean(right) == scores.top1
    assert (tmp_path / "run" / "metrics.jsonl").is_file() and tuned.card.preprocessing.crop_pct == 1
    np.testing.assert_array_equal(classifier(PIXELS).probabilities, before)
    with pytest.raises(ConfigError, match="no setting colour"):
        tuned.evaluate(pictures, colour=1)
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rat"):
        classifier.fine_tune(pictures, optimizer={"learning_rat": 1.0})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"model": {"name": "mnasnet_small"}},
            "model={'name': mnasnet_small} is another model than this classifier's",
        ),
        (
            {"model": {"pretrained": "b0"}},
            "model={'pretrained': b0} is another model than this classifier's, tiny_flat",
        ),
        (
            {"model": {"spec": {"stages": [["ds_r1_k3_s1_e1_c8"]]}}},
            "is another model than this classifier's, tiny_flat",
        ),
        ({"model": "b0"}, "model='b0' is no dictionary: give what is to change, such as model={"),
        ({"data": "other"}, "data='other' is no dictionary: give what is to change, such as data={'image_size': 160}"),
        ({"batch_size": 0}, "batch_size 0 must be at least 1"),
    ],
)
def test_fine_tuning_is_of_this_model_in_pythons_terms(classifier, pictures, tmp_path, entries, message):
    with pytest.raises(ConfigError) as caught:
        classifier.fine_tune(pictures, output=tmp_path / "run", progress=False, **entries)
    assert message in str(caught.value) and "--" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_fine_tuning_does_what_the_recipe_does(classifier, pictures, tmp_path, monkeypatch):
    """The configurations differ in nothing but the model, the data, their amount and what is given."""
    given = {}

    def stop(config, folder, **options):
        given.update(config=config, folder=folder)
        raise InterruptedError

    monkeypatch.setattr("jeffnet.train.fine_tune.train", stop)
    with pytest.raises(InterruptedError):
        classifier.fine_tune(pictures, epochs=1, output=tmp_path / "run", optimizer={"b1": 0.8})
    tuned, recipe = given["config"], load_recipe("fine_tune")
    assert (tuned.epochs, tuned.optimizer.b1) == (1, 0.8)
    same = {name: getattr(recipe, name) for name in ("model", "data", "epochs")}
    assert replace(tuned, **same, optimizer=replace(tuned.optimizer, b1=None)) == recipe


def test_a_fine_tuned_run_keeps_the_weights_it_starts_from(classifier, pictures, tmp_path):
    """Without its checkpoints, as after a crash in the first epoch, it begins anew; a mistake leaves nothing behind."""
    run = tmp_path / "run"
    options = {"epochs": 1, "batch_size": 8, "min_epoch_steps": 2, "progress": False}
    classifier.fine_tune(pictures, output=run, **options)
    before = _losses(run)
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    resume(run, progress=False)
    assert _losses(run) == before
    assert Path(read_config(run).model.pretrained).parent == run
    with pytest.raises(OutputError, match="holds a run already"):
        classifier.fine_tune(pictures, output=run, **options)
    assert (run / "start.safetensors").is_file()
    with pytest.raises(ConfigError, match="pattern"):
        classifier.fine_tune(pictures, output=tmp_path / "wrong", model={"freeze": ("pattern",)}, **options)
    assert not (tmp_path / "wrong").exists()


def _losses(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert losses
    return losses


def test_publishing_takes_the_model_and_its_card(classifier, monkeypatch):
    given = {}

    def push(repository, model, name, **options):
        given.update(repository=repository, name=name, options=options, model=model)
        return "address"

    monkeypatch.setattr("jeffnet.publish.push_to_hub", push)
    assert classifier.push_to_hub("me/cats", private=True) == "address"
    assert given["name"] == classifier.card and given["options"] == {"private": True} and len(given["model"]) == 2


def test_real_weights_name_what_is_in_photographs(photographs, lite0_weights):
    classifier = jeffnet.Classifier.from_pretrained(lite0_weights, "tf_efficientnet_lite0")
    answers = classifier(list(photographs))
    assert answers.names == [imagenet_classes()[number].partition(",")[0] for number in photographs.values()]
