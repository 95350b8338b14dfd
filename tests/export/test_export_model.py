"""Exporting in Python, by a format that only the tests have."""

import dataclasses
import errno
import sys

import jax
import numpy as np
import pytest

from jeffnet.arch.zoo import model_preprocessing
from jeffnet.backends import BACKENDS, convert
from jeffnet.errors import ConfigError, EndingError, InputError, JeffnetError, OutputError, WeightsError
from jeffnet.export import export_model, open_exported
from jeffnet.export.targets import TARGETS, Target
from jeffnet.ops.image import normalize
from jeffnet.weights.formats import EXPORTED


def _pixels(size=32):
    return np.random.default_rng(0).integers(0, 256, (3, size, size, 3), np.uint8)


def _logits(model, card, pixels):
    module, variables = model
    return np.asarray(module.apply(variables, normalize(pixels, card.preprocessing.mean, card.preprocessing.std)))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "objax"])
def test_models_of_all_backends_are_exported(fake, tiny, backend, tmp_path):
    model, card = tiny
    before = jax.tree.map(np.array, model[1])
    report = export_model(tmp_path / "a.fake", convert(model, backend), card)
    assert report.runtime == "fake 1.0"
    assert report.bytes == (tmp_path / "a.fake").stat().st_size
    assert (report.comparison.pictures, report.comparison.agreement) == (8, 1.0)
    assert 0 < report.comparison.difference < 1e-5
    jax.tree.map(np.testing.assert_array_equal, model[1], before)
    exported = open_exported(tmp_path / "a.fake")
    assert (exported.card, exported.image_size, exported.target) == (card, (32, 32), "fake")
    np.testing.assert_allclose(exported(_pixels()), _logits(model, card, _pixels()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "nchw", "batch_size": 2},
        {"include": ("preprocessing",), "layout": "nchw"},
        {"include": ("preprocessing", "softmax"), "batch_size": 1},
    ],
    ids=str,
)
def test_what_a_file_takes_and_gives_does_not_matter(fake, tiny, options, tmp_path):
    """Batches of 3 are cut and filled up, pictures transposed and normalised, probabilities turned into scores."""
    model, card = tiny
    report = export_model(tmp_path / "a.fake", model, card, **options)
    assert report.comparison.difference < 1e-5
    scores, logits = open_exported(tmp_path / "a.fake")(_pixels()), _logits(model, card, _pixels())
    np.testing.assert_allclose(jax.nn.softmax(scores), jax.nn.softmax(logits), rtol=1e-4)
    if "softmax" not in options.get("include", ()):
        np.testing.assert_allclose(scores, logits, rtol=1e-4, atol=1e-5)
    # From TensorFlow pictures come as floats.
    floats = open_exported(tmp_path / "a.fake")(_pixels().astype(np.float32))
    np.testing.assert_allclose(floats, scores, rtol=1e-6)


def test_a_file_of_another_size_and_other_names(fake, tiny, tmp_path):
    model, card = tiny
    wanted = card.preprocessing.changed(crop_pct=0.5)
    report = export_model(
        tmp_path / "a.fake", model, "tiny_flat", classes=("a", "b", "c"), preprocessing=wanted, image_size=(40, 48)
    )
    exported = open_exported(tmp_path / "a.fake")
    assert (exported.image_size, exported.card.classes) == ((40, 48), ("a", "b", "c"))
    assert exported.card.preprocessing == wanted
    assert report.metadata.options.image_size == (40, 48)
    with pytest.raises(InputError, match=r"takes pictures of shape \(40, 48, 3\), not \(32, 32, 3\)"):
        exported(_pixels())


@pytest.mark.parametrize("name", ["blocks.1.0.conv.kernel", "classifier.kernel"])
def test_a_file_that_differs_is_not_kept(fake, tiny, name, tmp_path):
    """The first layer that differs is named; without the check it is written."""
    model, card = tiny
    fake.faults[name] = lambda array: 1.1 * array
    with pytest.raises(JeffnetError) as error:
        export_model(tmp_path / "a.fake", model, card)
    message = str(error.value)
    first = name.removesuffix(".kernel").replace(".conv", ".conv:sum")
    assert f"first at {first!r}" in message and "fake 1.0" in message and "--no-check" in message
    assert "\n" not in message and list(tmp_path.iterdir()) == []
    report = export_model(tmp_path / "a.fake", model, card, check=False)
    assert report.comparison is None and (tmp_path / "a.fake").exists()


def test_a_file_that_gives_no_numbers_or_fails_is_not_kept(fake, tiny, tmp_path, monkeypatch):
    model, card = tiny
    fake.faults["classifier.bias"] = lambda array: np.nan * array
    with pytest.raises(JeffnetError, match="by inf of the largest output"):
        export_model(tmp_path / "a.fake", model, card)
    monkeypatch.setattr(fake.Runner, "__call__", lambda self, images: 1 / 0)
    with pytest.raises(WeightsError, match=r"a.fake' fails in fake 1.0: division by zero"):
        export_model(tmp_path / "a.fake", model, card)
    assert list(tmp_path.iterdir()) == []


def test_large_outputs_that_hardly_depend_on_the_picture_hide_no_fault(fake, tiny, tmp_path):
    """Beside a bias of 10,000 a wrong first layer is a difference of less than 1e-3."""
    (model, variables), card = tiny
    params = {**variables["params"], "classifier.bias": variables["params"]["classifier.bias"] + 1e4}
    large = (model, {**variables, "params": params})
    report = export_model(tmp_path / "a.fake", large, card)
    assert report.comparison.difference < 1e-6 and report.comparison.of_spread < 1e-2
    fake.faults["conv_stem.kernel"] = lambda array: array[:, :, ::-1]
    with pytest.raises(JeffnetError, match=r"differs from the model by .* of how pictures differ"):
        export_model(tmp_path / "b.fake", large, card)


def test_a_classifier_of_zeros_is_exported(fake, tiny, tmp_path):
    """Which is how many start to be trained."""
    (model, variables), card = tiny
    zeros = {name: 0 * variables["params"][name] for name in ("classifier.kernel", "classifier.bias")}
    params = {**variables["params"], **zeros}
    report = export_model(tmp_path / "a.fake", (model, {**variables, "params": params}), card)
    assert (report.comparison.difference, report.comparison.cosine) == (0, 1)


def test_weights_beyond_float16_are_refused(fake, tiny, tmp_path):
    (model, variables), card = tiny
    params = {**variables["params"], "classifier.kernel": 1e6 + variables["params"]["classifier.kernel"]}
    with pytest.raises(ConfigError, match=r"classifier.kernel has 1e\+06, float16 ends at 6.55e\+04"):
        export_model(tmp_path / "a.fake", (model, {**variables, "params": params}), card, dtype="float16", check=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_another_process_has_written_meanwhile_stays(fake, tiny, tmp_path, monkeypatch):
    model, card = tiny
    write = fake.write

    def slow(path, network, metadata):
        write(path, network, metadata)
        (tmp_path / "a.fake").write_text("theirs")

    monkeypatch.setattr(fake, "write", slow)
    with pytest.raises(OutputError, match=r"a.fake' exists: remove it"):
        export_model(tmp_path / "a.fake", model, card)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["theirs"]


def test_a_full_disk_leaves_nothing(fake, tiny, tmp_path, monkeypatch):
    model, card = tiny

    def full(path, network, metadata):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fake, "write", full)
    with pytest.raises(OutputError, match=r"cannot write '.*a.fake': No space left on device"):
        export_model(tmp_path / "a.fake", model, card)
    assert list(tmp_path.iterdir()) == []


def test_paths_that_cannot_be_written(fake, tiny, tmp_path):
    model, card = tiny
    (tmp_path / "there.fake").write_text("mine")
    (tmp_path / "folder.fake").mkdir()
    (tmp_path / "beside.fake.json").write_text("mine")
    for name, match in {
        "there.fake": "exists: remove it",
        "folder.fake": "exists: remove it",
        "beside.fake": r"beside.fake.json' exists",
        "none/a.fake": "its folder does not exist",
    }.items():
        with pytest.raises(OutputError, match=match):
            export_model(tmp_path / name, model, card)
    (tmp_path / "link.fake").symlink_to(tmp_path / "nowhere.fake")
    for name, match in {
        "link.fake": "exists: remove it",
        f"{'x' * 300}.fake": "File name too long",
        f"{'x' * 248}.fake": r"\.json': File name too long",  # the file itself would do, that beside it not
        "a\0b.fake": "null",
    }.items():
        with pytest.raises(OutputError, match=match):
            export_model(tmp_path / name, model, card)
    with pytest.raises(OutputError, match="give the name of a file"):
        export_model("", model, card, to="savedmodel")
    for name, to, match in (
        ("a.txt", None, r"give a name such as \*.onnx \(onnx\)"),
        ("a.tflite", "onnx", "as onnx: give a name that ends in .onnx"),
        ("a.onnx", "savedmodel", "give a name that is a folder's"),
    ):
        with pytest.raises(EndingError, match=match):
            export_model(tmp_path / name, model, card, to=to)
    with pytest.raises(ConfigError, match="target 'pdf' is not one of onnx"):
        export_model(tmp_path / "a.pdf", model, card, to="pdf")
    assert (tmp_path / "there.fake").read_text() == "mine"


def test_options_that_cannot_be(fake, tiny, tmp_path):
    model, card = tiny
    for options, match in (
        ({"batch": 1}, "option 'batch' is not one of batch_size"),
        ({"batch_size": 0}, "batch_size 0 is below 1"),
        ({"image_size": 0}, "image_size 0 is below 1"),
        ({"include": ("sigmoid",)}, "include 'sigmoid' is not one of"),
        ({"include": "softmax"}, "include 'softmax' is a text: give a tuple"),
        ({"batch_size": 2.0}, "batch_size 2.0 is not a whole number"),
        ({"batch_size": True}, "batch_size True is not a whole number"),
        ({"image_size": (32.0, 32)}, "image_size 32.0 is not a whole number"),
        ({"image_size": (32, 32, 3)}, r"image_size \(32, 32, 3\): give one side, or height and width"),
        ({"image_size": "32"}, "image_size '32': give one side"),
        ({"opset": "18"}, "opset '18' is not a whole number"),
    ):
        with pytest.raises(ConfigError, match=match):
            export_model(tmp_path / "a.fake", model, card, **options)
    with pytest.raises(WeightsError, match="tiny_tf"):
        export_model(tmp_path / "a.fake", model, "tiny_tf")


def test_a_missing_package_is_named_with_its_command(tiny, tmp_path, monkeypatch):
    model, card = tiny
    monkeypatch.setitem(TARGETS, "fake", Target("no_such_package_of_the_tests", (".fake",), "digits"))
    monkeypatch.delitem(sys.modules, "no_such_package_of_the_tests", raising=False)
    with pytest.raises(JeffnetError, match=r"fake files need no_such_package_of_the_tests.*: pip install scikit-learn"):
        export_model(tmp_path / "a.fake", model, card)
    assert list(tmp_path.iterdir()) == []


def test_abstract_and_changed_models_are_refused(fake, tiny_model, tmp_path):
    from flax import nnx

    from jeffnet.nnx import create_model

    with pytest.raises(WeightsError, match="without abstract=True"):
        export_model(tmp_path / "a.fake", create_model("tiny_flat", abstract=True), "tiny_flat")

    class Mine(nnx.Conv):
        pass

    model = create_model("tiny_flat")
    model.conv_stem = Mine(3, 8, (3, 3), use_bias=False, rngs=nnx.Rngs(0))
    with pytest.raises(WeightsError, match=r"conv_stem is a Mine .* or exported; .*jeffnet\.register_model"):
        export_model(tmp_path / "a.fake", model, "tiny_flat")


def test_pictures_to_check_with(fake, tiny, tmp_path):
    """A data set, or a folder of pictures; a broken one is an error, before anything is written."""
    from PIL import Image

    model, card = tiny
    for folder in ("flat", "classes/val/cat", "classes/val/dog"):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(_pixels(50)[number]).save(tmp_path / folder / f"{number}.png")
    for folder, number in (("flat", 2), ("classes", 4)):
        report = export_model(tmp_path / f"{folder}.fake", model, card, check_with=str(tmp_path / folder))
        assert report.comparison.pictures == number
    (tmp_path / "flat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(JeffnetError, match=r"0\.png"):
        export_model(tmp_path / "b.fake", model, card, check_with=str(tmp_path / "flat"))
    with pytest.raises(JeffnetError, match="none"):
        export_model(tmp_path / "b.fake", model, card, check_with=str(tmp_path / "none"))
    assert not (tmp_path / "b.fake").exists()


def test_features_are_exported_too(fake, tiny_model, tmp_path):
    from jeffnet.functional import create_model

    report = export_model(tmp_path / "a.fake", create_model("tiny_flat", num_classes=0), "tiny_flat")
    assert report.comparison.agreement is None and report.comparison.difference < 1e-5
    assert open_exported(tmp_path / "a.fake")(_pixels()).shape == (3, 16)
    assert model_preprocessing("tiny_flat") == report.metadata.card.preprocessing


def test_features_have_no_probabilities(fake, tiny_model, tmp_path):
    from jeffnet.functional import create_model

    model = create_model("tiny_flat", num_classes=0)
    with pytest.raises(ConfigError, match="tiny_flat gives features, which have no probabilities: leave out softmax"):
        export_model(tmp_path / "a.fake", model, "tiny_flat", include=("softmax",))


def test_numbers_of_numpy_are_numbers(fake, tiny, tmp_path):
    model, card = tiny
    options = {"batch_size": np.int64(2), "image_size": np.int32(16)}
    report = export_model(tmp_path / "a.fake", model, card, check=False, **options)
    assert (report.metadata.options.batch_size, report.metadata.options.image_size) == (2, (16, 16))


def test_every_class_has_a_line_of_labels(fake, tiny, tmp_path):
    """Names may have line breaks, or be nothing but spaces."""
    from jeffnet.export.metadata import labels

    model, card = tiny
    card = dataclasses.replace(card, classes=("a\u2028b\nc", "d, e", " "))
    metadata = export_model(tmp_path / "a.fake", model, card, check=False).metadata
    assert "\n".join(labels(metadata)).splitlines() == ["a b c", "d, e", "class 2"]


def test_labels_need_names(fake, tiny_model, tmp_path):
    from jeffnet.functional import create_model

    with pytest.raises(ConfigError, match="the classes of tiny_flat have no names to embed"):
        export_model(tmp_path / "a.fake", create_model("tiny_flat"), "tiny_flat", embed_labels=True)


def test_endings_of_exported_files_are_known_below_the_exporters():
    assert {*EXPORTED} == {ending for target in TARGETS.values() for ending in target.endings if ending}
