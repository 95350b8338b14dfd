"""Runs that divide their pictures themselves, and cross-validation."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from jeffnet.cli.main import main
from jeffnet.errors import ConfigError, DatasetError
from jeffnet.train.config import DataConfig
from jeffnet.train.data_sets import open_data_sets
from jeffnet.train.folds import summarize_folds, train_folds
from jeffnet.train.loop import resume, train
from jeffnet.train.recipe import to_json
from jeffnet.train.reports.scores import Result
from jeffnet.train.run import read_division
from jeffnet.validation.metrics import Scores


@pytest.fixture(scope="module")
def short(config, pictures):
    """One epoch on the training pictures, of which a quarter is held out, without a moving average."""
    data = replace(config.data, path=str(pictures / "train"), validation_share=0.25)
    return replace(config, data=data, epochs=1, ema=type(config.ema)(), bn_batches=0)


def rows_of(run):
    with (run / "split.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_keeps_its_division_and_goes_on_with_it(short, undrawn, crash_after, tmp_path, pictures):
    """A quarter of each class, in a file that a resumed run takes, whatever would be drawn now."""
    root = shutil.copytree(pictures / "train", tmp_path / "pictures")
    config = replace(short, data=replace(short.data, path=str(root)))
    with crash_after(2):
        train(config, tmp_path / "run", progress=False)
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 24
    for name in ("blue", "green", "red"):
        assert [row["split"] for row in rows if row["class"] == name].count("val") == 2
    file = tmp_path / "run" / "split.csv"
    lines = file.read_text().splitlines()
    left, right = (
        next(place for place, line in enumerate(lines) if line.endswith(split)) for split in (",train", ",val")
    )
    for place, old, new in ((left, ",train", ",val"), (right, ",val", ",train")):
        lines[place] = lines[place].removesuffix(old) + new
    file.write_text("\n".join(lines) + "\n")
    sets = open_data_sets(config, read_division(tmp_path / "run", config))
    assert lines[left].split(",")[0] in map(sets.val.name, range(6))
    assert resume(tmp_path / "run", progress=False).best.examples == 6
    assert file.read_text().splitlines() == lines
    (root / "blue" / "0.png").unlink()
    with pytest.raises(DatasetError, match=r"lacks 1 picture beside those of 'split\.csv', such as 'blue/0\.png'"):
        resume(tmp_path / "run", progress=False)


def test_training_and_validation_have_all_pictures_between_them(short):
    sets = open_data_sets(short)
    names = [[one.name(number) for number in range(len(one))] for one in (sets.train, sets.val)]
    assert len(names[0]) == 18 and len(names[1]) == 6 and len({*names[0], *names[1]}) == 24
    assert sets.val[0].name == names[1][0] and sets.val.classes == sets.train.classes
    assert sets.val[3].label == sets.val.classes.index(names[1][3].split("/")[0])
    folds = [
        replace(short, data=replace(short.data, validation_share=None, folds=4, fold=fold)) for fold in (1, 2, 3, 4)
    ]
    validated = [{one.val.name(number) for number in range(len(one.val))} for one in map(open_data_sets, folds)]
    assert [len(names) for names in validated] == [6] * 4 and len(set.union(*validated)) == 24


def test_groups_of_a_table_are_divided_as_a_whole(short, pictures, tmp_path):
    lines = ["path,label,film"] + [
        f"{name}/{number}.png,{name},film {number // 2}" for name in ("blue", "green", "red") for number in range(8)
    ]
    (tmp_path / "all.csv").write_text("\n".join(lines))
    data = replace(
        short.data, path=str(tmp_path / "all.csv"), image_folder=str(pictures / "train"), group_column="film"
    )
    sets = open_data_sets(replace(short, data=data))
    films = [{int(one.name(number)[-5]) // 2 for number in range(len(one))} for one in (sets.train, sets.val)]
    assert films[0].isdisjoint(films[1]) and len(films[1]) == 1
    with pytest.raises(DatasetError, match="has no column 'actor'"):
        open_data_sets(replace(short, data=replace(data, group_column="actor")))


def test_tables_of_splits_have_no_picture_in_common(config, pictures, tmp_path):
    for split, numbers in (("train", (0, 1)), ("val", (2, 1)), ("other", (2, 3))):
        lines = [f"{name}/{number}.png,{name}" for name in ("blue", "red") for number in numbers]
        (tmp_path / f"{split}.csv").write_text("\n".join(["path,label", *lines]))
    data = replace(config.data, path=str(tmp_path / "{split}.csv"), image_folder=str(pictures / "train"))
    assert len(open_data_sets(replace(config, data=replace(data, val_split="other"))).val) == 4
    with pytest.raises(DatasetError, match=r"^2 of 4 pictures of table .* are trained on too, such as 'blue/1\.png'"):
        open_data_sets(replace(config, data=data))


def test_cross_validation_trains_once_for_each_fold_and_goes_on(short, undrawn, tmp_path, capsys):
    config = replace(short, data=replace(short.data, validation_share=None))
    recipe = tmp_path / "config.json"
    recipe.write_text(to_json(config))
    command = ["train", "--config", str(recipe), "--output", str(tmp_path / "runs"), "--folds", "2"]
    assert main(command) == 0
    out = capsys.readouterr().out.splitlines()
    assert " ".join(out[0].split()) == "fold best epoch pictures top-1 top-5 balanced accuracy macro F1 loss"
    assert [line.split()[0] for line in out[2:6]] == ["1", "2", "mean", "deviation"]
    summary = json.loads((tmp_path / "runs" / "folds.json").read_text())
    scores = [row["top1"] for row in summary["folds"]]
    assert summary["mean"]["top1"] == pytest.approx(np.mean(scores))
    assert summary["std"]["top1"] == pytest.approx(np.std(scores, ddof=1)) and len(scores) == 2
    split = [{row["path"]: row["split"] for row in rows_of(tmp_path / "runs" / f"fold_{fold}")} for fold in (1, 2)]
    assert all({split[0][name], split[1][name]} == {"train", "val"} for name in split[0])
    before = (tmp_path / "runs/fold_1/model.safetensors").stat().st_mtime_ns
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == summary
    assert (tmp_path / "runs/fold_1/model.safetensors").stat().st_mtime_ns == before


def test_the_summary_leaves_out_what_some_folds_have_not():
    scores = [Scores(examples=5, loss=loss, top1=50.0, top5=90.0) for loss in (1.0, 3.0)]
    summary = summarize_folds([Result(steps=1, best_epoch=1, best=one, last=one) for one in scores])
    assert summary["mean"]["loss"] == 2.0 and summary["std"]["loss"] == pytest.approx(2**0.5)
    assert "balanced_accuracy" not in summary["mean"]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5])
def test_a_share_is_between_0_and_1(share):
    with pytest.raises(ConfigError, match=r"data\.validation_share"):
        DataConfig(path="x", validation_share=share)


@pytest.mark.parametrize(
    "entries",
    [
        {"folds": 5},
        {"fold": 1},
        {"folds": 5, "fold": 6},
        {"folds": 1, "fold": 1},
        {"folds": 2, "fold": 1, "validation_share": 0.2},
        {"group_column": "a"},
    ],
)
def test_entries_that_do_not_go_together(entries):
    with pytest.raises(ConfigError, match=r"data\.(fold|group)"):
        DataConfig(path="x", **entries)


def test_what_cannot_be_divided_is_one_line_and_writes_nothing(short, tmp_path, capsys):
    with pytest.raises(DatasetError, match="has 8 pictures, which cannot be divided into 9 parts"):
        train_folds(replace(short, data=replace(short.data, validation_share=None)), tmp_path / "runs", 9)
    with pytest.raises(ConfigError, match=r"instead of data\.validation_share"):
        train_folds(short, tmp_path / "runs", 2)
    assert not list(tmp_path.iterdir())
    (tmp_path / "config.json").write_text(to_json(short))
    command = ["train", "--config", str(tmp_path / "config.json"), "--output", str(tmp_path / "run")]
    assert main([*command, "--folds", "2", "--seeds", "1,2"]) == 2
    assert "--seeds and --folds: give one of them" in capsys.readouterr().err
