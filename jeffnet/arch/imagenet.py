"""The classes of ImageNet: the 1,000 of ImageNet-1k, and the sets of ImageNet-21k that weights are trained on.

Sources: Russakovsky et al., arXiv:1409.0575; Ridnik et al., "ImageNet-21K Pretraining for the Masses",
arXiv:2104.10972; timm for `imagenet12k`. Names are WordNet's.
"""

import gzip
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

# How many classes each set has. All sets but the first are part of `imagenet21k`, in its order.
LABEL_SETS = {"imagenet1k": 1000, "imagenet12k": 11_821, "imagenet21k_miil": 11_221, "imagenet21k": 21_843}
_FLAGS = {"imagenet12k": "k", "imagenet21k_miil": "m", "imagenet21k": ""}
_IDENTIFIER = re.compile(r"n\d{8}")
_BINOMIAL = re.compile("[A-Z][a-z]+ [a-z]+")  # a species' scientific name
_LONGEST_TITLE = 28  # as long as the longest of WordNet's first names in ImageNet-1k: figures have room for it
# Classes of ImageNet-1k whose names are the same.
_HOMONYMS = {"n02012849": "crane (bird)", "n03126707": "crane (machine)", "n03710637": "maillot (tights)"}


@cache
def imagenet_classes() -> dict[str, str]:
    """Name of each class of ImageNet-1k by WordNet identifier (`n01440764`), in the order of the logits."""
    text = (files("jeffnet.arch") / "imagenet_classes.tsv").read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines())


@cache
def label_set(name: str) -> dict[str, str]:
    """Name of each class by WordNet identifier, in the order of the logits.

    Args:
      name: one of `LABEL_SETS`.
    """
    if name == "imagenet1k":
        return imagenet_classes()
    packed = (files("jeffnet.arch") / "imagenet21k.tsv.gz").read_bytes()
    rows = (line.split("\t") for line in gzip.decompress(packed).decode().splitlines())
    return {identifier: title for identifier, flags, title in rows if _FLAGS[name] in flags}


def known_classes(num_classes: int) -> tuple[str, ...]:
    """The set of ImageNet's classes that has this many.

    Args:
      num_classes: such as 1000 or 21,843.

    Returns:
      WordNet identifiers; empty if no set has so many.
    """
    return next((tuple(label_set(name)) for name, count in LABEL_SETS.items() if count == num_classes), ())


def class_titles(classes: Sequence[str]) -> tuple[str, ...]:
    """Names of classes for people.

    Args:
      classes: WordNet identifiers, or any other names.

    Returns:
      WordNet's first name where a class is one of ImageNet's identifiers, else the class itself. A single word, which
      may mean several things, has WordNet's next common name after it: `ear (spike)`.
    """
    known = imagenet_classes()
    if any(name not in known and _IDENTIFIER.fullmatch(name) for name in classes):
        known = label_set("imagenet21k") | known
    return tuple(_HOMONYMS.get(name) or (_title(known[name]) if name in known else name) for name in classes)


def _title(names: str) -> str:
    first, *others = names.split(", ")
    both = (f"{first} ({other})" for other in others if " " not in first and not _BINOMIAL.fullmatch(other))
    return next((title for title in both if len(title) <= _LONGEST_TITLE), first)
