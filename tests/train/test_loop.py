"""Whole runs on a few small pictures: what they write, that they learn, and that resuming changes nothing."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import jeffnet.train.loop as loop
from jeffnet.arch.zoo import model_preprocessing
from jeffnet.errors import ConfigError, DatasetError, OutputError, TrainingError
from jeffnet.linen import create_model, from_pretrained, to_canonical
from jeffnet.train.config import Config, DataConfig, ModelConfig, OptimizerConfig, ScheduleConfig, load_recipe
from jeffnet.train.loop import resume, run_preprocessing, train
from jeffnet.weights.store import ModelCard, save_model

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (210, 30, 20)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three classes that a colour tells apart: 8 training and 3 validation pictures each."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(colour, 25, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def config(pictures, small_model):
    return Config(
        model=ModelConfig(name=small_model, bn_momentum=0.5),
        data=DataConfig(path=str(pictures), image_size=32, crop_pct=1.0, scale=(0.5, 1.0)),
        optimizer=OptimizerConfig(name="adamw", learning_rate=2e-3),
        schedule=ScheduleConfig(warmup_epochs=1.0),
        epochs=4,
        batch_size=6,
        log_steps=3,
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, train(config, folder, progress=False)


def rows(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in lines]


def last_checkpoint(folder):
    """All arrays of the newest checkpoint."""
    from jeffnet.train.run import Run

    run = Run.open(folder)
    try:
        parts = loop._make_parts(run.config)
        state = run.restore(parts.start, parts.train_batches)
        parts.train_batches.close()
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    finally:
        run.close()


def test_a_run_writes_what_it_says(finished):
    folder, result = finished
    assert result.best.examples == 9
    assert result.steps == 16
    logged = rows(folder)
    assert [row["step"] for row in logged] == [3, 4, 4, 6, 8, 8, 9, 12, 12, 15, 16, 16]
    assert logged[0].keys() >= {"step", "epoch", "train_loss", "train_top1", "learning_rate"}
    assert logged[2].keys() >= {"step", "epoch", "val_loss", "val_top1", "val_top5", "val_examples"}
    with Image.open(folder / "curves.png") as drawn:
        assert drawn.size[0] > 600
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_the_saved_model_is_the_best_one_and_knows_itself(finished, small_model):
    folder, result = finished
    _, _, card = from_pretrained(folder / "model.safetensors")
    assert card.model == small_model
    assert card.classes == ("blue", "green", "red")
    assert card.preprocessing == replace(model_preprocessing(small_model), image_size=32, crop_pct=1.0)
    assert result.best.top1 == max(row["val_top1"] for row in rows(folder) if "val_top1" in row)


def test_the_same_seed_gives_the_same_run_whatever_the_threads(finished, config, tmp_path):
    folder, _ = finished
    again = replace(config, data=replace(config.data, threads=1))
    train(again, tmp_path / "again", progress=False)
    assert rows(tmp_path / "again") == rows(folder)


def test_another_seed_gives_another_run(finished, config, tmp_path):
    train(replace(config, seed=1, epochs=2), tmp_path / "other", progress=False)
    assert rows(tmp_path / "other")[0]["train_loss"] != rows(finished[0])[0]["train_loss"]


@pytest.mark.parametrize("stop_at", [6, 8])
def test_a_run_that_was_interrupted_and_resumed_equals_one_that_was_not(
    finished, config, tmp_path, monkeypatch, stop_at
):
    """Interrupted within an epoch (6) and at an epoch's last step before it was saved (8): same metrics, same state."""
    folder, _ = finished
    check = loop._check_finite

    def interrupt(row, run):
        check(row, run)
        if row["step"] == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_check_finite", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", progress=False)
    monkeypatch.undo()
    result = resume(tmp_path / "run", progress=False)
    assert result.steps == 16
    assert rows(tmp_path / "run") == rows(folder)
    for ours, theirs in zip(last_checkpoint(tmp_path / "run"), last_checkpoint(folder), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = load_file(tmp_path / "run/model.safetensors"), load_file(folder / "model.safetensors")
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_resuming_a_finished_run_changes_nothing(finished):
    folder, result = finished
    before = rows(folder)
    assert resume(folder, progress=False) == result
    assert rows(folder) == before


def test_a_run_does_not_write_over_another(finished, config):
    with pytest.raises(OutputError, match="--resume"):
        train(config, finished[0], progress=False)


def test_resuming_needs_a_run(tmp_path):
    with pytest.raises(ConfigError, match="no run folder"):
        resume(tmp_path)


def test_a_loss_that_is_no_number_stops_the_run(config, tmp_path):
    wild = replace(config, optimizer=OptimizerConfig(name="sgd", learning_rate=float("inf")), schedule=ScheduleConfig())
    with pytest.raises(TrainingError, match="learning_rate"):
        train(wild, tmp_path / "run", progress=False)


def test_nothing_is_written_where_the_configuration_will_not_do(config, tmp_path, pictures):
    wrong = {
        "batch": (replace(config, batch_size=25), DatasetError),
        "option": (replace(config, optimizer=replace(config.optimizer, momentum=0.9)), ConfigError),
        "schedule": (replace(config, schedule=ScheduleConfig(name="steps")), ConfigError),
        "data": (replace(config, data=replace(config.data, path=str(pictures / "nowhere"))), DatasetError),
    }
    for name, (changed, error) in wrong.items():
        with pytest.raises(error):
            train(changed, tmp_path / name, progress=False)
        assert not (tmp_path / name).exists()


def test_an_output_that_cannot_be_written_is_an_error(config, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="cannot be written"):
        train(config, tmp_path / "file" / "run", progress=False)


def test_fine_tuning_starts_from_the_file_with_a_new_classifier(config, small_model, tmp_path):
    model, variables = create_model(small_model, num_classes=7, rng=5)
    arrays = {name: np.asarray(array) for name, array in to_canonical(variables, model.plan).items()}
    card = ModelCard(small_model, 7, 3, model_preprocessing(small_model))
    save_model(tmp_path / "start.safetensors", arrays, card)
    tuned = replace(config, model=replace(config.model, pretrained=str(tmp_path / "start.safetensors")))
    start = to_canonical(loop._make_parts(tuned).start.variables, loop._make_parts(tuned).model.plan)
    assert start["classifier.kernel"].shape == (32, 3)
    np.testing.assert_array_equal(start["conv_stem.kernel"], arrays["conv_stem.kernel"])


def test_the_runs_preprocessing_is_the_models_but_for_what_is_configured(config, small_model):
    own = model_preprocessing(small_model)
    assert run_preprocessing(replace(config, data=DataConfig(path="x"))) == own
    chosen = run_preprocessing(replace(config, data=DataConfig(path="x", interpolation="bilinear")))
    assert chosen == replace(own, interpolation="bilinear")


@pytest.mark.slow
def test_the_demo_recipe_reaches_97_per_cent(tmp_path):
    pytest.importorskip("sklearn")
    recipe = load_recipe(Path(__file__).parents[2] / "configs/demo_digits.py")
    assert train(recipe, tmp_path / "run", progress=False).best.top1 >= 97
