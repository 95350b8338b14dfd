"""The recipes in configs/ can be run as their headers say, and docs/training.md knows them and every entry it names."""

import math
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jeffnet.arch.summary import STATISTICS, array_specs
from jeffnet.arch.zoo import MODELS, model_plan, resolve_name
from jeffnet.data.augment.policies import parse_policy
from jeffnet.train.config import Config
from jeffnet.train.optim import OPTIMIZERS, make_optimizer
from jeffnet.train.phases import make_phases
from jeffnet.train.recipe import entry_names, from_json, load_recipe, override, to_json
from jeffnet.train.schedule import SCHEDULES, make_schedule
from jeffnet.train.setup import run_preprocessing, train_transform

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.py"))
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

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def _header(path: Path) -> str:
    return path.read_text().split('"""')[1]


def test_every_recipe_is_of_own_data_or_has_stated_values():
    assert {path.stem for path in RECIPES} == OWN_DATA | set(STATED)


@every_recipe
def test_the_header_is_the_manual(path):
    header = _header(path)
    title, empty, command, *_ = header.splitlines()
    assert title.endswith((".", "`."))
    assert not empty
    assert command.startswith(f"jeffnet train --config configs/{path.name} ")
    assert "--output " in command
    assert "\nHardware: " in header
    assert re.search(r"\bExpect ", header)
    if path.stem not in OWN_DATA:
        expectation = header.partition("Expect ")[2]
        assert SOURCE.search(expectation)


@every_recipe
def test_the_overrides_in_the_header_fit_the_recipe(path):
    """`--accumulate 16` must divide the batch, and `--augment.policy none` must be an entry."""
    words = re.findall(r"--([a-z_0-9.]+) (\S+)", re.sub(r"\s+", " ", _header(path)))
    pairs = [(name, text.rstrip(".,;:)")) for name, text in words if name not in ("config", "output")]
    config = load_recipe(path)
    for pair in pairs:
        assert override(config, [pair]) != config, "it changes nothing"
    override(config, pairs)


FOR_DEVICES = {
    path.stem: found for path in RECIPES if (found := re.search(r"Hardware: (\d+) devices?\b", _header(path)))
}


@pytest.mark.parametrize("name", FOR_DEVICES)
def test_the_devices_of_the_header_can_share_the_work(name):
    config, devices = load_recipe(ROOT / "configs" / f"{name}.py"), int(FOR_DEVICES[name][1])
    assert config.batch_size % (devices * config.accumulate) == 0
    assert devices % (config.model.bn_devices or devices) == 0
    if config.mesh != "auto":
        assert math.prod(map(int, re.findall(r"\d+", config.mesh))) == devices


def test_there_is_a_recipe_for_one_two_and_eight_devices_and_a_pod():
    assert {int(found[1]) for found in FOR_DEVICES.values()} == {1, 2, 8, 256}


@every_recipe
def test_the_recipe_builds(path):
    config = load_recipe(path)
    assert resolve_name(config.model.name) in MODELS
    if config.model.pretrained is not None:
        assert resolve_name(config.model.pretrained) == config.model.name
        assert MODELS[config.model.name].weights is not None
    plan = model_plan(config.model.name, drop_rate=config.model.drop_rate, drop_path_rate=config.model.drop_path_rate)
    params = {
        name: jax.ShapeDtypeStruct(spec.shape, np.float32)
        for name, spec in array_specs(plan).items()
        if name.rpartition(".")[2] not in STATISTICS
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
    assert from_json(to_json(config), path.name) == config


@every_recipe
def test_the_learning_rate_peaks_at_its_configured_value(path):
    config = load_recipe(path)
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
    config = load_recipe(ROOT / "configs" / f"{name}.py")
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
def test_the_guide_lists_the_recipe_with_the_score_of_its_header(path):
    rows = [line for line in GUIDE.splitlines() if line.startswith("|") and f"configs/{path.name}" in line]
    assert len(rows) == 1
    scores = re.findall(r"\d[\d.]* %", rows[0].split("|")[3])
    assert all(score in _header(path) for score in scores)
    assert scores or path.stem in ("efficientnet_b0_progressive", "fine_tune", "fine_tune_int8", "fine_tune_l2")


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
