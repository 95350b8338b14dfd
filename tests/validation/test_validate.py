"""`jeffnet validate`, with all that it can be asked for."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import jeffnet.validation.validate
import jeffnet.weights.load
from jeffnet.arch import zoo
from jeffnet.arch.model import WeightSet
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.zoo import model_plan
from jeffnet.checkpoints import write_checkpoint
from jeffnet.cli.main import main
from jeffnet.errors import JeffnetError, OutputError
from jeffnet.ops.init import initial_arrays
from jeffnet.weights.card import ModelCard
from jeffnet.weights.formats.safetensors import save_model
from jeffnet.weights.hub import Located

CLASSES = ("bird", "cat", "dog")
MODELS = ("tiny", "tiny_tf", "tiny_flat")


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny_model):
    """A folder of three models' weights, under their names; two of them take the same pixels."""
    folder = tmp_path_factory.mktemp("weights")
    for number, name in enumerate(MODELS):
        mean = (0.5, 0.5, 0.5) if number else (0.485, 0.456, 0.406)
        card = ModelCard(name, 3, 3, Preprocessing(32, 1.0 if number < 2 else 0.875, "bicubic", mean), CLASSES)
        arrays = initial_arrays(card.plan(), number)
        # Initial logits are nearly zero; these tell classes apart.
        arrays["classifier.kernel"] = np.random.default_rng(number).normal(size=arrays["classifier.kernel"].shape) * 3
        save_model(
            folder / f"{name}.safetensors", {key: np.asarray(value, np.float32) for key, value in arrays.items()}, card
        )
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Fifteen JPEGs of smooth colours, so that a model's answer does not hang on single pixels."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name in CLASSES:
        (root / "val" / name).mkdir(parents=True)
        for index in range(5):
            colours = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
            colours.resize((40 + index, 50), Image.Resampling.BICUBIC).save(
                root / "val" / name / f"{index}.jpg", quality=95
            )
    return root


def run(capsys, *arguments):
    status = main(["validate", *map(str, arguments)])
    output = capsys.readouterr()
    return status, output.out, output.err


def result(capsys, *arguments):
    """The object of the last line of standard output, which is the only one."""
    status, out, err = run(capsys, *arguments, "--json")
    assert status == 0, err
    assert len(out.splitlines()) == 1
    return json.loads(out)


def test_the_object_has_what_a_program_needs(capsys, weights, pictures):
    found = result(capsys, pictures, "--weights", weights / "tiny.safetensors")
    assert found["model"] == "tiny" and found["num_examples"] == 15 and found["images_per_second"] > 0
    assert 0 <= found["top1"] <= found["top5"] == 100
    assert found["preprocessing"] == {
        "image_size": 32, "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic", "exif": False,
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    assert found["settings"]["loader"] == "grain" and found["versions"]["jax"]


def test_several_models_in_one_pass_each_as_alone(capsys, weights, pictures, monkeypatch):
    """Models with the same pixels share a pass, whatever their mean and std."""
    opened = []
    pipeline = jeffnet.validation.validate.open_pipeline
    monkeypatch.setattr(
        jeffnet.validation.validate, "open_pipeline", lambda *a, **k: opened.append(1) or pipeline(*a, **k)
    )
    template = weights / "{model}.safetensors"
    rows = result(capsys, pictures, "--model", ",".join(MODELS), "--weights", template)
    assert len(opened) == 2 and {row["model"] for row in rows} == set(MODELS)
    for row in rows:
        alone = result(capsys, pictures, "--weights", weights / f"{row['model']}.safetensors")
        assert (row["top1"], row["preprocessing"]) == (alone["top1"], alone["preprocessing"])
        assert row["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    status, out, err = run(capsys, pictures, "--model", ",".join(MODELS), "--weights", template)
    assert status == 0 and all(name in out for name in MODELS) and "32 px" in err
    assert len(out.splitlines()) == 5


def test_an_interrupted_series_goes_on_where_it_stopped(capsys, weights, pictures, tmp_path, monkeypatch):
    for name in MODELS[:2]:
        (tmp_path / f"{name}.safetensors").write_bytes((weights / f"{name}.safetensors").read_bytes())
    options = (pictures, "--model", ",".join(MODELS), "--weights", tmp_path / "{model}.safetensors")
    options += ("--results", tmp_path / "results.csv")
    status, _, err = run(capsys, *options)
    assert status == 1 and "1 of 3 models could not be validated: tiny_flat" in err.splitlines()[-1]
    assert [row["model"] for row in csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text()))] == [
        "tiny",
        "tiny_tf",
    ]
    (tmp_path / "tiny_flat.safetensors").write_bytes((weights / "tiny_flat.safetensors").read_bytes())
    opened = []
    open_model = jeffnet.validation.validate._open_model
    monkeypatch.setattr(
        jeffnet.validation.validate,
        "_open_model",
        lambda candidate, *a: opened.append(candidate.name) or open_model(candidate, *a),
    )
    rows = result(capsys, *options)
    assert opened == ["tiny_flat"] and [row["model"] for row in rows] == list(MODELS)
    result(capsys, *options, "--interpolation", "bilinear")
    assert opened == ["tiny_flat", *MODELS]


def test_a_single_model_that_cannot_be_had_is_its_error(capsys, pictures, tmp_path, tiny_model):
    status, out, err = run(capsys, pictures, "--model", "tiny_flat", "--weights", tmp_path / "none")
    assert (status, out) == (1, "") and err.startswith("error: weights") and len(err.splitlines()) == 1


def test_one_model_that_is_done_is_printed_again(capsys, weights, pictures, tmp_path):
    options = (pictures, "--weights", weights / "tiny.safetensors", "--results", tmp_path / "results.json")
    first = result(capsys, *options)
    status, out, err = run(capsys, *options, "--json", "--batch-size", 3)
    assert status == 0 and json.loads(out) == first and "tiny: already in" in err


def test_predictions_and_a_report_are_written(capsys, weights, pictures, tmp_path):
    found = result(
        capsys, pictures, "--weights", weights / "tiny.safetensors", "--save-predictions", tmp_path / "p.csv",
        "--report", tmp_path / "report", "--explain", "grad-cam",
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))
    assert [row["name"] for row in rows] == [f"val/{name}/{index}.jpg" for name in CLASSES for index in range(5)]
    assert [row["label"] for row in rows] == [name for name in CLASSES for _ in range(5)]
    right = [row["right1"] == "True" for row in rows]
    assert right == [row["label"] == row["class1"] for row in rows] and 100 * np.mean(right) == pytest.approx(
        found["top1"]
    )
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert written == {"report.json", "per_class.csv", "confusion.png", "reliability.png", "mistakes.jpg"}
    assert json.loads((tmp_path / "report/report.json").read_text())["top1"] == found["top1"]
    plain = result(capsys, pictures, "--weights", weights / "tiny.safetensors", "--report", tmp_path / "plain")
    assert plain["top1"] == found["top1"]
    with (
        Image.open(tmp_path / "report/mistakes.jpg") as explained,
        Image.open(tmp_path / "plain/mistakes.jpg") as alone,
    ):
        assert explained.size != alone.size


def test_what_cannot_be_written_is_said_before_the_pass(capsys, weights, pictures, tmp_path):
    options = (pictures, "--model", ",".join(MODELS), "--weights", weights / "{model}.safetensors")
    for arguments, fault in (
        (("--save-predictions", tmp_path / "p.csv"), "put {model}"),
        (("--save-predictions", tmp_path / "{model}.txt"), ".csv or .parquet"),
        (("--results", tmp_path / "results.txt"), ".csv or .json"),
        (("--explain", "grad-cam"), "--explain draws into --report"),
    ):
        status, out, err = run(capsys, *options, *arguments)
        assert (status, out) == (2, "") and fault in err and "Traceback" not in err
        assert "validating" not in err and not list(tmp_path.iterdir())


@pytest.fixture
def damaged(pictures, tmp_path):
    """The same pictures and two that are cut short."""
    for name in CLASSES:
        (tmp_path / "bad" / name).mkdir(parents=True)
        for path in (pictures / "val" / name).iterdir():
            (tmp_path / "bad" / name / path.name).write_bytes(path.read_bytes())
    for name in ("cat/x.jpg", "bird/y.jpg"):
        (tmp_path / "bad" / name).write_bytes((pictures / "val/cat/0.jpg").read_bytes()[:300])
    return tmp_path / "bad"


@pytest.mark.parametrize("loader", ["grain", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pt", "tf"))])
def test_bad_pictures_stop_or_are_counted_and_listed(capsys, weights, pictures, damaged, loader, request):
    needs(loader, request)
    options = ("--weights", weights / "tiny_flat.safetensors", "--loader", loader, "--workers", 1, "--batch-size", 4)
    status, out, err = run(capsys, damaged, *options)
    assert (status, out) == (1, "") and "y.jpg" in err.splitlines()[-1] and "Traceback" not in err
    status, out, err = run(capsys, damaged, *options, "--on-bad-image", "skip", "--json")
    found = json.loads(out)
    assert (found["num_examples"], found["skipped"]) == (15, 2)
    assert [line.strip() for line in err.splitlines()[-3:]] == [
        "skipped 2 pictures that cannot be decoded:", "bird/y.jpg", "cat/x.jpg",
    ]  # fmt: skip
    whole = result(capsys, pictures, *options)
    assert found["top1"] == whole["top1"] and found["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def needs(loader, request):
    """Skip where a loader's library is not installed."""
    if loader == "pt":
        request.getfixturevalue("timm")
    if loader == "tf":
        pytest.importorskip("tensorflow")


@pytest.mark.parametrize("loader", ["pt", "tf"])
def test_the_loaders_agree(capsys, weights, pictures, loader, request, tmp_path):
    """PyTorch's gives the same pixels, and so the same digits; TensorFlow's differ by rounding."""
    needs(loader, request)
    files = {}
    for name in ("grain", loader):
        options = (
            "--weights",
            weights / "tiny.safetensors",
            "--loader",
            name,
            "--workers",
            1,
        )
        found = result(capsys, pictures, *options, "--save-predictions", tmp_path / f"{name}.csv")
        assert found["num_examples"] == 15 and ("resize" in found["preprocessing"]) == (name == "tf")
        files[name] = list(csv.DictReader(io.StringIO((tmp_path / f"{name}.csv").read_text())))
    if loader == "pt":
        assert files["pt"] == files["grain"]
        return
    assert [row["name"] for row in files["tf"]] == [row["name"] for row in files["grain"]]
    gaps = [abs(float(a["loss"]) - float(b["loss"])) for a, b in zip(files["tf"], files["grain"], strict=True)]
    assert 0 < np.mean(gaps) < 0.01


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves files open
@pytest.mark.parametrize("loader", ["grain", "pt"])
def test_answers_are_those_of_timms_own_validation(capsys, pictures, tmp_path, loader, timm):
    """A real model, its weights as timm loads them strictly, timm's data set, transform and loader."""
    import torch
    from safetensors.torch import load_file

    card = ModelCard("mobilenetv3_small_075", 3, 3, Preprocessing(64, 0.9), CLASSES)
    arrays = initial_arrays(card.plan(), 0)
    arrays["classifier.kernel"] = np.random.default_rng(0).normal(size=arrays["classifier.kernel"].shape)
    path = tmp_path / "timm.safetensors"
    write_checkpoint(path, {key: np.asarray(value, np.float32) for key, value in arrays.items()}, card, "timm")
    model = timm.create_model("mobilenetv3_small_075", num_classes=3)
    model.load_state_dict(load_file(path))
    batches = timm.data.create_loader(
        timm.data.create_dataset("", str(pictures / "val")), (3, 64, 64), 4, use_prefetcher=False, num_workers=0,
        interpolation="bicubic", crop_pct=0.9,
    )  # fmt: skip
    with torch.no_grad():
        expected = torch.cat([model.eval()(images).softmax(1) for images, _ in batches]).numpy()
    options = ("--model", card.model, "--weights", path, "--loader", loader, "--workers", 1, "--batch-size", 4)
    result(capsys, pictures, *options, "--img-size", 64, "--crop-pct", 0.9, "--save-predictions", tmp_path / "p.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text())))
    assert len({row["class1"] for row in rows}) > 1
    for row, probabilities in zip(rows, expected, strict=True):
        order = np.argsort(-probabilities)
        assert [int(row[f"class{place}"]) for place in (1, 2, 3)] == order.tolist()
        found = [float(row[f"probability{place}"]) for place in (1, 2, 3)]
        np.testing.assert_allclose(found, probabilities[order], atol=1e-4)


def test_a_part_of_the_data_and_of_the_classes(capsys, weights, pictures, tmp_path):
    options = ("--weights", weights / "tiny.safetensors")
    assert result(capsys, pictures, *options, "--num-examples", 7)["num_examples"] == 7
    (tmp_path / "two").mkdir()
    for source, name in (("bird", "Vogel"), ("dog", "Hund")):
        (tmp_path / "two" / name).symlink_to(pictures / "val" / source)
    status, _, err = run(capsys, tmp_path / "two", *options)
    assert status == 1 and "label map" in err and "Hund" in err
    (tmp_path / "map.json").write_text('{"Vogel": "bird", "Hund": 2}')
    options += ("--label-map", tmp_path / "map.json", "--save-predictions", tmp_path / "p.csv")
    free = result(capsys, tmp_path / "two", *options)
    bound = result(capsys, tmp_path / "two", *options, "--subset", "data")
    assert free["num_examples"] == bound["num_examples"] == 10 and bound["loss"] < free["loss"]
    guesses = {row["class1"] for row in csv.DictReader(io.StringIO((tmp_path / "p.csv").read_text()))}
    assert guesses <= {"bird", "dog"}


def test_reassessed_labels_are_used(capsys, weights, pictures, tmp_path):
    """Every class is right for each picture but the first, which has none."""
    (tmp_path / "real.json").write_text(json.dumps([[]] + [[0, 1, 2]] * 14))
    found = result(capsys, pictures, "--weights", weights / "tiny.safetensors", "--real-labels", tmp_path / "real.json")
    assert (found["num_examples"], found["top1"]) == (14, 100)


def test_pictures_without_reassessed_labels_stop_the_command_before_the_pass(
    capsys, weights, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(jeffnet.validation.validate, "answer", lambda *a, **k: pytest.fail("the pass began"))
    for text, fault in (("[[0], [1]]", "no ReaL labels"), ("{", "no list of lists")):
        (tmp_path / "real.json").write_text(text)
        options = ("--weights", weights / "tiny.safetensors", "--real-labels", tmp_path / "real.json")
        status, out, err = run(capsys, pictures, *options)
        assert (status, out) == (1, "") and fault in err


def test_a_model_whose_files_cannot_be_written_is_run_again(capsys, weights, pictures, tmp_path, monkeypatch):
    def full(*arguments):
        raise OutputError("no space")

    options = (pictures, "--weights", weights / "tiny.safetensors", "--results", tmp_path / "r.csv")
    options += ("--save-predictions", tmp_path / "p.csv")
    with monkeypatch.context() as patch:
        patch.setattr("jeffnet.validation.results.save_predictions", full)
        assert "no space" in run(capsys, *options)[2]
    assert result(capsys, *options)["num_examples"] == 15
    assert (tmp_path / "p.csv").exists()


def test_pixels_as_asked_for(capsys, weights, pictures):
    options = ("--weights", weights / "tiny_flat.safetensors", "--batch-size", 5)
    plain = result(capsys, pictures, *options)
    assert result(capsys, pictures, *options, "--no-jit")["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    wide = result(capsys, pictures, *options, "--img-size", "32x48", "--crop-mode", "squash", "--crop-pct", 0.9)
    assert wide["preprocessing"]["image_size"] == [32, 48] and wide["preprocessing"]["crop_mode"] == "squash"
    assert wide["loss"] != plain["loss"]
    square = result(capsys, pictures, *options, "--img-size", 64, "--interpolation", "bilinear")
    assert square["preprocessing"]["image_size"] == 64 and square["preprocessing"]["interpolation"] == "bilinear"
    pooled = result(capsys, pictures, *options, "--img-size", 64, "--interpolation", "bilinear", "--test-pool")
    assert pooled["loss"] != square["loss"]
    for code, arguments, fault in (
        (2, ("--test-pool",), "give their size too"), (1, ("--test-pool", "--img-size", 32), "larger than its 32 px"),
    ):  # fmt: skip
        status, out, err = run(capsys, pictures, *options, *arguments)
        assert (status, out) == (code, "") and fault in err
    assert main(["list"]) == 0 and capsys.readouterr()
    for size in ("0", "1x2x3", "a"):
        with pytest.raises(SystemExit):
            main(["validate", str(pictures), "--weights", "w", "--img-size", size])


@pytest.fixture
def imagenet(tmp_path, tiny_model, monkeypatch):
    """A thousand pictures that pass for ImageNet's validation set, and a model with a published score."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (1000, 8, 8, 3), np.uint8), np.arange(1000)
    np.savez(tmp_path / "imagenet.npz", images=images, labels=labels)
    monkeypatch.setattr(jeffnet.validation.validate, "IMAGENET_VALIDATION_EXAMPLES", 1000)
    card = ModelCard("tiny_flat", 1000, 3, Preprocessing(8, 1.0))
    save_model(tmp_path / "w.safetensors", initial_arrays(card.plan(), 0), card)
    published, locate = Located(tmp_path / "w.safetensors", "published"), jeffnet.weights.load.locate
    monkeypatch.setattr(
        jeffnet.weights.load,
        "locate",
        lambda source, name=None: published if source is True else locate(source, name),
    )

    def publish(top1):
        model = replace(zoo.MODELS["tiny_flat"], timm="tiny_flat.in1k", weights=WeightSet(top1, top1 and 5.0, "0" * 8))
        monkeypatch.setitem(zoo.MODELS, "tiny_flat", model)
        return tmp_path / "imagenet.npz"

    return publish


def test_a_score_is_checked_against_the_published_one(capsys, imagenet):
    top1 = result(capsys, imagenet(0.0), "--model", "tiny_flat")["top1"]
    data = imagenet(top1 - 0.05)
    found = result(capsys, data, "--model", "tiny_flat", "--check")
    assert found["weights"] == "tiny_flat.in1k"
    assert found["published_top1"] == top1 - 0.05 and found["top1_difference"] == pytest.approx(0.05)
    status, out, err = run(capsys, imagenet(top1 + 0.2), "--model", "tiny_flat", "--check")
    assert status == 1 and "difference -0.200" in out and "tiny_flat by -0.200" in err.splitlines()[-1]
    assert run(capsys, data, "--model", "tiny_flat")[0] == 0


def test_weights_without_a_score_are_validated_without_one(capsys, imagenet):
    data = imagenet(None)
    found = result(capsys, data, "--model", "tiny_flat")
    assert found["published_top1"] is found["published_top5"] is found["top1_difference"] is None
    assert "nothing to compare for tiny_flat" in run(capsys, data, "--model", "tiny_flat", "--check")[2]


def test_there_is_nothing_to_check_on_other_data(capsys, imagenet, monkeypatch):
    """Which is said before the pass."""
    monkeypatch.setattr(jeffnet.validation.validate, "answer", None)
    data = imagenet(0.0)
    other = data.with_name("w.safetensors")
    for options in (("--num-examples", 500), ("--weights", other), ("--subset", "imagenet-v2")):
        status, _, err = run(capsys, data, "--model", "tiny_flat", *options, "--check")
        assert status == 1 and "nothing to compare" in err


def test_memory_that_runs_out_halves_the_batch(capsys, weights, pictures, monkeypatch):
    import jax

    answer = jeffnet.validation.validate.answer

    def small_device(pairs, loader, **options):
        if next(iter(loader))["image"].shape[0] > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return answer(pairs, loader, **options)

    monkeypatch.setattr(jeffnet.validation.validate, "answer", small_device)
    found = result(capsys, pictures, "--weights", weights / "tiny.safetensors")
    assert found["batch_size"] == 4 and found["num_examples"] == 15
    status, _, err = run(capsys, pictures, "--weights", weights / "tiny.safetensors", "--batch-size", 8)
    assert status == 1 and "batch of 8 does not fit" in err


def test_a_large_model_leaves_the_others_their_batches(capsys, weights, pictures, monkeypatch):
    """Each pass begins with what fits its own models; `tiny` and `tiny_tf` share theirs."""
    large = len(model_plan("tiny").stages)
    monkeypatch.setattr(
        jeffnet.validation.validate, "picture_bytes", lambda plan, *size: 10**18 if len(plan.stages) == large else 1
    )
    rows = result(capsys, pictures, "--model", ",".join(MODELS), "--weights", weights / "{model}.safetensors")
    sizes = {row["model"]: row["batch_size"] for row in rows}
    assert sizes["tiny"] == sizes["tiny_tf"] == 1 < sizes["tiny_flat"]


def test_from_python(weights, pictures):
    from jeffnet.validation.candidates import select_models
    from jeffnet.validation.validate import Settings, validate

    settings = Settings(data=str(pictures), batch_size=8)
    (outcome,) = validate(select_models(None, str(weights / "tiny.safetensors")), settings)
    assert outcome.row["num_examples"] == len(outcome.answers.predictions.index) == 15
    assert outcome.name(0) == "val/bird/0.jpg" and outcome.classes == CLASSES
    with pytest.raises(JeffnetError, match="batch_size"):
        next(validate([], replace(settings, batch_size=0)))


def test_groups_are_of_equals_and_bounded():
    assert list(jeffnet.validation.validate._grouped("abacaa", 2)) == [[0, 2], [4, 5], [1], [3]]
