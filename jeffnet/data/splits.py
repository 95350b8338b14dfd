"""Finds the splits of a data set by the names of folders and files."""

import re
from collections.abc import Collection, Container, Sequence
from pathlib import Path

from jeffnet.errors import DatasetError
from jeffnet.text.names import listed

# Names that a split may have, the preferred one first; any other split has its own name only.
SPLITS: dict[str, tuple[str, ...]] = {"train": ("train",), "val": ("val", "validation", "test")}
# The split to divide: the training pictures, or of a data set without splits all pictures.
UNDIVIDED = "undivided"
# Splits that a data set without splits has.
OF_ALL = ("val", UNDIVIDED)
KNOWN = tuple(name for names in SPLITS.values() for name in names)


def split_names(split: str) -> tuple[str, ...]:
    """Names that a split may have, the preferred one first."""
    return SPLITS.get("train" if split == UNDIVIDED else split, (split,))


def find_split(split: str, present: Container[str]) -> str | None:
    """The name that a split has among those of a data set; None where it is missing."""
    return next((name for name in split_names(split) if name in present), None)


def require_split(split: str, present: Collection[str], data: str) -> str:
    """`find_split`, or a DatasetError that lists those of the data set."""
    if name := find_split(split, present):
        return name
    raise DatasetError(f"data set {data!r} has no split {split!r}: only {listed(sorted(present))}")


def files_of_split(files: Sequence[Path], root: Path, split: str, or_all: bool = False) -> list[Path]:
    """Those of a data set's files, in folder `root`, that belong to a split: at least one, in the order given.

    A file belongs to the split that a folder between `root` and it is named after, else to the one that its name has as
    a word, such as `train-0001.tar`. Where no file tells, all of them serve as the split that `root` is named after,
    and as 'val' or `UNDIVIDED`, but as nothing else (with `or_all`, as any split): one would validate on what one
    trained on.

    Raises:
      DatasetError: no file belongs to the split.
    """
    names = (*KNOWN, split)
    splits = [_split_of(file.relative_to(root), names) for file in files]
    if name := find_split(split, splits):
        return [file for file, other in zip(files, splits, strict=True) if other == name]
    present = sorted({name for name in splits if name})
    if not present and (or_all or split in OF_ALL or root.resolve().name in split_names(split)):
        return list(files)
    rest = f"only {', '.join(present)}" if present else f"put its files into a folder {split!r}, or name them so"
    raise DatasetError(f"data set {str(root)!r} has no split {split!r}: {rest}")


def _split_of(file: Path, names: Sequence[str]) -> str | None:
    if folder := next((name for name in file.parts[:-1] if name in names), None):
        return folder
    word = re.search(rf"(?<![a-z])({'|'.join(map(re.escape, names))})(?![a-z])", file.name.lower())
    return word and word[1]
