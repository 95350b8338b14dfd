"""The 1,000 classes of ImageNet-1k (Russakovsky et al., arXiv:1409.0575); names are WordNet's."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files


@cache
def imagenet_classes() -> dict[str, str]:
    """Name of each class by WordNet identifier (`n01440764`), in the order of the logits."""
    text = (files("jeffnet.arch") / "imagenet_classes.tsv").read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines())


def class_titles(classes: Sequence[str]) -> tuple[str, ...]:
    """Names for people: WordNet's first where a class is one of ImageNet's identifiers, else the class itself."""
    known = imagenet_classes()
    return tuple(known[name].partition(",")[0] if name in known else name for name in classes)
