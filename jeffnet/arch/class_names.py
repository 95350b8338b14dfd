"""Names of classes compared: which of a model's classes another list of names means.

Validation, training, distillation and resuming all decide it here.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest

from jeffnet.arch.imagenet import LABEL_SETS, imagenet_classes, known_classes
from jeffnet.text.names import listed


def class_indices(names: Sequence[str], num_classes: int, model_classes: Sequence[str] = ()) -> tuple[int, ...] | None:
    """Which of a model's classes each name means; None if that cannot be told.

    Names decide if the model has any, in the order of its logits; a part of the model's classes is enough. Classes
    without names have ImageNet's WordNet identifiers if there are as many as in one of its sets. ImageNet's 1,000
    titles in their order count as its identifiers. Numbers from 0 on count as names for a model without names; for
    ImageNet's classes only all of them, or ten digits would be ten kinds of fish. If neither says anything and there
    are as many of each, the order decides.
    """
    imagenet = known_classes(num_classes)
    known = tuple(model_classes) or imagenet
    has_titles = known == imagenet and num_classes == LABEL_SETS["imagenet1k"]
    in_order = (known, tuple(imagenet_classes().values())) if has_titles else (known,)
    if known and tuple(names) in in_order:
        return tuple(range(num_classes))
    uses = Counter(known)
    index = {name: place for place, name in enumerate(known) if uses[name] == 1}
    if known and all(name in index for name in names):
        return tuple(index[name] for name in names)
    numbers = [int(name) for name in names if name.isdecimal() and len(name) < 19]
    complete = num_classes == len(names) if known else len(names) <= num_classes
    if known in ((), imagenet) and complete and sorted(numbers) == list(range(len(names))):
        return tuple(numbers)
    return tuple(range(num_classes)) if not known and len(names) == num_classes else None


def order_doubt(names: Sequence[str], num_classes: int, model_classes: Sequence[str] = ()) -> str:
    """Why classes that were matched by their order alone may be others; empty where there is no doubt.

    jeffnet and torchvision sort class folders as text, timm by numbers and without regard to case.
    """
    names = list(names)
    if model_classes or names != sorted(names) or class_indices(names, num_classes) != tuple(range(num_classes)):
        return ""
    natural = sorted(names, key=_natural)
    if natural == names:
        return ""
    return (
        f"the weights do not name their classes, which are taken in the order {listed(names)}; timm sorts folders as "
        f"{listed(natural)}"
    )


def class_difference(names: Sequence[str], others: Sequence[str]) -> str:
    """How two lists of class names differ, in a few words, such as `pear, zapple, not apple, pear`."""
    texts = listed(names, beside=others), listed(others, beside=names)
    if texts[0] != texts[1]:
        return f"{texts[0]}, not {texts[1]}"
    # The difference is among those that are not shown.
    pairs = list(zip_longest(names, others, fillvalue=""))
    place = next((place for place, (one, other) in enumerate(pairs) if one != other), 0)
    return f"{pairs[place][0]!a} in place {place} of {len(names)}, not {pairs[place][1]!a} of {len(others)}"


def _natural(name: str) -> list[str | tuple[int, str]]:
    # The order of timm's `natural_key`: text and numbers alternate; the length comes first, since Python makes no `int`
    # of thousands of digits.
    parts = re.split(r"(\d+)", name.lower())
    return [(len(part.lstrip("0")), part.lstrip("0")) if place % 2 else part for place, part in enumerate(parts)]
