"""The same run with several seeds."""

from dataclasses import replace

import pytest

from jeffnet.errors import ConfigError
from jeffnet.train.loop import train
from jeffnet.train.seeds import train_seeds

pytestmark = pytest.mark.runs


@pytest.mark.slow
def test_several_seeds_are_several_runs_and_are_continued(config, tmp_path, rows):
    short = replace(config, epochs=1, seed=9)
    results = train_seeds(short, tmp_path / "runs", [0, 1], progress=False)
    losses = [rows(tmp_path / "runs" / f"seed_{seed}")[0]["train_loss"] for seed in (0, 1)]
    assert losses[0] != losses[1]
    train(replace(short, seed=1), tmp_path / "one", progress=False)
    assert rows(tmp_path / "one") == rows(tmp_path / "runs" / "seed_1")
    assert train_seeds(short, tmp_path / "runs", [0, 1], progress=False) == results
    assert (tmp_path / "runs" / "curves.png").stat().st_size > 0
    with pytest.raises(ConfigError, match="different ones"):
        train_seeds(short, tmp_path / "runs", [1, 1])
    with pytest.raises(ConfigError, match="another configuration"):
        train_seeds(replace(short, batch_size=4), tmp_path / "runs", [0])
