"""Cross-validation: the same training run with each part of the pictures as validation set in turn."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jeffnet.errors import ConfigError
from jeffnet.parallel.distributed import is_primary
from jeffnet.system.files import write_file
from jeffnet.text.names import portable
from jeffnet.train.config import Config
from jeffnet.train.reports.curves import draw_seeds
from jeffnet.train.reports.journal import read_rows
from jeffnet.train.reports.scores import Result
from jeffnet.train.run import read_config
from jeffnet.train.seeds import train_or_resume
from jeffnet.train.teacher import Teacher

SUMMARY_FILE = "folds.json"


def train_folds(
    config: Config, folder: str | Path, folds: int, progress: bool = True, *, teacher: Teacher | None = None
) -> list[Result]:
    """Train once for each fold, in `fold_N`; runs that exist already are continued.

    The pictures of the training split, or of a data set without splits, are divided by `config.seed` into folds that
    have the same share of every class. Run N validates fold N and trains on the others. `folds.json` gets the summary.

    Args:
      config: of all runs, but for `data.folds` and `data.fold`.
      folder: of the runs' folders.
      folds: 2 or more; no more than any class has pictures.
      progress: report on standard error.
      teacher: as for `jeffnet.train.loop.train`.

    Returns:
      The scores of each fold's run.

    Raises:
      ConfigError: the configuration divides the pictures otherwise, or a folder holds a run of another one.
      JeffnetError, InterruptedRunError: as `jeffnet.train.loop.train`.
    """
    if folds < 2:
        raise ConfigError(f"folds {folds}: give 2 or more")
    if config.data.is_divided:
        raise ConfigError("folds are instead of data.validation_share and data.fold: leave these out")
    folders = [Path(folder, f"fold_{fold}") for fold in range(1, folds + 1)]
    results = []
    for fold, one in enumerate(folders, 1):
        divided = replace(config, data=replace(config.data, folds=folds, fold=fold))
        results.append(train_or_resume(divided, one, progress, teacher))
    if is_primary():
        write_file(Path(folder, SUMMARY_FILE), json.dumps(summarize_folds(results), indent=1) + "\n")
        runs = {one.name.replace("_", " "): read_rows(one) for one in folders}
        title = f"{read_config(folders[0]).model.name}, {portable(config.data.path)}, {folds} folds"
        draw_seeds(runs, Path(folder, "curves.png"), title, config.shown_metric)
    return results


def summarize_folds(results: Sequence[Result]) -> dict[str, Any]:
    """The best scores of each fold, and what they are on average.

    Args:
      results: of the folds' runs, at least two.

    Returns:
      `folds`, each with `fold`, `best_epoch` and the scores of that epoch; `mean` and `std`, the standard deviation of
      a sample, of every score.
    """
    rows = [{"fold": fold, "best_epoch": one.best_epoch, **asdict(one.best)} for fold, one in enumerate(results, 1)]
    metrics = [name for name in asdict(results[0].best) if name != "examples"]
    columns = {name: [row[name] for row in rows] for name in metrics}
    columns = {name: values for name, values in columns.items() if None not in values}
    return {
        "folds": rows,
        "mean": {name: statistics.mean(values) for name, values in columns.items()},
        "std": {name: statistics.stdev(values) for name, values in columns.items()},
    }
