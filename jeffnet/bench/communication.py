"""Communication between devices in a compiled program, read from its text."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
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
KINDS = tuple(_SENT)

_COMPUTATION = re.compile(r"^(?:ENTRY\s+)?%?([\w.\-]+)\s+\(.*\{\s*$")
_CALLED = re.compile(r"(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT\s+)?%?[\w.\-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})?\}")
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=")
# Axes of a mesh, and those of them along which devices exchange data.
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_NAME = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Collective:
    """One instruction by which devices exchange data.

    Attributes:
      kind: one of `KINDS`.
      sizes: bytes of the arrays that it is about; several where XLA combined instructions into one. Of an all-gather
        they are those of the gathered arrays, of a reduce-scatter those before it.
      group: how many devices take part with each other.
      times: how often a step runs it.
      bounded: whether `times` is known; otherwise it is in a loop of unknown length, and counted once for each.
      source: the operation that it comes from, as JAX names it.
    """

    kind: str
    sizes: tuple[int, ...]
    group: int
    times: int = 1
    bounded: bool = True
    source: str = ""

    @property
    def bytes(self) -> int:
        """Bytes of all its arrays."""
        return sum(self.sizes)

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a step, by a ring."""
        return self.times * self.bytes * _SENT[self.kind](self.group) if self.group > 1 else 0.0


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program, in the order of its text.

    Args:
      text: `jax.jit(f).lower(...).compile().as_text()`, that is HLO after partitioning.
    """
    computations, entry = _computations(text)
    devices = _devices(text)
    times = _times(computations, entry)
    found = []
    for name, lines in computations.items():
        count, bounded = times.get(name, (0, True))
        for line in lines:
            if count and (match := _COLLECTIVE.match(line)):
                found.append(_collective(match, line, devices, count, bounded))
    return found


def by_kind(found: Iterable[Collective]) -> dict[str, tuple[int, float]]:
    """How many collectives of each kind a step runs, and the bytes that each device sends by them."""
    totals: dict[str, tuple[int, float]] = {}
    for each in found:
        count, sent = totals.get(each.kind, (0, 0.0))
        totals[each.kind] = count + each.times, sent + each.sent
    return totals


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by name, and the name of the entry computation."""
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[1]
            found[name] = []
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            found[name].append(line)
    return found, entry


def _times(computations: dict[str, list[str]], entry: str) -> dict[str, tuple[int, bool]]:
    """How often each computation runs in a step, and whether that is known."""
    times: dict[str, tuple[int, bool]] = {}

    def visit(name: str, count: int, bounded: bool) -> None:
        before, known = times.get(name, (0, True))
        times[name] = before + count, known and bounded
        for line in computations.get(name, ()):
            loop = " while(" in line
            trips = _TRIPS.search(line)
            factor = int(trips[1]) if loop and trips else 1
            for called in _called(line):
                visit(called, count * factor, bounded and (trips is not None or not loop))

    visit(entry, 1, True)
    return times


def _called(line: str) -> list[str]:
    # What an all-reduce or a fusion applies to elements has no collectives: to visit it takes time alone.
    if " fusion(" in line or _COLLECTIVE.match(line):
        return []
    branches = _BRANCHES.search(line)
    return _CALLED.findall(line) + ([each.strip(" %") for each in branches[1].split(",")] if branches else [])


def _devices(text: str) -> int:
    counts = [re.search(rf"{name}=(\d+)", text.partition("\n")[0]) for name in ("num_partitions", "replica_count")]
    return math.prod(int(match[1]) for match in counts if match)


def _collective(match: re.Match[str], line: str, devices: int, times: int, bounded: bool) -> Collective:
    kind, is_async = match[2], match[3] is not None
    sizes, group = _sizes(match[1]), _group(line, kind, devices)
    if is_async and kind != "all-reduce":
        # The tuple has operands, then results, then perhaps counters of four bytes.
        arrays = [size for size in sizes if size] if kind != "collective-permute" else sizes[:2]
        sizes = arrays[len(arrays) // 2 :]
    if kind == "reduce-scatter":
        sizes = [size * group for size in sizes]
    source = _NAME.search(line)
    return Collective(kind, tuple(sizes), group, times, bounded, source[1] if source else "")


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
    return _longest(re.findall(r"\{([\d, ]*)\}", match[1])) or devices


def _longest(groups: Sequence[str]) -> int:
    return max((len([member for member in group.split(",") if member.strip()]) for group in groups), default=0)
