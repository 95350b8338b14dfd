"""Communication between devices in a compiled program, read from its text."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

# Bytes of an array that one device sends, for a group of n, by the ring algorithm; n is above 1. The array is the
# collective's whole one: of an all-gather its output, of a reduce-scatter its input.
_SENT: dict[str, Callable[[int], float]] = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}

_COMPUTATION = re.compile(r"^(?:ENTRY\s+)?%?([\w.\-]+)\s+\(.*\{\s*$")
_CALLED = re.compile(r"(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT\s+)?%?[\w.\-]+ = (.*?) ({'|'.join(_SENT)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})?\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
# Axes of a mesh, and those of them along which devices exchange data.
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Collective:
    """One instruction by which devices exchange data.

    Attributes:
      kind: such as 'all-reduce'; a key of `_SENT`.
      sizes: bytes of the arrays that it is about; several where XLA combined instructions into one. Of an all-gather
        they are those of the gathered arrays, of a reduce-scatter those before it.
      group: how many devices take part with each other.
      times: how often a step runs it; one in a loop of unknown length counts as if the loop ran once.
    """

    kind: str
    sizes: tuple[int, ...]
    group: int
    times: int = 1

    @property
    def bytes(self) -> int:
        """Bytes of all its arrays."""
        return sum(self.sizes)

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a step, by a ring."""
        return self.times * self.bytes * _SENT[self.kind](self.group) if self.group > 1 else 0.0


def collectives(text: str) -> list[Collective]:
    """The collectives that a compiled program runs.

    Args:
      text: `jax.jit(f).lower(...).compile().as_text()`, that is HLO after partitioning.
    """
    computations, entry = _computations(text)
    devices = _devices(text)
    return [
        _collective(match, line, devices, times)
        for name, times in _times(computations, entry).items()
        for line in computations.get(name, ())
        if times and (match := _COLLECTIVE.match(line))
    ]


def by_kind(found: Iterable[Collective]) -> dict[str, tuple[int, float]]:
    """How many collectives of each kind a step runs, and the bytes that each device sends by them."""
    totals: dict[str, tuple[int, float]] = {}
    for collective in found:
        count, sent = totals.get(collective.kind, (0, 0.0))
        totals[collective.kind] = count + collective.times, sent + collective.sent
    return totals


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by name, and the name of the entry computation."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[1]
            computations[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            computations[name].append(line)
    return computations, entry


def _times(computations: dict[str, list[str]], entry: str) -> Counter[str]:
    """How often each computation runs in a step."""
    times: Counter[str] = Counter()

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in computations.get(name, ()):
            trips = _TRIPS.search(line) if " while(" in line else None
            for called in _called(line):
                visit(called, count * int(trips[1]) if trips else count)

    visit(entry, 1)
    return times


def _called(line: str) -> list[str]:
    # What an all-reduce or a fusion applies to elements has no collectives: to visit it takes time alone.
    if " fusion(" in line or _COLLECTIVE.match(line):
        return []
    branches = _BRANCHES.search(line)
    return _CALLED.findall(line) + ([name.strip(" %") for name in branches[1].split(",")] if branches else [])


def _devices(text: str) -> int:
    counts = [re.search(rf"{name}=(\d+)", text.partition("\n")[0]) for name in ("num_partitions", "replica_count")]
    return math.prod(int(match[1]) for match in counts if match)


def _collective(match: re.Match[str], line: str, devices: int, times: int) -> Collective:
    kind, is_async = match[2], match[3] is not None
    sizes, group = _sizes(match[1]), _group(line, kind, devices)
    if is_async and kind != "all-reduce":
        # The tuple has operands, then results, then perhaps counters of four bytes.
        arrays = [size for size in sizes if size] if kind != "collective-permute" else sizes[:2]
        sizes = arrays[len(arrays) // 2 :]
    if kind == "reduce-scatter":
        sizes = [size * group for size in sizes]
    return Collective(kind, tuple(sizes), group, times)


def _sizes(shape: str) -> list[int]:
    return [
        _bits(dtype) * math.prod(int(length) for length in lengths.split(",") if length) // 8
        for dtype, lengths in _ARRAY.findall(shape)
    ]


def _bits(dtype: str) -> int:
    """Bits of an element type: `f32`, `bf16`, `s8`, `u32`, `pred`, `f8e4m3fn`, `c64`."""
    digits = re.search(r"\d+", dtype)
    return 8 if dtype == "pred" or digits is None else int(digits[0])


def _group(line: str, kind: str, devices: int) -> int:
    if kind == "collective-permute":
        return devices
    if match := _MESH.search(line):
        lengths = {axis: int(length) for axis, length in re.findall(r"'([^']+)'=(\d+)", match[1])}
        return math.prod(lengths[axis] for axis in re.findall(r"'([^']+)'", match[2]))
    if match := _IOTA.search(line):
        return int(match[2])
    match = _LISTED.search(line)
    if match is None or match[1] is None:
        return devices  # no groups: all take part
    return max(len(re.findall(r"\d+", group)) for group in match[1].split("}")) or devices
