"""Checks of the values in a `ModelSpec`, which may come from a file: each returns the value as plain Python has it."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from jeffnet.errors import ArchitectureError

# Numbers of block strings, and widths: those of the largest networks are a tenth of it.
LARGEST = 2**16
_DEEPEST = 100.0
_EXAMPLE = "[['ds_r1_k3_s1_c16'], ['ir_r2_k3_s2_e6_c24']]"


def checked_stages(stages: Any) -> tuple[tuple[str, ...], ...]:
    """Block strings grouped by stage, where a stage may be a single string; raises ArchitectureError."""
    groups = [(stage,) if isinstance(stage, str) else stage for stage in stages] if _is_sequence(stages) else []
    if not groups or not all(
        _is_sequence(group) and group and all(isinstance(text, str) for text in group) for group in groups
    ):
        raise ArchitectureError(
            f"stages {_shown(stages)}: give a list of stages, each a list of block strings, such as {_EXAMPLE}"
        )
    return tuple(map(tuple, groups))


def checked_depth(depth: Any, stages: int) -> float | tuple[float, ...]:
    """A factor for all stages, or one for each; raises ArchitectureError."""
    if not isinstance(depth, list | tuple):
        return number("depth", depth, _DEEPEST)
    if len(depth) != stages:
        raise ArchitectureError(
            f"depth has {len(depth)} numbers for {stages} stages: give one for each stage, or one for all"
        )
    return tuple(number("depth", factor, _DEEPEST) for factor in depth)


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number in a range; raises ArchitectureError."""
    if not _is(Integral, value) or not least <= value <= most:
        raise ArchitectureError(f"{name} {_shown(value)}: give a whole number from {least} to {most}")
    return int(value)


def number(name: str, value: Any, most: float, may_be_0: bool = False) -> float:
    """A number above 0, or also 0, up to a largest; raises ArchitectureError."""
    # NaN fails the comparison.
    if not _is(Real, value) or not 0 <= value <= most or (value == 0 and not may_be_0):
        raise ArchitectureError(
            f"{name} {_shown(value)}: give a number {'from' if may_be_0 else 'above'} 0 to {most:g}"
        )
    return float(value)


def check_switch(name: str, value: Any) -> None:
    """Raises ArchitectureError where a value is neither True nor False."""
    if not isinstance(value, bool):
        raise ArchitectureError(f"{name} {_shown(value)}: give True or False")


def _is(kind: type, value: Any) -> bool:
    """Whether a value is a number of a kind: NumPy's are too, truth values are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list) or (isinstance(value, Sequence) and not isinstance(value, str | bytes))


def _shown(value: Any, most: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]} ..."
