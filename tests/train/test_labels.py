"""Whole runs on pictures of several labels and of numbers, from the table to what is predicted."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jeffnet.cli.main import main
from jeffnet.errors import ConfigError, WeightsError
from jeffnet.train.config import AugmentConfig, CheckpointConfig, Config, DataConfig, LossConfig, ModelConfig
from jeffnet.train.loop import resume, train
from jeffnet.weights.card import card_json, parse_card
from jeffnet.weights.load import describe_weights

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("undrawn")]

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (210, 30, 20)}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Pictures whose halves have colours, which are their labels; `light` is their mean brightness."""
    folder, rng = tmp_path_factory.mktemp("table"), np.random.default_rng(0)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "light", "split"])
        for number in range(33):
            names = rng.choice(list(COLOURS), rng.integers(1, 3), replace=False)
            pixels = np.concatenate([np.full((20, 40, 3), COLOURS[name]) for name in (names[0], names[-1])])
            pixels = np.clip(pixels + rng.normal(0, 20, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            writer.writerow([f"{number}.png", "+".join(names), pixels.mean() / 100, "val" if number < 9 else "train"])
    return folder / "table.csv"


@pytest.fixture(scope="module")
def several(config, table):
    """The run of the other tests, on several labels."""
    data = replace(config.data, path=str(table), task="multi_label", label_separator="+")
    augment = replace(config.augment, mixup=0.2, cutmix=1.0, mix_prob=0.5)
    return replace(config, data=data, augment=augment, loss=LossConfig(name="asymmetric", weighting="inverse"))


@pytest.fixture(scope="module")
def trained(several, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels") / "run"
    return folder, train(several, folder, progress=False)


def test_it_learns_several_labels_and_resumes_exactly(trained, several, tmp_path, rows, crash_after, assert_same_run):
    folder, result = trained
    scored = [row for row in rows(folder) if "val_loss" in row]
    assert result.metric == "mean_average_precision" and result.best.examples == 9
    assert result.best.mean_average_precision == max(row["val_mean_average_precision"] for row in scored) > 40
    assert not [name for row in rows(folder) for name in row if "top" in name]
    with crash_after(6):
        train(several, tmp_path / "half", progress=False)
    resume(tmp_path / "half", progress=False)
    assert_same_run(tmp_path / "half", folder)
    assert "mAP" in (folder / "README.md").read_text()


def test_the_model_knows_its_thresholds_and_predicts_by_them(trained, table, capsys, tmp_path):
    folder, result = trained
    _, card = describe_weights(str(folder / "model.safetensors"))
    assert card.task == "multi_label" and card.classes == ("blue", "green", "red") and len(card.thresholds) == 3
    weights = ["--weights", str(folder / "model.safetensors")]
    options = ["--label-separator", "+", "--report", str(tmp_path / "report")]
    predictions = tmp_path / "predictions.csv"
    assert main(["validate", str(table), *weights, *options, "--save-predictions", str(predictions), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    for name in ("mean_average_precision", "macro_f1"):
        assert row[name] == pytest.approx(getattr(result.best, name), abs=0.01)
    assert row["top1"] is None and row["thresholds"] == pytest.approx(card.thresholds)
    with Image.open(tmp_path / "report" / "precision_recall.png") as drawn:
        assert drawn.size[0] > 600
    saved = list(csv.DictReader(predictions.read_text().splitlines()))
    assert main(["predict", *(str(table.parent / row["name"]) for row in saved), *weights, "--json"]) == 0
    for found, row in zip(json.loads(capsys.readouterr().out), saved, strict=True):
        above = {
            name
            for name, least in zip(card.classes, card.thresholds, strict=True)
            if float(row[f"probability {name}"]) > least
        }
        assert set(found["classes"]) == above


def test_it_learns_numbers(config, table, tmp_path, capsys):
    data = replace(config.data, path=str(table), task="regression", label_columns=("light",))
    numbers = replace(config, data=data, loss=LossConfig(name="huber"), epochs=1)
    result = train(numbers, tmp_path / "run", progress=False)
    assert result.metric == "mae" and 0 < result.best.mae < 10 and result.best.r2 is not None
    weights = ["--weights", str(tmp_path / "run" / "model.safetensors")]
    report = ["--label-columns", "light", "--report", str(tmp_path / "report"), "--json"]
    assert main(["validate", str(table), *weights, *report]) == 0
    assert json.loads(capsys.readouterr().out)["mae"] == pytest.approx(result.best.mae, abs=1e-4)
    assert (tmp_path / "report" / "numbers.png").stat().st_size > 0
    assert main(["predict", str(table.parent / "0.png"), *weights]) == 0
    assert "light" in capsys.readouterr().out


def test_a_cards_thresholds_are_probabilities_one_for_each_class(trained):
    _, card = describe_weights(str(trained[0] / "model.safetensors"))
    assert parse_card(card_json(card), "x") == card
    for thresholds in ((0.5, 0.5), (0.5, 0.5, 1.5), (-0.1, 0.5, 0.5), ("a", 0.5, 0.5)):
        with pytest.raises(WeightsError, match="its thresholds are not 3 numbers from 0 to 1"):
            parse_card(card_json(replace(card, thresholds=thresholds)), "x")
    with pytest.raises(WeightsError, match="its task 'many' is not one of single_label"):
        parse_card(card_json(replace(card, task="many")), "x")
    assert "task" not in json.loads(card_json(replace(card, task="single_label", thresholds=())))


def test_entries_for_another_task_are_errors():
    base = Config(
        model=ModelConfig(name="-"), data=DataConfig(path="t.csv", task="multi_label"), loss=LossConfig(name="bce")
    )
    numbers = replace(base, data=DataConfig(path="t.csv", task="regression"), loss=LossConfig(name="l1"))
    for config, change, message in (
        (base, {"loss": LossConfig()}, "loss.name 'cross_entropy' is not for data.task 'multi_label': take bce or"),
        (base, {"checkpoint": CheckpointConfig(metric="top1")}, "checkpoint.metric 'top1' is not for data.task"),
        (
            base,
            {"data": DataConfig(path="t.csv", task="multi_label", sampling="balanced")},
            "data.sampling balanced is",
        ),
        (base, {"loss": LossConfig(name="bce", weighting="effective")}, "loss.weighting effective is not for"),
        (numbers, {"loss": LossConfig(name="bce")}, "loss.name 'bce' is not for data.task 'regression': take l1 or"),
        (numbers, {"loss": LossConfig(name="l1", label_smoothing=0.1)}, "loss.label_smoothing 0.1 is not for"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(config, **change)
    assert replace(numbers, augment=AugmentConfig(mixup=0.2)).metric == "mae"
