"""Recipes: files that define a configuration, what the command line replaces in one, and its text.

A recipe is a Python file that defines `config = Config(...)`, or the `config.json` of a run.
`--optimizer.learning_rate 0.1` on the command line replaces one entry of it.
"""

import dataclasses
import difflib
import json
import math
import runpy
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jeffnet.errors import ConfigError, first_line
from jeffnet.reading import parse_json, read_text
from jeffnet.train.config import Config

_BEYOND = 2**63
_BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def load_recipe(path: str | Path) -> Config:
    """The configuration that a file defines: `config` in a Python file, or the whole of a JSON file.

    Raises:
      ConfigError: the file is missing, fails, or defines no `config`.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config {str(path)!r} does not exist; recipes are Python files such as those in configs/")
    if path.suffix == ".json":
        try:
            return from_json(read_text(path), str(path))
        except OSError as error:
            raise ConfigError(f"config {str(path)!r} cannot be read: {error.strerror or error}") from error
    try:
        config = runpy.run_path(str(path)).get("config")
    except ConfigError:
        raise
    except Exception as error:  # a recipe is the user's code: whatever it raises is about the recipe
        raise ConfigError(f"config {str(path)!r} fails: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"config {str(path)!r} must define `config = Config(...)`, from jeffnet.train.config")
    return config


def override(config: Config, overrides: Sequence[tuple[str, str]]) -> Config:
    """`config` with entries replaced, as on the command line.

    Args:
      config: where to start.
      overrides: dotted names and texts, such as `('optimizer.learning_rate', '0.1')`. `none` stands for None; items of
        a sequence are joined by commas, or are JSON where they have entries of their own.

    Raises:
      ConfigError: an unknown name (the message has the nearest), a text that is not of the entry's type, or a whole
        that does not fit together.
    """
    # Checked as a whole at the end: two entries that belong together may come in any order.
    entries = dataclasses.asdict(config)
    for name, text in overrides:
        _set(entries, name, text)
    return _build(Config, entries, "")


def to_json(config: Config) -> str:
    """The whole configuration as JSON; `from_json` is the inverse."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, source: str) -> Config:
    """The configuration in JSON text; entries that are not in it have their defaults.

    Raises:
      ConfigError: it is malformed, or has an entry that this version does not know.
    """
    try:
        return _build(Config, parse_json(text), "")
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ConfigError(f"config {source!r} cannot be read: {error}") from error


def entry_names(within: str = "", kind: type = Config) -> list[str]:
    """Dotted names of all entries; `within` keeps those of one part."""
    names = []
    for name, hint in typing.get_type_hints(kind).items():
        part = entry_names("", typing.cast(type, hint)) if dataclasses.is_dataclass(hint) else []
        names += [f"{name}.{entry}" for entry in part] or [name]
    return [name for name in names if name.startswith(within)]


def entry(config: Config, name: str) -> Any:
    """The value of an entry by its dotted name, as JSON would have it."""
    value: Any = dataclasses.asdict(config)
    for part in name.split("."):
        value = value[part]
    return json.loads(json.dumps(value))


def _set(entries: dict[str, Any], name: str, text: str) -> None:
    kind: Any = Config
    *parents, last = name.split(".")
    for parent in parents:
        kind, entries = _hint(kind, parent, name), entries[parent]
        if not dataclasses.is_dataclass(kind):
            raise ConfigError(f"option --{name} is no entry: --{'.'.join(name.split('.')[:-1])} has none of its own")
    hint = _hint(kind, last, name)
    if dataclasses.is_dataclass(hint):
        raise ConfigError(f"option --{name} is no single entry; entries are {', '.join(entry_names(f'{name}.'))}")
    entries[last] = _parse(text, hint, name)


def _hint(kind: Any, entry: str, full_name: str) -> Any:
    hints = typing.get_type_hints(kind)
    if entry not in hints:
        near = difflib.get_close_matches(full_name, entry_names(), n=1, cutoff=0.0)
        raise ConfigError(f"unknown option --{full_name}; the nearest is --{near[0]}")
    return hints[entry]


def _parse(text: str, hint: Any, name: str) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(None) in kinds and text.lower() == "none":
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    try:
        if kind is bool:
            return _BOOLEANS[text.lower()]
        if typing.get_origin(kind) is typing.Literal:
            return {choice: choice for choice in typing.get_args(kind)}[text]
        if typing.get_origin(kind) is not tuple:
            return kind(text)
        items = typing.get_args(kind)
        if dataclasses.is_dataclass(items[0]):
            return parse_json(text)
        parts = text.split(",") if text else []
        if items[-1] is Ellipsis:
            return tuple(items[0](part) for part in parts)
        return tuple(part_kind(part) for part_kind, part in zip(items, parts, strict=True))
    except (ValueError, KeyError):
        raise ConfigError(f"option --{name} {text!r} is not {_described(kind)}") from None


def _described(kind: Any) -> str:
    items = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(items)}"
    if not items:
        return f"a value of type {kind.__name__}"
    if dataclasses.is_dataclass(items[0]):
        entries = ", ".join(f'"{field.name}": ...' for field in dataclasses.fields(items[0]))
        return f"JSON such as [{{{entries}}}]"
    return f"{'' if items[-1] is Ellipsis else f'{len(items)} '}{items[0].__name__} values joined by commas"


def _build(kind: type, entries: Any, prefix: str) -> Any:
    if not isinstance(entries, Mapping):
        raise ConfigError(f"{prefix.rstrip('.') or 'the configuration'} has no entries: it is {entries!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(entries) - set(hints))
    if unknown:
        raise ConfigError(f"unknown entry {prefix}{unknown[0]}")
    return kind(**{name: _value(value, hints[name], prefix + name) for name, value in entries.items()})


def _value(value: Any, hint: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, f"{name}.")
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in typing.get_args(hint):
            return None
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        if not isinstance(value, list | tuple) or (items[-1] is not Ellipsis and len(value) != len(items)):
            raise ConfigError(f"{name} {value!r} is not {_described(hint)}")
        return tuple(_value(item, items[0], f"{name}[{number}]") for number, item in enumerate(value))
    if isinstance(value, int | float) and not abs(value) < _BEYOND and not (hint is float and abs(value) == math.inf):
        raise ConfigError(f"{name} {str(value)[:50]} is no number to compute with")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if typing.get_origin(hint) is typing.Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{name} {value!r} is not {_described(hint)}")
        return value
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name} {value!r} is not {_described(hint)}")
    return value
