"""Whole runs on a few small pictures: what they write, that they learn, what each part of a recipe does to them."""

import json
import os
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from jeffnet.arch.summary import STATISTICS
from jeffnet.arch.zoo import model_preprocessing
from jeffnet.errors import ConfigError, DatasetError, OutputError
from jeffnet.linen import create_model, from_pretrained, to_canonical
from jeffnet.train.config import (
    AugmentConfig,
    CheckpointConfig,
    DataConfig,
    EmaConfig,
    LossConfig,
    OptimizerConfig,
    ProgressiveConfig,
    ScheduleConfig,
)
from jeffnet.train.epochs import Epochs
from jeffnet.train.loop import resume, train
from jeffnet.train.setup import make_setup, run_preprocessing
from jeffnet.weights.card import ModelCard
from jeffnet.weights.formats.safetensors import save_model

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("undrawn")]


def test_a_run_writes_what_it_says(finished, rows):
    folder, result = finished
    assert result.best.examples == 9
    assert result.steps == 12
    logged = rows(folder)
    assert [row["step"] for row in logged if "train_loss" in row] == list(range(2, 13, 2))
    scored = [row for row in logged if "val_top1" in row]
    assert [(row["step"], row["epoch"]) for row in scored] == [(4, 1), (8, 2), (12, 3)]
    assert logged[0].keys() >= {"step", "epoch", "train_loss", "train_top1", "train_grad_norm", "learning_rate"}
    assert scored[0].keys() >= {"val_loss", "val_top1", "val_top5", "val_examples", "ema_val_top1", "ema_val_loss"}
    with Image.open(folder / "curves.png") as drawn:
        assert drawn.size[0] > 600
    for name in ("config.json", "environment.json", "README.md", "model.safetensors", "model_ema.safetensors"):
        assert (folder / name).stat().st_size > 0
    assert list(folder.glob("events.out.tfevents.*"))
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")) == [9, 12]


def test_the_saved_model_is_the_best_one_and_knows_itself(finished, small_model, rows):
    folder, result = finished
    _, _, card = from_pretrained(folder / "model.safetensors")
    assert card.model == small_model
    assert card.classes == ("blue", "green", "red")
    assert card.preprocessing == replace(model_preprocessing(small_model), image_size=32, crop_pct=1.0)
    scored = [row for row in rows(folder) if "val_top1" in row]
    assert result.best.top1 == max(row["val_top1"] for row in scored)
    assert result.best_ema.top1 == max(row["ema_val_top1"] for row in scored)
    assert (result.last.loss, result.last_ema.loss) == (scored[-1]["val_loss"], scored[-1]["ema_val_loss"])
    assert result.last.loss != result.last_ema.loss


@pytest.mark.slow
@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_whatever_the_threads(finished, config, tmp_path, assert_same_run):
    folder, _ = finished
    train(replace(config, data=replace(config.data, threads=1)), tmp_path / "again", progress=False)
    assert_same_run(tmp_path / "again", folder)


@pytest.mark.slow
def test_averaging_and_logging_change_nothing_of_the_model_itself(finished, config, tmp_path, rows):
    bare = replace(config, ema=EmaConfig(), log=replace(config.log, tensorboard=False))
    train(bare, tmp_path / "bare", progress=False)
    folder = finished[0]
    assert (tmp_path / "bare" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    without = [{name: value for name, value in row.items() if "ema" not in name} for row in rows(folder)]
    assert rows(tmp_path / "bare") == without
    assert not list((tmp_path / "bare").glob("*ema*")) + list((tmp_path / "bare").glob("events*"))


def test_resuming_a_finished_run_changes_nothing(finished, rows):
    folder, result = finished
    before = rows(folder)
    assert resume(folder, progress=False) == result
    assert rows(folder) == before


def test_a_run_does_not_write_over_another(finished, config):
    with pytest.raises(OutputError, match="--resume"):
        train(config, finished[0], progress=False)


def test_checkpoints_without_a_configuration_are_not_taken_for_a_fresh_folder(config, tmp_path):
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    with pytest.raises(OutputError, match="holds a run"):
        train(config, tmp_path / "run", progress=False)


def test_resuming_needs_a_run(tmp_path):
    with pytest.raises(ConfigError, match="no run folder"):
        resume(tmp_path)


def test_nothing_is_written_where_the_configuration_will_not_do(config, tmp_path, pictures):
    wrong = {
        "batch": (replace(config, batch_size=25), DatasetError),
        "option": (replace(config, optimizer=replace(config.optimizer, momentum=0.9)), ConfigError),
        "freeze": (replace(config, model=replace(config.model, freeze=("stem.*",))), ConfigError),
        "data": (replace(config, data=replace(config.data, path=str(pictures / "nowhere"))), DatasetError),
    }
    for name, (changed, error) in wrong.items():
        with pytest.raises(error):
            train(changed, tmp_path / name, progress=False)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [(b"run\xe9", "must be UTF-8"), (b"a\\b/run", "must have no backslash"), (b"x.__lock/run", "must not end in")],
)
def test_a_folder_in_which_no_checkpoint_could_be_written_is_an_error_at_once(name, message, config, tmp_path):
    """Of a backslash Orbax makes a slash: all of the run's checkpoints would be in another folder, and unreadable."""
    folder = tmp_path / os.fsdecode(name)
    with pytest.raises(OutputError, match=f"its name {message}"):
        train(config, folder)
    assert not folder.exists()


def test_an_output_that_cannot_be_written_is_an_error(config, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="cannot be written"):
        train(config, tmp_path / "file" / "run", progress=False)


@pytest.fixture
def start_file(small_model, tmp_path):
    """Weights of the small model for seven classes, and its arrays."""
    model, variables = create_model(small_model, num_classes=7, rng=5)
    arrays = {name: np.asarray(array) for name, array in to_canonical(variables, model.plan).items()}
    save_model(tmp_path / "start.safetensors", arrays, ModelCard(small_model, 7, 3, model_preprocessing(small_model)))
    return tmp_path / "start.safetensors", arrays


def test_fine_tuning_trains_what_is_not_frozen_and_goes_on_with_more_epochs(config, start_file, tmp_path, rows):
    path, arrays = start_file
    model = replace(config.model, pretrained=str(path), freeze=("conv_stem.*", "bn1.*", "blocks.0.*"))
    short = replace(config, model=model, epochs=1, schedule=ScheduleConfig(name="constant"))
    train(short, tmp_path / "run", progress=False)
    path.unlink()  # its arrays are in the checkpoint: the file is not needed again
    assert resume(tmp_path / "run", [("epochs", "2")], progress=False).steps == 8
    assert json.loads((tmp_path / "run" / "config.json").read_text())["epochs"] == 2
    assert [row["epoch"] for row in rows(tmp_path / "run") if "val_top1" in row] == [1, 2]
    tuned = load_file(tmp_path / "run" / "model.safetensors")
    assert tuned["classifier.kernel"].shape == (32, 3)
    for name, array in arrays.items():
        if name.startswith(("conv_stem.", "bn1.", "blocks.0.")):
            np.testing.assert_array_equal(tuned[name], array, err_msg=name)
        elif not name.startswith("classifier."):
            assert (tuned[name] != array).any(), name
    assert any(name.startswith("blocks.0.") and name.endswith(STATISTICS) for name in arrays)


def test_a_run_does_not_go_on_with_classes_of_other_names(finished, config, tmp_path, pictures):
    """The order of the folders would be another one, and every label mean something else."""
    shutil.copytree(pictures, tmp_path / "pictures")
    shutil.copytree(finished[0], tmp_path / "run")
    for split in ("train", "val"):
        (tmp_path / "pictures" / split / "blue").rename(tmp_path / "pictures" / split / "violet")
    moved = replace(config, data=replace(config.data, path=str(tmp_path / "pictures")))
    for go_on in (
        lambda: resume(tmp_path / "run", [("data.path", str(tmp_path / "pictures"))], progress=False),
        lambda: train(moved, tmp_path / "run", progress=False, go_on=True),
    ):
        with pytest.raises(ConfigError, match="they are green, red, violet, not blue, green, red"):
            go_on()


RECIPES = {
    "mixed": {
        "augment": AugmentConfig(policy="rand-m9-mstd0.5-inc1", mixup=0.2, cutmix=1.0, repeats=2, mix_off_epoch=1),
        "loss": LossConfig(name="bce", label_smoothing=0.1, weighting="effective"),
        "checkpoint": CheckpointConfig(metric="macro_f1"),
        "optimizer": OptimizerConfig(name="lamb", learning_rate=5e-3, weight_decay=0.02),
    },
    "views": {
        "augment": AugmentConfig(policy="augmix-m3", splits=3, erase_prob=0.2),
        "loss": LossConfig(name="jsd", logit_adjustment=1.0),
        "accumulate": 2,
    },
    "growing": {
        "progressive": ProgressiveConfig(stages=2, image_size=24, drop_rate=0.0, magnitude=3, mixup=0.0),
        "augment": AugmentConfig(policy="rand-m9", mixup=0.2),
    },
    "sharp": {"sam_rho": 0.05, "bn_batches": 2, "ema": EmaConfig(form="cumulative", start_epoch=1)},
}


FAST = ("mixed",)


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in RECIPES]
)
def test_every_part_of_a_recipe_runs_and_resumes_exactly(recipe, config, tmp_path, rows, assert_same_run, crash_after):
    config = replace(config, data=replace(config.data, sampling="square_root"))
    whole = replace(config, **{"epochs": 2, "ema": EmaConfig(decay=0.9, every=2), **RECIPES[recipe]})
    train(whole, tmp_path / "whole", progress=False)
    assert all(np.isfinite(row["train_loss"]) for row in rows(tmp_path / "whole") if "train_loss" in row)
    with crash_after(6):
        train(whole, tmp_path / "half", progress=False)
    resume(tmp_path / "half", progress=False)
    assert_same_run(tmp_path / "half", tmp_path / "whole")


@pytest.fixture(scope="module")
def train_with(config, tmp_path_factory):
    """Trains an epoch with a backend, without dropout and drop path, which differ between backends."""

    def train_epoch(backend):
        folder = tmp_path_factory.mktemp("backends") / backend
        model = replace(config.model, drop_rate=0.0, drop_path_rate=0.0, backend=backend)
        train(replace(config, epochs=1, model=model, ema=EmaConfig()), folder, progress=False)
        return folder

    return train_epoch


@pytest.fixture(scope="module")
def trained_with_linen(train_with):
    return train_with("linen")


@pytest.mark.parametrize("backend", ["nnx", "functional", pytest.param("objax", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_every_backend_trains_to_the_same_files(backend, train_with, trained_with_linen, rows):
    if backend == "objax":
        pytest.importorskip("objax")
    folder = train_with(backend)
    for row, wanted in zip(rows(folder), rows(trained_with_linen), strict=True):
        assert row == pytest.approx(wanted, rel=1e-4)
    names = load_file(folder / "model.safetensors").keys()
    assert names == load_file(trained_with_linen / "model.safetensors").keys()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.slow
def test_low_precision_learns_like_float32(dtype, config, finished, tmp_path, rows):
    low = replace(config, model=replace(config.model, dtype=dtype), ema=EmaConfig())
    train(low, tmp_path / "run", progress=False)
    losses, expected = (
        [row["train_loss"] for row in rows(f) if "train_loss" in row] for f in (tmp_path / "run", finished[0])
    )
    np.testing.assert_allclose(losses, expected, rtol=0.2)
    assert losses != expected
    if dtype == "float16":
        assert rows(tmp_path / "run")[-2]["loss_scale"] >= 1


def test_learning_from_a_teacher_needs_the_same_classes(config, start_file):
    with pytest.raises(ConfigError, match="7 classes, the data 3"):
        make_setup(replace(config, loss=LossConfig(teacher=str(start_file[0]))))


def test_a_student_learns_from_its_teacher(config, finished, tmp_path, rows):
    """From its own best model it learns nothing new where only the teacher counts: the loss is small from the start."""
    best = str(finished[0] / "model.safetensors")
    alone = replace(config, epochs=1, ema=EmaConfig(), augment=AugmentConfig(scale=(0.9, 1.0)))
    pupil = replace(
        alone,
        model=replace(alone.model, pretrained=best),
        loss=LossConfig(teacher=best, distillation=1.0),
        optimizer=OptimizerConfig(name="sgd", learning_rate=1e-6, momentum=0.0),
    )
    train(pupil, tmp_path / "pupil", progress=False)
    train(replace(pupil, loss=LossConfig()), tmp_path / "alone", progress=False)
    assert rows(tmp_path / "pupil")[0]["train_loss"] < 0.5 * rows(tmp_path / "alone")[0]["train_loss"]


@pytest.mark.slow
def test_the_best_few_models_are_kept_and_averaged(config, tmp_path, rows):
    kept = replace(config, checkpoint=CheckpointConfig(keep_best=2, average_best=2), epochs=3)
    result = train(kept, tmp_path / "run", progress=False)
    scored = sorted((row for row in rows(tmp_path / "run") if "val_top1" in row), key=lambda row: -row["val_top1"])
    names = {f"epoch_{row['epoch']:04d}.safetensors" for row in scored[:2]}
    assert {path.name for path in (tmp_path / "run" / "best").iterdir()} == names
    files = [load_file(tmp_path / "run" / "best" / name) for name in sorted(names)]
    averaged = load_file(tmp_path / "run" / "averaged.safetensors")
    for name, array in averaged.items():
        mean = np.mean([file[name] for file in files], axis=0)
        if name.endswith(STATISTICS):
            assert (array != mean).any(), name  # estimated anew
        else:
            np.testing.assert_allclose(array, mean, rtol=1e-5, atol=1e-7, err_msg=name)
    assert result.averaged.examples == 9


def test_the_same_command_begins_a_run_and_goes_on_with_it(config, finished, assert_same_run, crashed):
    """With the same configuration, except how pictures are read."""
    with pytest.raises(OutputError, match="holds a run already"):
        train(config, crashed, progress=False)
    other = replace(config, optimizer=replace(config.optimizer, learning_rate=0.1))
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate 0.002, not 0.1"):
        train(other, crashed, progress=False, go_on=True)
    same = replace(config, mesh="data=1", data=replace(config.data, threads=1))
    assert train(same, crashed, progress=False, go_on=True) == finished[1]
    assert_same_run(crashed, finished[0])


def test_callbacks_see_what_is_logged_and_may_stop_the_run(config, finished, tmp_path, rows, assert_same_run):
    """By an exception in the middle of an epoch, or after one; what goes on then is the run that nothing disturbed."""
    seen = []

    def stop(row):
        seen.append(row)
        if row["step"] == 6:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        train(config, tmp_path / "run", progress=False, on_step=stop)
    assert [row["step"] for row in seen] == [2, 4, 6]
    result = resume(
        tmp_path / "run", progress=False, on_step=seen.append, on_evaluation=lambda scores: scores.epoch == 2
    )
    assert result.steps == 8 and seen[-1]["step"] == 8
    assert (tmp_path / "run" / "README.md").is_file()
    assert resume(tmp_path / "run", progress=False, on_step=seen.append, on_evaluation=seen.append) == finished[1]
    assert_same_run(tmp_path / "run", finished[0])
    assert seen[-1].epoch == 3 and seen[-1].row().items() <= rows(finished[0])[-1].items()
    logged = [{name: row[name] for name in row if name != "images_per_second"} for row in seen[:-1]]
    assert logged == [row for row in rows(finished[0]) if "train_loss" in row]


@pytest.mark.slow
def test_a_search_stops_the_trials_that_lag_behind(config, tmp_path):
    """As docs/training.md does it: the second trial, which cannot learn, is not trained to its end."""
    optuna = pytest.importorskip("optuna")

    def objective(trial):
        rate = trial.suggest_categorical("learning_rate", [2e-3, 1e-30])

        def prune(scores):
            trial.report(-scores.models["val"].loss, scores.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        one = replace(config, optimizer=replace(config.optimizer, learning_rate=rate))
        return -train(one, tmp_path / str(trial.number), progress=False, on_evaluation=prune).last.loss

    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(1, 0))
    study.enqueue_trial({"learning_rate": 2e-3})
    study.enqueue_trial({"learning_rate": 1e-30})
    study.optimize(objective, n_trials=2)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]
    assert study.best_params == {"learning_rate": 2e-3}
    assert resume(tmp_path / "1", progress=False).steps == 12


def test_a_step_that_does_not_fit_says_what_to_set_and_the_run_goes_on_with_it(config, tmp_path, monkeypatch):
    message = "RESOURCE_EXHAUSTED: Out of memory allocating 1 byte"

    def fail(loop, *arguments):
        raise jax.errors.JaxRuntimeError(message)

    short = replace(config, epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(Epochs, "_train_epoch", fail)
        with pytest.raises(ConfigError, match="a batch of 6 does not fit the memory of 1 device: set accumulate"):
            train(short, tmp_path / "run", progress=False, go_on=True)
        message = "INTERNAL: Failed to execute"
        with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
            resume(tmp_path / "run", progress=False)
    assert resume(tmp_path / "run", [("accumulate", "2")], progress=False).steps == 4


def test_checkpoints_by_time(config, tmp_path):
    """Besides that of the epoch, which has four steps; each takes longer than 6 ms."""
    often = CheckpointConfig(every_minutes=1e-4, keep_last=99)
    train(replace(config, epochs=1, checkpoint=often), tmp_path / "run", progress=False)
    assert {int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*")} > {4}


def test_the_runs_preprocessing_is_the_models_but_for_what_is_configured(config, small_model):
    own = model_preprocessing(small_model)
    assert run_preprocessing(replace(config, data=DataConfig(path="x"))) == own
    chosen = run_preprocessing(
        replace(config, data=DataConfig(path="x", interpolation="bilinear", mean=(0.1, 0.2, 0.3)))
    )
    assert chosen == replace(own, interpolation="bilinear", mean=(0.1, 0.2, 0.3))
