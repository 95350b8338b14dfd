"""Recipes can be found, copied and run as their headers say; docs/training.md knows them and every entry it names."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from jeffnet.arch.summary import STATISTICS, array_specs
from jeffnet.arch.zoo import MODELS, model_plan, resolve_name
from jeffnet.cli.main import main
from jeffnet.data.augment.policies import parse_policy
from jeffnet.errors import ConfigError
from jeffnet.recipes import describe_recipe, list_recipes
from jeffnet.train.config import Config
from jeffnet.train.optim import OPTIMIZERS, make_optimizer
from jeffnet.train.phases import make_phases
from jeffnet.train.recipe import entry_names, from_json, load_recipe, override, to_json
from jeffnet.train.schedule import SCHEDULES, make_schedule
from jeffnet.train.setup import run_preprocessing, train_transform

ROOT = Path(__file__).parents[1]
RECIPES = {name: describe_recipe(name) for name in list_recipes()}
GUIDE = (ROOT / "docs" / "training.md").read_text()
# On pictures of the user's own, where nothing was published.
OWN_DATA = {"demo_digits", "fine_tune", "fine_tune_int8", "fine_tune_l2", "small_from_scratch"}
SOURCE = re.compile(r"arXiv:\d{4}\.\d{5}|\b(timm|tensorflow/tpu|OpenMixup|rwightman/efficientnet-jax)\b")

# Pictures a step, the learning rate at the peak, epochs, and the dropout: what the sources state.
STATED = {
    "efficientnet_b0_paper": (4096, 0.256, 350, 0.2),
    "efficientnet_b0_progressive": (4096, 0.256, 350, 0.2),
    "efficientnet_b3_paper": (4096, 0.256, 350, 0.3),
    "efficientnet_b0_ra": (2 * 384, 0.048, 450, 0.2),
    "efficientnet_b0_a2": (2048, 5e-3, 300, 0.0),
    "mobilenetv3_large_100": (2 * 512, 0.064, 600, 0.2),
    "mixnet_s_paper": (1024, 0.064, 350, 0.2),
    "mixnet_xl": (2 * 128, 0.016, 450, 0.3),
    "efficientnet_es": (4096, 0.256, 350, 0.2),
    "efficientnet_es_ra": (8 * 128, 0.064, 450, 0.2),
    "efficientnet_lite0": (4096, 0.256, 350, 0.2),
    "efficientnet_b0_two_gpus": (500, 0.016 * 500 / 256, 450, 0.2),
    "efficientnet_b0_one_gpu": (384, 0.024, 450, 0.2),
    "efficientnet_b1_eight_gpus": (2048, 0.128, 350, 0.2),
    "efficientnet_b0_v5e8": (2048, 0.128, 350, 0.2),
    "efficientnet_b2_v5e256_lars": (16384, 15.0, 350, 0.3),
    "efficientnet_b3_tpu": (2048, 0.016 * 2048 / 256, 550, 0.3),
}
STEPS_PER_EPOCH = 100

every_recipe = pytest.mark.parametrize("name", RECIPES)


def _header(name: str) -> str:
    return RECIPES[name].text.split('"""')[1]


def test_every_recipe_is_of_own_data_or_has_stated_values():
    assert {*RECIPES} == OWN_DATA | set(STATED)


@every_recipe
def test_the_header_is_the_manual(name):
    recipe = RECIPES[name]
    assert recipe.title == _header(name).splitlines()[0] and recipe.title.endswith((".", "`."))
    assert recipe.command.startswith(f"jeffnet train --config {name} ") and "--output " in recipe.command
    assert "Expect" not in recipe.hardware and recipe.hardware.endswith(".")
    if name not in OWN_DATA:
        assert SOURCE.search(recipe.expect)


@every_recipe
def test_the_overrides_in_the_header_fit_the_recipe(name):
    """`--accumulate 16` must divide the batch, and `--augment.policy none` must be an entry."""
    words = re.findall(r"--([a-z_0-9.]+) (\S+)", re.sub(r"\s+", " ", _header(name)))
    pairs = [(entry, text.rstrip(".,;:)")) for entry, text in words if entry not in ("config", "output")]
    config = load_recipe(name)
    for pair in pairs:
        assert override(config, [pair]) != config, "it changes nothing"
    override(config, pairs)


@every_recipe
def test_a_copy_runs_on_its_own(name, tmp_path, monkeypatch, capsys):
    """In any folder it is the same configuration, its header has its own command, and it is never overwritten."""
    monkeypatch.chdir(tmp_path)
    copy = ("recipes", name, "--output" if name == "fine_tune" else "--copy", "my copy.py")
    assert main(copy) == 0 and "--config 'my copy.py'" in capsys.readouterr().out
    text = Path("my copy.py").read_text()
    assert text == RECIPES[name].text.replace(f"--config {name} ", "--config 'my copy.py' ") != RECIPES[name].text
    assert load_recipe("my copy.py") == load_recipe(name)
    assert main(copy) == 1 and "'my copy.py' exists" in capsys.readouterr().err


def test_the_command_lists_and_prints_recipes(capsys):
    assert main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed] == [*RECIPES] and "text" not in listed[0]
    assert main(["recipes"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {recipe.title}" in out for name, recipe in RECIPES.items())
    assert "hardware: 8 devices (the cores of a TPU v3-8), 256 images each expect: about 81 % top-1 of the" in out
    assert main(["recipes", "fine_tune"]) == 0
    assert capsys.readouterr().out == RECIPES["fine_tune"].text
    assert main(["recipes", "fine_tune", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == RECIPES["fine_tune"].text


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["fine_tunes"], 1, "no recipe is called 'fine_tunes'; the nearest is fine_tune;"),
        (["--copy", "a.py"], 2, "needs the name of a recipe"),
        (["fine_tune", "--copy", "a.json"], 2, "give a name that ends in .py"),
        (["fine_tune", "--copy", "missing/a.py"], 1, "its folder does not exist"),
    ],
)
def test_what_cannot_be_shown_or_copied_is_one_line(words, status, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", *words]) == status
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and [*tmp_path.iterdir()] == []


def test_a_name_and_a_file_of_that_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = RECIPES["fine_tune"].text.replace("epochs=15", "epochs=3")
    Path("fine_tune").mkdir()  # such as the folder of a run
    assert load_recipe("fine_tune").epochs == 15
    for file in ("fine_tune.py", "demo_digits"):
        name = file.removesuffix(".py")
        Path(file).write_text(own)
        with pytest.raises(ConfigError, match=rf"{name}' is a recipe .* a file '{file}' here: write ./{file} for"):
            load_recipe(name)
        assert load_recipe(f"./{file}").epochs == load_recipe(Path(file)).epochs == 3
    Path("mine").write_text(own)
    assert load_recipe("mine").epochs == 3
    for wrong in ("fine_tun", "configs/fine_tune.py", Path("fine_tune")):
        with pytest.raises(ConfigError, match=r"does not exist, .*; the nearest is fine_tune; see `jeffnet recipes`"):
            load_recipe(wrong)


FOR_DEVICES = {name: found for name in RECIPES if (found := re.match(r"(\d+) devices?\b", RECIPES[name].hardware))}


@pytest.mark.parametrize("name", FOR_DEVICES)
def test_the_devices_of_the_header_can_share_the_work(name):
    config, devices = load_recipe(name), int(FOR_DEVICES[name][1])
    assert config.batch_size % (devices * config.accumulate) == 0
    assert devices % (config.model.bn_devices or devices) == 0
    if config.mesh != "auto":
        assert math.prod(map(int, re.findall(r"\d+", config.mesh))) == devices


def test_there_is_a_recipe_for_one_two_and_eight_devices_and_a_pod():
    assert {int(found[1]) for found in FOR_DEVICES.values()} == {1, 2, 8, 256}


@every_recipe
def test_the_recipe_builds(name):
    config = load_recipe(name)
    if config.model.pretrained is not None:
        model = resolve_name(config.model.pretrained)
        assert MODELS[model].weights is not None
        # As a run takes it from the weights.
        assert config.model.name in (None, model)
        config = replace(config, model=replace(config.model, name=model))
    assert resolve_name(config.model.known_architecture) in MODELS
    plan = model_plan(config.model.name, drop_rate=config.model.drop_rate, drop_path_rate=config.model.drop_path_rate)
    params = {
        path: jax.ShapeDtypeStruct(spec.shape, np.float32)
        for path, spec in array_specs(plan).items()
        if path.rpartition(".")[2] not in STATISTICS
    }
    state = jax.eval_shape(make_optimizer(config.optimizer, lambda step: 0.1, params).init, params)
    # `eval_shape` would hide an optimizer that keeps nothing: all of these have moments.
    assert len(jax.tree.leaves(state)) > len(params)
    if config.augment.policy is not None:
        parse_policy(config.augment.policy)
    preprocessing = run_preprocessing(config)
    phases = make_phases(config, preprocessing)
    assert len(phases) == config.progressive.stages
    for phase in phases:
        train_transform(phase, preprocessing)
    assert from_json(to_json(config), name) == config


@every_recipe
def test_the_learning_rate_peaks_at_its_configured_value(name):
    config = load_recipe(name)
    steps = config.epochs * STEPS_PER_EPOCH
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, steps, STEPS_PER_EPOCH)
    some = np.linspace(0, steps - 1, 1000).astype(int)
    some[1] = config.schedule.warmup * STEPS_PER_EPOCH - config.schedule.decay_from_start
    rates = np.asarray(schedule(some))
    assert rates[1] == rates.max() == pytest.approx(config.optimizer.learning_rate, rel=1e-6)
    assert rates[0] < rates.max() / 10, "it warms up"
    assert rates[-1] < rates.max() / 50, "it decays"


@pytest.mark.parametrize("name", STATED)
def test_the_recipe_has_what_its_source_states(name):
    config = load_recipe(name)
    drop_rate = model_plan(config.model.name, drop_rate=config.model.drop_rate).drop_rate
    found = (config.batch_size, config.optimizer.learning_rate, config.epochs, drop_rate)
    assert found == pytest.approx(STATED[name], rel=1e-12)
    if config.optimizer.name == "rmsproptf":
        assert config.optimizer.learning_rate * 256 / config.batch_size == pytest.approx(0.016)
        assert config.optimizer.weight_decay == 1e-5
        assert (config.optimizer.momentum, config.optimizer.decay, config.optimizer.epsilon) == (0.9, 0.9, 1e-3)
        assert config.loss.label_smoothing == 0.1
        assert config.schedule.decay_every == 2.4
    if config.model.name.startswith("tf_"):
        assert model_plan(config.model.name, bn_momentum=config.model.bn_momentum).bn_momentum == 0.99


@every_recipe
def test_the_guide_lists_the_recipe_with_the_score_of_its_header(name):
    rows = [line for line in GUIDE.splitlines() if line.startswith("|") and f"recipes/{name}.py" in line]
    assert len(rows) == 1
    scores = re.findall(r"\d[\d.]* %", rows[0].split("|")[3])
    assert all(score in _header(name) for score in scores)
    assert scores or name in ("efficientnet_b0_progressive", "fine_tune", "fine_tune_int8", "fine_tune_l2")


def test_the_guide_names_entries_that_exist():
    parts = {name.partition(".")[0] for name in entry_names() if "." in name}
    named = set(re.findall(rf"(?<![\w.])((?:{'|'.join(sorted(parts))})\.[a-z_0-9]+)", GUIDE))
    assert len(named) > 60
    assert named - set(entry_names()) == {"model.safetensors"}


def test_the_guide_has_all_optimizers_schedules_and_parts():
    for name in (*OPTIMIZERS, *SCHEDULES):
        assert f"`{name}`" in GUIDE, name
    for name in Config.__dataclass_fields__:
        assert re.search(rf"\b{name}\b", GUIDE), name
