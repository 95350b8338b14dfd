"""From a data set's labels to a model's classes: by name, by number, or by a file that says it."""

import csv
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from jeffnet.arch.class_names import class_indices, order_doubt
from jeffnet.arch.imagenet import class_titles, imagenet_classes, known_classes
from jeffnet.data.choices import SUBSETS
from jeffnet.errors import DatasetError, check_choice
from jeffnet.system.reading import parse_json, read_text
from jeffnet.text.names import listed

_log = logging.getLogger("jeffnet")


def label_table(
    classes: Sequence[str], num_classes: int, model_classes: Sequence[str] = (), mapping: dict[str, int] | None = None
) -> np.ndarray:
    """Which of a model's classes each label of a data set is, int32 `(len(classes),)`.

    A mapping from `read_label_map` decides first, else `jeffnet.arch.class_names.class_indices`: names, of which a data
    set may have a part; numbers, as ImageNet-V2's folders have; or the order, where the model has no names.

    Raises:
      DatasetError: there is no telling which class is which.
    """
    if mapping is not None:
        if missing := [name for name in classes if name not in mapping]:
            raise DatasetError(f"the label map lacks {listed(missing, beside=mapping)} of the data set: add them")
        if wrong := [name for name in classes if not 0 <= mapping[name] < num_classes]:
            raise DatasetError(f"the label map sends {listed(wrong)} outside the model's {num_classes} classes")
        return np.array([mapping[name] for name in classes], np.int32)
    indices = class_indices(classes, num_classes, model_classes)
    if indices is not None:
        if doubt := order_doubt(classes, num_classes, model_classes):
            _log.warning("%s: give a label map if the weights are timm's", doubt)
        return np.array(indices, np.int32)
    known = tuple(model_classes) or known_classes(num_classes)
    if not known:
        raise DatasetError(
            f"the data set has {len(classes)} classes, the model {num_classes}: labels and logits would not match; "
            "give a label map"
        )
    unknown = [name for name in classes if name not in known]
    raise DatasetError(
        f"the data set has classes that the model has not: {listed(unknown or classes, beside=known)}; it has "
        f"{listed(known)}: give a label map"
    )


def read_label_map(path: str | os.PathLike, model_classes: Sequence[str] = ()) -> dict[str, int]:
    """A file that says which class of a model each class of a data set is.

    Args:
      path: JSON, one object from names to numbers or to names of the model's classes, WordNet's identifiers or what
        jeffnet prints for them; or CSV, a name and a number or name in each line.
      model_classes: names of the model's classes, in its order; empty where unknown.

    Raises:
      DatasetError: it cannot be read, or has something else.
    """
    name, text = repr(os.fspath(path)), _read(path, "label map")
    known = tuple(model_classes) or tuple(imagenet_classes())
    counts = Counter(titles := class_titles(known))  # two classes may have the same
    number = {title: index for index, title in enumerate(titles) if counts[title] == 1}
    number |= {identifier: index for index, identifier in enumerate(known)}
    mapping: dict[str, int] = {}
    for source, target in _pairs(text, name):
        if source in mapping:
            raise DatasetError(f"label map {name} has {source!r} twice: remove one of them")
        if type(target) is int or (isinstance(target, str) and re.fullmatch("[0-9]{1,18}", target.strip())):
            mapping[source] = target if isinstance(target, int) else int(target.strip())
        elif isinstance(target, str) and target in number:
            mapping[source] = number[target]
        else:
            shown = listed([target], beside=number) if isinstance(target, str) else repr(target)[:50]
            raise DatasetError(f"label map {name} sends {source!r} to {shown}, which is no class of the model")
    return mapping


def _pairs(text: str, name: str) -> list[tuple[str, Any]]:
    """Names and what a label map says they are, in its order."""
    try:
        if text.lstrip().startswith("{"):
            return json.loads(text, object_pairs_hook=list)
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
        if wrong := next((row for row in rows if len(row) != 2), None):
            raise ValueError(f"it has the row {','.join(wrong)[:50]!r}")
    except (ValueError, RecursionError, csv.Error) as error:
        raise DatasetError(f"label map {name} is neither a JSON object nor CSV of two columns ({error})") from None
    return [(source, target) for source, target in rows]


def read_real_labels(path: str | os.PathLike) -> list[frozenset[int]]:
    """ImageNet's validation labels reassessed (ReaL, arXiv:2006.07159): all classes that are in a picture.

    Args:
      path: `real.json` of its authors: for each picture, in the order of their numbers, a list of classes; empty where
        no class is, and the picture does not count.

    Raises:
      DatasetError: it cannot be read, or is something else.
    """
    name = f"ReaL labels {os.fspath(path)!r}"
    try:
        rows = parse_json(_read(path, "ReaL labels"))
    except ValueError as error:
        raise DatasetError(f"{name} are no list of lists of numbers ({error})") from None
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise DatasetError(f"{name} are no list of lists of numbers")
    for number, row in enumerate(rows, 1):
        if wrong := [label for label in row if type(label) is not int or label < 0]:
            raise DatasetError(
                f"{name} have {str(wrong[0])[:50]!r} for picture {number}: classes are numbers from 0 on"
            )
    return [frozenset(row) for row in rows]


def real_index(name: str, index: int, examples: int, labels: int) -> int:
    """The place in so many ReaL labels of a picture: the number in its name, `ILSVRC2012_val_00000001`, else its index.

    Raises:
      DatasetError: the name has no number, and the data set is not the whole one.
    """
    if match := re.search(r"val_0*(\d+)(?!\d)", name):
        if 1 <= int(match[1]) <= labels:
            return int(match[1]) - 1
    elif examples == labels:
        return index
    raise DatasetError(
        f"picture {name!r} has no ReaL labels: they are for {labels} pictures with names such as "
        "ILSVRC2012_val_00000001.JPEG"
    )


def subset_mask(subset: str, num_classes: int, table: np.ndarray) -> np.ndarray:
    """Which classes a model may choose from, bool `(num_classes,)`: those of one of `SUBSETS`.

    'data' takes those that the data set has, by its `label_table`.

    Raises:
      DatasetError: no such subset, or the model or the data set has not its classes.
    """
    check_choice("subset", subset, SUBSETS, DatasetError)
    if subset != "data" and num_classes != 1000:
        raise DatasetError(f"subset {subset!r} is of ImageNet's 1,000 classes, the model has {num_classes}")
    mask = np.zeros(num_classes, np.bool_)
    mask[table if subset == "data" else list(_subsets().get(subset, range(1000)))] = True
    if not mask[table].all():
        outside = np.array(list(imagenet_classes()))[table[~mask[table]]].tolist()
        raise DatasetError(f"the data set has classes that {subset!r} has not: {listed(outside)}")
    return mask


@cache
def _subsets() -> dict[str, tuple[int, ...]]:
    text = (files("jeffnet.data") / "imagenet_subsets.tsv").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines())
    return {name: tuple(map(int, indices.split())) for name, indices in rows}


def _read(path: str | os.PathLike, what: str) -> str:
    try:
        return read_text(os.path.expanduser(path))
    except OSError as error:
        raise DatasetError(f"{what} {os.fspath(path)!r} cannot be read ({error.strerror or error})") from None
