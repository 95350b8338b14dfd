"""Configurations: overrides by dotted name, recipes, JSON there and back, and what is refused."""

from pathlib import Path

import pytest

from jeffnet.errors import ConfigError
from jeffnet.train.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    entry_names,
    from_json,
    load_recipe,
    override,
    to_json,
)

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
BASE = Config(model=ModelConfig(name="pt_mnasnet_small"), data=DataConfig(path="digits"))


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("epochs", "7", lambda config: config.epochs == 7),
        ("optimizer.learning_rate", "1e-3", lambda config: config.optimizer.learning_rate == 1e-3),
        ("optimizer.name", "adamw", lambda config: config.optimizer.name == "adamw"),
        ("optimizer.nesterov", "true", lambda config: config.optimizer.nesterov is True),
        ("optimizer.nesterov", "False", lambda config: config.optimizer.nesterov is False),
        ("model.drop_rate", "none", lambda config: config.model.drop_rate is None),
        ("model.drop_rate", "0", lambda config: config.model.drop_rate == 0.0),
        ("data.scale", "0.5,1", lambda config: config.data.scale == (0.5, 1.0)),
        ("data.path", "a/b=c", lambda config: config.data.path == "a/b=c"),
    ],
)
def test_an_override_sets_one_entry_to_a_value_of_its_type(name, text, read):
    changed = override(BASE, [(name, text)])
    assert read(changed)
    others = [entry for entry in entry_names() if entry != name]
    assert [_entry(changed, entry) for entry in others] == [_entry(BASE, entry) for entry in others]


def _entry(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("optimizer.learning_rat", "1", "nearest is --optimizer.learning_rate"),
        ("epoch", "1", "nearest is --epochs"),
        ("optimizer", "sgd", "optimizer.name"),
        ("epochs.number", "3", "epochs"),
        ("epochs", "many", "type int"),
        ("epochs", "none", "type int"),
        ("epochs", "0", "at least 1"),
        ("data.scale", "0.5", "2 numbers"),
        ("data.scale", "1,2,3", "2 numbers"),
        ("optimizer.nesterov", "perhaps", "type bool"),
        ("label_smoothing", "1", "outside"),
        ("model.dtype", "int8", "int8"),
    ],
)
def test_a_wrong_override_is_refused_with_its_name_and_the_way_out(name, text, message):
    with pytest.raises(ConfigError, match=message):
        override(BASE, [(name, text)])


def test_json_there_and_back_is_the_same_configuration():
    config = override(BASE, [("data.scale", "0.5,1"), ("model.drop_rate", "0.3"), ("optimizer.name", "adamw")])
    assert from_json(to_json(config), "test") == config


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {"name": "x", "size": 3}, "data": {"path": "p"}}', "{}"])
def test_json_that_is_no_configuration_is_refused(text):
    with pytest.raises(ConfigError):
        from_json(text, "run/config.json")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_says_its_command(path):
    assert isinstance(load_recipe(path), Config)
    assert f"jeffnet train --config configs/{path.name}" in path.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [("1 / 0", "ZeroDivisionError"), ("config = 3", "must define"), ("x = 1", "must define"), ("config = (", "Syntax")],
)
def test_a_recipe_that_fails_says_why(tmp_path, text, message):
    path = tmp_path / "recipe.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)
    with pytest.raises(ConfigError, match="does not exist"):
        load_recipe(tmp_path / "missing.py")


def test_a_recipe_may_refuse_values_itself(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(
        "from jeffnet.train.config import *\n"
        "config = Config(model=ModelConfig(name='x'), data=DataConfig(path='y'), epochs=-1)\n"
    )
    with pytest.raises(ConfigError, match="epochs -1"):
        load_recipe(path)


def test_defaults_are_shared_by_no_two_configurations():
    assert BASE.optimizer == OptimizerConfig()
