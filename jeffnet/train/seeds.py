"""The same training run with several seeds."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jeffnet.errors import ConfigError
from jeffnet.parallel.distributed import is_primary, on_primary
from jeffnet.text.names import portable
from jeffnet.train.config import Config
from jeffnet.train.loop import resume, train
from jeffnet.train.pretrained import continued
from jeffnet.train.reports.curves import draw_seeds
from jeffnet.train.reports.journal import read_rows
from jeffnet.train.reports.scores import Result
from jeffnet.train.run import is_run, read_config
from jeffnet.train.teacher import Teacher


def train_seeds(
    config: Config,
    folder: str | Path,
    seeds: Sequence[int],
    progress: bool = True,
    *,
    teacher: Teacher | None = None,
) -> list[Result]:
    """Train with one seed after the other, each in `seed_N`; runs that exist already are continued.

    Args:
      config: of all runs, but for its seed.
      folder: of the runs' folders.
      seeds: different ones.
      progress: report on standard error.
      teacher: as for `jeffnet.train.loop.train`.

    Returns:
      The scores of each seed's run.

    Raises:
      ConfigError: a seed occurs twice, none is given, or a folder holds a run of another configuration.
      JeffnetError, InterruptedRunError: as `train`.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds {', '.join(map(str, seeds))}: give different ones, joined by commas")
    folders = {seed: Path(folder, f"seed_{seed}") for seed in seeds}
    results = [train_or_resume(replace(config, seed=seed), one, progress, teacher) for seed, one in folders.items()]
    if is_primary():
        runs = {f"seed {seed}": read_rows(one) for seed, one in folders.items()}
        name = read_config(folders[seeds[0]]).model.name
        draw_seeds(runs, Path(folder, "curves.png"), f"{name}, {portable(config.data.path)}", config.shown_metric)
    return results


def train_or_resume(config: Config, folder: Path, progress: bool, teacher: Teacher | None = None) -> Result:
    """Train in a folder, or continue the run of this configuration in it; arguments as for `train`."""
    if not on_primary(lambda: is_run(folder)):
        return train(config, folder, progress, teacher=teacher)
    before = read_config(folder)
    if before != continued(config, before):
        raise ConfigError(f"{str(folder)!r} holds a run of another configuration: give another output folder")
    return resume(folder, progress=progress, teacher=teacher)
