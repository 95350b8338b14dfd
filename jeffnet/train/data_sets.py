"""The training and validation pictures of a run."""

from dataclasses import dataclass

import numpy as np

from jeffnet.data.division import Division, divide
from jeffnet.data.open import open_source
from jeffnet.data.sampling import source_labels
from jeffnet.data.sources import Labelled, Source, Subset
from jeffnet.data.splits import UNDIVIDED
from jeffnet.data.table import Table
from jeffnet.train.config import Config

_FEWEST = 2  # pictures to train on
SPLIT_FILE = "split.csv"  # in the run's folder


@dataclass(frozen=True)
class DataSets:
    """The pictures of a run.

    Attributes:
      train: to train on.
      val: to validate on, of the same classes.
      division: text of `split.csv` where the run divides its pictures, else None.
    """

    train: Source
    val: Source
    division: str | None = None


def open_data_sets(config: Config, recorded: Division | None = None) -> DataSets:
    """Open the pictures of a run, and divide them if the configuration says so.

    Args:
      config: of the run.
      recorded: how they were divided when the run began; None divides them.

    Returns:
      The data sets.

    Raises:
      DatasetError: they cannot be opened, are too few, are others than when they were divided, or a table has some in
        both splits.
      ConfigError: they are to be divided, but do not say their labels.
    """
    data, channels = config.data, config.model.in_chans
    if data.is_divided:
        return _divided(config, recorded)
    train = open_source(data.path, data.train_split, channels, min_images=_FEWEST, columns=data.columns)
    val = open_source(data.path, data.val_split, channels, classes=train.classes, columns=data.columns)
    if isinstance(train, Table) and isinstance(val, Table) and data.train_split != data.val_split:
        train.check_apart(val)
    return DataSets(train, val)


def training_set(config: Config) -> Source:
    """The training pictures alone; a DatasetError where there are not two."""
    data = config.data
    if data.is_divided:
        return _divided(config, None).train
    return open_source(data.path, data.train_split, config.model.in_chans, min_images=_FEWEST, columns=data.columns)


def _divided(config: Config, recorded: Division | None) -> DataSets:
    data = config.data
    split = UNDIVIDED if data.train_split == "train" else data.train_split
    whole = open_source(data.path, split, config.model.in_chans, min_images=_FEWEST, columns=data.columns)
    name = "data.folds" if data.folds else f"data.validation_share {data.validation_share}"
    labels = source_labels(whole, name)  # or an error
    assert isinstance(whole, Labelled)
    division = recorded or Division.of(whole, _validated(config, whole, labels))
    validated = division.validated(whole, SPLIT_FILE)
    train, val = (Subset(whole, np.flatnonzero(chosen)) for chosen in (~validated, validated))
    return DataSets(train, val, division.table(whole))


def _validated(config: Config, whole: Labelled, labels: np.ndarray) -> np.ndarray:
    """Which pictures are validated, bool `(N,)`."""
    data, groups = config.data, getattr(whole, "groups", None)
    # Vectors of labels or numbers have no classes to keep in proportion.
    classes = ("all",) if labels.ndim > 1 else whole.classes
    labels = np.zeros(len(labels), np.int64) if labels.ndim > 1 else labels
    if data.folds and data.fold:
        return divide(labels, classes, [1 / data.folds] * data.folds, config.seed, groups) == data.fold - 1
    assert data.validation_share is not None
    share = data.validation_share
    return divide(labels, classes, [1 - share, share], config.seed, groups) == 1
