"""Nested variables of Linen, NNX and `jeffnet.functional`, as checkpoints have them, by canonical name.

Neither MessagePack nor Orbax has checksums of the arrays, so jeffnet adds its own. Checkpoints without them, which
others wrote, are read too.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jeffnet.weights.checksum import checked, checksum
from jeffnet.weights.formats.interface import OF_ARRAYS, WeightsFile
from jeffnet.weights.stored import stored

_COLLECTIONS = ("params", "batch_stats")
_log = logging.getLogger("jeffnet")


def tree_checksums(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The checksums of arrays, by canonical name."""
    return {name: f"{checksum(array):016x}" for name, array in arrays.items()}


def tree_file(source: str, tree: Mapping[str, Any], sums: Mapping[str, str] | None, title: str) -> WeightsFile:
    """What a checkpoint holds, from its variables and, if it has them, the checksums of `tree_checksums`.

    Names that no model has are kept for `jeffnet.weights.fit.fit` to report; an NNX model's random numbers are dropped.

    Args:
      source: path of the checkpoint.
      tree: its variables.
      sums: its checksums, or None.
      title: what to call it in messages.
    """
    if "params" in tree:
        # `TrainState` and the like have an optimizer's state beside the variables.
        if others := [str(name) for name in tree if name not in _COLLECTIONS]:
            _log.warning("%s: took %s; skipped %s", source, " and ".join(_COLLECTIONS), ", ".join(others))
        tree = {name: tree[name] for name in _COLLECTIONS if name in tree}
    named = {_tree_name(path): stored(array) for path, array in _leaves(tree)}
    arrays = {name: array for name, array in named.items() if not name.startswith("rngs.")}
    if sums is None:
        return WeightsFile(source, arrays, title=title)
    expected = {name: int(digits, 16) for name, digits in sums.items()}
    return WeightsFile(source, checked(arrays, expected, source), title=title, checksums=OF_ARRAYS)


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


def _tree_name(path: tuple[str, ...]) -> str:
    words = path[path[0] in _COLLECTIONS :]
    words = words[:-1] if words[-1:] == ("value",) else words  # an NNX variable's
    return ".".join(re.sub(r"_(\d+)", r".\1", word) for word in words)
