"""Typed entries of a configuration, checked alike whether values come from Python, JSON or the command line."""

import contextlib
import functools
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, dataclass_transform

from jeffnet.arch.spec import ModelSpec, as_spec
from jeffnet.errors import ArchitectureError, ConfigError, check_choice
from jeffnet.text.spelling import suggestion

_BEYOND = 2**63


@dataclass_transform(kw_only_default=True, frozen_default=True)
def part(name: str = "") -> Callable[[type], type]:
    """A class decorator for a part of the configuration: a frozen dataclass that checks the types of its entries.

    Its constructor takes lists for tuples, integers for floats, paths for strings and dictionaries for parts within it.
    It raises a ConfigError that names the entry where one is unknown, missing or of another type.

    Args:
      name: prefix of the entries' names, such as `optimizer`.
    """
    prefix = f"{name}." if name else ""

    def decorate(kind: type) -> type:
        kind = dataclass(frozen=True, kw_only=True)(kind)
        plain = kind.__init__

        @functools.wraps(plain)
        def checked(self: Any, /, *unnamed: Any, **entries: Any) -> None:
            if unnamed:
                raise ConfigError(f"{kind.__name__} takes entries by name: write {fields(kind)[0].name}={unnamed[0]!r}")
            plain(self, **_checked(kind, entries, prefix))

        kind.__init__ = checked
        return kind

    return decorate


def choice(choices: Iterable[str], default: str | None = None) -> Any:
    """An entry of a part that is None or one of these texts."""
    return field(default=default, metadata={"choices": tuple(choices)})


def names_of(kind: type) -> list[str]:
    """Dotted names of all entries of a part, including those of the parts within it."""
    names = []
    for name, hint in hints_of(kind).items():
        within = names_of(typing.cast(type, hint)) if is_dataclass(hint) else []
        names += [f"{name}.{entry}" for entry in within] or [name]
    return names


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """Types of a part's entries by name."""
    return typing.get_type_hints(kind)


def checked_value(value: Any, hint: Any, name: str) -> Any:
    """A value converted to an entry's type, `hint`; raises ConfigError, with the entry's name, if that is another."""
    kind = without_none(hint)
    if value is None and kind is not hint:
        return None
    too_large = isinstance(value, int) and abs(value) >= _BEYOND
    if too_large or (isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and kind is not float))):
        raise ConfigError(f"{name} {str(value)[:50]} is no number to compute with")
    if kind is ModelSpec:
        try:
            return as_spec(value)
        except ArchitectureError as error:
            raise ConfigError(f"{name}: {error}") from error
    if isinstance(kind, type) and is_dataclass(kind):
        if isinstance(value, Mapping):
            return kind(**{str(entry): content for entry, content in value.items()})
        if isinstance(value, kind):
            return value
        raise ConfigError(f"{name} {value!r} has no entries: write {kind.__name__}(...)")
    origin, items = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        if isinstance(value, list | tuple) and (items[-1] is Ellipsis or len(value) == len(items)):
            return tuple(checked_value(item, items[0], f"{name}[{number}]") for number, item in enumerate(value))
    elif origin is typing.Literal:
        if value in items:
            return value
    elif (converted := _converted(value, kind)) is not None:
        return converted
    raise ConfigError(f"{name} {value!r} is not {described(kind)}{_way_out(value, kind)}")


def without_none(hint: Any) -> Any:
    """The type of an entry without `| None`."""
    if not isinstance(hint, types.UnionType):
        return hint
    return next(kind for kind in typing.get_args(hint) if kind is not type(None))


def described(kind: Any) -> str:
    """A type in words, for error messages."""
    items = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(items)}"
    if not items:
        return f"a value of type {kind.__name__}"
    if is_dataclass(items[0]):
        entries = ", ".join(f'"{field.name}": ...' for field in fields(items[0]))
        return f"a list such as [{{{entries}}}]"
    return f"{'a list of' if items[-1] is Ellipsis else len(items)} {items[0].__name__} values"


def check_range(name: str, value: float | None, least: float, most: float = math.inf) -> None:
    """Raises ConfigError where a value is neither None nor a finite number in a range, as of `[least, most]`."""
    if value is not None and not (least <= value <= most and math.isfinite(value)):
        limits = f"finite, and at least {least}" if value == math.inf else f"at least {least}"
        limits = limits if most == math.inf else f"within [{least}, {most}]"
        raise ConfigError(f"{name} {value} must be {limits}")


def check_positive(name: str, value: float | None, way_out: str = "") -> None:
    """Raises ConfigError where a value is neither None nor positive and finite."""
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"{name} {value} must be positive{way_out}")


def check_below_one(name: str, value: float | None) -> None:
    """Raises ConfigError where a value is neither None nor within [0, 1)."""
    if value is not None and not 0 <= value < 1:
        raise ConfigError(f"{name} {value} is outside [0, 1)")


def check_factor(name: str, value: float | None, way_out: str = "") -> None:
    """Raises ConfigError where a value is neither None nor within (0, 1]."""
    if value is not None and not 0 < value <= 1:
        raise ConfigError(f"{name} {value} is outside (0, 1]{way_out}")


def _checked(kind: type, entries: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    hints = hints_of(kind)
    for name in entries:
        if name not in hints:
            known = [f"{prefix}{entry}" for entry in names_of(kind)]
            raise ConfigError(f"unknown entry {prefix}{name}{suggestion(f'{prefix}{name}', known)}")
    values = {name: checked_value(value, hints[name], f"{prefix}{name}") for name, value in entries.items()}
    for entry in fields(kind):
        value, choices = values.get(entry.name), entry.metadata.get("choices")
        if entry.name not in values and entry.default is MISSING and entry.default_factory is MISSING:
            raise ConfigError(f"{prefix}{entry.name} is missing: {kind.__name__} needs {entry.name}=...")
        if choices and value is not None:
            check_choice(f"{prefix}{entry.name}", value, choices)
    return values


def _converted(value: Any, kind: type) -> Any:
    """The value as a bool, number or string of this type; None where it is of another type."""
    if isinstance(value, bool) or kind is bool:
        return value if isinstance(value, bool) and kind is bool else None
    if kind is float and isinstance(value, numbers.Real):
        return float(value)
    if kind is int and isinstance(value, numbers.Integral):
        return int(value)
    if kind is str and isinstance(value, str | os.PathLike):
        return os.fsdecode(value)
    return value if isinstance(value, kind) else None


def _way_out(value: Any, kind: Any) -> str:
    if isinstance(value, str) and kind in (int, float):
        with contextlib.suppress(ValueError):
            kind(value)
            return f": write {value} without quotes"
    return ""
