"""Pictures that are there twice: files with the same content, and pictures that look almost the same."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

_SIDE, _FREQUENCIES = 32, 8
_ANGLES = np.pi / _SIDE * np.outer(np.arange(_FREQUENCIES), np.arange(_SIDE) + 0.5)
_COSINES = np.cos(_ANGLES)
_WEIGHTS = np.uint64(1) << np.arange(63, -1, -1, dtype=np.uint64)
# Hashes that differ in at most 7 bits differ in at most one bit of at least one of these parts.
_PARTS, _PART_BITS = 4, 16
MOST_BITS = 2 * _PARTS - 1
_PAIRS_AT_ONCE = 1 << 21
# Pictures whose mean colours, of 0 to 1, are further apart than this are not the same picture: hashes ignore colour.
_FARTHEST = 0.15


class Group(NamedTuple):
    """Pictures that are the same.

    Attributes:
      members: their numbers, ascending.
      bits: in how many bits the hashes of neighbours differ at most; None if the files have the same content.
    """

    members: tuple[int, ...]
    bits: int | None


def perceptual_hash(grey: Image.Image) -> int:
    """64 bits that stay nearly the same when a picture is scaled, compressed or brightened.

    They say which of the 64 lowest frequencies of the cosine transform, at 32 x 32 pixels, are above their median: the
    bits of `imagehash.phash`, which would bring PyWavelets along for these lines.

    Args:
      grey: a picture of mode 'L'.

    Returns:
      An integer from 0 to 2**64 - 1.
    """
    pixels = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float64)
    low = (_COSINES @ pixels @ _COSINES.T).reshape(-1)
    return int(_WEIGHTS[low > np.median(low)].sum())


def same_content(digests: Sequence[str]) -> list[Group]:
    """Groups of pictures whose files have the same digest; pictures without a digest are in none."""
    members: dict[str, list[int]] = defaultdict(list)
    for number, digest in enumerate(digests):
        if digest:
            members[digest].append(number)
    return [Group(tuple(numbers), None) for numbers in members.values() if len(numbers) > 1]


def same_look(
    hashes: np.ndarray, colours: np.ndarray, digests: Sequence[str], usable: np.ndarray, bits: int
) -> list[Group]:
    """Groups of pictures that look the same, but for groups whose files all have the same content.

    Args:
      hashes: of `perceptual_hash`, uint64 `(N,)`.
      colours: mean of each channel in [0, 1], `(N, C)`.
      digests: of the content, one for each picture.
      usable: bool `(N,)`; other pictures are in no group.
      bits: in how many bits hashes may differ, 0 to `MOST_BITS`.

    Returns:
      The groups. A picture joins a group by any of its members, and brings those of the same content along.
    """
    copies: dict[str, list[int]] = defaultdict(list)
    for number in np.flatnonzero(usable).tolist():
        copies[digests[number]].append(number)
    first = np.array([numbers[0] for numbers in copies.values()], np.int64)
    if len(first) < 2:
        return []
    pairs = first[near_pairs(hashes[first], bits)]
    pairs = pairs[(np.abs(colours[pairs[:, 0]] - colours[pairs[:, 1]]) <= _FARTHEST).all(1)]
    if not len(pairs):
        return []
    apart = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
    group_of = _components(pairs)
    members, widest = defaultdict(list), defaultdict(int)
    for number, group in group_of.items():
        members[group] += copies[digests[number]]
    for (number, _), distance in zip(pairs.tolist(), apart.tolist(), strict=True):
        widest[group_of[number]] = max(widest[group_of[number]], distance)
    return [Group(tuple(sorted(numbers)), widest[group]) for group, numbers in members.items()]


def _components(pairs: np.ndarray) -> dict[int, int]:
    """The connected component of each number that occurs in a pair, called by one of its numbers."""
    parents: dict[int, int] = {}

    def root(number: int) -> int:
        while parents.setdefault(number, number) != number:
            parents[number] = number = parents[parents[number]]
        return number

    for left, right in pairs.tolist():
        parents[root(left)] = root(right)
    return {number: root(number) for number in sorted(parents)}


def near_pairs(hashes: np.ndarray, bits: int) -> np.ndarray:
    """All pairs of hashes that differ in at most so many bits.

    Hashes are looked up by each quarter of their bits, so that the work grows with N * N / 65,536 and not N * N.

    Args:
      hashes: uint64 `(N,)`.
      bits: 0 to `MOST_BITS`.

    Returns:
      int64 `(P, 2)`, places of each pair, the smaller one first, each pair once.

    Source: Norouzi et al., "Fast exact search in Hamming space with multi-index hashing", arXiv:1307.2982.
    """
    flips = [0, *(1 << bit for bit in range(_PART_BITS))] if bits >= _PARTS else [0]
    found = [np.zeros((0, 2), np.int64)]
    for part in range(_PARTS):
        keys = (hashes >> np.uint64(part * _PART_BITS)).astype(np.int64) & ((1 << _PART_BITS) - 1)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        edges = np.searchsorted(keys, np.arange((1 << _PART_BITS) + 1))
        for flip in flips:
            partners = keys ^ flip
            # Each pair once: with hashes further on, or from the smaller key to the larger one.
            begin = edges[partners] if flip else np.arange(1, len(keys) + 1)
            end = np.where(keys <= partners, edges[partners + 1], begin)
            for left, right in _ranges(begin, end):
                pairs = np.stack([order[left], order[right]], axis=1)
                near = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]) <= bits
                found.append(np.sort(pairs[near], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _ranges(begin: np.ndarray, end: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of a place and each number in its range from `begin` to `end`, in pieces that fit memory."""
    counts = end - begin
    before = np.concatenate([[0], np.cumsum(counts)])
    start = 0
    while start < len(counts):
        stop = max(int(np.searchsorted(before, before[start] + _PAIRS_AT_ONCE, side="right")) - 1, start + 1)
        places = np.repeat(np.arange(start, stop), counts[start:stop])
        within = np.arange(len(places)) - np.repeat(before[start:stop] - before[start], counts[start:stop])
        if len(places):
            yield places, begin[places] + within
        start = stop
