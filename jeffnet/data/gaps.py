"""Cells of tables that stand for a missing value: what pandas, R and spreadsheets write for one."""

import math
from collections.abc import Iterable

# Of numbers that are none; nobody calls a class so.
_GAPS = frozenset({"nan", "<na>", "nat"})
# A class may be called so too, such as pictures with no finding, or Namibia.
_DOUBTFUL = frozenset({"na", "n/a", "#n/a", "none", "null"})


def is_gap(text: str) -> bool:
    """Whether a cell has the text of a missing value, such as 'nan', which no class has as its name."""
    return text.casefold() in _GAPS


def doubtful_labels(labels: Iterable[str]) -> tuple[tuple[str, ...], bool]:
    """Labels that may stand for missing ones, such as 'None' and 'NA'.

    Args:
      labels: of all pictures, or all classes.

    Returns:
      Those labels, each once, sorted; and whether all others are numbers, so that these are gaps.
    """
    every = set(labels)
    doubtful = {label for label in every if label.casefold() in _DOUBTFUL}
    others = every - doubtful
    return tuple(sorted(doubtful)), bool(others) and all(map(_is_number, others))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
