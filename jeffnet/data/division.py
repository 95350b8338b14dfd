"""Divides pictures into parts that have the same shares of every class: for validation, or for folds."""

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from jeffnet.data.sources import Labelled
from jeffnet.errors import DatasetError
from jeffnet.text.names import counted, listed

_COLUMNS = ("path", "class", "split")


def divide(
    labels: np.ndarray, classes: Sequence[str], shares: Sequence[float], seed: int, groups: Sequence[str] | None = None
) -> np.ndarray:
    """Divide pictures at random into parts, class by class.

    Args:
      labels: int `(N,)`.
      classes: name of every label, for errors.
      shares: of the parts; their sum is 1.
      seed: 0 to 2**32 - 1; the same division for the same seed, labels and groups.
      groups: of each picture, such as the patient or the film that it is from; a group is in one part as a whole. None
        divides single pictures.

    Returns:
      int `(N,)`, the part of each picture. Every class is in every part with its share, rounded to whole pictures but
      to at least one; of groups, as nearly as they allow.

    Raises:
      DatasetError: a class has fewer pictures, or groups, than there are parts.
    """
    # RandomState's numbers are the same in every version of NumPy, those of a Generator may change.
    random = np.random.RandomState(seed)
    if groups is not None:
        return _grouped(labels, classes, np.asarray(shares), random, groups)
    parts, first = np.zeros(len(labels), np.int64), 0
    for label in map(int, np.unique(labels)):
        members = random.permutation(np.flatnonzero(labels == label))
        _check_enough(len(members), len(shares), classes[label], "picture")
        counts = _apportioned(len(members), np.asarray(shares), first)
        first += len(members)  # or the first fold would get what is left of every class
        parts[members] = np.repeat(np.arange(len(shares)), counts)
    return parts


def _check_enough(count: int, parts: int, name: str, what: str) -> None:
    if count < parts:
        has = f"1 {what}" if count == 1 else f"{count} {what}s"
        raise DatasetError(
            f"class {name!r} has {has}, which cannot be divided into {parts} parts: add some, divide into fewer, or "
            "remove the class"
        )


def _apportioned(count: int, shares: np.ndarray, first: int) -> np.ndarray:
    """Whole numbers with a sum of `count`, at least 1 each, by the largest remainders; ties begin at `first`."""
    exact = count * shares
    counts = np.maximum(np.floor(exact + 1e-9).astype(np.int64), 1)
    order = np.roll(np.arange(len(shares)), -(first % len(shares)))
    while (left := count - counts.sum()) != 0:
        lack = (exact - counts)[order].round(9)
        place = order[lack.argmax() if left > 0 else np.where(counts[order] > 1, lack, np.inf).argmin()]
        counts[place] += np.sign(left)
    return counts


def _grouped(
    labels: np.ndarray, classes: Sequence[str], shares: np.ndarray, random: np.random.RandomState, groups: Sequence[str]
) -> np.ndarray:
    """Whole groups, the largest first, each to the part that lacks its classes most."""
    numbers, group_of = np.unique(np.asarray(groups, object).astype(str), return_inverse=True)
    counts = np.zeros((len(numbers), len(classes)), np.int64)
    np.add.at(counts, (group_of, labels), 1)
    for label in map(int, np.flatnonzero(counts.any(0))):
        _check_enough(int((counts[:, label] > 0).sum()), len(shares), classes[label], "group")
    order = random.permutation(len(numbers))
    order = order[np.argsort(-counts[order].sum(1), kind="stable")]
    totals = np.maximum(counts.sum(0), 1)
    lack = shares[:, None] * np.ones(len(classes))  # of each class, as a share of its pictures
    part_of = np.zeros(len(numbers), np.int64)
    for group in order:
        own = counts[group] / totals
        # What is left to give, in squares: the sum after this group went to each part.
        after = ((lack[:, None] - np.eye(len(shares))[:, :, None] * own) ** 2).sum((0, 2))
        part_of[group] = after.argmin()
        lack[part_of[group]] -= own
    return part_of[group_of]


class Division:
    """Which pictures of a data set are trained on and which validated, by name.

    Attributes:
      splits: 'train' or 'val' by the name of the picture.
    """

    def __init__(self, splits: Mapping[str, str]) -> None:
        self.splits = dict(splits)

    @classmethod
    def of(cls, source: Labelled, validated: np.ndarray) -> "Division":
        """That of a source whose pictures are validated where the mask `(N,)` says so."""
        return cls({source.name(number): "val" if held else "train" for number, held in enumerate(validated.tolist())})

    @classmethod
    def parse(cls, text: str, path: str) -> "Division":
        """Read the text of a table that `table` wrote; a DatasetError if it is another one."""
        rows = list(csv.reader(io.StringIO(text, newline="")))
        for number, row in enumerate(rows, 1):
            if len(row) != len(_COLUMNS) or row[-1] not in (("train", "val") if number > 1 else _COLUMNS):
                raise DatasetError(f"table {path!r} is damaged in row {number}: restore it, or begin a new run")
        return cls({name: split for name, _, split in rows[1:]})

    def table(self, source: Labelled) -> str:
        """A CSV table of all pictures, which `jeffnet.data.table.Table` reads too."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        several = source.labels.ndim > 1
        for number in range(len(source)):
            name = source.name(number)
            writer.writerow((name, "" if several else source.classes[source.labels[number]], self.splits[name]))
        return text.getvalue()

    def validated(self, source: Labelled, path: str) -> np.ndarray:
        """Which pictures of a source are validated, bool `(N,)`; a DatasetError if it has other pictures."""
        names = [source.name(number) for number in range(len(source))]
        for what, others in (("lacks", self.splits.keys() - set(names)), ("also has", set(names) - self.splits.keys())):
            if others:
                raise DatasetError(
                    f"the data set {what} {counted(len(others), 'picture')} beside those of {path!r}, such as "
                    f"{listed(sorted(others), 1).partition(' and ')[0]!r}: make it what it was, or begin a new run"
                )
        return np.array([self.splits[name] == "val" for name in names], np.bool_)
