"""Training of an architecture of one's own: the run, its files and its checkpoints need no registration later."""

import json
from dataclasses import replace

import pytest

from jeffnet.arch import zoo
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.arch.spec import ModelSpec, spec_attributes, spec_name
from jeffnet.arch.zoo import register_model
from jeffnet.cli.main import main
from jeffnet.errors import ConfigError, UnknownModelError, UsageError
from jeffnet.linen import create_model
from jeffnet.train.config import DataConfig, ModelConfig
from jeffnet.train.loop import resume, train
from jeffnet.train.pretrained import continued, settled
from jeffnet.train.recipe import from_json, load_recipe, override, to_json
from jeffnet.train.setup import make_setup, run_preprocessing
from jeffnet.weights.load import read_weights

pytestmark = [pytest.mark.runs, pytest.mark.usefixtures("undrawn")]

SPEC = ModelSpec(stages=[["cn_r1_k1_s2_c8"], ["cn_r2_k1_s2_c8_skip"]], stem=8, features=16, drop_path_rate=0.1)
PREPROCESSING = Preprocessing(32, 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3, train_size=32)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What the tests register; `clear` makes this process like another one."""
    monkeypatch.setattr(zoo, "_REGISTERED", {})
    return zoo._REGISTERED


@pytest.fixture
def own(config):
    """The configuration of a run of a registered model, with its preprocessing."""
    register_model("my_net", SPEC, PREPROCESSING)
    return replace(config, model=ModelConfig(name="my_net"), data=DataConfig(path=config.data.path), epochs=2)


@pytest.mark.slow
def test_a_run_is_resumed_where_its_model_is_not_registered(own, registry, tmp_path, crash_after, assert_same_run):
    """To the bit like one that nothing disturbed, through the recipe's code and without it; its files load, too."""
    train(own, tmp_path / "whole", progress=False)
    for folder in ("resumed", "continued"):
        with crash_after(6):
            train(own, tmp_path / folder, progress=False)
    # A changed architecture of the same name is another run.
    registry.clear()
    register_model("my_net", replace(SPEC, act="silu"), PREPROCESSING)
    with pytest.raises(ConfigError, match=r"holds a run with model\.spec"):
        train(own, tmp_path / "continued", progress=False, go_on=True)
    registry.clear()
    path = tmp_path / "resumed" / "config.json"
    begun = path.read_text()
    entries = json.loads(begun)
    entries["model"]["spec"]["act"] = "silu"
    path.write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match="the model's act was relu when the run was saved, not silu"):
        resume(tmp_path / "resumed", progress=False)
    path.write_text(begun)
    resume(tmp_path / "resumed", progress=False)
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")
    card = read_weights(tmp_path / "resumed" / "model.safetensors").card
    assert (card.model, card.spec, card.preprocessing) == ("my_net", SPEC, PREPROCESSING)
    assert "cn_r2_k1_s2_c8_skip" in (tmp_path / "resumed" / "README.md").read_text()
    register_model("my_net", SPEC, PREPROCESSING)
    train(own, tmp_path / "continued", progress=False, go_on=True)
    assert_same_run(tmp_path / "continued", tmp_path / "whole")
    registry.clear()
    # A new run from the weights of this one: they say the architecture.
    path = str(tmp_path / "whole" / "model.safetensors")
    tuned = settled(replace(own, model=ModelConfig(pretrained=path)))
    assert (tuned.model.name, tuned.model.spec) == ("my_net", SPEC) and settled(tuned) == tuned
    assert run_preprocessing(tuned) == PREPROCESSING
    assert continued(replace(own, model=ModelConfig(pretrained=path)), tuned) == tuned
    assert make_setup(tuned).start().arrays.keys() == make_setup(settled(tuned)).start().arrays.keys()


def test_a_recipe_registers_its_model(pictures, tmp_path, capsys, registry):
    """Its Python is run; what it writes is read by commands that do not know it."""
    (tmp_path / "recipe.py").write_text(f"""
from jeffnet import register_model
from jeffnet.arch.preprocessing import Preprocessing
from jeffnet.train.config import Config, DataConfig, ModelConfig

register_model("my_net", [["cn_r1_k1_s2_c8"], "cn_r1_k1_s2_c8"], Preprocessing(32, 1.0))
config = Config(model=ModelConfig(name="my_net"), data=DataConfig(path={str(pictures)!r}), batch_size=6, epochs=1)
""")
    run = str(tmp_path / "run")
    assert main(["train", "--config", str(tmp_path / "recipe.py"), "--output", run]) == 0
    registry.clear()
    assert main(["train", "--resume", run, "--epochs", "2"]) == 0
    assert make_setup(settled(load_recipe(f"{run}/config.json"))).card.model == "my_net"
    capsys.readouterr()
    assert main(["validate", str(pictures), "--weights", f"{run}/model.safetensors", "--json"]) == 0
    assert '"my_net"' in capsys.readouterr().out


def test_an_architecture_is_an_entry_of_the_configuration(own, registry):
    """In Python, as JSON and on the command line; without a name it has one of its own."""
    registered = settled(own)
    assert registered.model.spec == SPEC and run_preprocessing(registered) == run_preprocessing(own) == PREPROCESSING
    assert settled(registered) == registered and continued(own, registered) == registered
    registry.clear()
    assert from_json(to_json(registered), "config.json") == registered
    with pytest.raises(UnknownModelError, match="my_net"):
        make_setup(settled(own))
    unnamed = replace(own, model=ModelConfig(spec=SPEC))
    attributes = {**spec_attributes(SPEC), "act": "silu"}
    changed = override(unnamed, [("model.spec", json.dumps(attributes)), ("model.name", "changed")])
    assert (changed.model.spec, changed.model.name) == (replace(SPEC, act="silu"), "changed")
    assert override(changed, [("model.spec", json.dumps([["cn_r1_k1_s2_c8"]]))]).model.spec == ModelSpec(
        stages=[["cn_r1_k1_s2_c8"]]
    )
    assert override(changed, [("model.spec", "none"), ("model.name", "b0")]).model.spec is None
    for text, fault in (("{", "model.spec"), ('{"a": 1}', "stages"), ('[["xx"], 1]', "give a list of stages")):
        with pytest.raises(UsageError, match=fault):
            override(unnamed, [("model.spec", text)])
    settled_name = settled(unnamed)
    assert settled_name.model.name == spec_name(SPEC) and settled(settled_name) == settled_name
    assert make_setup(unnamed).card.model == make_setup(settled_name).card.model == spec_name(SPEC)
    assert make_setup(replace(own, model=ModelConfig(spec=SPEC, name="other"))).card.model == "other"


def test_a_registered_name_wins_over_that_in_its_weights(own, tmp_path):
    """The same network, trained with another rate of dropout."""
    from jeffnet.checkpoints import save_checkpoint

    path = str(tmp_path / "a.safetensors")
    save_checkpoint(path, create_model("my_net", num_classes=3), "my_net")
    register_model("other", replace(SPEC, drop_rate=0.5), PREPROCESSING)
    config = settled(replace(own, model=ModelConfig(name="other", pretrained=path)))
    assert (config.model.name, config.model.spec.drop_rate) == ("other", 0.5)
    assert make_setup(config).network.plan.drop_rate == 0.5
