"""Finds the splits of a data set by the names of folders and files."""

import re
from collections.abc import Sequence
from pathlib import Path

from jeffnet.errors import DatasetError

# Names that a split may have, the preferred one first; any other split has its own name only.
SPLITS: dict[str, tuple[str, ...]] = {"train": ("train",), "val": ("val", "validation", "test")}
KNOWN = tuple(name for names in SPLITS.values() for name in names)


def split_names(split: str) -> tuple[str, ...]:
    """Names that a split may have, the preferred one first."""
    return SPLITS.get(split, (split,))


def files_of_split(files: Sequence[Path], root: Path, split: str, or_all: bool = False) -> list[Path]:
    """Those of a data set's files that belong to a split, by their names.

    A file belongs to the split that a folder between `root` and it is named after, else to the one that its name has as
    a word, such as `train-0001.tar`. Where no file tells, all of them serve as the split that `root` is named after,
    and as 'val', but as nothing else: one would validate on what one trained on.

    Args:
      files: all of the data set, below `root`.
      root: its folder.
      split: 'train', 'val' or any other name.
      or_all: whether all of them are given back for any split where no file tells.

    Returns:
      At least one file, in the order given.

    Raises:
      DatasetError: no file belongs to the split.
    """
    names = (*KNOWN, split)
    splits = [_split_of(file.relative_to(root), names) for file in files]
    for name in split_names(split):
        if name in splits:
            return [file for file, other in zip(files, splits, strict=True) if other == name]
    present = sorted({name for name in splits if name})
    if not present and (or_all or split == "val" or root.resolve().name in split_names(split)):
        return list(files)
    rest = f"only {', '.join(present)}" if present else f"put its files into a folder {split!r}, or name them so"
    raise DatasetError(f"data set {str(root)!r} has no split {split!r}: {rest}")


def _split_of(file: Path, names: Sequence[str]) -> str | None:
    folder = next((name for name in file.parts[:-1] if name in names), None)
    return folder or _word_in(file.name, names)


def _word_in(text: str, words: Sequence[str]) -> str | None:
    found = re.search(rf"(?<![a-z])({'|'.join(map(re.escape, words))})(?![a-z])", text.lower())
    return found and found[1]
