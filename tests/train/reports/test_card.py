"""The card of a run: what the hub reads of it, and what a person does, is what the run was."""

import json
import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard as HubCard

from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.cli.main import main
from jeffnet.errors import OutputError
from jeffnet.train.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EmaConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ParamGroup,
    QuantizeConfig,
    ScheduleConfig,
)
from jeffnet.train.recipe import to_json
from jeffnet.train.reports.card import write_card
from jeffnet.train.reports.environment import read_environments, record_environment
from jeffnet.weights.card import ModelCard

NAME = "efficientnet_b0"
CARD = ModelCard(NAME, 10, 3, Preprocessing(32, 1.0), classes=tuple("abcdefghij"))
CONFIG = Config(
    model=ModelConfig(name=NAME, dtype="bfloat16"),
    data=DataConfig(path="/secret/place/flowers", val_split="test"),
    augment=AugmentConfig(scale=(0.35, 1.0), policy="rand-m9", mixup=0.2),
    loss=LossConfig(label_smoothing=0.1),
    optimizer=OptimizerConfig(
        name="adamw", learning_rate=2e-3, weight_decay=0.05, groups=(ParamGroup(pattern="a|b.*", learning_rate=10.0),)
    ),
    schedule=ScheduleConfig(warmup=3.0),
    ema=EmaConfig(decay=0.99),
    epochs=12,
    batch_size=64,
    accumulate=2,
    seed=7,
)


def scored(name, top1, loss, top5=99.5):
    return {f"{name}_examples": 1234, f"{name}_loss": loss, f"{name}_top1": top1, f"{name}_top5": top5}


ROWS = [
    {"step": 50, "epoch": 5.0, "train_loss": 1.0, "images_per_second": 90.0},
    {"step": 100, "epoch": 10} | scored("val", 91.236, 0.4),
    {"step": 120, "epoch": 12.0, "train_loss": 0.9, "images_per_second": 100.0},
    {"step": 120, "epoch": 12} | scored("val", 90.5, 0.5, 99.0),
]


def write(folder, card=CARD, config=CONFIG, rows=ROWS):
    folder.mkdir(exist_ok=True)
    write_card(folder, card, config, rows)
    return (folder / "README.md").read_text(encoding="utf-8")


def lines(text):
    """Cells of all lines of tables, by the first."""
    cells = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in cells}


def test_the_hub_reads_the_scores_of_the_best_model(tmp_path):
    write(tmp_path / "run")
    data = HubCard.load(tmp_path / "run" / "README.md").data
    assert {result.metric_name: result.metric_value for result in data.eval_results} == {"top-1": 91.24, "top-5": 99.5}
    assert {result.dataset_name for result in data.eval_results} == {"flowers"}
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("jeffnet", "image-classification", "run")


def test_numbers_of_numpy_are_as_good(tmp_path):
    best = {name: np.float64(value) if "top" in name else value for name, value in ROWS[1].items()}
    write(tmp_path / "run", rows=[ROWS[0], best, *ROWS[2:]])
    values = [result.metric_value for result in HubCard.load(tmp_path / "run" / "README.md").data.eval_results]
    assert values == [91.24, 99.5] and {type(value) for value in values} == {float}


def test_the_table_of_scores_has_what_there_is(tmp_path):
    table = lines(write(tmp_path / "run"))
    assert table["best, after epoch 10"] == ["91.24 %", "99.50 %", "0.4000", "`model.safetensors`"]
    assert table["last, after epoch 12"] == ["90.50 %", "99.00 %", "0.5000", ""]
    assert not [name for name in table if "average" in name and name != "moving average"]
    ema = {"step": 110, "epoch": 11} | scored("val", 90.0, 0.45) | scored("ema_val", 92.0, 0.3)
    last = ROWS[3] | scored("ema_val", 91.75, 0.35)
    averaged = {"step": 120, "epoch": 12, "averaged_epochs": 3} | scored("averaged_val", 93.0, 0.25)
    table = lines(write(tmp_path / "run", rows=[*ROWS[:2], ema, ROWS[2], last, averaged]))
    assert table["best moving average, after epoch 11"] == ["92.00 %", "99.50 %", "0.3000", "`model_ema.safetensors`"]
    assert table["last moving average, after epoch 12"] == ["91.75 %", "99.50 %", "0.3500", ""]
    assert table["average of the best 3"] == ["93.00 %", "99.50 %", "0.2500", "`averaged.safetensors`"]


def test_of_few_classes_there_is_no_top5(tmp_path):
    text = write(tmp_path / "run", card=replace(CARD, num_classes=5, classes=tuple("abcde")))
    assert "top-5" not in text
    assert lines(text)["best, after epoch 10"] == ["91.24 %", "0.4000", "`model.safetensors`"]


def test_the_training_is_described(tmp_path):
    table = lines(write(tmp_path / "run"))
    assert table["data"] == ["flowers, split train; validated on split test"]
    assert table["start"] == ["random weights"]
    assert table["model"] == ["dtype bfloat16"]
    assert table["epochs"] == ["12, in 120 steps"]
    assert table["batch size"] == ["64, in 2 parts"]
    assert table["optimizer"] == [r"adamw, learning rate 0.002, weight decay 0.05, groups a\|b.\* (learning rate 10)"]
    assert table["schedule"] == ["cosine, warmup 3"]
    assert table["loss"] == ["cross entropy, label smoothing 0.1"]
    assert table["augmentation"] == [
        "random crops of 35 to 100 % of the area, horizontal flip 0.5, policy rand-m9, mixup 0.2"
    ]
    assert table["moving average"] == ["exponential, decay 0.99"]
    assert table["seed"] == ["7"]
    assert table["speed"] == ["95 images per second"]


def test_odd_names_are_shown_in_one_line_of_utf8(tmp_path):
    data = replace(CONFIG.data, path=os.fsdecode(b"a|$b$\n\xe9"), val_split="`x`")
    card = replace(CARD, classes=("$x$\n", os.fsdecode(b"\xe9"), *CARD.classes[2:]))
    folder = tmp_path / "it's $5\n"
    text = write(folder, card=card, config=replace(CONFIG, data=data))
    assert lines(text)["data"] == [r"a\|\$b\$\\n\\xe9, split train; validated on split \`x\`"]
    assert r"\$x\$\\n, \\xe9" in text
    (command,) = re.findall(r"jeffnet train --config (.*) --output RUN", text)
    done = subprocess.run(["bash", "-c", f"printf %s {command}"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder.name}/config.json"


def test_folders_of_the_machine_are_not_told(tmp_path):
    model = replace(CONFIG.model, pretrained="/secret/place/weights.safetensors")
    loss = LossConfig(teacher="/secret/place/teacher.safetensors")
    text = write(tmp_path / "run", config=replace(CONFIG, model=model, loss=loss))
    assert "secret" not in text and str(tmp_path) not in text
    assert lines(text)["start"] == ["weights of weights.safetensors"]
    assert "teacher teacher.safetensors" in text


def test_the_same_run_has_the_same_card(tmp_path):
    record = write(tmp_path / "run")
    assert write(tmp_path / "run") == record


def test_curves_and_versions_are_shown_where_there_are_some(tmp_path):
    bare = write(tmp_path / "run")
    assert "curves.png" not in bare and "Trained on" not in bare
    (tmp_path / "run" / "curves.png").touch()
    record_environment(tmp_path / "run")
    text = write(tmp_path / "run")
    assert "![Learning curves](curves.png)" in text
    versions = read_environments(tmp_path / "run")[0]["versions"]
    assert f"jax {versions['jax']}" in text and f"jeffnet {versions['jeffnet']}" in text
    (tmp_path / "run" / "environment.json").write_text('["edited"]')
    assert "Trained on" not in write(tmp_path / "run")


def test_the_rounding_of_a_quantized_run_is_told_and_no_others(tmp_path):
    assert "rounding" not in lines(write(tmp_path / "run")) and "besides" not in lines(write(tmp_path / "run"))
    quantized = Config(model=ModelConfig(name=NAME), data=CONFIG.data, quantize=QuantizeConfig(to="int8", images=50))
    assert lines(write(tmp_path / "run", config=quantized))["rounding"] == ["that of int8 integers, images 50"]


def test_classes_have_names_for_people(tmp_path):
    text = write(tmp_path / "run", card=replace(CARD, num_classes=2, classes=("n01440764", "rose")))
    assert lines(text)["classes"] == ["2: tench, rose"]


def test_its_command_trains_the_same_again(tmp_path, capsys, monkeypatch):
    """From the folder of the run's folder, whose name may have a space."""
    monkeypatch.chdir(tmp_path)
    text = write(tmp_path / "my run")
    (tmp_path / "my run" / "config.json").write_text(to_json(CONFIG))
    (command,) = [line for line in text.splitlines() if line.startswith("jeffnet train")]
    program, *arguments = shlex.split(command)
    assert program == "jeffnet"
    assert main([*arguments, "--print-config"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(to_json(CONFIG))


def test_in_the_current_folder_the_card_has_the_folders_name(tmp_path, monkeypatch):
    (tmp_path / "flowers").mkdir()
    monkeypatch.chdir(tmp_path / "flowers")
    assert "\n# flowers\n" in write(Path("."))


def test_a_card_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*README\.md"):
        write_card(tmp_path / "missing", CARD, CONFIG, ROWS)
