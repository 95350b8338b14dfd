"""What is tried before a run: learning rates, and a rehearsal."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jeffnet.cli.main import main
from jeffnet.errors import ConfigError, OutputError, TrainingError
from jeffnet.train.dry_run import Part, Rehearsal, rehearse
from jeffnet.train.range_test import RangeTest, _result, find_learning_rate
from jeffnet.train.recipe import to_json


def test_the_suggested_rate_is_where_the_loss_falls_fastest():
    """On a curve whose steepest place and lowest point are known, with the noise of batches, and an explosion."""
    rates = np.geomspace(1e-6, 10, 100)
    log = np.log10(rates)
    curve = 2.3 - 1.5 / (1 + np.exp(-4 * (log + 2.5))) + 1000 * np.maximum(log + 0.5, 0) ** 2
    for seed in range(10):
        found = _result(rates, curve + np.random.default_rng(seed).normal(0, 0.1, 100), True, sigma=3)
        assert found.steepest is not None and 10**-2.8 < found.steepest < 10**-2.2
        assert found.lowest is not None and 10**-1.8 < found.lowest < 10**-0.9


@pytest.mark.parametrize("losses", [np.full(30, 2.3), np.linspace(2.3, 9, 30), np.full(30, np.nan)])
def test_no_rate_is_suggested_where_none_lowers_the_loss(losses):
    losses = losses + np.random.default_rng(0).normal(0, 0.01, 30)
    assert _result(np.geomspace(1e-6, 10, 30), losses, False, sigma=1).steepest is None


def test_a_range_test_trains_at_rising_rates_and_writes_nothing(config, tmp_path, monkeypatch):
    """Until the loss is no number any more; what is drawn at random is the same each time."""
    monkeypatch.chdir(tmp_path)
    config = replace(config, optimizer=replace(config.optimizer, name="sgd", learning_rate=0.1))
    found = find_learning_rate(config, start=1e-4, end=1e6, steps=40)
    np.testing.assert_allclose(found.rates, np.geomspace(1e-4, 1e6, 40)[: len(found.rates)])
    assert found.diverged and 10 < len(found.losses) < 40
    assert abs(found.losses[:3] - np.log(3)).max() < 0.7 and found.smoothed.shape == found.losses.shape
    np.testing.assert_array_equal(find_learning_rate(config, start=1e-4, end=1e6, steps=40).losses, found.losses)
    assert not list(tmp_path.iterdir())


def test_a_rehearsal_does_every_part_and_keeps_nothing(config, tmp_path):
    config = replace(config, progressive=replace(config.progressive, stages=2, image_size=16), bn_batches=1)
    done = rehearse(config, tmp_path / "runs" / "first")
    assert not list(tmp_path.iterdir())
    names = [part.name for part in done.parts]
    assert [name for name in names if name.startswith("training, 16 px")] and any("32 px" in name for name in names)
    assert all(part.seconds > 0 and part.memory for part in done.parts)
    times = {part.name: part.times for part in done.parts}
    steps = sum(count for name, count in times.items() if name.startswith("training"))
    validated = sum(count for name, count in times.items() if name.startswith("validation"))
    assert (steps, validated) == (3 * 4, 3 * 2)  # 3 epochs, of 4 steps and 2 batches to validate
    assert done.seconds == sum(part.seconds * part.times for part in done.parts) and done.bytes_of_checkpoint > 10_000


def test_a_rehearsal_finds_a_loss_that_is_no_number_and_a_folder_that_is_taken(config, tmp_path):
    hot = replace(config, optimizer=replace(config.optimizer, name="sgd", learning_rate=1e30))
    with pytest.raises(TrainingError, match=r"lower optimizer\.learning_rate"):
        rehearse(hot, tmp_path / "run")
    assert not list(tmp_path.iterdir())
    (tmp_path / "config.json").touch()
    with pytest.raises(OutputError, match="holds a run already"):
        rehearse(config, tmp_path)


def test_the_commands_print_what_was_found(config, tmp_path, capsys, monkeypatch):
    """The work itself is that of the functions above."""
    recipe = tmp_path / "config.json"
    recipe.write_text(to_json(config))
    rates, losses = np.geomspace(1e-6, 10, 30), np.r_[np.linspace(2.3, 1.0, 28), np.inf, np.nan]
    found = RangeTest(rates, losses, np.r_[losses[:28], np.nan, np.nan], 1e-3, 0.1, True)
    monkeypatch.setattr("jeffnet.train.range_test.find_learning_rate", lambda config, progress: found)
    command = ["train", "--config", str(recipe)]
    assert main([*command, "--lr-find", str(tmp_path / "rates.png")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1:] == [
        "suggestion: --optimizer.learning_rate 0.001, where the loss falls fastest",
        "a tenth of the rate with the lowest loss: 0.01",
    ]
    assert main([*command, "--lr-find", str(tmp_path / "rates.png"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["losses"][-3:] == [1.0, None, None] and printed["steepest"] == 1e-3
    done = Rehearsal("a run", (Part("a step", 36.0, 250, None), Part("read", 9.0, 0, 2**30)), 2**20)
    monkeypatch.setattr("jeffnet.train.dry_run.rehearse", lambda config, folder, progress: done)
    assert main([*command, "--dry-run", "--output", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "1.00 MiB" in out and out.splitlines()[-1] == "the whole run takes about 2 h 30 min"
    assert main([*command, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] == 9000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "rates.png"]
    assert main([*command, "--lr-find", "rates.gif"]) == 2
    assert "give a name that ends in .png" in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path), "--dry-run"]) == 2


@pytest.mark.parametrize("entries", [{"start": 1.0, "end": 0.1}, {"start": 0.0}, {"steps": 19}, {"end": float("inf")}])
def test_a_range_that_will_not_do_is_one_line(config, entries):
    with pytest.raises(ConfigError, match=r"a range test from .* give rates that rise, and 20 steps or more"):
        find_learning_rate(config, **entries)
