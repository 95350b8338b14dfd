"""Configurations: overrides by dotted name, recipes, JSON there and back, and what is refused."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jeffnet.errors import ConfigError, UsageError
from jeffnet.text.spelling import ALIASES, nearest
from jeffnet.train.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimizerConfig, ParamGroup
from jeffnet.train.recipe import entry_names, from_json, load_recipe, override, to_json
from jeffnet.train.run import read_config

BASE = Config(model=ModelConfig(name="mnasnet_small"), data=DataConfig(path="digits"))


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
        ("augment.scale", "0.5,1", lambda config: config.augment.scale == (0.5, 1.0)),
        ("model.freeze", "conv_stem*,blocks.0.*", lambda config: config.model.freeze == ("conv_stem*", "blocks.0.*")),
        ("data.on_bad_image", "skip", lambda config: config.data.on_bad_image == "skip"),
        ("model.freeze", "", lambda config: config.model.freeze == ()),
        ("data.mean", "0.5,0.5,0.5", lambda config: config.data.mean == (0.5, 0.5, 0.5)),
        ("checkpoint.every_steps", "7", lambda config: config.checkpoint.every_steps == 7),
        (
            "optimizer.groups",
            '[{"pattern": "classifier.*", "learning_rate": 10}]',
            lambda config: config.optimizer.groups == (ParamGroup(pattern="classifier.*", learning_rate=10.0),),
        ),
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
        ("lr", "1", "nearest is --optimizer.learning_rate;"),
        ("learning_rate", "1", "nearest is --optimizer.learning_rate;"),
        ("loss.smoothing", "0", "nearest is --loss.label_smoothing;"),
        ("interpolation", "bicubic", "nearest is --data.interpolation or --augment.interpolation;"),
        ("colour", "1", "unknown option --colour; --help-config lists"),
        ("epoch", "1", "nearest is --epochs"),
        ("optimizer", "sgd", "optimizer.name"),
        ("epochs.number", "3", "epochs"),
        ("epochs", "many", "type int"),
        ("epochs", "none", "type int"),
        ("epochs", "0", "at least 1"),
        ("augment.scale", "0.5", "2 float values"),
        ("augment.scale", "1,2,3", "2 float values"),
        ("augment.scale.low", "1", "augment.scale has no entries"),
        ("optimizer.groups", "classifier", "a list such as .* in JSON"),
        ("optimizer.groups", '[{"patern": "x"}]', "unknown entry"),
        ("optimizer.groups", '[{"pattern": 3}]', "type str"),
        ("optimizer.nesterov", "perhaps", "type bool"),
        ("data.on_bad_image", "mask", "one of error, skip"),
        ("loss.label_smoothing", "1", "outside"),
        ("model.dtype", "int8", "int8"),
        ("optimizer.name", "sgdw", "one of sgd, momentum, .*, muon"),
        ("schedule.name", "cosin", "one of constant, .*, one_cycle"),
        ("augment.policy", "randm9", "one of v0"),
    ],
)
def test_a_wrong_override_is_refused_with_its_name_and_the_way_out(name, text, message):
    with pytest.raises(UsageError, match=message):
        override(BASE, [(name, text)])


def test_entries_that_belong_together_may_come_in_any_order():
    pair = [("loss.name", "jsd"), ("augment.splits", "3")]
    for overrides in (pair, pair[::-1]):
        config = override(BASE, overrides)
        assert (config.loss, config.augment) == (LossConfig(name="jsd"), AugmentConfig(splits=3))
    with pytest.raises(ConfigError, match="belong together"):
        override(BASE, pair[:1])


def test_json_there_and_back_is_the_same_configuration(tmp_path):
    groups = (ParamGroup(pattern="*.bias", weight_decay=0.1), ParamGroup(pattern="classifier.*", learning_rate=2.0))
    changes = [("augment.scale", "0.5,1"), ("model.drop_rate", "0.3"), ("model.freeze", "bn1.*")]
    config = override(replace(BASE, optimizer=OptimizerConfig(name="adamw", groups=groups)), changes)
    assert from_json(to_json(config), "test") == config
    (tmp_path / "config.json").write_text(to_json(config))
    assert load_recipe(tmp_path / "config.json") == config


def test_json_of_an_earlier_version_has_defaults_for_what_it_lacks():
    text = '{"model": {"name": "x"}, "data": {"path": "p", "mean": [0.5, 0.5, 0.5]}, "epochs": 3}'
    assert from_json(text, "test") == Config(
        model=ModelConfig(name="x"), data=DataConfig(path="p", mean=(0.5, 0.5, 0.5)), epochs=3
    )


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"model": {"name": "x", "size": 3}, "data": {"path": "p"}}',
        "{}",
        '{"model": {"name": "x"}, "data": {"path": "p"}, "epochs": "3"}',
    ],
)
def test_json_that_is_no_configuration_is_refused(text):
    with pytest.raises(ConfigError):
        from_json(text, "run/config.json")


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OptimizerConfig(learning_rate='1e-3')", "optimizer.learning_rate '1e-3' .* type float: write 1e-3 without"),
        ("OptimizerConfig(lr=1e-3)", "unknown entry optimizer.lr; the nearest is optimizer.learning_rate"),
        ("OptimizerConfig(nesterov=1)", "optimizer.nesterov 1 is not a value of type bool"),
        ("Config(lr=1e-3)", "unknown entry lr; the nearest is optimizer.learning_rate"),
        ("Config(model='b0', data=DataConfig(path='x'))", r"model 'b0' has no entries: write ModelConfig\(...\)"),
        ("Config(data=DataConfig(path='x'))", "model is missing: Config needs model=..."),
        ("DataConfig()", "data.path is missing"),
        ("ModelConfig('b0')", "ModelConfig takes entries by name: write name='b0'"),
        ("AugmentConfig(scale=0.5)", "augment.scale 0.5 is not 2 float values"),
        ("DataConfig(path='x', mean=(0.5, 'a', 1))", r"data.mean\[1\] 'a' is not a value of type float"),
        ("ParamGroup(pattern='*', learning_rate='2')", "optimizer.groups.learning_rate '2'"),
        ("LossConfig(label_smoothing=2)", "loss.label_smoothing 2.0 is outside"),
        ("1 / 0", "fails: ZeroDivisionError"),
        ("exit(3)", "fails: SystemExit: 3"),
        ("OptimizerConfig(", "fails: SyntaxError"),
    ],
)
def test_a_wrong_entry_of_a_recipe_is_named_with_file_and_line(tmp_path, text, message):
    path = tmp_path / "recipe.py"
    path.write_text(f"from jeffnet.train.config import *\n\nconfig = {text}\n")
    with pytest.raises(ConfigError, match=rf"config '.*recipe.py', line 3: .*{message}"):
        load_recipe(path)


def test_entries_take_what_python_has_for_their_types():
    data = DataConfig(path=Path("pictures"), mean=[0, 1, np.float32(0.5)], image_size=np.int64(32))
    assert data == DataConfig(path="pictures", mean=(0.0, 1.0, 0.5), image_size=32)
    assert (type(data.mean[0]), type(data.image_size), type(data.path)) == (float, int, str)
    assert Config(model={"name": "x"}, data=data).model == ModelConfig(name="x")


def test_every_name_that_others_have_stands_for_options_that_exist():
    commands = {"model", "dtype", "weights", "device", "num_devices", "image_size", "workers", "output", "top"}
    for name, meant in ALIASES.items():
        assert name == name.lower().replace("-", "_")
        assert {*meant} <= {*entry_names(), *commands}, name


def test_names_in_the_table_of_timm_are_hinted_at():
    """The guide says what timm's options are called here; so does the message about them."""
    guide = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    rows = re.findall(r"^\| (`--.*?) \| (.*?) \|$", guide.partition("## Coming from timm")[2], re.MULTILINE)
    asked = 0
    for theirs, ours in rows:
        named = {name for name in entry_names() if re.search(rf"`{re.escape(name)}\b", ours)}
        for name in re.findall(r"`--([a-z-]+)", theirs) if named else ():
            asked += 1
            assert {*nearest(name, entry_names())} & named, name
    assert asked > 50


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


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\xff\xfe{}", "not text in UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"seed": 1e999}', "seed inf is no number to compute with"),
        (b'{"epochs": ' + b"9" * 300 + b"}", "epochs 9+ is no number to compute with"),
        (b'{"optimizer": {"learning_rate": NaN}}', "optimizer.learning_rate nan is no number"),
        (b'{"data": {"path": "x", "std": []}}', r"data.std \(\) must be positive"),
    ],
)
def test_a_file_of_odd_bytes_or_numbers_is_an_error_naming_it(content: bytes, fault: str, tmp_path: Path):
    (tmp_path / "config.json").write_bytes(content)
    for read in (load_recipe, lambda path: read_config(path.parent)):
        with pytest.raises(ConfigError, match=rf"(?s)config.*{fault}"):
            read(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="is no number to compute with"):
        override(BASE, [("optimizer.learning_rate", "nan")])
