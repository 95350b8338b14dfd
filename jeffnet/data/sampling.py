"""How often the classes of a training set are drawn, and the order of pictures that follows."""

from typing import Any, Protocol

import grain.python as grain
import numpy as np

from jeffnet.data.choices import SAMPLINGS
from jeffnet.data.sources import Labelled, Source
from jeffnet.errors import ConfigError, check_choice


class Order(Protocol):
    """The endless row of a training set's pictures: `order[place]` is the picture at a place, whoever asks and when."""

    def __getitem__(self, place: int, /) -> Any: ...


def class_counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """How many pictures each class has.

    Args:
      labels: whole numbers `(N,)`; or `(N, num_classes)` of 0 and 1, where a picture counts for all its classes.
      num_classes: how many classes there are.

    Returns:
      int64 `(num_classes,)`.
    """
    return np.bincount(labels, minlength=num_classes) if labels.ndim == 1 else labels.sum(0).astype(np.int64)


def class_draws(counts: np.ndarray, sampling: str) -> np.ndarray:
    """How often each class is drawn in an epoch, which keeps its length.

    Args:
      counts: int `(classes,)`, how many pictures each class has.
      sampling: 'natural', as often as it has pictures; 'square_root', in proportion to the root of that; 'balanced',
        as often as every other class that has pictures, but for one draw where the epoch cannot be divided evenly.

    Returns:
      int64 `(classes,)`, whose sum is that of `counts`; at least 1 for a class that has a picture.

    Raises:
      ConfigError: no such sampling.

    Source: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", arXiv:1910.09217.
    """
    check_choice("sampling", sampling, SAMPLINGS)
    weights = np.where(counts > 0, counts.astype(np.float64) ** SAMPLINGS[sampling], 0.0)
    exact = counts.sum() * weights / weights.sum()
    draws = np.floor(exact + 1e-9).astype(np.int64)
    # The largest remainders get what is left; of equal ones the first.
    left = int(counts.sum() - draws.sum())
    draws[np.argsort(draws - exact, kind="stable")[:left]] += 1
    return draws


def picture_order(source: Source, seed: int, sampling: str = "natural") -> Order:
    """The endless row of pictures in training, epoch after epoch, each shuffled anew.

    Args:
      source: the training set; but for 'natural' one that holds its labels, as all but those of `tfds:` do.
      seed: 0 to 2**32 - 1.
      sampling: as for `class_draws`. Within a class, no picture comes again before all others of it came.

    Returns:
      The order. It depends on the source's length, its labels and the seed alone.

    Raises:
      ConfigError: no such sampling, or a source without labels.
    """
    check_choice("sampling", sampling, SAMPLINGS)
    # Grain derives a seed for each random step from that of seed(). Given to shuffle() itself it would be increased by
    # one each epoch, and a run with the next seed would repeat the order of this one, an epoch earlier.
    epochs: Any = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    if sampling == "natural":
        return epochs
    return _ByClass(epochs, source_labels(source, f"sampling {sampling!r}"), len(source.classes), seed, sampling)


def source_labels(source: Source, user: str) -> np.ndarray:
    """The labels of a source that holds them; else a ConfigError that says which option, `user`, needs them."""
    if not isinstance(source, Labelled):
        raise ConfigError(
            f"{user} needs the labels of all pictures before the first step, which {type(source).__name__} reads with "
            "the pictures only: leave it out, or give the data in another form, such as folders"
        )
    return source.labels


class _ByClass:
    """Every epoch draws each class a fixed number of times, from an endless row of the class's own pictures."""

    def __init__(self, epochs: Any, labels: np.ndarray, num_classes: int, seed: int, sampling: str) -> None:
        draws = class_draws(class_counts(labels, num_classes), sampling)
        self._epochs, self._length, self._draws = epochs, len(labels), draws
        self._ends = np.cumsum(draws)
        self._pictures = [np.flatnonzero(labels == number) for number in range(num_classes)]
        self._rows = [_shuffled(len(members), seed, number) for number, members in enumerate(self._pictures)]

    def __getitem__(self, place: int, /) -> int:
        epoch, slot = place // self._length, int(self._epochs[place])
        number = int(np.searchsorted(self._ends, slot, side="right"))
        draws = int(self._draws[number])
        turn = epoch * draws + slot - (int(self._ends[number]) - draws)
        return int(self._pictures[number][int(self._rows[number][turn])])


def _shuffled(length: int, seed: int, number: int) -> Any:
    """The pictures of a class without end, in permutations that no other class has."""
    if not length:
        return ()
    (own,) = np.random.SeedSequence((seed, number)).generate_state(1)
    return grain.MapDataset.range(length).seed(int(own)).shuffle().repeat()
