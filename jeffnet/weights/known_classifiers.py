"""Which classes the classifiers of loaded weights tell apart, found again by their values.

A model does not carry the names of its classes. As long as its classifier has the values that this process loaded, it
tells the same classes apart; training may have made it one of others, so nothing is said of other values.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jeffnet.weights.checksum import checksum
from jeffnet.weights.naming import CLASSIFIER

_classes: dict[tuple, tuple[str, ...]] = {}


def remember_classes(arrays: Mapping[str, Any], classes: tuple[str, ...]) -> None:
    """Note the names of the classes of a model's classifier, if it has one and they are known.

    Args:
      arrays: of the model, by canonical name, as they are used.
      classes: in the order of the logits.
    """
    # What other processes hold a part of cannot be compared later either.
    on_host = all(getattr(arrays.get(name), "is_fully_addressable", True) for name in CLASSIFIER)
    if classes and CLASSIFIER[0] in arrays and on_host:
        _classes[_mark(arrays)] = classes


def remembered_classes(arrays: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a classifier's classes if it has the values of one that `remember_classes` was given; else empty."""
    return _classes.get(_mark(arrays), ()) if _classes and CLASSIFIER[0] in arrays else ()


def _mark(arrays: Mapping[str, Any]) -> tuple:
    values = [np.asarray(arrays[name]) for name in CLASSIFIER]
    return tuple((array.shape, array.dtype.name, checksum(array)) for array in values)
