"""`jeffnet train --help-config` says of every entry what it is and what it takes."""

import json
import re

import pytest

from jeffnet.cli.main import main
from jeffnet.errors import UsageError
from jeffnet.train.config import Config, DataConfig
from jeffnet.train.config.manual import manual
from jeffnet.train.recipe import entry_names, load_recipe, override

BASE = Config(model={}, data=DataConfig(path="digits"))
ENTRIES = [entry for section in manual().values() for entry in section.entries]


def test_every_entry_is_described_once():
    assert sorted(entry.name for entry in ENTRIES) == sorted(entry_names())
    assert [entry.name for entry in ENTRIES if entry.required] == ["data.path"]
    for entry in ENTRIES:
        assert len(entry.text) > 10 and entry.text.endswith("."), entry
        assert not re.search(r"likewise|  |\n", entry.text), entry


def test_defaults_are_what_the_command_line_takes():
    """And what is not given has them."""
    given = [(entry.name, entry.default) for entry in ENTRIES if not entry.required]
    assert override(BASE, [pair for pair in given if pair[0] != "optimizer.groups"]) == BASE
    assert override(BASE, [("epochs", "3")]) != BASE


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.choices], ids=lambda entry: entry.name)
def test_choices_are_all_that_is_taken(entry):
    several, numbers = ("data.task", "multi_label"), ("data.task", "regression")
    together = {"jsd": [("augment.splits", "3")]}
    together |= {name: [several] for name in ("focal", "asymmetric")}
    together |= {name: [numbers] for name in ("l1", "l2", "huber")}
    together |= {"multi_label": [("loss.name", "bce")], "regression": [("loss.name", "l2")]}
    together |= {"mean_average_precision": [several, ("loss.name", "bce")]}
    together |= {name: [numbers, ("loss.name", "l2")] for name in ("mae", "r2")}
    for choice in entry.choices:
        override(BASE, [(entry.name, choice), *together.get(choice, [])])
    with pytest.raises(UsageError, match=f"one of {', '.join(entry.choices)}"):
        override(BASE, [(entry.name, "another")])


def test_the_command_groups_entries_and_shows_one_part_in_full(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def shown(*words):
        assert main(["train", "--help-config", *words]) == 0
        return capsys.readouterr().out

    whole, part = shown(), shown("model")
    assert re.findall(r"^(\w+):$", whole, re.MULTILINE) == [*manual()]
    assert re.findall(r"^  --(\S+) ", whole, re.MULTILINE) == [entry.name for entry in ENTRIES]
    assert max(map(len, whole.splitlines())) <= 80
    words = " ".join(part.split())
    assert "--model.dtype STR dtype of the computation: 'float32', 'bfloat16' or 'float16'. Parameters stay" in words
    assert "(default: float32)" in words and "optimizer" not in part
    assert "Parameters stay" not in whole and "sgd, momentum, nesterov," in " ".join(whole.split())
    assert [entry["name"] for entry in json.loads(shown("--json"))] == [entry.name for entry in ENTRIES]
    assert {entry["part"] for entry in json.loads(shown("ema", "--json"))} == {"ema"}
    recipe = " ".join(shown("optimizer", "--config", "fine_tune", "--optimizer.learning_rate", "0.07").split())
    assert "(recipe: 0.07; default:" in recipe and "(default: none)" in recipe
    assert "(recipe: pictures)" in " ".join(shown("data", "--config", "fine_tune").split())
    values = {entry["name"]: entry["recipe"] for entry in json.loads(shown("--json", "--config", "fine_tune"))}
    tuned = load_recipe("fine_tune")
    assert (
        override(tuned, [("epochs", "99"), ("epochs", values["epochs"])]) == tuned != override(tuned, [("seed", "9")])
    )
    assert override(tuned, [pair for pair in values.items() if pair[0] != "optimizer.groups"]) == tuned
    assert main(["train", "--help-config", "optimzer"]) == 2
    assert "the nearest is optimizer; parts are run, model, data" in capsys.readouterr().err
