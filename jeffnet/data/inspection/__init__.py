"""What a data set holds, before one trains on it: broken files, sizes, classes, duplicates, statistics of pixels.

from jeffnet.data.inspection import inspect_data

report = inspect_data("pictures")
print(report.splits["train"].classes, report.splits["train"].mean)
for group in report.duplicates:
    print(group.pictures, group.across_splits)
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jeffnet.data.inspection.duplicates import MOST_BITS, Group, same_content, same_look
from jeffnet.data.inspection.facts import Facts, scan
from jeffnet.data.open import open_source
from jeffnet.data.sources import Source
from jeffnet.errors import ConfigError, DatasetError
from jeffnet.system.progress import progress_bar
from jeffnet.system.reading import user_path
from jeffnet.text.names import portable, printable

__all__ = ["Broken", "Duplicates", "Inspection", "Picture", "SplitReport", "inspect_data"]

# Pictures whose channels vary less than this, of 0 to 1, are of one colour: their hashes are noise.
_FLAT = 0.01
_QUANTILES = {"min": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Picture:
    """A picture of a data set.

    Attributes:
      split: that it is in.
      name: which one it is, such as its path in the data set.
      label: name of its class.
    """

    split: str
    name: str
    label: str


@dataclass(frozen=True)
class Broken:
    """A picture that cannot be decoded.

    Attributes:
      split: that it is in.
      name: which one it is.
      reason: what is wrong, and what to do.
    """

    split: str
    name: str
    reason: str


@dataclass(frozen=True)
class Duplicates:
    """Pictures that are the same.

    Attributes:
      pictures: two or more.
      bits: in how many of their 64 bits the perceptual hashes of neighbours differ at most; None if the files have the
        same content.
      across_splits: whether they are in more than one split: such pictures make scores in validation too high.
      across_classes: whether they have more than one label: at most one of these is right.
    """

    pictures: tuple[Picture, ...]
    bits: int | None
    across_splits: bool
    across_classes: bool


@dataclass(frozen=True)
class SplitReport:
    """A split of a data set. What is about pixels is of the pictures that can be decoded.

    Attributes:
      pictures: how many there are.
      broken: how many of them cannot be decoded.
      classes: number of pictures by name of the class, in the order of labels.
      width: least, greatest and quantiles, by name.
      height: likewise.
      formats: number of pictures by format of the file; '' where there are pixels alone.
      modes: number of pictures by Pillow's mode in the file, such as 'RGB', 'L' and 'CMYK'.
      turned: how many have an EXIF orientation, which training and validation ignore.
      flat: names of the pictures that have one colour.
      mean: of the pixels in [0, 1], by channel; every picture counts alike. For `data.mean`.
      std: standard deviation of all pixels around it. For `data.std`.
    """

    pictures: int
    broken: int
    classes: dict[str, int]
    width: dict[str, float]
    height: dict[str, float]
    formats: dict[str, int]
    modes: dict[str, int]
    turned: int
    flat: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Inspection:
    """What is in a data set.

    Attributes:
      data: its name.
      splits: by name.
      unopened: why other splits could not be opened, by name.
      broken: all pictures that cannot be decoded.
      duplicates: pictures whose files have the same content; those across splits come first.
      near_duplicates: pictures that look almost the same, but are not all of the same content.
      sources: the splits' pictures.
      facts: what was read of each picture, by split.
    """

    data: str
    splits: dict[str, SplitReport]
    unopened: dict[str, str]
    broken: tuple[Broken, ...]
    duplicates: tuple[Duplicates, ...]
    near_duplicates: tuple[Duplicates, ...]
    sources: Mapping[str, Source]
    facts: Mapping[str, Sequence[Facts]]

    def entries(self) -> dict[str, Any]:
        """All of it but `sources` and `facts`, as JSON has it."""
        names = ("splits", "broken", "duplicates", "near_duplicates")
        parts = {name: _plain(getattr(self, name)) for name in names}
        return {"data": self.data, "splits": parts.pop("splits"), "unopened": self.unopened, **parts}


def inspect_data(
    data: str | os.PathLike[str],
    splits: Sequence[str] = ("train", "val"),
    *,
    near: int = 6,
    threads: int | None = None,
    data_dir: str | None = None,
    progress: bool = False,
) -> Inspection:
    """Read every picture of a data set once, and report what is in it.

    An interrupted call is continued by the next one: what was read is kept in the cache folder until all is.

    Args:
      data: any data set that `jeffnet.data.open.open_source` opens.
      splits: which ones; those that cannot be opened are reported, unless that is all of them.
      near: in how many of 64 bits the perceptual hashes of near duplicates may differ, 0 to 7. Copies that were scaled,
        compressed, made grey or a little brighter, or that lost a rim of 2 %, mostly differ in 6 or fewer, different
        photographs in about 32. Mirrored and strongly cropped copies are not found.
      threads: how many read pictures; None takes one for each processor.
      data_dir: where data sets of `tfds:` are prepared.
      progress: show how far it is on standard error.

    Returns:
      The report.

    Raises:
      DatasetError: no split can be opened.
      ConfigError: no split is given, or `near` is out of range.
      OutputError: another process inspects the same data set.
    """
    data = os.fspath(data)
    if not splits or not 0 <= near <= MOST_BITS:
        raise ConfigError(f"near {near} is not from 0 to {MOST_BITS}" if splits else "splits: give at least one")
    sources, unopened = _opened(data, splits, data_dir)
    total = sum(map(len, sources.values()))
    place = str(user_path(data).absolute()) if user_path(data).exists() else data
    facts = {}
    with progress_bar(f"reading {printable(portable(data))}", total, "picture", shown=progress) as bar:
        for split, source in sources.items():
            facts[split] = scan(source, repr((place, split)), threads, bar.update)
    exact, close = _duplicates(sources, facts, near)
    return Inspection(
        data=data,
        splits={split: _report(source, facts[split]) for split, source in sources.items()},
        unopened=unopened,
        broken=tuple(
            Broken(split, source.name(number), row.error)
            for split, source in sources.items()
            for number, row in enumerate(facts[split])
            if row.error
        ),
        duplicates=exact,
        near_duplicates=close,
        sources=sources,
        facts=facts,
    )


def _opened(data: str, splits: Sequence[str], data_dir: str | None) -> tuple[dict[str, Source], dict[str, str]]:
    """The splits that can be opened, and the errors of the others; raises the first one if that is all of them."""
    sources, errors = {}, {}
    for split in dict.fromkeys(splits):
        try:
            sources[split] = open_source(data, split, channels=3, data_dir=data_dir)
        except DatasetError as error:
            errors[split] = error
    if not sources:
        raise next(iter(errors.values()))
    return sources, {split: str(error) for split, error in errors.items()}


def _report(source: Source, facts: Sequence[Facts]) -> SplitReport:
    readable = [row for row in facts if not row.error]
    labels = np.bincount([row.label for row in facts if row.label >= 0], minlength=len(source.classes))
    mean, square = np.zeros((2, 3))
    if readable:
        mean, square = np.array([(row.mean, row.square) for row in readable]).mean(0)
    return SplitReport(
        pictures=len(facts),
        broken=len(facts) - len(readable),
        classes=dict(zip(source.classes, labels.tolist(), strict=True)),
        width=_spread([row.width for row in readable]),
        height=_spread([row.height for row in readable]),
        formats=dict(Counter(row.format for row in readable).most_common()),
        modes=dict(Counter(row.mode for row in readable).most_common()),
        turned=sum(row.orientation != 1 for row in readable),
        flat=tuple(source.name(number) for number, row in enumerate(facts) if _is_flat(row)),
        mean=tuple(mean.round(4).tolist()),
        std=tuple(np.sqrt(np.maximum(square - mean**2, 0)).round(4).tolist()),
    )


def _is_flat(row: Facts) -> bool:
    return not row.error and row.deviation < _FLAT


def _spread(values: Sequence[int]) -> dict[str, float]:
    quantiles = np.quantile(values, list(_QUANTILES.values())).tolist() if values else []
    return dict(zip(_QUANTILES, quantiles, strict=bool(values)))


def _duplicates(
    sources: Mapping[str, Source], facts: Mapping[str, Sequence[Facts]], near: int
) -> tuple[tuple[Duplicates, ...], tuple[Duplicates, ...]]:
    """Duplicates over all splits: of the same content, and of the same look."""
    places = [(split, number) for split in sources for number in range(len(sources[split]))]
    rows = [row for split in sources for row in facts[split]]
    digests = [row.digest for row in rows]
    colours = np.array([row.mean or (0.0,) * 3 for row in rows]).reshape(-1, 3)
    usable = np.array([not row.error and not _is_flat(row) for row in rows], np.bool_)

    def described(group: Group) -> Duplicates:
        pictures = []
        for split, number in (places[member] for member in group.members):
            source, label = sources[split], facts[split][number].label
            pictures.append(Picture(split, source.name(number), source.classes[label]))
        counts = [len({getattr(picture, what) for picture in pictures}) for what in ("split", "label")]
        return Duplicates(tuple(pictures), group.bits, *(count > 1 for count in counts))

    def sorted_groups(groups: Sequence[Group]) -> tuple[Duplicates, ...]:
        return tuple(sorted(map(described, groups), key=lambda group: (not group.across_splits, group.bits or 0)))

    hashes = np.array([row.hash for row in rows], np.uint64)
    return sorted_groups(same_content(digests)), sorted_groups(same_look(hashes, colours, digests, usable, near))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [asdict(one) for one in value] if isinstance(value, tuple) else asdict(value)
